"""Conditional models: what is asked for is drawn, remembered alike on all devices, and obeyed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import introvae, shape, vae, vae_wgan
from skullgen.core.errors import UserError
from skullgen.core.types import Batch, Net, State
from skullgen.data import measures, store
from skullgen.data.measures import KINDS, LABELS
from skullgen.generation import generate
from skullgen.models import labels
from skullgen.models import vae as vae_model
from tests.models import common
from tests.models.common import SIZE

LAST = slice(-LABELS, None)


def _seen(*rows):
    """A state that has seen labels of (kind, side, log area)."""
    bank = np.zeros((labels.BANK, LABELS), np.float32)
    for place, (kind, side, area) in enumerate(rows):
        bank[place, [kind, KINDS, KINDS + 1]] = 1, side, area
    stats = {"bank": jnp.asarray(bank), "seen": jnp.float32(len(rows))}
    return State(jnp.int32(0), jax.random.key(0), {"labels": Net({}, stats, {})})


def _keys(count):
    return jax.random.split(jax.random.key(3, impl="threefry2x32"), count)


def test_labels_of_pairs_by_hand():
    values = np.full((3, len(measures.NAMES)), np.nan, np.float32)
    values[:2, measures.NAMES.index("side")] = [0, 2]
    values[:2, measures.NAMES.index("area_cm2")] = [50, 50 * np.e]
    got = measures.labels(np.array([1, -1, 9]), values)
    expected = np.zeros((3, LABELS))
    expected[0, 1], expected[0, KINDS], expected[1, KINDS:] = 1, -1, [1, 1]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_labels_are_drawn_as_they_were_seen_or_as_they_are_asked_for():
    state = _seen((0, -1, 0.1), (0, 1, 0.2), (1, 0, 0.3), (1, 0, 0.3))
    keys = _keys(400)
    as_seen = np.asarray(labels.draw(state, keys, labels.ANY))
    bank = np.asarray(state.nets["labels"].stats["bank"][:3])
    which = np.abs(as_seen[:, None] - bank).sum(-1).argmin(1)
    np.testing.assert_allclose(as_seen, bank[which], atol=1e-6)
    assert np.bincount(which) == pytest.approx([100, 100, 200], abs=40)
    asked = generate.asked("a:3,b:1", ["a", "b", "c"])
    kinds = np.asarray(labels.draw(state, keys, asked))[:, :KINDS]
    assert kinds.sum(0)[:3] == pytest.approx([300, 100, 0], abs=40)
    left = labels.draw(state, keys, asked._replace(side=-1.0, kinds=np.eye(KINDS)[0]))
    np.testing.assert_allclose(left, np.tile(bank[0], (400, 1)), atol=1e-6)
    new = labels.draw(state, keys, labels.ANY._replace(kinds=np.eye(KINDS)[2], area=2.5))
    assert (np.asarray(new)[:, 2] == 1).all() and np.allclose(np.asarray(new)[:, -1], 2.5)


@pytest.mark.parametrize("text", ["a:0", "a:x", "d:1"])
def test_mistakes_in_what_is_asked_for(text):
    with pytest.raises(UserError, match=r"generate\.labels"):
        generate.asked(text, ["a", "b", "c"])


@pytest.mark.parametrize(
    "module",
    [vae, *(pytest.param(m, marks=pytest.mark.slow) for m in (vae_wgan, introvae))],
)
def test_two_devices_remember_and_learn_what_one_does(module):
    states, data = [], common.packed_pairs()
    for devices in (1, 2):
        model, state = common.start(*_named(module))
        for name in model.steps:
            state, _ = common.train(model.steps[name], state, data, batches=2, devices=devices)
        states.append(state)
    one, two = (state.nets["labels"].stats for state in states)
    np.testing.assert_array_equal(one["bank"], two["bank"])
    assert float(one["seen"]) == float(two["seen"]) == 8 * len(model.steps)
    seen = np.unique(np.asarray(one["bank"])[: int(one["seen"])], axis=0)
    assert np.isin(seen.view("V40"), common.labels().view("V40")).all()
    common.assert_close(*(common.weights(state) for state in states), rtol=1e-3, atol=1e-4)


def _named(module):
    config = common.config_of(module, condition=True)
    return config.model_name, config.model


def test_a_vae_makes_what_it_is_asked_for():
    """Pairs of one kind have their defect ahead, of the other behind."""
    pairs = store.unpack(common.packed_pairs(), SIZE)
    pairs[..., 1] = False
    pairs[0::2, 3:5, 6:, 3:5, 1] = True
    pairs[1::2, 3:5, :2, 3:5, 1] = True
    config = common.config_of(vae, condition=True, vae_learning_rate=1e-2)
    model, state = common.start("vae", config.model)
    state, _ = common.train(model.steps["vae"], state, store.pack(pairs), updates=60)
    draw = jax.jit(lambda asked: generate.latents(model, state, 0, jnp.arange(16), asked))
    for kind, ahead in ((0, True), (1, False)):
        z = draw(labels.ANY._replace(kinds=np.float32(np.arange(KINDS) == kind)))
        assert (np.asarray(z)[:, LAST][:, kind] == 1).all()
        share = np.asarray(jax.jit(model.decode)(state, z))[..., 1]
        front, back = share[:, 3:5, 6:, 3:5].mean(), share[:, 3:5, :2, 3:5].mean()
        assert (front > 3 * back) == ahead and (back > 3 * front) != ahead
    encoded = jax.jit(model.encode)(state, pairs[:2].astype(np.float32))
    assert encoded.shape == z[:2].shape and not np.asarray(encoded)[:, LAST].any()


def test_latents_are_drawn_given_their_labels():
    """Latents that are twice the label and a little noise: the moments know it."""
    known = jax.random.normal(jax.random.key(5), (4000, 1))
    noise = 0.1 * jax.random.normal(jax.random.key(6), (4000, 2))
    mean = jnp.concatenate([2 * known, jnp.zeros_like(known)], 1) + noise
    joint = vae_model.beside(mean, jnp.full(mean.shape, -jnp.inf), known)
    follow = jax.vmap(
        lambda *own: vae_model.follow(*own, 0.0), (None, 0, 0), None, axis_name="batch"
    )
    stats = follow(vae_model.unknown(3), *(part[None] for part in joint))
    label = jnp.repeat(jnp.array([[-1.0], [3.0]]), 200, 0)
    z = np.asarray(vae_model.aggregate(stats, _keys(400), label))
    np.testing.assert_allclose(z.reshape(2, 200, 2).mean(1), [[-2, 0], [6, 0]], atol=0.05)
    np.testing.assert_allclose(z.reshape(2, 200, 2).std(1), 0.1, rtol=0.3)


def test_a_shape_model_takes_the_donor_that_fits_best():
    settings = shape.get_config("smoke").model
    settings.update(resolution=SIZE, skulls=2, pairs=12, condition=True)
    model, state = common.start("shape", settings)
    pairs = np.zeros((12, SIZE, SIZE, SIZE, 2), bool)
    pairs[:, 1:7, 1:7, 1:7, 0] = True
    for number in range(12):  # each hole elsewhere
        hole = pairs[number, 1 + number % 6, 1 : 4 + number // 6, 1:7]
        hole[...] = [False, True]
    batch = Batch(jnp.asarray(pairs)[None], jnp.asarray(common.labels())[None])
    collect = jax.vmap(model.steps["collect"], (None, 0), axis_name="batch", out_axes=None)
    state, _ = jax.jit(collect)(state, jax.tree.map(lambda x: x[None], batch))
    wanted = common.labels()[7]
    z = model.latents(state, _keys(4)).at[:, LAST].set(wanted).at[:, : -LABELS - 2].set(0)
    made = np.asarray(jax.jit(model.decode)(state, z))[..., 1] > 0.5
    holes = pairs[..., 1].reshape(12, -1)
    both, made = made.reshape(4, -1).astype(int) @ holes.T, made.reshape(4, -1).sum(1)
    assert ((2 * both / (made[:, None] + holes.sum(1))).argmax(1) == 7).all()
