"""The verdict: rules without training, cases, means over skulls, differences, warnings; by hand."""

import jax
import ml_collections
import numpy as np
import pytest

from skullgen.core.types import Model
from skullgen.data import mixture, store
from skullgen.evaluation import intervals, verdict
from skullgen.training.methods import Trained

SIZE = 8


def _settings(**fields):
    base = dict(cases=0, batch_size=4, rules=True, threshold=0.5)
    return ml_collections.ConfigDict({**base, **fields})


def _slab(height):
    """A slab of bone 2 voxels thick with a hole in its middle, symmetric left to right."""
    pair = np.zeros((SIZE, SIZE, SIZE, 2), bool)
    pair[:, :, height : height + 2, 0] = True
    pair[2:4, 2:5, height : height + 2, 0] = False
    pair[2:4, 2:5, height : height + 2, 1] = True
    return pair


@pytest.fixture
def real(tmp_path):
    """Six pairs of three skulls: two to train on, one (with a native truth) for test."""
    pairs = np.stack([_slab(2), _slab(2), _slab(2), _slab(2), _slab(2), _slab(3)])
    attributes = {"names": ["x", "y", "z"], "kinds": ["a", "b"], "voxel_mm": 25.6}
    opened = store.create(tmp_path / "real.zarr", store.Shape(6, SIZE, 6), attributes, {})
    affine = np.diag([25.6, 25.6, 25.6, 1.0])
    columns = {
        "split": np.array([0, 0, 0, 0, 2, 2]),
        "kind": np.array([0, 1, 0, 1, 0, 1]),
        "skull": np.array([0, 0, 1, 1, 2, 2]),
        "affine": np.stack([affine] * 6),
        "removed": np.zeros((6, 3)),
    }
    truth = pairs[4, ..., 1]
    native = store.Native(np.packbits(truth), (0, 0, 0), truth.shape, truth.shape, affine)
    opened.write(0, store.pack(pairs), columns, [None] * 4 + [native, None])
    return opened


