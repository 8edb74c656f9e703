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


def test_keys_follow_the_global_sample_and_not_the_device():
    state = State(jnp.int32(3), THREEFRY, {})

    def draw(devices, update):
        def one(_):
            return steps.normal(steps.keys(state, 1, 4 // devices, update), 2)

        return jax.vmap(one, axis_name=AXIS)(jnp.zeros(devices)).reshape(4, 2)

    np.testing.assert_array_equal(draw(1, 0), draw(2, 0))
    np.testing.assert_array_equal(draw(1, 0), draw(4, 0))
    assert not np.any(draw(1, 0) == draw(1, 1))
    assert len(np.unique(draw(1, 0))) == 8


def test_keys_differ_by_step_and_stream():
    def draw(step, stream):
        state = State(jnp.int32(step), THREEFRY, {})
        one = jax.vmap(lambda _: steps.uniform(steps.keys(state, stream, 2)), axis_name=AXIS)
        return np.asarray(one(jnp.zeros(1)))[0]

    draws = [draw(step, stream) for step in (0, 1) for stream in (0, 1)]
    assert len({value for row in draws for value in row.tolist()}) == 8
    assert all(0 <= value < 1 for row in draws for value in row)


def test_descend_averages_over_devices_and_reports_the_norm():
    tx = optax.sgd(0.5)
    net = Net({"w": jnp.array([3.0, 4.0])}, {}, tx.init({"w": jnp.zeros(2)}))

    def step(x):
        return steps.descend(
            net, tx, lambda p: (x * (p["w"] ** 2).sum() / 2, ({}, {"x": x})), "toy"
        )

    new, metrics = jax.vmap(step, axis_name=AXIS, out_axes=None)(jnp.array([0.5, 1.5]))
    np.testing.assert_allclose(new.params["w"], [1.5, 2.0])  # the mean gradient is w
    np.testing.assert_allclose(metrics["toy_update_norm"], 5.0)
    np.testing.assert_allclose(metrics["x"], 1.0)
