"""Warps: identity, shifts, inverses, gradients against finite differences, known distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from skullgen.networks import warp

SHAPE = (7, 6, 5)


def points(shape):
    """The places of a grid's own voxels."""
    return jnp.asarray(np.moveaxis(np.indices(shape), 0, -1), jnp.float32)


def _smooth(seed, scale, shape=(24, 24, 24)):
    """A smooth field, 0 at the border."""
    noise = np.random.default_rng(seed).normal(size=(*shape, 3))
    field = np.stack([ndimage.gaussian_filter(noise[..., k], 4.0) for k in range(3)], -1)
    window = np.prod(
        [np.sin(np.pi * (g + 0.5) / n) for g, n in zip(np.indices(shape), shape, strict=True)], 0
    )
    field = field * window[..., None]
    return jnp.asarray(scale * field / np.abs(field).max(), jnp.float32)


def test_sampling_equals_scipys():
    rng = np.random.default_rng(0)
    grid, places = rng.random((*SHAPE, 2), np.float32), rng.uniform(-2, 8, (40, 3))
    expected = [
        ndimage.map_coordinates(grid[..., k], places.T, order=1, mode="nearest") for k in range(2)
    ]
    found = warp.sample(jnp.asarray(grid), jnp.asarray(places, jnp.float32))
    np.testing.assert_allclose(found, np.transpose(expected), atol=1e-5)
    assert np.array_equal(warp.sample(jnp.asarray(grid), points(SHAPE)), grid)


def test_beside_equals_sampling_for_short_steps():
    rng = np.random.default_rng(5)
    grid = jnp.asarray(rng.random((*SHAPE, 2)), jnp.float32)
    step = jnp.asarray(rng.uniform(-1, 1, (*SHAPE, 3)), jnp.float32)
    found = warp.sample(grid, points(SHAPE) + step)
    np.testing.assert_allclose(warp.beside(grid, step), found, atol=1e-5)
    np.testing.assert_array_equal(
        warp.beside(grid, 3 * jnp.sign(step)), warp.beside(grid, jnp.sign(step))
    )


def test_nothing_flows_without_velocity_and_a_constant_one_shifts():
    zero = jnp.zeros((*SHAPE, 3))
    np.testing.assert_array_equal(warp.exponential(zero, 5), zero)
    shift = jnp.broadcast_to(jnp.array([0.75, -1.5, 0.25]), zero.shape)
    np.testing.assert_allclose(warp.exponential(shift, 5), shift, atol=1e-5)


def test_the_flow_back_is_the_inverse():
    velocity = _smooth(1, 2.0)
    there, back = (warp.exponential(sign * velocity, 6) for sign in (1, -1))
    places = points((24, 24, 24)) + there
    rest = there + warp.sample(back, places)
    assert np.abs(there).max() > 1 and np.abs(rest).max() < 0.1
    assert np.abs(warp.exponential(velocity, 8) - there).max() < 0.02


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(2)
    grid = jnp.asarray(rng.normal(size=(4, 4, 4, 2)), jnp.float32)
    places = jnp.asarray(rng.integers(0, 3, (5, 3)) + rng.uniform(0.3, 0.7, (5, 3)), jnp.float32)
    sample = jax.jit(warp.sample)
    check_grads(sample, (grid, places), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    velocity = 0.4 * _smooth(3, 1.0, (4, 4, 4)) + 0.05
    flow = jax.jit(lambda v: warp.exponential(v, 3))
    check_grads(flow, (velocity,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)


@pytest.mark.parametrize("amount", [1, 100, 150])
def test_a_threshold_keeps_the_amount(amount):
    share = jnp.asarray(np.random.default_rng(4).permutation(210).reshape(SHAPE) / 210, jnp.float32)
    level = warp.threshold(share, jnp.float32(amount))
    assert amount <= (share >= level).sum() <= amount + 1


def test_distances_are_exact():
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 1:4, 2] = mask[6, 5, 4] = True
    edt = ndimage.distance_transform_edt
    np.testing.assert_allclose(warp.distances(jnp.asarray(mask)), edt(~mask) - edt(mask), rtol=1e-6)
