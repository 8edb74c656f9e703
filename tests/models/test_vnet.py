"""The V-Net's operations against lax, its parts by hand, its step over devices, its learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import metrics
from skullgen.models import steps, vnet
from skullgen.networks import conv
from skullgen.training import parallel
from tests.models import common
from tests.models.common import SIZE

LAYOUT = ("NXYZC", "XYZIO", "NXYZC")


def _start(**fields):
    own = dict(down=(1, 2), up=(2,), groups=2, learning_rate=1e-2, decay_steps=0)
    return common.start("vnet", common.vnet_of(**{**own, **fields}))


def _arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    pairs = np.zeros((4, SIZE, SIZE, SIZE, 2), bool)
    pairs[:, 1:7, 1:7, 1:7, 0] = True
    pairs[:, 2:6, 2:6, 2:6, 0] = rng.random((4, 4, 4, 4)) < 0.1
    for pair, (x, y) in zip(pairs, [(1, 1), (4, 1), (1, 4), (4, 4)], strict=True):
        pair[x : x + 3, y : y + 3, 6, 1] = True
    pairs[..., 0] &= ~pairs[..., 1]
    return pairs


def _run(model, state, pairs, updates=1):
    run = parallel.data_parallel(model.steps["segment"], SIZE, jax.local_devices()[:1])
    for _ in range(updates):
        data = store.pack(pairs), np.zeros((len(pairs), 0), np.float32)
        state, logged = run(state, data, np.arange(len(pairs))[None])
    return state, logged


@pytest.mark.parametrize("ours", [vnet.halve, vnet.double])
def test_halve_and_double_equal_strided_convolutions(ours):
    """Values and both gradients, on any cotangent."""

    def plain(x, w):
        if ours is vnet.halve:
            return lax.conv_general_dilated(x, w, (2, 2, 2), "VALID", dimension_numbers=LAYOUT)
        w = jnp.flip(w, (0, 1, 2))
        return lax.conv_transpose(x, w, (2, 2, 2), "VALID", dimension_numbers=LAYOUT)

    x, w = _arrays((2, 6, 4, 8, 3), (2, 2, 2, 3, 5))
    (y, back), (expected, there) = jax.vjp(ours, x, w), jax.vjp(plain, x, w)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    (g,) = _arrays(y.shape)
    common.assert_close(back(g), there(g), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_blocks_of_voxels_are_channels_and_back(side):
    (x,) = _arrays((2, 8, 4, 12, 3))
    blocks = vnet.to_depth(x, side)
    assert blocks.shape == (2, 8 // side, 4 // side, 12 // side, 3 * side**3)
    np.testing.assert_array_equal(vnet.to_space(blocks, side), x)
    voxel = 0, 5, 1, 7, 2
    cell = [n // side for n in voxel[1:4]]
    inside = np.ravel_multi_index([n % side for n in voxel[1:4]], (side,) * 3)
    assert blocks[0, *cell, 3 * inside + 2] == x[voxel]


def test_a_stem_equals_its_plain_form():
    """A convolution of blocks is one of voxels with kernel 6 and stride 2, the head its inverse."""
    x, w = _arrays((2, 8, 8, 8, 1), (3, 3, 3, 8, 5))
    blocks = conv.conv_same(vnet.to_depth(x, 2), w)
    wide = (
        w.reshape(3, 3, 3, 2, 2, 2, 1, 5).transpose(0, 3, 1, 4, 2, 5, 6, 7).reshape(6, 6, 6, 1, 5)
    )
    pad = [(2, 2)] * 3
    plain = lax.conv_general_dilated(x, wide, (2, 2, 2), pad, dimension_numbers=LAYOUT)
    np.testing.assert_allclose(blocks, plain, rtol=1e-4, atol=1e-4)
    # With all kernels zero the skull goes through, voxel by voxel.
    module = vnet.VNet((8,), (2,), (), 3, "none", 1, jnp.float32, stem=2)
    skull = _arrays((1, SIZE, SIZE, SIZE))[0]
    params = module.init(jax.random.key(0), skull)["params"]
    units = jax.tree.map(jnp.zeros_like, {k: v for k, v in params.items() if k != "head"})
    units = {k: {**v, "slope": jnp.ones(8)} for k, v in units.items()}
    head = {"kernel": 2 * jnp.eye(8), "bias": jnp.full(8, 0.5)}
    logits, _ = module.apply({"params": {**units, "head": head}}, skull)
    np.testing.assert_allclose(logits, 2 * skull + 0.5, rtol=1e-5)


def test_every_unit_has_one_slope_a_channel_and_the_paper_size_is_known():
    widths, down, up = (8, 16, 32, 64, 128), (2, 2, 3, 3, 3), (3, 3, 2, 1)
    module = vnet.VNet(widths, down, up, 5, "group", 8, "float32")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 16)))["params"]
    units = [unit for name, unit in shapes.items() if name != "head"]
    assert len(units) == 13 + 4 + 9 + 4  # down, halvings, up, doublings
    assert all(unit["slope"].shape == unit["kernel"].shape[-1:] for unit in units)
    convolutions = [u["kernel"].shape[3:] for u in units if len(u["kernel"]) == 5]
    down = [(1, 8), (8, 8), *2 * [(16, 16)], *3 * [(32, 32)], *3 * [(64, 64)], *3 * [(128, 128)]]
    up = [(128, 64), *2 * [(64, 64)], (64, 32), *2 * [(32, 32)], (32, 16), (16, 16), (16, 8)]
    assert sorted(convolutions) == sorted(down + up)


def test_a_slope_acts_on_its_own_channel_below_zero():
    unit = vnet.Unit(vnet.halve, 2, 2, "none", 1, jnp.float32)
    x = jnp.array([1.0, -2.0]).reshape(2, 1, 1, 1, 1) * jnp.ones((2, 2, 2, 2, 1))
    kernel = jnp.full((2, 2, 2, 1, 2), 0.125) * jnp.array([1, -1])
    params = {"kernel": kernel, "bias": jnp.array([0.0, 0.5]), "slope": jnp.array([0.1, 0.5])}
    y = unit.apply({"params": params}, x, True)
    np.testing.assert_allclose(y.reshape(2, 2), [[1.0, -0.25], [-0.2, 2.5]], rtol=1e-6)


def test_a_stage_adds_its_input_to_its_last_convolution():
    """With all kernels zero, only the additions are left: the skull reaches every channel."""
    module = vnet.VNet((2,), (3,), (), 3, "none", 1, jnp.float32)
    skull = _arrays((1, SIZE, SIZE, SIZE))[0]
    params = module.init(jax.random.key(0), skull)["params"]
    kernels = jax.tree.map(jnp.zeros_like, {k: v for k, v in params.items() if k != "head"})
    units = {k: {**v, "slope": jnp.array([1.0, 0.0])} for k, v in kernels.items()}
    head = {"kernel": jnp.array([[2.0], [3.0]]), "bias": jnp.array([0.5])}
    logits, bottleneck = module.apply({"params": {**units, "head": head}}, skull)
    np.testing.assert_allclose(logits, 2 * skull + 3 * jnp.maximum(skull, 0) + 0.5, rtol=1e-5)
    expected = [[skull.mean(), jnp.maximum(skull, 0).mean()]]
    np.testing.assert_allclose(bottleneck, expected, rtol=1e-5)


def test_on_the_way_up_the_doubled_grid_is_added(pairs):
    """With zero kernels but the doubling's, the coarse stage's values reach the head."""
    module = vnet.VNet((1, 1), (1, 1), (1,), 3, "none", 1, jnp.float32)
    skull = jnp.asarray(pairs[:1, ..., 0], jnp.float32)
    params = module.init(jax.random.key(0), skull)["params"]
    params = jax.tree.map(jnp.zeros_like, params)
    for name, unit in params.items():
        if name != "head" and unit["kernel"].shape[0] == 2:
            unit["kernel"] = jnp.full((2, 2, 2, 1, 1), 0.125 if name < "Unit_3" else 1.0)
    params["head"]["kernel"] = jnp.ones((1, 1))
    logits, _ = module.apply({"params": params}, skull)
    blocks = skull.reshape(1, 4, 2, 4, 2, 4, 2).mean((2, 4, 6))
    expected = blocks.repeat(2, 1).repeat(2, 2).repeat(2, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_predictions_are_probabilities_and_features_the_bottleneck(norm, pairs):
    model, state = _start(norm=norm)
    assert (norm == "batch") == bool(jax.tree.leaves(state.nets["vnet"].stats))
    state, logged = _run(model, state, pairs)
    assert set(logged) == {"loss", "dice", "vnet_update_norm"}
    pairs = jnp.asarray(pairs)
    prediction, alone = (model.predict(state, x[..., 0]) for x in (pairs, pairs[1:2]))
    assert prediction.min() >= 0 and prediction.max() <= 1
    np.testing.assert_allclose(prediction[1:2], alone, rtol=1e-4, atol=1e-5)
    blind = pairs.at[..., 1].set(False)  # features are of the skull alone
    np.testing.assert_array_equal(model.features(state, pairs), model.features(state, blind))


def test_augmentation_is_drawn_anew_at_every_step_with_millimetres_as_voxels(pairs, monkeypatch):
    shifts, augment = [], steps.augment.augment
    monkeypatch.setattr(steps.augment, "augment", lambda *a: shifts.append(a[4]) or augment(*a))
    losses = []
    for augmented in (False, True):
        model, state = _start(augment=augmented, learning_rate=0.0, shift_mm=2 * 204.8 / SIZE)
        for _ in range(2):
            state, logged = _run(model, state, pairs)
            losses.append(float(logged["loss"]))
    assert losses[0] == losses[1] and len(set(losses)) == 3
    assert set(shifts) == {2.0}


def test_the_rate_decays_to_nothing(pairs):
    model, state = _start(decay_steps=2)
    state, _ = _run(model, state, pairs, updates=2)
    before = jax.tree.map(np.asarray, state.nets["vnet"].params)
    state, _ = _run(model, state, pairs)
    common.assert_close(before, state.nets["vnet"].params, rtol=0, atol=0)


def test_two_pairs_are_learnt_by_heart(pairs):
    model, state = _start(widths=(8, 16), groups=4)
    state, first = _run(model, state, pairs[:2])
    state, last = _run(model, state, pairs[:2], updates=80)
    assert first["dice"] < 0.5 and last["dice"] > 0.9 and last["loss"] < 0.2
    mask = np.asarray(model.predict(state, jnp.asarray(pairs[:2, ..., 0]))) >= 0.5
    mask, truth = (np.reshape(x, (-1, SIZE, SIZE)) for x in (mask, pairs[:2, ..., 1]))
    assert metrics.dice(mask, truth) > 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"down": (1, 1, 1)}, "widths .* need as many entries of `down`"),
        ({"up": (0,)}, "each 1 or more"),
        ({"kernel": 4}, r"segment\.model\.kernel is 4"),
        ({"groups": 3}, r"segment\.model\.groups is 3"),
        ({"norm": "layer"}, r"segment\.model\.norm is 'layer'"),
        ({"resolution": 7}, "cannot be halved"),
        ({"stem": 3}, "segment.model.stem is 3: choose one of"),
        ({"stem": 2, "widths": (4, 8)}, "its cube the first of widths"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        _start(**fields)
