"""Measures of pairs: a ball of bone with a cap cut out, whose numbers are known."""

import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import measures, store, where
from skullgen.evaluation import fidelity, metrics

OUTER, INNER = 80.0, 66.0  # mm


def _pair(size, towards, degrees, *, pinhole=None):
    """A dome of bone about the braincase's middle; where a direction is near one, it is defect."""
    mm = 204.8 / size
    at = (np.arange(size) + 0.5) * mm
    places = np.stack(np.meshgrid(at, at, at, indexing="ij"), -1) - [102.4, 102.4, 67.0]
    places[..., 2] *= OUTER / 58.0  # as high as 58 mm: an ellipsoid
    length = np.linalg.norm(places, axis=-1)
    bone = (length < OUTER) & (length > INNER)
    rays = places / length[..., None]
    hole = np.zeros(bone.shape, bool)
    for way in np.atleast_2d(towards):
        hole |= rays @ (way / np.linalg.norm(way)) > np.cos(np.deg2rad(degrees))
    if pinhole:
        bone &= rays @ np.array([0.0, 0.0, 1.0]) < np.cos(np.deg2rad(pinhole))
    return np.stack([bone & ~hole, bone & hole], -1), mm


def _of(pair, mm):
    return dict(zip(measures.NAMES, measures.measure(pair, mm).tolist(), strict=True))


@pytest.mark.parametrize("size", [32, 64])
def test_a_cap_on_the_right_has_its_area_volume_place_and_thickness(size):
    got = _of(*_pair(size, [1.0, 0, 0], 30))
    # Of a sphere the cap has 2 pi r^2 (1 - cos 30 degrees) = 53.9 cm^2; here z is 0.725 of it.
    area = 2 * np.pi * OUTER**2 * (1 - np.cos(np.pi / 6)) / 100 * 0.725
    assert got["area_cm2"] == pytest.approx(area, rel=0.1)
    volume = 2 * np.pi / 3 * (OUTER**3 - INNER**3) * (1 - np.cos(np.pi / 6)) / 1000 * 0.725
    assert got["volume_ml"] == pytest.approx(volume, rel=0.1)
    assert got["thickness_mm"] == pytest.approx(10 * volume / area, rel=0.1)
    assert got["azimuth"] == pytest.approx(90, abs=2)
    assert got["elevation"] == pytest.approx(0, abs=4)
    assert measures.SIDES[int(got["side"])] == "right"
    assert measures.REGIONS[int(got["region"])] == "temporal"
    assert got["pieces"] == got["skull_pieces"] == 1
    assert got["rim_on_bone"] > 0.97
    assert got["length_mm"] == got["breadth_mm"] == pytest.approx(160, abs=204.8 / size)


@pytest.mark.parametrize(
    "towards, side, region",
    [
        ([0, 1, 0.5], "both", "frontal"),
        ([-0.5, 1, 0], "left", "orbital rim"),
        ([0, -1, 0.2], "both", "occipital"),
        ([-0.3, -0.5, 1], "left", "parietal"),
        ([-1, 0.2, 0], "left", "temporal"),
    ],
)
def test_sides_and_regions(towards, side, region):
    got = _of(*_pair(32, towards, 15))
    assert measures.SIDES[int(got["side"])] == side
    assert measures.REGIONS[int(got["region"])] == region


def test_pieces_of_both_and_a_rim_in_the_air():
    assert _of(*_pair(32, [[1.0, 0, 0], [-1.0, 0, 0]], 15))["pieces"] == 2
    pair, mm = _pair(32, [1.0, 0, 0], 25)
    pair[:, :14, :, 0] = False  # bone behind the hole is gone
    assert 0.4 < _of(pair, mm)["rim_on_bone"] < 0.8


def test_pinholes_are_the_open_share_of_the_dome():
    closed, open_ = (_of(*_pair(64, [1.0, 0, 0], 10, pinhole=p))["pinholes"] for p in (None, 12))
    assert closed == 0
    # Seen from the middle: tan of its angle is flattened like the ellipsoid.
    seen = np.cos(np.arctan(np.tan(np.deg2rad(12)) / 0.725))
    assert open_ == pytest.approx(100 * (1 - seen) / (1 - measures.DOME), rel=0.15)


def test_what_is_not_there_is_nan():
    pair, mm = _pair(32, [1.0, 0, 0], 30)
    no_defect = np.stack([pair.any(-1), np.zeros(pair.shape[:-1], bool)], -1)
    got = _of(no_defect, mm)
    assert np.isnan([got["area_cm2"], got["pieces"], got["rim_on_bone"]]).all()
    assert got["skull_pieces"] == 1 and np.isnan(got["nearest_skull"])
    assert np.isnan(measures.measure(np.zeros_like(pair), mm)).all()


def test_the_cube_need_not_be_the_frame():
    pair, mm = _pair(32, [1.0, 0, 0.3], 20)
    moved = np.roll(pair, (2, -1, -1), (0, 1, 2))
    np.testing.assert_allclose(measures.measure(moved, mm), measures.measure(pair, mm), rtol=1e-5)


