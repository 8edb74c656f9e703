"""`Pairs` alone, and in the loaders that people have: PyTorch, MONAI, grain."""

import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest

from skullgen import Pairs
from skullgen.core.errors import UserError
from skullgen.data import measures, store

SIZE = 8
PAIRS = np.random.default_rng(0).random((7, SIZE, SIZE, SIZE, 2)) < 0.3


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed (the extra `loaders`)")


@pytest.fixture
def path(tmp_path):
    attributes = {"names": [], "kinds": ["left", "right"], "voxel_mm": 25.6}
    opened = store.create(tmp_path / "a.zarr", store.Shape(7, SIZE, 4), attributes, {})
    split, kind = np.array([0, 0, 0, 1, 1, 2, -2]), np.array([0, 1, 0, 1, 0, 1, 0])
    for rows in (slice(0, 4), slice(4, 7)):
        columns = {"split": split[rows], "kind": kind[rows]}
        opened.write(rows.start, store.pack(PAIRS[rows]), columns)
    return tmp_path / "a.zarr"


def _is(item, row):
    for name, channel in (("skull", 0), ("defect", 1)):
        assert item[name].shape == (1, SIZE, SIZE, SIZE) and item[name].dtype == np.float32
        np.testing.assert_array_equal(item[name][0], PAIRS[row, ..., channel])
    return True


def test_items_are_the_stores_pairs_by_any_index(path):
    pairs = Pairs(path)
    assert len(pairs) == 6  # one case was left out
    assert all(_is(pairs[row], row) for row in range(6))
    assert _is(pairs[-1], 5) and _is(pairs[np.int64(2)], 2)
    assert [item["skull"].sum() for item in pairs] == PAIRS[:6, ..., 0].sum((1, 2, 3)).tolist()
    for wrong in (6, -7):
        with pytest.raises(IndexError):
            pairs[wrong]


def test_a_split_a_kind_and_a_list_to_leave_out(path):
    assert Pairs(path, "train").rows.tolist() == [0, 1, 2]
    assert Pairs(path, kind="right").rows.tolist() == [1, 3, 5]
    assert _is(Pairs(path, split="validation", kind="right")[0], 3)
    (path / "leave_out.txt").write_bytes(b"1\n3  # a copy\n")
    assert Pairs(path, kind="right").rows.tolist() == [5]
    for words, options in (
        ("split is 'all': choose one of train", dict(split="all")),
        ("kind is 'top': choose one of left, right", dict(kind="top")),
        ("no pair of split test and kind left", dict(split="test", kind="left")),
    ):
        with pytest.raises(UserError, match=words):
            Pairs(path, **options)
    with pytest.raises(UserError, match="no store of pairs here"):
        Pairs(path.parent / "b.zarr")
    (path / "voxels" / "c" / "1" / "0").unlink()
    with pytest.raises(UserError, match="3 pairs are not made yet"):
        Pairs(path)


def test_generated_pairs_have_no_split_and_no_kind(path):
    attributes, other = {"names": [], "kinds": ["left"], "voxel_mm": 25.6}, path.with_name("b.zarr")
    store.create(other, store.Shape(7, SIZE, 7), attributes, {}).write(0, store.pack(PAIRS), {})
    assert len(Pairs(other)) == 7
    for options, says in ((dict(split="train"), "no split"), (dict(kind="left"), "no kind")):
        with pytest.raises(UserError, match=f"pairs have {says}: leave it out"):
            Pairs(other, **options)


def test_pairs_are_chosen_by_their_measures(path):
    other, values = path.with_name("b.zarr"), np.full((7, len(measures.NAMES)), np.nan)
    values[:, measures.NAMES.index("side")] = [0, 0, 2, 0, 1, 2, np.nan]
    values[:, measures.NAMES.index("area_cm2")] = [10, 50, 60, 80, 50, 70, 60]
    made = store.create(other, store.Shape(7, SIZE, 7), {"names": [], "voxel_mm": 25.6}, {})
    made.write(0, store.pack(PAIRS), {"measures": values})
    assert Pairs(other, where={"side": "left", "area_cm2": (40, 90)}).rows.tolist() == [1, 3]
    with pytest.raises(UserError, match=r"where\.area_cm2 is 'real': .* write LOW,HIGH"):
        Pairs(other, where={"area_cm2": "real"})
    with pytest.raises(UserError, match=r"no pair of split None.*where {'side': 'right', 'area"):
        Pairs(other, where={"side": "right", "area_cm2": 50})


def test_other_pairs_have_another_name(path, monkeypatch):
    """By it grain tells whether a checkpoint is of these data: numpy would shorten long rows."""
    monkeypatch.setenv("HOME", str(path.parent))
    pairs = Pairs("~/a.zarr")
    again = pickle.loads(pickle.dumps(pairs))
    assert _is(again[1], 1) and repr(again) == repr(pairs)
    pairs.rows, again.rows = np.arange(3000) % 6, np.arange(3000) % 6
    assert repr(again) == repr(pairs)
    again.rows[1500] = 5
    assert repr(again) != repr(pairs)
    pairs = Pairs("~/a.zarr")
    path.rename(path.with_name("b.zarr"))
    attributes = {"names": [], "kinds": [], "voxel_mm": 25.6}
    other = store.create(path, store.Shape(6, SIZE, 6), attributes, {"step": 2})
    other.write(0, store.pack(PAIRS[:6]), {"split": np.zeros(6, int)})
    assert len(Pairs(path)) == 6 and repr(Pairs("~/a.zarr")) != repr(pairs)


TORCH = """
import sys
import torch
from skullgen import Pairs

if __name__ == "__main__":
    pairs = Pairs(sys.argv[1])
    pairs[0]  # a store that was read before a fork
    expected = torch.utils.data.default_collate([pairs[n] for n in range(6)])
    for options in ({}, *({"num_workers": 2, "multiprocessing_context": c} for c in sys.argv[2:])):
        batches = list(torch.utils.data.DataLoader(pairs, batch_size=4, **options))
        assert [len(batch["skull"]) for batch in batches] == [4, 2]
        for name in ("skull", "defect"):
            assert batches[0][name].dtype == torch.float32
            assert torch.equal(torch.cat([batch[name] for batch in batches]), expected[name])
    train, rest = torch.utils.data.random_split(pairs, [4, 2])
    assert len(torch.utils.data.ConcatDataset([train, rest, pairs])) == 12
    assert "jax" not in sys.modules
    print("good")
"""


@needs("torch")
def test_a_pytorch_loader_takes_them_in_workers_forked_and_spawned(path, tmp_path):
    """In a process of its own: this one runs jax, which is not to be forked."""
    (tmp_path / "loop.py").write_text(TORCH, "utf-8")
    command = [sys.executable, str(tmp_path / "loop.py"), str(path), "fork", "spawn"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "good", done.stderr


@needs("monai")
def test_monai_transforms_take_them(path):
    from monai.data import Dataset
    from monai.transforms import RandFlipd

    flipped = Dataset(Pairs(path), RandFlipd(["skull", "defect"], prob=1.0, spatial_axis=0))[2]
    np.testing.assert_array_equal(flipped["defect"][0], PAIRS[2, ::-1, :, :, 1])


@needs("grain")
def test_grain_takes_them(path):
    import grain.python as grain

    data = grain.MapDataset.source(Pairs(path)).shuffle(seed=3).batch(2)
    seen = np.concatenate([data[n]["skull"] for n in range(3)])
    sums = sorted(seen.sum((1, 2, 3, 4)).tolist())
    assert sums == sorted(PAIRS[:6, ..., 0].sum((1, 2, 3)).tolist())