def test_mean_skull_and_mirror_by_hand(real):
    """Of three skulls a voxel of two is bone, of one is not; of two skulls one half is enough."""
    implant = verdict.mean_skull(real.load([0, 1, 2, 3]), SIZE)(real.load([4]))
    np.testing.assert_array_equal(implant[0], _slab(2)[..., 1])  # all four slabs are the same
    pairs, nothing = np.zeros((3, SIZE, SIZE, SIZE, 2), bool), np.zeros((1, SIZE**3 // 4), np.uint8)
    pairs[:2, 0, 0, :3, 0] = True
    pairs[2:, 4, 4, :4, 1] = True  # the defect's bone counts, too
    implant = verdict.mean_skull(store.pack(pairs), SIZE)(nothing)[0]
    assert implant.sum() == 3 and implant[0, 0, :3].all()
    implant = verdict.mean_skull(store.pack(pairs[1:]), SIZE)(nothing)[0]
    assert implant.sum() == 4 and implant[4, 4, :4].all()  # both count: the bigger piece is this
    implant, hole = verdict.mirror(SIZE)(real.load([5])), _slab(3)[..., 1]
    np.testing.assert_array_equal(implant[0], hole & ~hole[::-1])  # holes at x 2, 3 and 4, 5
    assert verdict.mirror(SIZE)(nothing).sum() == 0


def test_verdict_by_hand(real):
    """A net that knows the hole at height 2 and nothing else."""
    hole = _slab(2)[..., 1]

    def predict(state, skulls):
        return jax.numpy.broadcast_to(state, skulls.shape)

    model, parts = Model(None, {}, predict=predict), [mixture.Part(real, np.array([0]))]
    nets = {"vnet": Trained(model, hole.astype(np.float32), parts)}
    judged = verdict.verdict(real, nets, _settings(), 1, {})
    cases = {(c["net"], c["column"], c["pair"]): c for c in judged["cases"]}
    assert len(cases) == len(judged["cases"]) == 1 + 4 + 2 + 2 + 2  # train, validation, test, rules
    exact, half = cases["vnet", "test", 4], cases["vnet", "test", 5]
    assert (exact["dice"], exact["dice_512"], exact["hd95_mm"]) == (1, 1, 0)
    assert exact["bdsc"] is None  # 25.6 mm: the neighbours of bone are outside of the band
    assert (exact["skull"], exact["kind"], exact["empty"]) == ("z", "a", False)
    assert (exact["dice_native"], exact["ceiling_native"], exact["hd95_native_mm"]) == (1, 1, 0)
    assert half["dice"] == pytest.approx(0.5)  # one of its two layers
    assert half["hd95_mm"] == pytest.approx(25.6)
    assert half["dice_native"] is None and half["hd95_native_mm"] is None
    rows = {(r["net"], r["column"], r["metric"], r["by"], r["group"]): r for r in judged["summary"]}
    test = rows["vnet", "test", "dice", "all", ""]
    assert (test["mean"], test["cases"], test["skulls"], test["low"]) == (0.75, 2, 1, None)
    assert rows["vnet", "test", "dice", "kind", "b"]["mean"] == pytest.approx(0.5)
    assert rows["vnet", "validation", "dice", "skull", "y"]["cases"] == 2
    assert rows["vnet", "test", "dice_native", "all", ""]["cases"] == 1
    minus = {row["minus"]: row["mean"] for row in judged["differences"] if row["metric"] == "dice"}
    for rule in ("mean_skull", "mirror"):
        assert minus[rule] == 0.75 - rows[rule, "test", "dice", "all", ""]["mean"]
    assert judged["leaks"] == {"vnet": []}


def test_training_on_test_skulls_is_told(real):
    parts = [mixture.Part(real, np.array([0, 1])), mixture.Part(real, np.array([2, 5]))]
    assert verdict.leaks(parts, real) == ["z"]
    assert verdict.leaks(parts[:1], real) == []
    judged = {"cases": [], "leaks": {"vnet": ["z"], "vnet_real": []}}
    assert verdict.warnings({"verdict": judged}) == ["vnet was trained on skulls of the test: z"]


def test_intervals_and_differences_are_over_skulls():
    def case(net, skull, dice):
        place = {"net": net, "column": "test", "store": "s", "pair": 0, "kind": ""}
        other = dict.fromkeys(verdict.METRICS)
        return {**place, **other, "skull": skull, "dice": dice}

    ours = [case("a", "x", 0.2), case("a", "x", 0.4), case("a", "y", 0.6)]
    theirs = [case("b", "x", 0.1), case("b", "y", 0.5), case("b", "w", 0.9)]
    assert verdict.by_skull(ours, "dice") == pytest.approx({"x": 0.3, "y": 0.6})
    row = verdict.summary(ours)[0]
    assert row["mean"] == pytest.approx(0.45) and row["skulls"] == 2
    low, high = intervals.interval(np.array([0.3, 0.6]))[1:3]
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["interval"] == "t over skulls"
    (difference,) = verdict.differences(ours + theirs, "a")
    assert difference["mean"] == pytest.approx((0.2 + 0.1) / 2) and difference["skulls"] == 2
    # Pairs without a known skull are skulls of their own.
    assert len(verdict.by_skull([case("a", "", 0.1) | {"pair": p} for p in (0, 1)], "dice")) == 2


def test_headroom_and_the_share_of_it_that_a_net_closes():
    def case(net, skull, dice, column="test"):
        place = {"net": net, "column": column, "store": "s", "pair": 0, "kind": ""}
        return {**place, **dict.fromkeys(verdict.METRICS), "skull": skull, "dice": dice}

    dices = {
        "vnet_real": (0.5, 0.6, 0.7),
        "vnet_ceiling": (0.6, 0.72, 0.8),
        "half": (0.55, 0.66, 0.75),
    }
    cases = [case(net, s, d) for net, ds in dices.items() for s, d in zip("xyz", ds, strict=True)]
    noisy = {"vnet_real": (0.5, 0.6), "vnet_ceiling": (0.7, 0.45), "half": (0.5, 0.5)}
    cases += [
        case(net, s, d, "test ct")
        for net, ds in noisy.items()
        for s, d in zip("xy", ds, strict=True)
    ]
    clear, within = verdict.headroom(cases, "vnet_real")
    assert (clear["column"], within["column"]) == ("test", "test ct")
    assert clear["mean"] == pytest.approx(0.32 / 3) and clear["low"] > 0
    assert list(clear["shares"]) == ["half"]
    assert clear["shares"]["half"]["mean"] == pytest.approx(0.5)
    assert within["low"] < 0 and within["shares"] == {"half": None}
    assert verdict.headroom([c for c in cases if c["net"] != "vnet_ceiling"], "vnet_real") == []
    warning = verdict.warnings({"verdict": {"cases": [], "leaks": {"vnet_ceiling": ["x"]}}})
    assert warning == []


def test_columns_are_spread_over_parts_and_pairs():
    parts = [mixture.Part(None, np.arange(10, 110)), mixture.Part(None, np.arange(3))]
    rows = [part.rows.tolist() for part in verdict.spread(parts, 8)]
    assert rows == [[10, 43, 76, 109], [0, 1, 2]]
    assert [len(part.rows) for part in verdict.spread(parts, 0)] == [100, 3]
    assert verdict.spread([mixture.Part(None, np.arange(0))], 8) == []


def test_warnings_name_what_is_wrong():
    def numbers(skull, defect, empty, share, dice=0.75):
        closest = [{"generated": 3, "name": "x", "dice": dice}]
        copies = {"skull": {"share_above": share, "closest": closest, "held_out": [0.7, 0.8]}}
        return {
            "removed": {"empty_defects": empty},
            "skull": {"occupancy": {"generated": skull, "training": 0.1}},
            "defect": {"occupancy": {"generated": defect, "training": 0.01}},
            "copies": copies,
        }

    assert verdict.warnings({"quality": numbers(0.1, 0.01, 0.05, 0.05)}) == []
    assert verdict.warnings({"quality": numbers(0.1, 0.01, 0.05, None)}) == []
    lines = verdict.warnings({"quality": numbers(0.2, 0.005, 0.5, 0.6)})
    starts = ["50% of the generated pairs have no defect", *["occupancy drift"] * 2, "copies"]
    assert [line.split(":")[0] for line in lines] == starts
    (line,) = verdict.warnings({"quality": numbers(0.1, 0.01, 0.05, 0.005, dice=0.81)})
    assert line.startswith("copies: generated skull 3 lies nearer to training patient x (Dice 0.81")
    case = {"net": "vnet", "empty": True}
    assert verdict.warnings({"verdict": {"cases": [case, case]}}) == [
        "vnet: 2 predictions are empty (Dice 0)"
    ]
