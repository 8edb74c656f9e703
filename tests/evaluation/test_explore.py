"""Maps of features, and ways through latent space: known answers, equivalences, odd numbers."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ml_collections import ConfigDict

from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import explore
from skullgen.generation import generate
from skullgen.generation.postprocess import Rules
from skullgen.networks import modules
from skullgen.training.methods import Trained
from tests import toy

SIZE = 8


def _pairs(count):
    return np.random.default_rng(0).random((count, SIZE, SIZE, SIZE, 2)) < 0.3


def _store(path, split, **columns):
    attributes = {"names": ["anna", "bert", "carl"], "kinds": ["left", "right"]}
    opened = store.create(path, store.Shape(len(split), SIZE, len(split)), attributes, {})
    columns = {name: np.array(values) for name, values in {"split": split, **columns}.items()}
    opened.write(0, store.pack(_pairs(len(split))), columns)
    return opened


def test_pick_takes_one_of_each_skull_first_and_names_them(tmp_path):
    skulls, kinds = [0, 0, 0, 1, 2, 2], [0, 1, 0, 1, 1, -1]
    real = _store(tmp_path / "real.zarr", [0, 0, 0, 0, 1, 2], skull=skulls, kind=kinds)
    for seed in range(5):
        bits, cases = explore.pick(real, ("train",), 2, seed)
        assert {case.split(",")[0] for case in cases} == {"anna", "bert"}
        rows = [int(case.split("pair ")[1][:-1]) for case in cases]
        np.testing.assert_array_equal(bits, store.pack(_pairs(6))[rows])
    _, unseen = explore.pick(real, ("validation", "test"), 9, 0)
    assert sorted(unseen) == ["carl (pair 5)", "carl, right (pair 4)"]
    generated = _store(tmp_path / "generated.zarr", [-1] * 40)
    bits, cases = explore.pick(generated, (), 15, 3)
    assert len(bits) == len(set(cases)) == 15
    assert max(int(case.removeprefix("pair ")) for case in cases) > 20
    assert explore.pick(generated, (), 15, 3)[1] == cases != explore.pick(generated, (), 15, 4)[1]
    (generated.path / "voxels" / "c" / "0" / "0").unlink()
    with pytest.raises(UserError, match="40 pairs are not made"):
        explore.pick(generated, (), 15, 3)


def test_volumes_are_block_means():
    pairs = _pairs(3)
    blocks = pairs.reshape(3, 2, 4, 2, 4, 2, 4, 2).mean((2, 4, 6), dtype=np.float32)
    bits = store.pack(pairs)
    np.testing.assert_array_equal(explore.volumes(bits, SIZE, 2), blocks.reshape(3, -1))
    np.testing.assert_array_equal(explore.volumes(bits, SIZE), pairs.reshape(3, -1))
    cut = explore.volumes(bits, SIZE, 3).reshape(3, 3, 3, 3, 2)  # blocks of 3, 3 and 2 voxels
    np.testing.assert_allclose(cut[:, 2, 0, 1], pairs[:, 6:, :3, 3:6].sum((1, 2, 3)) / 27)


def _groups(count):
    """Two groups of pairs: bone in the lower half, bone in the upper half."""
    pairs = np.zeros((2, count, SIZE, SIZE, SIZE, 2), bool)
    pairs[0, :, :4, ..., 0] = pairs[1, :, 4:, ..., 0] = True
    pairs ^= np.random.default_rng(1).random(pairs.shape) < 0.02
    cases = [f"pair {number}" for number in range(count)]
    names = ("low", "high")
    return [explore.Group(name, store.pack(x), cases) for name, x in zip(names, pairs, strict=True)]


def _apart(drawn):
    """The share of points whose nearest neighbour is of their own group."""
    places = np.array([(point["x"], point["y"]) for point in drawn["points"]])
    groups = np.array([point["group"] for point in drawn["points"]])
    away = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(len(places))
    return np.mean(groups[away.argmin(1)] == groups)


def test_maps_keep_two_clusters_apart_as_their_features_do_and_repeat_themselves():
    groups = _groups(10)
    mixed = np.tile([[0.0] * 2, [9.0] * 2], (10, 1)) + np.random.default_rng(0).random((20, 2))
    first, again = (
        explore.maps(groups, SIZE, lambda bits: mixed, seed=0, perplexity=3.0) for _ in range(2)
    )
    assert first == again
    of_net, of_volumes, components = first["maps"]
    assert of_net["title"] == "t-SNE of the V-Net's bottleneck" and _apart(of_net) < 0.8
    assert of_volumes["title"] == "t-SNE of PCA of the volumes"
    assert components["title"].startswith("PCA of the volumes, components 1 and 2 (")
    for drawn in (of_volumes, components):
        assert _apart(drawn) == 1
        assert [p["group"] for p in drawn["points"]] == ["low"] * 10 + ["high"] * 10
        assert [p["case"] for p in drawn["points"]] == groups[0][2] * 2


def test_maps_of_a_handful_are_finite_and_of_alike_pairs_none(capsys):
    drawn = explore.maps(_groups(2), SIZE, seed=0, perplexity=30.0)["maps"]
    assert len(drawn) == 2
    assert all(np.isfinite([p["x"], p["y"]]).all() for d in drawn for p in d["points"])
    with pytest.raises(UserError, match="4 pairs or more, not 2"):
        explore.maps(_groups(1), SIZE, seed=0, perplexity=30.0)
    groups = [explore.Group("same", np.zeros((5, SIZE**3 // 4), np.uint8), ["pair"] * 5)]
    assert explore.maps(groups, SIZE, seed=0, perplexity=30.0) == {"maps": []}
    assert "PCA of the volumes: alike for all 5 pairs" in capsys.readouterr().out


def test_umap_is_asked_for_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # import umap now fails
    fields = ConfigDict({"pairs": 2, "steps": 2, "perplexity": 1, "umap": True})
    with pytest.raises(UserError, match=r"pip install 'skullgen\[umap\]'"):
        explore.check(fields)


@pytest.mark.slow
def test_umap_keeps_two_clusters_apart():
    pytest.importorskip("umap")
    for count in (2, 20):
        drawn = explore.maps(_groups(count), SIZE, seed=0, perplexity=5.0, umap=True)["maps"]
        assert drawn[1]["title"] == "UMAP of PCA of the volumes"
        assert np.isfinite([(p["x"], p["y"]) for p in drawn[1]["points"]]).all()
    assert _apart(drawn[1]) == 1
    assert drawn == explore.maps(_groups(20), SIZE, seed=0, perplexity=5.0, umap=True)["maps"]


def test_ways_by_hand():
    t = np.array([0, 1 / 3, 0.5, 1])
    a, b = np.array([1.0, 0]), np.array([0, 1.0])
    angles = np.pi / 2 * t
    quarter = np.stack([np.cos(angles), np.sin(angles)], 1)
    np.testing.assert_allclose(explore.spherical(a, b, t), quarter, atol=1e-12)
    np.testing.assert_allclose(explore.linear(a, b, t)[2], [0.5, 0.5])
    # Twice the length at one end: sin(pi / 4) of each.
    half = explore.spherical(2 * a, b, t[2:3])[0]
    np.testing.assert_allclose(half, [2**0.5, 0.5**0.5])
    for other in (a, -a, 3 * a, 0 * a):  # no great circle, or all of them
        np.testing.assert_allclose(explore.spherical(a, other, t), explore.linear(a, other, t))


LATENT = arrays.arrays(np.float32, 5, elements=st.floats(-3, 3, width=32))


@settings(max_examples=50)
@given(LATENT, LATENT)
def test_ways_end_where_they_should_and_spherical_ones_keep_the_norm(a, b):
    for way in (explore.linear, explore.spherical):
        places = way(a, b, np.linspace(0, 1, 7))
        np.testing.assert_array_equal(places[[0, -1]], np.stack([a, b]))
        assert np.isfinite(places).all()
    long = [np.linalg.norm(x.astype(float)) for x in (a, b)]
    if min(long) > 1e-3:
        a, b = (x / norm for x, norm in zip((a, b), long, strict=True))
        if abs(a @ b) < 0.999:
            norms = np.linalg.norm(explore.spherical(a, b, np.linspace(0, 1, 7)), axis=1)
            np.testing.assert_allclose(norms, 1, rtol=1e-9)


RULES = Rules("independent", 0.5)


@pytest.fixture
def generator():
    model = toy.make(SimpleNamespace(learning_rate=0.1, breaks_at=-1, resolution=16))
    return Trained(model, model.init(jax.random.key(0, impl="threefry2x32")))


def test_ends_are_the_first_generated_samples_or_of_an_encoder_the_real_pairs(generator):
    with jax.default_prng_impl("threefry2x32"):
        z = explore.ends(generator, None, 5)
        bits = np.asarray(generate.sampler(generator, RULES, batch=1)(0, seed=5)[0])
        way = explore.interpolation(generator, z, 2, RULES)
    assert z.shape == (2, 1) and z[0] != z[1]
    assert way[0].any()
    np.testing.assert_array_equal(store.pack(way[0]), bits[:2])  # two host devices: samples 0, 1
    model = generator.model._replace(encode=lambda state, pairs: pairs.sum((1, 2, 3)))
    pairs, encoder = _pairs(2), generator._replace(model=model)
    np.testing.assert_array_equal(explore.ends(encoder, pairs, 0), pairs.sum((1, 2, 3)))


def test_interpolation_decodes_its_ends_by_generates_rules(generator):
    z = np.float32([[0.1], [0.9]])
    ways = explore.interpolation(generator, z, 4, RULES)
    assert ways.shape == (2, 4, 16, 16, 16, 2)
    probability = generator.model.decode(generator.state, z)
    raw = np.asarray(modules.binarise(probability, "independent", 0.5))
    assert (raw[..., 0] & raw[..., 1]).any() and not (ways[..., 0] & ways[..., 1]).any()
    for way in ways:
        np.testing.assert_array_equal(way[[0, -1], ..., 0], raw[..., 0])
        np.testing.assert_array_equal(way[[0, -1], ..., 1], raw[..., 1] & ~raw[..., 0])
    # The toy's box is `ceil(2 + 4 z)` voxels wide: 3 to 6 along the straight way.
    assert [int(pair.any((1, 2))[:, 0].sum()) for pair in ways[0]] == [3, 4, 5, 6]
    assert not explore.interpolation(generator, z, 2, RULES._replace(dust=10**4)).any()
