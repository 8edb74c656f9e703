"""The store: what goes in comes out, whole shards only, equal bytes for equal work."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from skullgen import store
from skullgen.errors import UserError

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
    assert store.missing(path) == [range(0, 4), range(4, 6)]
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
    store.write(path, 4, store.pack(pairs[4:]), columns, [None, truth])
    assert store.missing(path) == [range(0, 4)]
    store.write(path, 0, store.pack(pairs[:4]), {"split": np.array([0, 0, 1, 2])})
    assert store.missing(path) == []
    np.testing.assert_array_equal(store.unpack(store.load(path, [5, 0]), SIZE), pairs[[5, 0]])
    assert store.rows(path, "train").tolist() == [0, 1, 5]
    assert store.rows(path, "test").tolist() == [3, 4]
    assert store.rows(path).tolist() == list(range(6))
    group = store.open_store(path)
    assert group["kind"][:].tolist() == [-1] * 6
    assert group["affine"][5, 0, 0] == 0.5
    mask, affine = store.read_native(path, 5)
    np.testing.assert_array_equal(mask, implant)
    np.testing.assert_array_equal(affine, truth["affine"])
    with pytest.raises(UserError, match="pair 4 has no native truth"):
        store.read_native(path, 4)


def test_order_of_writing_does_not_change_the_bytes(tmp_path):
    bits = store.pack(_pairs(10))
    for name, order in (("a", (0, 4, 8)), ("b", (8, 0, 4))):
        _make(tmp_path / name, 10)
        for start in order:
            store.write(tmp_path / name, start, bits[start : start + 4], {})
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_an_empty_pair_is_written_and_not_missing(tmp_path):
    path = tmp_path / "a.zarr"
    _make(path, 4)
    store.write(path, 0, np.zeros((4, SIZE**3 // 4), np.uint8), {})
    assert store.missing(path) == []


def test_growing_makes_a_part_filled_shard_again(tmp_path):
    path = tmp_path / "a.zarr"
    bits = store.pack(_pairs(11))
    _make(path, 6)
    for shard in store.missing(path):
        store.write(path, shard.start, bits[shard.start : shard.stop], {})
    _make(path, 6)
    assert store.missing(path) == []
    _make(path, 11)
    assert store.missing(path) == [range(4, 8), range(8, 11)]
    for shard in store.missing(path):
        store.write(path, shard.start, bits[shard.start : shard.stop], {})
    _make(tmp_path / "b.zarr", 11)
    for shard in store.missing(tmp_path / "b.zarr"):
        store.write(tmp_path / "b.zarr", shard.start, bits[shard.start : shard.stop], {})
    assert _bytes(path) == _bytes(tmp_path / "b.zarr")
    assert store.recipe(path) == {"seed": 1}
    assert store.recipe(tmp_path / "c.zarr") is None


def test_a_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "a.zarr"
    _make(path, 4)
    store.write(path, 0, store.pack(_pairs(4)), {})
    file = path / "pairs" / "c" / "0" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"pair \d is damaged"):
        store.load(path, range(4))
    file.unlink()
    with pytest.raises(UserError, match="pair 0 is not what was written"):
        store.load(path, [0])


def test_no_store_and_another_format_are_refused(tmp_path):
    with pytest.raises(UserError, match="no store of pairs here"):
        store.load(tmp_path / "none.zarr", [0])
    import zarr

    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(UserError, match="not a store of pairs"):
        store.open_store(tmp_path / "other.zarr")


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