def test_nearest_is_the_greatest_dice_by_hand():
    rng = np.random.default_rng(0)
    pairs, train = (rng.random((n, 8, 8, 8, 2)) < 0.3 for n in (5, 7))
    got = measures.nearest(store.pack(pairs), store.pack(train))
    for row, pair in zip(got, pairs, strict=True):
        whole = max(metrics.dice(pair.any(-1), other.any(-1)) for other in train)
        assert row == pytest.approx(
            [
                whole,
                max(
                    metrics.dice(pair.reshape(8, 8, 16), other.reshape(8, 8, 16)) for other in train
                ),
            ]
        )


# --- Bounds -------------------------------------------------------------------------------------


def test_bounds_in_words_and_numbers():
    fields = {"area_cm2": "40,90", "side": "left", "pieces": "1", "region": "", "vault_mm": (3, 9)}
    got = where.bounds(fields)
    assert got == {"area_cm2": (40, 90), "side": (0, 0), "pieces": (1, 1), "vault_mm": (3, 9)}
    assert where.text(got) == "area_cm2 40 to 90, side left, pieces 1 to 1, vault_mm 3 to 9"
    values = np.full((3, len(measures.NAMES)), np.nan, np.float32)
    for name, column in {"area_cm2": [50, 50, 50], "side": [0, 2, 0], "pieces": 1}.items():
        values[:, measures.NAMES.index(name)] = column
    values[:2, measures.NAMES.index("vault_mm")] = 5
    assert where.passes(values, got).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "field, says",
    [
        (
            {"side": "real"},
            "where.side is 'real', at most what most have: write LOW,HIGH or a word",
        ),
        ({"area_cm2": (1, 2, 3)}, "where.area_cm2 is (1, 2, 3): write LOW,HIGH"),
        ({"side": "top"}, "where.side is 'top': write one of left, both, right"),
        ({"area_cm2": "90,40"}, "where.area_cm2 is '90,40': LOW is more than HIGH"),
        ({"pieces": "one"}, "where.pieces is 'one': write LOW,HIGH"),
        ({"region": "1"}, "where.region is '1': write one of frontal"),
        ({"weight": "1"}, "a measure of where is 'weight'"),
    ],
)
def test_mistakes_in_bounds_are_said(field, says):
    with pytest.raises(UserError) as error:
        where.bounds(field)
    assert says in str(error.value)


def test_open_ends_and_around_the_back():
    fields = {"area_cm2": (None, 60), "volume_ml": "20,", "azimuth": "170,-170", "pieces": None}
    got = where.bounds(fields)
    assert got == {
        "area_cm2": (-where.MOST, 60),
        "volume_ml": (20, where.MOST),
        "azimuth": (170, -170),
    }
    values = np.full((4, len(measures.NAMES)), 50, np.float32)
    values[:, measures.NAMES.index("azimuth")] = [175, -175, 0, np.nan]
    assert where.passes(values, got).tolist() == [True, True, False, False]


def test_a_mirror_image_differs_by_its_side_alone_and_a_speck_by_the_pieces():
    pair, mm = _pair(32, [0.7, 0.5, 0.4], 25, pinhole=9)
    one, other = _of(pair, mm), _of(pair[::-1], mm)
    assert (one.pop("side"), other.pop("side")) == (2, 0)
    assert one.pop("azimuth") == pytest.approx(-other.pop("azimuth"), abs=0.01)
    assert other == pytest.approx(one, rel=1e-3, nan_ok=True)
    pair[0, 0, 31, 0] = True
    speck = _of(pair, mm)
    assert speck.pop("skull_pieces") == one.pop("skull_pieces") + 1
    assert {name: speck[name] for name in one} == pytest.approx(one, rel=1e-3, nan_ok=True)


def test_real_is_what_most_real_pairs_have(tmp_path):
    rng = np.random.default_rng(0)
    pairs = rng.random((30, 8, 8, 8, 2)) < 0.3
    values = np.full((30, len(measures.NAMES)), np.nan)
    values[:, measures.NAMES.index("pinholes")] = np.arange(30)
    opened = store.create(tmp_path / "r.zarr", store.Shape(30, 8, 30), {"names": []}, {})
    split = np.array([0] * 21 + [1] * 4 + [2] * 5)
    opened.write(0, store.pack(pairs), {"split": split, "measures": values})
    fields = {"pinholes": "real", "nearest_skull": "real", "nearest_pair": ""}
    got = where.bounds(fields, opened)
    assert got["pinholes"][1] == 19.0  # of 0 to 20
    dice = fidelity.training_dice(store.pack(pairs[21:]), store.pack(pairs[:21]))["skull"]
    assert got["nearest_skull"][1] == pytest.approx(np.percentile(dice.max(1), 95))
    assert where.bounds(fields) == {}  # without real pairs nothing is known
    assert where.text(got).startswith("pinholes at most 19")
