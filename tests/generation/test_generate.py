"""Generation: any range alone, in any order, whole shards, counted removals."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from skullgen.data import store
from skullgen.generation import generate, postprocess
from skullgen.networks.modules import binarise
from skullgen.training import loop
from tests.test_train import SIZE, _config

ATTRIBUTES = {"recipe": {"step": 0}}


@pytest.fixture(scope="module")
def model():
    return loop.load_model("tests.toy", _config())


@pytest.fixture(scope="module")
def state(model):
    state = model.init(jax.random.key(0))
    return state.replace(key=jax.random.key(1, impl="threefry2x32"))


def _run(model, state, path, count=10, workers=1, **fields):
    base = dict(first=0, seed=5, batch_size=2, threshold=0.5, dust_mm3=0.0, connectivity=6)
    settings = ml_collections.ConfigDict({"count": count, **base, **fields})
    generate.run(
        model,
        state,
        path,
        settings,
        channels="independent",
        voxel_mm=25.6,
        size=SIZE,
        workers=workers,
        attributes=ATTRIBUTES,
    )
    return store.Store(path).load(store.Store(path).rows())


@pytest.fixture(autouse=True)
def threefry(monkeypatch):
    """rbg under vmap is not per key: single samples are compared here."""
    with jax.default_prng_impl("threefry2x32"):
        yield


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(generate, "SHARD", 4)


def test_any_range_alone_equals_the_whole(model, state, tmp_path):
    whole = _run(model, state, tmp_path / "a.zarr")
    assert len(np.unique(whole, axis=0)) > 2
    part = _run(model, state, tmp_path / "b.zarr", count=5, first=3)
    np.testing.assert_array_equal(part, whole[3:8])


def test_an_interrupted_store_goes_on_and_ends_equal(model, state, tmp_path):
    whole = _run(model, state, tmp_path / "a.zarr")
    _run(model, state, tmp_path / "b.zarr", count=6)
    shard = tmp_path / "b.zarr" / "voxels" / "c" / "0" / "0"
    shard.unlink()  # as if killed before the first shard was whole
    np.testing.assert_array_equal(_run(model, state, tmp_path / "b.zarr"), whole)
    content = {
        name: {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in (tmp_path / name).rglob("*")
            if p.is_file()
        }
        for name in ("a.zarr", "b.zarr")
    }
    assert content["a.zarr"] == content["b.zarr"]


def test_another_seed_gives_other_pairs(model, state, tmp_path):
    a = _run(model, state, tmp_path / "a.zarr")
    b = _run(model, state, tmp_path / "b.zarr", seed=6)
    assert not np.array_equal(a, b)


def test_pairs_are_what_binarising_equation_6_and_dust_make_of_the_decoder(model, state, tmp_path):
    got = store.unpack(
        _run(model, state, tmp_path / "a.zarr", count=4, dust_mm3=30 * 25.6**3), SIZE
    )
    key = jax.random.fold_in(jax.random.key(5), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))
    raw = np.asarray(binarise(model.decode(state, model.latents(state, keys)), "independent"))
    expected = raw.copy()
    expected[..., 1] = postprocess.separate(raw[..., 0], raw[..., 1])
    overlap = raw.all(axis=-1).sum(axis=(1, 2, 3))
    dust = np.zeros((4, 2), int)
    for pair, row in zip(expected, dust, strict=True):
        for channel in (0, 1):
            clean = postprocess.remove_dust(pair[..., channel], 30)
            row[channel] = pair[..., channel].sum() - clean.sum()
            pair[..., channel] = clean
    np.testing.assert_array_equal(got, expected)
    removed = store.Store(tmp_path / "a.zarr").column("removed")
    np.testing.assert_array_equal(removed, np.column_stack([overlap, dust]))
    counted = generate.removed(tmp_path / "a.zarr")
    assert counted["pairs"] == 4
    assert counted["empty_defects"] == np.mean(~expected[..., 1].any(axis=(1, 2, 3)))
    assert counted["overlap"] == pytest.approx(overlap.sum() / raw[..., 1].sum())
    assert overlap.sum() > 0


@pytest.mark.parametrize("first", [0, 3])
def test_batches_are_whole_aligned_and_made_once(first):
    calls = []

    def make(start):
        calls.append(start)
        rows = np.arange(start, start + 4)
        return rows[:, None], rows * 10

    shards = [range(0, 5), range(10, 15), range(15, 17)]
    for shard, bits, overlap in generate.batches(make, shards, first, 4):
        np.testing.assert_array_equal(bits[:, 0], first + np.array(shard))
        np.testing.assert_array_equal(overlap, 10 * (first + np.array(shard)))
    assert all(start % 4 == 0 for start in calls)
    assert len(set(calls)) == len(calls)


def test_workers_write_the_same_store(model, state, tmp_path):
    alone = _run(model, state, tmp_path / "a.zarr")
    np.testing.assert_array_equal(_run(model, state, tmp_path / "b.zarr", workers=2), alone)
