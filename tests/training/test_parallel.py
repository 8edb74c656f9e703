"""The only pmap of training."""

import jax
import jax.numpy as jnp
import numpy as np

from skullgen.data import store
from skullgen.networks.modules import AXIS
from skullgen.training import parallel


def test_each_device_has_a_run_of_samples():
    assert jax.local_device_count() == 2
    pairs = np.arange(6 * 8 * 2).reshape(6, 2, 2, 2, 2) % 3 == 0
    index = np.array([[5, 0, 3, 1], [2, 2, 4, 5]], np.int32)

    def step(state, batch):
        return state + 1, jax.lax.all_gather(batch, AXIS, axis=1, tiled=True)

    labels = np.arange(12.0).reshape(6, 2)

    for data, devices in (
        (parallel.resident(store.pack(pairs)), None),
        (store.pack(pairs), jax.local_devices()[:1]),
    ):
        run = parallel.data_parallel(step, 2, devices)
        state, batch = run(jnp.zeros(()), (data, labels), index)
        np.testing.assert_array_equal(batch.pairs, pairs[index])
        np.testing.assert_array_equal(batch.labels, labels[index])
        assert state == 1


def test_a_batch_is_split_over_the_devices_that_have_equal_parts():
    assert [len(parallel.sharing(batch)) for batch in (1, 2, 3, 4)] == [1, 2, 1, 2]
    assert parallel.resident(np.zeros(2), parallel.sharing(3)).sharding.device_set == {
        jax.devices()[0]
    }
