"""Sheets of fixed latents while training: they change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import vae_wgan
from skullgen.core.types import Model, State
from skullgen.data import mixture, store
from skullgen.report import preview
from skullgen.training import checkpoint, logs, loop, methods
from tests import toy_config
from tests.report import samples
from tests.report.samples import WAYS

SIZE = 16


def _pairs(folder, count):
    return samples.pairs(folder / "real.zarr", WAYS[:count], split=[0] * count)


def _model(pairs, same):
    """Draws one of the pairs by its latent, or the first one whatever that is."""
    shown = jnp.asarray(pairs, jnp.float32)

    def decode(state, z):
        return shown[jnp.where(same, 0, (z[:, 0] * len(shown)).astype(int))]

    return Model(None, {}, lambda state, keys: jax.vmap(jax.random.uniform)(keys)[:, None], decode)


STATE = State(jnp.int32(7), jax.random.key(0), {})


def _watch(model, folder, minutes=1.0, **clock):
    fields = {"model": {"resolution": SIZE}, "generate": {"channels": "", "threshold": 0.5}}
    config = ConfigDict({**fields, "preview_minutes": minutes})
    return preview.watcher(model, folder / "sheets", config, **clock)


@pytest.fixture
def drawn(monkeypatch):
    """The sheets that are drawn: names, and their pairs."""
    sheets = []
    monkeypatch.setattr(
        preview.figures, "pair_sheet", lambda path, pairs, _: sheets.append((path.name, pairs))
    )
    return sheets


def test_a_sheet_shows_the_samples_of_the_same_latents(tmp_path):
    pairs, now = _pairs(tmp_path, 3), [0.0]
    sheets = []
    for same in (True, False):
        watch = _watch(_model(pairs, same), tmp_path, clock=lambda: now[0])
        watch(STATE, "wgan")
        assert len(list(tmp_path.glob("sheets/*"))) == len(sheets)
        now[0] += 60.0
        watch(STATE.replace(step=jnp.int32(7 + same)), "wgan")
        sheets.append((tmp_path / "sheets" / f"wgan-{7 + same:06d}.png").read_bytes())
    assert sheets[0] != sheets[1]


def test_sheets_take_a_share_of_the_time(tmp_path, monkeypatch):
    pairs, now, drawn = _pairs(tmp_path, 2), [0.0], []

    def draw(path, *_):
        now[0] += 6  # seconds that a sheet takes
        drawn.append(int(path.stem.removeprefix("vae-")))

    monkeypatch.setattr(preview.figures, "pair_sheet", draw)
    watch = _watch(_model(pairs, False), tmp_path, clock=lambda: now[0])
    for step in range(1500):
        now[0] += 1
        watch(STATE.replace(step=jnp.int32(step)), "vae")
    assert drawn[:2] == [59, 359] and len(drawn) <= 1 + 0.02 * 1600 / 6


def test_a_phase_that_teaches_another_net_shows_that_one(tmp_path, drawn):
    pairs = _pairs(tmp_path, 3)
    model = _model(pairs, True)._replace(drafts={"vae": _model(pairs, False).decode})
    watch = _watch(model, tmp_path, clock=iter([0, 60, 60, 120, 120]).__next__)
    for phase in ("vae", "wgan"):
        watch(STATE, phase)
    (first, vae), (second, wgan) = drawn
    assert (first, second) == ("vae-000007.png", "wgan-000007.png")
    assert len(np.unique(vae, axis=0)) > 1 and len(np.unique(wgan, axis=0)) == 1
    config = vae_wgan.get_config("smoke").model
    assert methods.load_model("vae_wgan", config).drafts is None
    config.warm_start = False
    model = methods.load_model("vae_wgan", config)
    state, z = jax.eval_shape(model.init, jax.random.key(0)), jnp.ones((1, config.latent))
    nets = {role: net for role, net in state.nets.items() if role != "generator"}
    jax.eval_shape(model.drafts["vae"], state.replace(nets=nets), z)  # needs no generator
    with pytest.raises(KeyError, match="generator"):
        jax.eval_shape(model.decode, state.replace(nets=nets), z)


def test_nothing_is_watched_without_decode_or_minutes(tmp_path):
    pairs = _pairs(tmp_path, 1)
    assert _watch(_model(pairs, True), tmp_path, minutes=0) is None
    assert _watch(_model(pairs, True)._replace(decode=None), tmp_path) is None


def test_sheets_change_nothing_of_training(tmp_path):
    config = toy_config.get_config()
    config.model.resolution = SIZE
    model = methods.load_model("tests.toy", config.model)
    _pairs(tmp_path, 4)
    parts = [mixture.Part(store.Store(tmp_path / "real.zarr"), np.arange(4))]
    plan, states = methods.phases([dict(step="toy", updates=4)], model), []
    for name, sheets in (("with", _watch(model, tmp_path, minutes=1e-9)), ("without", None)):
        place = loop.Place(tmp_path / f"{name}.jsonl", tmp_path / name, {}, sheets)
        options = loop.Options(0, 2, 2, 4, 64)
        states.append(loop.train(model, plan, parts, place, options))
    assert checkpoint.fingerprint(states[0]) == checkpoint.fingerprint(states[1])
    assert logs.read(tmp_path / "with.jsonl") == logs.read(tmp_path / "without.jsonl")
    assert (tmp_path / "sheets" / "toy-000002.png").exists()
