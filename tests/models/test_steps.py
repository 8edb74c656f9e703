"""One update, keys, packing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from skullgen.core.types import Net, State
from skullgen.data import store
from skullgen.models import steps
from skullgen.networks.modules import AXIS

THREEFRY = jax.random.key(5, impl="threefry2x32")


def test_device_and_host_packing_agree():
    pairs = np.random.default_rng(0).random((3, 4, 4, 4, 2)) < 0.5
    bits = store.pack(pairs)
    np.testing.assert_array_equal(steps.pack(jnp.asarray(pairs)), bits)
    np.testing.assert_array_equal(steps.unpack(jnp.asarray(bits), 4), pairs)
    np.testing.assert_array_equal(store.unpack(bits, 4), pairs)


def _draw(step, stream, devices=1, update=0):
    state = State(jnp.int32(step), THREEFRY, {})

    def one(_):
        return steps.normal(steps.keys(state, stream, 4 // devices, update), 2)

    return np.asarray(jax.vmap(one, axis_name=AXIS)(jnp.zeros(devices))).reshape(4, 2)


def test_keys_follow_the_global_sample_step_stream_and_update_and_not_the_device():
    np.testing.assert_array_equal(_draw(3, 1), _draw(3, 1, 2))
    np.testing.assert_array_equal(_draw(3, 1), _draw(3, 1, 4))
    places = [(0, 0, 1, 0), (1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 1, 1)]
    assert len(np.unique([_draw(*place) for place in places])) == 4 * 8
    u = steps.uniform(jax.random.split(THREEFRY, 100))
    assert 0 <= u.min() < 0.1 and 0.9 < u.max() < 1


def test_descend_averages_over_devices_and_reports_the_norm():
    tx = optax.sgd(0.5)
    net = Net({"w": jnp.array([3.0, 4.0])}, {}, tx.init({"w": jnp.zeros(2)}))

    def step(x):
        def loss(params):
            return x * (params["w"] ** 2).sum() / 2, ({}, {"x": x})

        return steps.descend(net, tx, loss, "toy")

    new, metrics = jax.vmap(step, axis_name=AXIS, out_axes=None)(jnp.array([0.5, 1.5]))
    np.testing.assert_allclose(new.params["w"], [1.5, 2.0])  # the mean gradient is w
    np.testing.assert_allclose(metrics["toy_update_norm"], 5.0)
    np.testing.assert_allclose(metrics["x"], 1.0)
