"""Classical augmentation on the device: one affine a sample, one key a sample; axes are RAS."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from skullgen.networks.warp import threshold

Pairs = Bool[Array, "B D D D 2"]
Affine = tuple[Float[Array, "3 3"], Float[Array, " 3"]]


def augment(
    keys: Key[Array, " B"], pairs: Pairs, rotation_degrees: float, scaling: float, shift: float
) -> Pairs:
    """Flip, rotate, scale and shift (in voxels) each pair at random, by up to these amounts."""
    matrix, direction = jax.vmap(lambda key: draw(key, rotation_degrees, scaling))(keys)
    return warp(pairs, matrix, direction * shift)


def draw(key: Key[Array, ""], rotation_degrees: float, scaling: float) -> Affine:
    """Draw one sample's flip, scales and rotation as a matrix (`warp`), and a shift in -1 to 1."""
    u = jax.random.uniform(key, (10,), minval=-1)
    flip = jnp.where(u[0] < 0, jnp.array([-1.0, 1, 1]), 1)
    angle, turn = jnp.radians(rotation_degrees) * u[1], jnp.pi * u[2]
    radius = jnp.sqrt(1 - u[3] ** 2)  # a height uniform in -1 to 1 is uniform on the sphere
    x, y, z = radius * jnp.cos(turn), radius * jnp.sin(turn), u[3]
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * (cross @ cross)
    return rotation * (1 + scaling * u[4:7]) * flip, u[7:]


def warp(pairs: Pairs, matrix: Float[Array, "B 3 3"], shift: Float[Array, "B 3"]) -> Pairs:
    """Resample pairs by affines about the grid's centre; identity and flips are exact.

    matrix: of offsets from the centre, pair to result; shift: in voxels, after it. A sample keeps
    its number of bone voxels: cut at 1/2, thin bone would lose up to a tenth of them.
    """
    shares = jax.vmap(_shares)(pairs, jnp.linalg.inv(matrix), shift)
    bone, defect = shares[..., 0], shares[..., 1]
    level = jax.vmap(functools.partial(threshold, halvings=10))(bone, bone.sum((1, 2, 3)))
    whole, defect = bone >= level[:, None, None, None], 2 * defect > bone
    return jnp.stack([whole & ~defect, whole & defect], axis=-1)


def _shares(pair, inverse, shift):
    """Interpolate one pair: float32 [D, D, D, 2], the shares of bone (of either) and of defect."""
    size = len(pair)
    at = jnp.arange(size) - (size - 1) / 2
    target = jnp.stack(jnp.meshgrid(at, at, at, indexing="ij"))
    source = jnp.tensordot(inverse, target - shift[:, None, None, None], 1, precision="highest")
    source = jnp.clip(source + (size - 1) / 2, 0, size - 1)
    low = jnp.minimum(source.astype(jnp.int32), size - 2)
    part = source - low
    # The eight corners of a cell, two bits each, in one number: one look-up a voxel, not sixteen.
    bits = (pair.any(-1) + 2 * pair[..., 1]).astype(jnp.uint16)
    corners = list(itertools.product((0, 1), repeat=3))
    cells = sum(
        bits[tuple(slice(c, size - 1 + c) for c in corner)] << (2 * k)
        for k, corner in enumerate(corners)
    )
    cell = cells.reshape(-1)[(low[0] * (size - 1) + low[1]) * (size - 1) + low[2]]
    bone, defect = jnp.zeros((2, *cell.shape))
    for k, corner in enumerate(corners):
        weight = math.prod(p if c else 1 - p for p, c in zip(part, corner, strict=True))
        bone += weight * ((cell >> (2 * k)) & 1)
        defect += weight * ((cell >> (2 * k + 1)) & 1)
    return jnp.stack([bone, defect], -1)
