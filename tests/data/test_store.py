"""The store: what goes in comes out, whole shards only, equal bytes for equal work."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from skullgen.core.errors import UserError
from skullgen.data import store

SIZE = 4
ATTRIBUTES = {"recipe": {"seed": 1}, "names": ["a"]}


def _pairs(count, seed=0):
    return np.random.default_rng(seed).random((count, SIZE, SIZE, SIZE, 2)) < 0.4


def _make(path, count, shard=4):
    store.create(path, count=count, size=SIZE, shard=shard, attributes=ATTRIBUTES)


def _bytes(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_round_trip_with_columns_and_native_truth(tmp_path):
    path = tmp_path / "a.zarr"
    _make(path, 6)
    assert store.Store(path).missing() == [range(0, 4), range(4, 6)]
    pairs = _pairs(6)
    implant = np.zeros((5, 6, 7), bool)
    implant[1:3, 2:5, 3:4] = np.random.default_rng(1).random((2, 3, 1)) < 0.5
    truth = {
        "bits": np.packbits(implant[1:3, 2:5, 3:4]),
        "origin": (1, 2, 3),
        "shape": (2, 3, 1),
        "grid": (5, 6, 7),
        "affine": np.diag([2.0, 1, 1, 1]),
    }
    columns = {"split": np.array([2, 0]), "affine": np.full((2, 4, 4), 0.5)}
    store.Store(path).write(4, store.pack(pairs[4:]), columns, [None, truth])
    assert store.Store(path).missing() == [range(0, 4)]
    store.Store(path).write(0, store.pack(pairs[:4]), {"split": np.array([0, 0, 1, 2])})
    assert store.Store(path).missing() == []
    np.testing.assert_array_equal(store.unpack(store.Store(path).load([5, 0]), SIZE), pairs[[5, 0]])
    assert store.Store(path).rows("train").tolist() == [0, 1, 5]
    assert store.Store(path).rows("test").tolist() == [3, 4]
    assert store.Store(path).rows().tolist() == list(range(6))
    group = store.Store(path)
    assert group.column("kind").tolist() == [-1] * 6
    assert group.column("affine")[5, 0, 0] == 0.5
    mask, affine = store.Store(path).native(5)
    np.testing.assert_array_equal(mask, implant)
    np.testing.assert_array_equal(affine, truth["affine"])
    with pytest.raises(UserError, match="pair 4 has no native truth"):
        store.Store(path).native(4)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_voxels_are_counted_in_the_bits(size):
    pairs = np.random.default_rng(size).random((3, 2, size, size, size, 2)) < [0.2, 0.7]
    np.testing.assert_array_equal(store.voxels(store.pack(pairs)), pairs.sum((2, 3, 4)))


def test_order_of_writing_does_not_change_the_bytes(tmp_path):
    bits = store.pack(_pairs(10))
    for name, order in (("a", (0, 4, 8)), ("b", (8, 0, 4))):
        _make(tmp_path / name, 10)
        for start in order:
            store.Store(tmp_path / name).write(start, bits[start : start + 4], {})
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_an_empty_pair_is_written_and_not_missing(tmp_path):
    path = tmp_path / "a.zarr"
    _make(path, 4)
    store.Store(path).write(0, np.zeros((4, SIZE**3 // 4), np.uint8), {})
    assert store.Store(path).missing() == []


def test_growing_makes_a_part_filled_shard_again(tmp_path):
    path = tmp_path / "a.zarr"
    bits = store.pack(_pairs(11))
    _make(path, 6)
    for shard in store.Store(path).missing():
        store.Store(path).write(shard.start, bits[shard.start : shard.stop], {})
    _make(path, 6)
    assert store.Store(path).missing() == []
    _make(path, 11)
    assert store.Store(path).missing() == [range(4, 8), range(8, 11)]
    for shard in store.Store(path).missing():
        store.Store(path).write(shard.start, bits[shard.start : shard.stop], {})
    _make(tmp_path / "b.zarr", 11)
    for shard in store.Store(tmp_path / "b.zarr").missing():
        store.Store(tmp_path / "b.zarr").write(shard.start, bits[shard.start : shard.stop], {})
    assert _bytes(path) == _bytes(tmp_path / "b.zarr")
    assert store.Store(path).recipe == {"seed": 1}
    assert not store.exists(tmp_path / "c.zarr")


def test_a_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "a.zarr"
    _make(path, 4)
    store.Store(path).write(0, store.pack(_pairs(4)), {})
    file = path / "pairs" / "c" / "0" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"pairs/c/0/0/0/0/0: damaged: delete it and run the stage"):
        store.Store(path).load(range(4))
    file.unlink()
    with pytest.raises(UserError, match="pair 0 is not what was written"):
        store.Store(path).load([0])


def test_no_store_and_another_format_are_refused(tmp_path):
    with pytest.raises(UserError, match="no store of pairs here"):
        store.Store(tmp_path / "none.zarr").load([0])
    import zarr

    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(UserError, match="not a store of pairs"):
        store.Store(tmp_path / "other.zarr")


@hypothesis.given(
    count=st.integers(1, 40),
    size=st.integers(1, 16),
    batches=st.integers(1, 5),
    update=st.integers(0, 50),
)
def test_batches_are_cut_from_consecutive_permutations(count, size, batches, update):
    def rows(update):
        return store.batch_rows(count, size, seed=3, phase=1, update=update, batches=batches)

    assert rows(update).shape == (batches, size)
    np.testing.assert_array_equal(rows(update), rows(update))
    stream = np.concatenate([rows(u).ravel() for u in range(update + 1)])
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_batches_differ_by_seed_and_phase():
    def rows(seed, phase):
        return store.batch_rows(50, 8, seed=seed, phase=phase, update=0, batches=1).tolist()

    assert rows(0, 0) != rows(1, 0)
    assert rows(0, 0) != rows(0, 1)


@hypothesis.given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4), size=st.integers(1, 9)
)
def test_parts_of_a_mixture_take_turns(counts, size):
    options = dict(seed=2, phase=0, batches=2)
    stream = [store.batch_rows(counts, size, update=u, **options).ravel() for u in range(4)]
    stream = np.concatenate(stream)
    starts = np.cumsum([0, *counts])
    owners = np.searchsorted(starts, stream, side="right") - 1
    np.testing.assert_array_equal(owners, np.arange(len(stream)) % len(counts))
    for number, count in enumerate(counts):
        mine = stream[owners == number] - starts[number]
        for start in range(0, len(mine) - count + 1, count):
            assert sorted(mine[start : start + count]) == list(range(count))


def _split_store(path, splits, size=8):
    store.create(path, count=len(splits), size=size, shard=8, attributes={"recipe": {}})
    rng = np.random.default_rng(0)
    for shard in store.Store(path).missing():
        pairs = rng.random((len(shard), size, size, size, 2)) < 0.3
        split = np.array(splits)[shard.start : shard.stop]
        store.Store(path).write(shard.start, store.pack(pairs), {"split": split})


def test_mixtures_name_paths_splits_and_pairs(tmp_path):
    _split_store(tmp_path / "real.zarr", [0, 0, 2, 1, 0])
    _split_store(tmp_path / "a: b.zarr", [-1] * 20)  # a colon in a path
    parts = store.mixture("real.zarr:train:all, a: b.zarr:all:7", tmp_path, 0)
    assert parts[0].rows.tolist() == [0, 1, 4]
    assert parts[1].path == tmp_path / "a: b.zarr" and len(set(parts[1].rows.tolist())) == 7
    more = store.mixture("a: b.zarr:all:9", tmp_path, 0)[0]
    assert set(parts[1].rows.tolist()) < set(more.rows.tolist())  # nested
    other = store.mixture("a: b.zarr:all:7", tmp_path, 1)[0]
    assert other.rows.tolist() != parts[1].rows.tolist()
    here = store.mixture(f"{tmp_path}/real.zarr:test:all", tmp_path / "elsewhere", 0)
    assert here[0].rows.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("real.zarr", "names no pairs: write PATH:SPLIT:PAIRS"),
        ("real.zarr:test:0", "names no pairs"),
        ("real.zarr:tset:1", "the split of 'real.zarr:tset:1' is 'tset': choose one of train"),
        ("real.zarr:train:4", "3 pairs of split train, not 4"),
        ("none.zarr:train:4", "no store of pairs here"),
        ("real.zarr:all:all,small.zarr:all:all", "not of the size"),
        ("small.zarr:test:all", "no pair of split test"),
    ],
)
def test_mixtures_that_are_none_are_refused(text, words, tmp_path):
    _split_store(tmp_path / "real.zarr", [0, 0, 2, 1, 0])
    _split_store(tmp_path / "small.zarr", [0], size=4)
    with pytest.raises(UserError, match=words):
        store.mixture(text, tmp_path, 0)


def test_names_of_skulls(tmp_path):
    attributes = {"recipe": {}, "names": ["a", "b"]}
    store.create(tmp_path / "s.zarr", count=1, size=4, shard=1, attributes=attributes)
    assert store.Store(tmp_path / "s.zarr").names([1, -1, 0, 7]) == ["b", "", "a", ""]
