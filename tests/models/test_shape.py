"""The shape model: its bank, its registration of known shapes, its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import shape as experiment
from skullgen.data import store
from skullgen.evaluation import metrics
from skullgen.models import shape
from skullgen.training import parallel
from tests.models import common

SIZE, SKULLS = 16, 3
RADII = ((6.5, 5.0, 5.0), (5.0, 6.5, 5.5), (5.5, 5.5, 6.5))


def _shells():
    """Two pairs of each of three hollow ellipsoids, that differ in the place of their hole."""
    at = np.indices((SIZE,) * 3) - (SIZE - 1) / 2
    pairs = []
    for radii in RADII:
        far = np.sqrt(sum((a / r) ** 2 for a, r in zip(at, radii, strict=True)))
        bone = (far <= 1) & (far > 0.6)
        for side in (1, -1):
            hole = bone & (side * at[0] > 2) & (abs(at[1]) < 3) & (at[2] > -1)
            pairs.append(np.stack([bone & ~hole, hole], -1))
    return np.stack(pairs)


LABELS = np.arange(60, dtype=np.float32).reshape(6, 10)


@pytest.fixture(scope="module")
def model():
    settings = experiment.get_config("smoke").model
    settings.update(resolution=SIZE, skulls=SKULLS, pairs=8, iterations=60)
    return shape.make(settings)


@pytest.fixture(scope="module")
def states(model):
    """At the start, with the pairs, and registered."""
    state, bits = jax.jit(model.init)(jax.random.key(0)), store.pack(_shells())
    state, found = state.replace(key=common.threefry()), []
    for step, draws in (("collect", [[0, 1, 2, 0], [3, 4, 5, 1]]), ("register", [[0] * 4] * 3)):
        run = parallel.data_parallel(model.steps[step], SIZE, jax.local_devices()[:2])
        for rows in draws:
            state, metrics = run(state, (bits, LABELS), np.array([rows]))
        found.append((jax.device_get(state.nets["shape"]), dict(metrics)))
        state = jax.tree.map(jnp.copy, state)
    return state, found


def test_every_pair_is_collected_once_with_its_skull(states):
    net, logged = states[1][0]
    assert (logged["skulls"], logged["pairs"]) == (3, 6)
    assert net.stats["owner"].tolist() == [0, 0, 1, 1, 2, 2, -1, -1]
    kept = store.unpack(net.stats["pairs"][:6], SIZE)
    np.testing.assert_array_equal(net.stats["labels"][:6], LABELS)
    wanted = _shells()[[0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(kept, wanted)


def test_a_bank_that_is_full_drops_pairs_and_skulls():
    bits = jnp.asarray(store.pack(_shells()))
    pairs, owner = jnp.zeros((3, bits.shape[1]), jnp.uint8), jnp.full(3, -1, jnp.int32)
    empty, some = shape.Bank(pairs, owner, jnp.zeros((3, 10))), jnp.array([0, 2, 4])
    known = jnp.asarray(LABELS)
    assert shape.collect(empty, bits[some], known[some], 2).owner.tolist() == [0, 1, -1]
    assert shape.collect(empty, bits, known, 3).owner.tolist() == [0, 0, 1]


def test_registration_brings_skulls_to_one_shape(states):
    net = states[1][1][0]
    bank, there = shape.Bank(**jax.tree.map(jnp.asarray, net.stats)), jnp.ones(SKULLS, bool)
    whole, _ = shape.wholes(bank, SKULLS, SIZE)
    field, at = shape.velocities(jax.tree.map(jnp.asarray, net.params), there), shape.places(SIZE)
    np.testing.assert_allclose(field.mean(0), 0, atol=1e-5)
    warped = [
        np.asarray(
            shape.seen(one.astype(jnp.float32)[..., None], shape.moved(shape.flow(v, 5), at))[
                ..., 0
            ]
            >= 0.5
        )
        for one, v in zip(whole, field, strict=True)
    ]

    def alike(masks):
        return np.mean([metrics.dice(masks[a], masks[b]) for a, b in ((0, 1), (0, 2), (1, 2))])

    before, after = alike(np.asarray(whole)), alike(warped)
    assert before < 0.8 and after > before + 0.08, (before, after)


def test_samples_are_exclusive_and_keep_the_bone_of_their_skull(model, states):
    z = model.latents(states[0], jax.random.split(common.threefry(), 6))
    assert z.shape == (6, SKULLS * shape.NOISE**3 + 2)
    pairs = np.asarray(jax.jit(model.decode)(states[0], z))
    assert set(np.unique(pairs)) <= {0.0, 1.0} and not (pairs[..., 0] * pairs[..., 1]).any()
    bone, real = pairs.sum((1, 2, 3, 4)), _shells().sum((1, 2, 3, 4))
    assert all(min(abs(real - amount) / amount) < 0.02 for amount in bone)
    assert (pairs[..., 1].sum((1, 2, 3)) > 0).all()
    again = np.asarray(jax.jit(model.decode)(states[0], z[2:3]))[0]
    np.testing.assert_array_equal(again, pairs[2])
    assert len({pair.tobytes() for pair in pairs}) == 6


def test_without_deformation_a_sample_is_the_training_pair(model, states):
    z = np.zeros((1, SKULLS * shape.NOISE**3 + 2), np.float32)
    z[0, -2:] = 0.5, 0.45  # the second skull, the third pair, which is its own
    pair = np.asarray(jax.jit(model.decode)(states[0], z))[0].astype(bool)
    truth = _shells()[2]
    assert metrics.dice(pair.any(-1), truth.any(-1)) > 0.8
    assert metrics.dice(pair[..., 1], truth[..., 1]) > 0.6


def test_noise_keeps_its_variance():
    rows = shape.mixtures(24)
    np.testing.assert_allclose((rows**2).sum(1), 1, rtol=1e-6)
    near, far = rows[5] @ rows[6], rows[5] @ rows[20]
    assert near > 0.9 and far < 0.1
