"""Mixtures of stores by text, and the rows that batches take of them."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from skullgen.core.errors import UserError
from skullgen.data import mixture
from tests.data.test_store import create, fill


def _rows(counts, size, batches=1, seed=3, phase=1, update=0):
    return mixture.batch_rows(counts, size, mixture.Place(seed, phase, update), batches)


def test_batches_by_hand():
    """Updates of 2 batches of 2 from 3 pairs: permutations of 3, one after another."""
    orders = [np.random.default_rng([3, 1, turn]).permutation(3).tolist() for turn in range(3)]
    flat = np.concatenate(orders)
    for update in range(2):
        batch = np.reshape(flat[4 * update : 4 * update + 4], (2, 2))
        np.testing.assert_array_equal(_rows([3], 2, 2, update=update), batch)
    # Two pairs and one: they take turns, the second's only row is number 2.
    a = np.random.default_rng([3, 1, 0]).permutation(2).tolist()
    assert _rows([2, 1], 4).tolist() == [[a[0], 2, a[1], 2]]


@hypothesis.given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4), size=st.integers(1, 9)
)
def test_parts_of_a_mixture_take_turns(counts, size):
    stream = np.concatenate([_rows(counts, size, 2, update=u).ravel() for u in range(6)])
    starts = np.cumsum([0, *counts])
    owners = np.searchsorted(starts, stream, side="right") - 1
    np.testing.assert_array_equal(owners, np.arange(len(stream)) % len(counts))
    for number, count in enumerate(counts):
        mine = stream[owners == number] - starts[number]
        for start in range(0, len(mine) - count + 1, count):
            assert sorted(mine[start : start + count]) == list(range(count))


@pytest.fixture
def stores(tmp_path):
    fill(create(tmp_path / "real.zarr", 6), [0, 0, 2, 1, 0, -2])
    fill(create(tmp_path / "small.zarr", 1, size=2), [0])
    create(tmp_path / "half.zarr", 4)
    return tmp_path


def test_mixtures_name_paths_splits_and_pairs(stores):
    fill(create(stores / "a: b.zarr", 20))  # a colon in a path
    parts = mixture.parts("real.zarr:train:all, a: b.zarr:all:7", stores, 0)
    assert parts[0].rows.tolist() == [0, 1, 4]
    assert parts[1].store.path == stores / "a: b.zarr" and len(set(parts[1].rows.tolist())) == 7
    more = mixture.parts("a: b.zarr:all:9", stores, 0)[0]
    assert set(parts[1].rows.tolist()) < set(more.rows.tolist())  # nested
    other = mixture.parts("a: b.zarr:all:7", stores, 1)[0]
    assert other.rows.tolist() != parts[1].rows.tolist()
    here = mixture.parts(f"{stores}/real.zarr:test:all", stores / "elsewhere", 0)
    assert here[0].rows.tolist() == [2]
    (stores / "real.zarr" / "leave_out.txt").write_bytes(b"1\n")
    assert mixture.parts("real.zarr:train:all", stores, 0)[0].rows.tolist() == [0, 4]


def test_commas_in_paths_are_theirs(stores):
    for name in ("a,b.zarr", "c, d:all:7,x.zarr", "a"):
        fill(create(stores / name, 3))
    text = f"a,b.zarr:all:2, real.zarr:train:all:2 ,{stores}/a,b.zarr:all:all,a:all:1"
    names = [part[0] for part in mixture.named(text)]
    assert names == ["a,b.zarr", "real.zarr", f"{stores}/a,b.zarr", "a"]
    assert mixture.paths("a,b.zarr, real.zarr,a, later.zarr", stores) == [
        *("a,b.zarr", "real.zarr", "a", "later.zarr")
    ]
    assert len(mixture.parts("a,b.zarr:all:2,a:all:1", stores, 0)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("real.zarr", "names no pairs: write PATH:SPLIT:PAIRS"),
        ("real.zarr:test:0", "names no pairs"),
        ("real.zarr:tset:1", "the split of 'real.zarr:tset:1' is 'tset': choose one of train"),
        ("real.zarr:train:4", "3 pairs of split train, not 4"),
        ("none.zarr:train:4", "no store of pairs here"),
        ("half.zarr:all:all", "4 pairs are not made yet"),
        ("real.zarr:all:all,small.zarr:all:all", "not of the size"),
        ("small.zarr:test:all", "no pair of split test"),
    ],
)
def test_mixtures_that_are_none_are_refused(text, words, stores):
    with pytest.raises(UserError, match=words):
        mixture.parts(text, stores, 0)


def test_named_stores_are_there_or_a_run_may_make_them(stores):
    mixture.require_there(["real.zarr", "generated.zarr", str(stores / "later.zarr")], stores)
    with pytest.raises(UserError, match=r"elsewhere/a.zarr: no store of pairs here"):
        mixture.require_there(["elsewhere/a.zarr"], stores)
    assert mixture.find("real.zarr", stores) == stores / "real.zarr"
    assert str(mixture.find("none.zarr", stores)) == "none.zarr"
