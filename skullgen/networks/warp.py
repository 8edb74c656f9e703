"""Warping: trilinear sampling, diffeomorphisms from velocities, thresholds that keep an amount.

Points and displacements are in voxels of their grid, which is constant beyond its outer ones.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Grid = Float[Array, "X Y Z C"]
Field = Float[Array, "X Y Z 3"]
Number = Float[Array, ""]


def sample(grid: Grid, places: Float[Array, "*n 3"]) -> Float[Array, "*n C"]:
    """A grid at places, trilinear."""
    shape = grid.shape[:3]
    places = jnp.clip(places, 0, jnp.array(shape) - 1)
    low = jnp.minimum(places.astype(jnp.int32), jnp.array(shape) - 2)
    part, flat = places - low, grid.reshape(-1, grid.shape[-1])
    first, total = (low[..., 0] * shape[1] + low[..., 1]) * shape[2] + low[..., 2], 0.0
    for corner in itertools.product((0, 1), repeat=3):
        weight = math.prod(part[..., k] if c else 1 - part[..., k] for k, c in enumerate(corner))
        step = (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2]
        total += weight[..., None] * flat[first + step]
    return total


def beside(grid: Grid, step: Field) -> Grid:
    """A grid at `step` (-1..1) from its own places; its gradients are dense, `sample`'s not."""
    step, shape = jnp.clip(step, -1, 1), grid.shape[:3]
    padded = jnp.pad(grid, [(1, 1)] * 3 + [(0, 0)], "edge")
    hats = [jnp.maximum(0, 1 - jnp.abs(step - offset)) for offset in (-1, 0, 1)]
    total = 0.0
    for corner in itertools.product(range(3), repeat=3):
        weight = math.prod(hats[c][..., axis] for axis, c in enumerate(corner))
        part = padded[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))]
        total += weight[..., None] * part
    return total


def exponential(velocity: Field, squarings: int) -> Field:
    """The displacement of flowing along a velocity for unit time (Arsigny et al. 2006)."""

    def square(field, _):
        return field + beside(field, field), None

    return jax.lax.scan(square, velocity / 2**squarings, None, squarings)[0]


def threshold(share: Float[Array, "*grid"], amount: Number, halvings: int = 11) -> Number:
    """The highest value that `amount` voxels or more of a share in 0..1 reach, to 0.0005."""
    low, high = jnp.zeros(()), jnp.ones(())
    for _ in range(halvings):
        middle = (low + high) / 2
        many = (share >= middle).sum() >= amount
        low, high = jnp.where(many, middle, low), jnp.where(many, high, middle)
    return jnp.where(low > 0, low, high)


def distances(mask: Bool[Array, "X Y Z"]) -> Float[Array, "X Y Z"]:
    """Signed distances in voxels to a mask's surface, negative inside; exact, axis by axis."""
    far = float(sum(n**2 for n in mask.shape))

    def squared(inside):
        best = jnp.where(inside, 0.0, far)
        for axis, count in enumerate(mask.shape):
            steps = jnp.arange(count)[:, None] - jnp.arange(count)
            lines = jnp.moveaxis(best, axis, -1)[..., None, :] + steps**2
            best = jnp.moveaxis(lines.min(-1), -1, axis)
        return best

    return jnp.sqrt(squared(mask)) - jnp.sqrt(squared(~mask))
