"""The store: what goes in comes out, whole shards only, equal bytes for equal work.

Damage, and growth that was killed: tests/faults/test_damage.py.
"""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import store

SIZE = 4
ATTRIBUTES = {"names": ["a", "b"], "kinds": ["bilateral"], "voxel_mm": 2.0}


def pairs_of(count, seed=0, size=SIZE):
    return np.random.default_rng(seed).random((count, size, size, size, 2)) < 0.4


def create(path, count, shard=4, size=SIZE, **recipe):
    return store.create(path, store.Shape(count, size, shard), ATTRIBUTES, {"seed": 1, **recipe})


def fill(opened, splits=None):
    """Writes what is missing: row r holds what `pairs_of` draws by seed r."""
    for shard in opened.missing():
        bits = store.pack(np.concatenate([pairs_of(1, row, opened.size) for row in shard]))
        columns = {} if splits is None else {"split": np.array(splits)[shard.start : shard.stop]}
        opened.write(shard.start, bits, columns)
    return opened


def content(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def truth_of(seed=1):
    """An implant on a source's grid, and its native truth."""
    implant = np.zeros((5, 6, 7), bool)
    implant[1:3, 2:5, 3:4] = np.random.default_rng(seed).random((2, 3, 1)) < 0.7
    bits = np.packbits(implant[1:3, 2:5, 3:4])
    return implant, store.Native(bits, (1, 2, 3), (2, 3, 1), (5, 6, 7), np.diag([2.0, 1, 1, 1]))


@pytest.mark.parametrize("size", [2, 4, 6])
def test_pairs_go_through_bits_and_voxels_are_counted_in_them(size):
    pairs = np.random.default_rng(size).random((3, 2, size, size, size, 2)) < [0.2, 0.7]
    bits = store.pack(pairs)
    np.testing.assert_array_equal(store.unpack(bits, size), pairs)
    np.testing.assert_array_equal(store.voxels(bits), pairs.sum((2, 3, 4)))


def test_bits_by_hand():
    pair = np.zeros((1, 2, 2, 2, 2), bool)
    pair[0, 0, 0, 0] = True, False  # bit 0
    pair[0, 0, 1, 0] = False, True  # of the third voxel: bit 5
    pair[0, 1, 1, 1] = True, True
    assert store.pack(pair).tolist() == [[0b00100001, 0b11000000]]
    assert store.voxels(store.pack(pair)).tolist() == [[2, 2]]


def test_round_trip_with_columns_and_native_truth(tmp_path):
    path, pairs = tmp_path / "a.zarr", pairs_of(6)
    opened = create(path, 6)
    assert opened.missing() == [range(0, 4), range(4, 6)]
    implant, truth = truth_of()
    columns = {"split": np.array([2, 0]), "affine": np.full((2, 4, 4), 0.5)}
    opened.write(4, store.pack(pairs[4:]), columns, [None, truth])
    assert opened.missing() == [range(0, 4)]
    with pytest.raises(UserError, match=r"4 pairs are not made yet: run the stage `ingest`"):
        opened.require_whole("ingest")
    opened.write(0, store.pack(pairs[:4]), {"split": np.array([0, 0, 1, 2])})
    assert opened.missing() == []
    opened = pickle.loads(pickle.dumps(store.Store(path)))
    opened.require_whole()
    assert (opened.count, opened.size, opened.shard) == (6, SIZE, 4)
    assert opened.recipe == {"seed": 1} and opened.attrs["names"] == ["a", "b"]
    np.testing.assert_array_equal(store.unpack(opened.load([5, 0]), SIZE), pairs[[5, 0]])
    rows = {split: opened.rows(split).tolist() for split in (*store.SPLITS, None)}
    assert rows == {"train": [0, 1, 5], "validation": [2], "test": [3, 4], None: [*range(6)]}
    assert opened.column("kind").tolist() == [-1] * 6
    assert opened.column("affine")[5, 0, 0] == 0.5
    np.testing.assert_array_equal(opened.column("voxels"), pairs.sum((1, 2, 3)))
    assert opened.names(np.array([1, -1, 0, 7])) == ["b", "", "a", ""]
    np.testing.assert_array_equal(opened.native(5).mask(), implant)
    np.testing.assert_array_equal(opened.native(5).affine, truth.affine)
    assert opened.native(4) is None


def test_order_of_writing_does_not_change_the_bytes(tmp_path):
    bits = store.pack(pairs_of(10))
    for name, order in (("a", (0, 4, 8)), ("b", (8, 0, 4))):
        opened = create(tmp_path / name, 10)
        for start in order:
            opened.write(start, bits[start : start + 4], {})
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_shares_of_shards_are_all_of_them_in_order(tmp_path):
    opened = create(tmp_path / "a.zarr", 27)
    for n in range(1, 9):
        shares = [opened.shards((k, n)) for k in range(n)]
        assert [*itertools.chain(*shares)] == opened.shards() and len(opened.shards()) == 7
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    opened.write(0, np.zeros((4, SIZE**3 // 4), np.uint8), {})  # empty pairs are pairs
    assert opened.missing((0, 7)) == [] and opened.missing((1, 7)) == [range(4, 8)]


def test_a_shard_that_lacks_any_file_is_missing_and_made_again(tmp_path):
    opened = fill(create(tmp_path / "a.zarr", 6))
    before = content(opened.path)
    for name in ("pairs", *store.COLUMNS):
        opened._file(name, 4).unlink()
        assert opened.missing() == [range(4, 6)]
        assert content(fill(opened).path) == before


def test_a_kill_while_a_shard_is_written_leaves_it_missing(tmp_path, monkeypatch):
    """The column `voxels` comes last: without it no shard is whole, though written before."""
    opened = fill(create(tmp_path / "a.zarr", 4))
    before = content(opened.path)

    def kill(bits):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "voxels", kill)
        with pytest.raises(KeyboardInterrupt):
            fill(create(tmp_path / "b.zarr", 4))
        with pytest.raises(KeyboardInterrupt):
            opened.write(0, store.pack(pairs_of(4)), {})
    for path in (tmp_path / "a.zarr", tmp_path / "b.zarr"):
        assert store.Store(path).missing() == [range(0, 4)]
        assert content(fill(store.Store(path)).path) == before


def test_growing_makes_a_part_filled_shard_again(tmp_path):
    path = tmp_path / "a.zarr"
    fill(create(path, 6))
    assert create(path, 6).missing() == [] and create(path, 5).count == 6
    grown = create(path, 11)
    assert grown.missing() == [range(4, 8), range(8, 11)]
    fill(grown)
    assert content(path) == content(fill(create(tmp_path / "b.zarr", 11)).path)


def test_another_recipe_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "a.zarr"
    before = content(fill(create(path, 4)).path)
    with pytest.raises(UserError, match=r"a.zarr: made with seed 1, now 2; more missing, now 0: "):
        create(path, 9, seed=2, more=0)
    (path / "recipe.json").rename(tmp_path / "recipe.json")
    with pytest.raises(UserError, match="made with seed missing, now 1"):
        create(path, 9)
    (tmp_path / "recipe.json").rename(path / "recipe.json")
    assert content(path) == before
    create(path, 4)


def test_processes_that_make_one_store_at_once_get_the_same(tmp_path, monkeypatch):
    other, rename = tmp_path / "other.zarr", Path.rename
    create(other, 4)

    def late(self, target):  # the other process was first
        rename(other, target) if other.exists() else None
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert create(tmp_path / "a.zarr", 4).count == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_what_lies_in_the_way_of_a_store_is_not_touched(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"a\.zarr: not a store, and in the way of one"):
        create(tmp_path / "a.zarr", 4)
    assert len(list(tmp_path.rglob("*"))) == 2


def test_flipped_bits_and_lost_files_are_named(tmp_path):
    opened = fill(create(tmp_path / "a.zarr", 4))
    for name in store.COLUMNS:
        file = opened._file(name, 0)
        content = bytearray(file.read_bytes())
        content[5] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"a.zarr/{name}/c/0.*: it is damaged"):
            opened.column(name)
    fill(create(tmp_path / "b.zarr", 4))._file("pairs", 0).unlink()
    with pytest.raises(UserError, match=r"/0/0: pair 2 is not what was written: delete it and run"):
        store.Store(tmp_path / "b.zarr").load([2])


def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch):
    opened = fill(create(tmp_path / "a.zarr", 4))
    monkeypatch.setattr(store, "pack", lambda pairs: (_ for _ in ()).throw(OSError(24, "too many")))
    with pytest.raises(OSError, match="too many"):
        opened.load([0])


def test_why_cases_are_left_out_is_kept_in_order(tmp_path):
    opened = create(tmp_path / "a.zarr", 6)
    opened.leave_out(5, "b\n\x1b")
    opened.leave_out(0, "a")
    assert store.Store(opened.path).left_out() == ["a", r"b\n\x1b"]


LISTED = [0, 0, 0, 0, 1, 2, 2, -2]


def test_listed_rows_are_not_used(tmp_path):
    opened = fill(create(tmp_path / "a.zarr", 8), LISTED)
    leave_out = opened.path / "leave_out.txt"
    leave_out.write_bytes(b"# one patient\n3\n\n 0 # a hole\r\n3\n5\n7\n")
    assert opened.rows().tolist() == [1, 2, 4, 6]
    assert opened.rows("train").tolist() == [1, 2]
    assert opened.rows("test").tolist() == [6]
    assert opened.every().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert opened.unwanted().tolist() == [0, 3, 5, 7]
    leave_out.write_text("\ufeff1\n", "utf-8")  # as an editor on Windows may begin it
    assert opened.rows("train").tolist() == [0, 2, 3]
    leave_out.write_text("5\n6\n", "utf-8")
    with pytest.raises(UserError, match=r"leave_out.txt: it leaves no pair of split test"):
        opened.rows("test")
    assert len(opened.rows()) == 5


@pytest.mark.parametrize("word", ["8", "-1", "1.0", "1 2", "\u0661", "9" * 5000])
def test_a_line_that_is_no_index_is_named(word, tmp_path):
    opened = create(tmp_path / "a.zarr", 8)
    (opened.path / "leave_out.txt").write_text(f"# a list\n{word}\n", "utf-8")
    words = r"leave_out.txt: line 2 is .*index of one pair a line, 0 to 7"
    with pytest.raises(UserError, match=words):
        opened.unwanted()
