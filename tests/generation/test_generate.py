"""Generation: any range alone, in any order, whole shards, counted removals."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import common
from skullgen.core.errors import UserError
from skullgen.data import store, where
from skullgen.generation import generate, postprocess
from skullgen.networks.modules import binarise
from skullgen.training.methods import Trained
from tests import toy
from tests.faults import faults

SIZE, MM = 8, 25.6


@pytest.fixture(scope="module")
def generator():
    model = toy.make(SimpleNamespace(learning_rate=0.1, breaks_at=-1, resolution=SIZE))
    return Trained(model, model.init(jax.random.key(0, impl="threefry2x32")))


@pytest.fixture(autouse=True)
def one_key_a_sample(monkeypatch):
    """rbg under vmap is not per key: single samples are compared here."""
    monkeypatch.setattr(generate, "SHARD", 4)
    with jax.default_prng_impl("threefry2x32"):
        yield


def _run(generator, path, count=10, workers=1, bounds=None, share=(0, 1), **fields):
    base = dict(first=0, seed=5, batch_size=2, threshold=0.5, dust_mm3=0.0)
    settings = ml_collections.ConfigDict({"count": count, **base, **fields})
    about = {"voxel_mm": MM}, {"step": 0}
    plan = generate.Plan(SIZE, "independent", *about, None, bounds or {})
    generate.run(generator, path, settings, plan, workers, share)
    return store.Store(path).load(np.arange(count))


@pytest.fixture
def whole(generator, tmp_path):
    return _run(generator, tmp_path / "a.zarr")


def test_any_range_alone_equals_the_whole_and_another_seed_does_not(generator, whole, tmp_path):
    assert len(np.unique(whole, axis=0)) > 2
    part = _run(generator, tmp_path / "b.zarr", count=5, first=3)
    np.testing.assert_array_equal(part, whole[3:8])
    assert not np.array_equal(_run(generator, tmp_path / "c.zarr", seed=6), whole)


def test_an_interrupted_store_goes_on_and_ends_equal(generator, whole, tmp_path):
    path = tmp_path / "b.zarr"
    _run(generator, path, count=6)
    (path / "voxels" / "c" / "0" / "0").unlink()  # as if killed before the first shard was whole
    np.testing.assert_array_equal(_run(generator, path), whole)
    assert faults.content(tmp_path / "a.zarr") == faults.content(path)


def test_workers_write_the_same_store(generator, whole, tmp_path):
    np.testing.assert_array_equal(_run(generator, tmp_path / "b.zarr", workers=2), whole)


@pytest.fixture
def few_candidates(monkeypatch):
    monkeypatch.setattr(generate, "CANDIDATES", 40)
    monkeypatch.setattr(generate, "FEW", 10)


LARGE = {"volume_ml": (400.0, 1e6)}  # as a part of the toy's defects


def test_pairs_that_are_asked_for_are_the_first_of_each_shards_samples(
    generator, tmp_path, few_candidates
):
    path = tmp_path / "a.zarr"
    every = _run(generator, tmp_path / "every.zarr", count=80)
    measured = store.Store(tmp_path / "every.zarr").column("measures")
    good = np.flatnonzero(where.passes(measured, LARGE))
    assert 8 < len(good) < 72
    chosen = _run(generator, path, count=8, bounds=LARGE)
    expected = np.concatenate([good[good < 40][:4], good[good >= 40][:4]])
    assert store.Store(path).column("sample").tolist() == expected.tolist()
    np.testing.assert_array_equal(chosen, every[expected])
    np.testing.assert_array_equal(store.Store(path).column("measures"), measured[expected])
    # Another's part of them, more workers, after a stop: the same.
    second = _run(generator, tmp_path / "b.zarr", count=4, first=4, bounds=LARGE, workers=2)
    np.testing.assert_array_equal(second, chosen[4:])
    (path / "voxels" / "c" / "0" / "0").unlink()
    np.testing.assert_array_equal(_run(generator, path, count=8, bounds=LARGE), chosen)


def test_what_hardly_a_sample_keeps_is_said_in_a_line(generator, tmp_path, few_candidates):
    says = "generate.where: of 12 samples 0 keep volume_ml 9000 to 9000.*one in a thousand"
    with pytest.raises(UserError, match=says):
        _run(generator, tmp_path / "a.zarr", bounds={"volume_ml": (9000.0, 9000.0)})


def test_a_job_of_chosen_pairs_begins_at_a_shard():
    settings = common.defaults("demo").generate
    generate.check(settings)
    settings.first = 5
    with pytest.raises(UserError, match=r"generate.first is 5: .*a multiple of 4"):
        generate.check(settings)


def _by_hand(probability, dust):
    """Section 4.4 step by step: pairs, and what went: overlap, skull dust, defect dust."""
    raw = np.asarray(binarise(probability, "independent"))
    pairs = raw.copy()
    pairs[..., 1] = postprocess.separate(raw[..., 0], raw[..., 1])
    gone = np.zeros((len(raw), 3), int)
    gone[:, 0] = raw.all(axis=-1).sum(axis=(1, 2, 3))
    for pair, row in zip(pairs, gone, strict=True):
        for channel in (0, 1):
            clean = postprocess.remove_dust(pair[..., channel], dust)
            row[1 + channel] = pair[..., channel].sum() - clean.sum()
            pair[..., channel] = clean
    return pairs, gone


def test_pairs_are_what_binarising_equation_6_and_dust_make_of_the_decoder(generator, tmp_path):
    path = tmp_path / "a.zarr"
    bits = _run(generator, path, count=4, dust_mm3=30 * MM**3)
    key = jax.random.fold_in(jax.random.key(5), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))
    model, state, _ = generator
    probability = model.decode(state, model.latents(state, keys))
    pairs, gone = _by_hand(probability, 30)
    np.testing.assert_array_equal(store.unpack(bits, SIZE), pairs)
    rules = postprocess.Rules("independent", 0.5, 30)
    np.testing.assert_array_equal(generate.pairs(probability, rules), pairs)
    generated = store.Store(path)
    np.testing.assert_array_equal(generated.column("removed"), gone)
    overlap, skull, defect = gone.sum(axis=0).tolist()
    assert overlap and generate.removed(generated) == {
        "pairs": 4,
        "empty_defects": np.mean(~pairs[..., 1].any(axis=(1, 2, 3))),
        "overlap": overlap / (overlap + defect + pairs[..., 1].sum()),
        "dust_skull_voxels": skull / 4,
        "dust_defect_voxels": defect / 4,
    }


def test_dust_is_given_in_cubic_millimetres():
    settings = ml_collections.ConfigDict(dict(dust_mm3=100.0, threshold=0.4))
    rules = generate.rules(settings, "exclusive", 3.2)
    assert rules == postprocess.Rules("exclusive", 0.4, 4)  # 3.05 voxels


@pytest.mark.parametrize("first", [0, 3])
def test_batches_are_whole_aligned_and_made_once(first):
    calls = []

    def draw(start):
        calls.append(start)
        rows = np.arange(start, start + 4)
        return rows[:, None], rows * 10

    shards = [range(0, 5), range(10, 15), range(15, 17)]
    for shard, bits, overlap in generate.batches(draw, shards, first, 4):
        np.testing.assert_array_equal(bits[:, 0], first + np.array(shard))
        np.testing.assert_array_equal(overlap, 10 * (first + np.array(shard)))
    assert all(start % 4 == 0 for start in calls)
    assert len(set(calls)) == len(calls)


def test_whole_batches_fill_the_last_one_up():
    rows = np.arange(14).reshape(7, 2)

    def run(part):
        assert part.shape == (3, 2)
        return part.sum(axis=1)

    np.testing.assert_array_equal(generate.whole_batches(run, rows, 3), rows.sum(axis=1))
