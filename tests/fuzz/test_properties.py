"""Any bytes, and any edit of a good file: a reader reads them, or raises `UserError`."""

import contextlib

import hypothesis
import pytest
from hypothesis import strategies as st

from skullgen.core.errors import UserError
from tests.fuzz import targets

EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=0, max_size=4
)


def _edited(seed, edits, keep):
    """A seed with some of its bytes replaced, its first but for those of `edits` at 0; cut."""
    data = bytearray(seed)
    for place, length, new in edits:
        start = 1 + int(place * (len(data) - 1))
        data[start : start + length] = new
    return bytes(data[: max(1, int(keep * len(data)))])


def _check(name, folder, examples):
    with pytest.MonkeyPatch.context() as patch:
        read, seeds = targets.TARGETS[name](folder, patch)
        settings = hypothesis.settings(max_examples=examples, deadline=None, database=None)

        @settings
        @hypothesis.given(
            seed=st.sampled_from(seeds),
            edits=EDITS,
            keep=st.one_of(st.just(1.0), st.floats(0, 1)),
            noise=st.one_of(st.none(), st.binary(min_size=1, max_size=64)),
        )
        def holds(seed, edits, keep, noise):
            with contextlib.suppress(UserError):
                read(noise or _edited(seed, edits, keep))

        holds()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_are_good_and_their_edits_are_read_or_refused(name, tmp_path):
    _check(name, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.TARGETS)
def test_many_edits_are_read_or_refused(name, tmp_path):
    _check(name, tmp_path, 3000)
