"""Augmentation: identity, flips, known moves, one affine for both channels, one key a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skullgen.networks import augment

SIZE = 8
KEYS = jax.random.split(jax.random.key(0, impl="threefry2x32"), 6)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    bone, defect = rng.random((2, 6, SIZE, SIZE, SIZE)) < 0.3
    return jnp.asarray(np.stack([bone & ~defect, defect], axis=-1))


def _warp(pairs, matrix, shift=(0, 0, 0)):
    count = len(pairs)
    matrix = jnp.broadcast_to(jnp.asarray(matrix, jnp.float32), (count, 3, 3))
    shift = jnp.broadcast_to(jnp.asarray(shift, jnp.float32), (count, 3))
    return np.asarray(augment.warp(pairs, matrix, shift))


def _shell(side, inner, outer):
    place = np.indices((side,) * 3) - (side - 1) / 2
    radius = np.sqrt((place**2).sum(0))
    shell = (radius > inner) & (radius < outer)
    cap = shell & (place[2] > 0.7 * outer)
    return jnp.asarray(np.stack([shell & ~cap, cap], axis=-1))[None]


def test_identity_and_flip_are_exact(pairs):
    np.testing.assert_array_equal(_warp(pairs, np.eye(3)), pairs)
    np.testing.assert_array_equal(_warp(pairs, np.diag([-1, 1, 1])), pairs[:, ::-1])


def test_a_quarter_turn_about_z_is_a_rotation_of_the_array(pairs):
    turned = _warp(pairs, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x becomes y
    np.testing.assert_array_equal(turned, np.rot90(pairs, axes=(1, 2)))


def test_a_shift_by_whole_voxels_moves_both_channels_and_holds_the_edge(pairs):
    moved = _warp(pairs, np.eye(3), (2, 0, -1))
    np.testing.assert_array_equal(moved[:, 2:, :, :-1], pairs[:, :-2, :, 1:])
    np.testing.assert_array_equal(moved[:, 0, :, :-1], pairs[:, 0, :, 1:])
    np.testing.assert_array_equal(moved[:, 2:, :, -1], pairs[:, :-2, :, -1])
    moved = _warp(pairs, np.diag([-1, 1, 1]), (1, 0, 0))  # the flip comes first
    np.testing.assert_array_equal(moved[:, 1:], np.asarray(pairs)[:, ::-1][:, :-1])


def test_without_ranges_only_left_and_right_change_places(pairs):
    moved = np.asarray(augment.augment(KEYS, pairs, 0.0, 0.0, 0.0))
    flipped = [np.array_equal(a, b[::-1]) for a, b in zip(moved, pairs, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(moved, pairs, strict=True)]
    assert same == [not one for one in flipped] and 0 < sum(flipped) < len(flipped)


def test_draws_keep_to_their_ranges():
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), 200)
    matrix, shift = jax.vmap(lambda key: augment.draw(key, 10.0, 0.0))(keys)
    flip = np.linalg.det(matrix) < 0
    assert 70 < flip.sum() < 130
    rotation = matrix * np.where(flip[:, None], [-1, 1, 1], 1)[:, None]
    identity = np.broadcast_to(np.eye(3), (200, 3, 3))
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, 1, 2), identity, atol=1e-5)
    angle = np.degrees(np.arccos((np.trace(rotation, axis1=1, axis2=2) - 1) / 2))
    assert angle.max() < 10.1 and angle.max() > 9 and angle.min() < 2
    assert np.abs(shift).max() <= 1 and np.all(np.abs(np.mean(shift, 0)) < 0.15)
    matrix, _ = jax.vmap(lambda key: augment.draw(key, 0.0, 0.2))(keys)
    scales = np.abs(np.diagonal(matrix, axis1=1, axis2=2))
    assert np.all(scales.min(0) < 0.85) and np.all(scales.max(0) > 1.15)
    assert scales.min() >= 0.8 - 1e-6 and scales.max() <= 1.2 + 1e-6
    assert np.abs(np.corrcoef(scales.T) - np.eye(3)).max() < 0.3


def test_both_channels_move_alike(pairs):
    """Alone, a pattern in the one channel is moved as in the other."""
    skull = pairs.at[..., 0].set(pairs[..., 1]).at[..., 1].set(False)
    one, two = (augment.augment(KEYS, x, 20.0, 0.2, 1.5) for x in (skull, skull[..., ::-1]))
    assert one[..., 0].any() and not one[..., 1].any()
    np.testing.assert_array_equal(one, two[..., ::-1])


def test_channels_stay_disjoint_and_ties_go_to_the_skull(pairs):
    made = np.asarray(augment.augment(KEYS, pairs, 20.0, 0.2, 1.5))
    assert not made.all(-1).any() and made.any((1, 2, 3)).all()
    half = np.zeros((1, SIZE, SIZE, SIZE, 2), bool)
    half[:, 2, 2:6, 2:6, 0] = half[:, 3, 2:6, 2:6, 1] = True
    made = _warp(jnp.asarray(half), np.eye(3), (0.5, 0, 0))
    assert made[0, 3, 2:6, 2:6, 0].all() and not made[0, 3, ..., 1].any()


@pytest.mark.parametrize("thickness", [1.0, 1.6, 3.0])
def test_thin_bone_keeps_its_volume(thickness):
    pair = _shell(16, 6 - thickness, 6)
    keys = jax.random.split(jax.random.key(2, impl="threefry2x32"), 8)
    matrix, shift = jax.vmap(lambda key: augment.draw(key, 15.0, 0.1))(keys)
    made = augment.warp(jnp.broadcast_to(pair, (8, *pair.shape[1:])), matrix, 0.5 * shift)
    volume = np.asarray(made).sum((1, 2, 3, 4)) / np.abs(np.linalg.det(matrix))
    np.testing.assert_allclose(volume, pair.sum(), rtol=0.1)
    assert made[..., 1].any((1, 2, 3)).all()


def test_a_sample_depends_on_its_own_key_and_pair_only(pairs):
    assert not augment.augment(KEYS, pairs & False, 10.0, 0.1, 1.2).any()
    whole = np.asarray(augment.augment(KEYS, pairs, 10.0, 0.1, 1.2))
    alone = np.asarray(augment.augment(KEYS[2:3], pairs[2:3], 10.0, 0.1, 1.2))
    np.testing.assert_array_equal(whole[2:3], alone)
    same = np.asarray(augment.augment(KEYS, pairs[:1].repeat(6, 0), 10.0, 0.1, 1.2))
    assert len(np.unique(same.reshape(6, -1), axis=0)) == 6
