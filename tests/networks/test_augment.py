"""Augmentation: known moves, one affine for both channels, one key a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skullgen.networks import augment

SIZE = 8
FLIP, TURN = np.diag([-1, 1, 1]), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # x becomes y


def _keys(seed, count):
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), count)


KEYS = _keys(0, 6)


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


def test_flips_turns_and_whole_shifts_are_exact(pairs):
    given = np.asarray(pairs)
    np.testing.assert_array_equal(_warp(pairs, np.eye(3)), given)
    np.testing.assert_array_equal(_warp(pairs, FLIP), given[:, ::-1])
    np.testing.assert_array_equal(_warp(pairs, TURN), np.rot90(given, axes=(1, 2)))
    edge = np.pad(given, ((0, 0), (2, 0), (0, 0), (0, 1), (0, 0)), "edge")[:, :-2, :, 1:]
    np.testing.assert_array_equal(_warp(pairs, np.eye(3), (2, 0, -1)), edge)
    moved = _warp(pairs, FLIP, (1, 0, 0))  # the flip comes first
    np.testing.assert_array_equal(moved[:, 1:], given[:, ::-1][:, :-1])


def test_without_ranges_only_left_and_right_change_places(pairs):
    moved = np.asarray(augment.augment(KEYS, pairs, 0.0, 0.0, 0.0))
    flipped = [np.array_equal(a, b[::-1]) for a, b in zip(moved, pairs, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(moved, pairs, strict=True)]
    assert same == [not one for one in flipped] and 0 < sum(flipped) < len(flipped)


def test_draws_keep_to_their_ranges():
    matrix, shift = jax.vmap(lambda key: augment.draw(key, 10.0, 0.0))(_keys(1, 200))
    flip = np.linalg.det(matrix) < 0
    assert 70 < flip.sum() < 130
    rotation = matrix * np.where(flip[:, None], [-1, 1, 1], 1)[:, None]
    identity = np.broadcast_to(np.eye(3), (200, 3, 3))
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, 1, 2), identity, atol=1e-5)
    angle = np.degrees(np.arccos((np.trace(rotation, axis1=1, axis2=2) - 1) / 2))
    assert angle.max() < 10.1 and angle.max() > 9 and angle.min() < 2
    assert np.abs(shift).max() <= 1 and np.all(np.abs(np.mean(shift, 0)) < 0.15)
    matrix, _ = jax.vmap(lambda key: augment.draw(key, 0.0, 0.2))(_keys(1, 200))
    scales = np.abs(np.diagonal(matrix, axis1=1, axis2=2))
    assert np.all(scales.min(0) < 0.85) and np.all(scales.max(0) > 1.15)
    assert scales.min() >= 0.8 - 1e-6 and scales.max() <= 1.2 + 1e-6
    assert np.abs(np.corrcoef(scales.T) - np.eye(3)).max() < 0.3


def test_both_channels_move_alike_and_stay_disjoint(pairs):
    """Alone, a pattern in the one channel is moved as in the other; a tie goes to the skull."""
    skull = pairs.at[..., 0].set(pairs[..., 1]).at[..., 1].set(False)
    one, two = (augment.augment(KEYS, x, 20.0, 0.2, 1.5) for x in (skull, skull[..., ::-1]))
    assert one[..., 0].any() and not one[..., 1].any()
    np.testing.assert_array_equal(one, two[..., ::-1])
    both = np.asarray(augment.augment(KEYS, pairs, 20.0, 0.2, 1.5))
    assert not both.all(-1).any() and both.any((1, 2, 3)).all()
    half = np.zeros((1, SIZE, SIZE, SIZE, 2), bool)
    half[:, 2, 2:6, 2:6, 0] = half[:, 3, 2:6, 2:6, 1] = True
    tie = _warp(jnp.asarray(half), np.eye(3), (0.5, 0, 0))
    assert tie[0, 3, 2:6, 2:6, 0].all() and not tie[0, 3, ..., 1].any()


@pytest.mark.parametrize("thickness", [1.0, 1.6, 3.0])
def test_thin_bone_keeps_its_volume(thickness):
    place = np.indices((16,) * 3) - 7.5
    radius = np.sqrt((place**2).sum(0))
    shell = (radius > 6 - thickness) & (radius < 6)
    cap = shell & (place[2] > 0.7 * 6)
    pair = jnp.asarray(np.stack([shell & ~cap, cap], axis=-1))
    matrix, shift = jax.vmap(lambda key: augment.draw(key, 15.0, 0.1))(_keys(2, 8))
    moved = augment.warp(jnp.broadcast_to(pair, (8, *pair.shape)), matrix, 0.5 * shift)
    volume = np.asarray(moved).sum((1, 2, 3, 4)) / np.abs(np.linalg.det(matrix))
    np.testing.assert_allclose(volume, pair.sum(), rtol=0.1)
    assert moved[..., 1].any((1, 2, 3)).all()


def test_a_sample_depends_on_its_own_key_and_pair_only(pairs):
    assert not augment.augment(KEYS, pairs & False, 10.0, 0.1, 1.2).any()
    whole = np.asarray(augment.augment(KEYS, pairs, 10.0, 0.1, 1.2))
    alone = np.asarray(augment.augment(KEYS[2:3], pairs[2:3], 10.0, 0.1, 1.2))
    np.testing.assert_array_equal(whole[2:3], alone)
    same = np.asarray(augment.augment(KEYS, pairs[:1].repeat(6, 0), 10.0, 0.1, 1.2))
    assert len(np.unique(same.reshape(6, -1), axis=0)) == 6
