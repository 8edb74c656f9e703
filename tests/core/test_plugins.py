"""Names in one text, whose own commas are theirs."""

import hypothesis
import pytest
from hypothesis import strategies as st

from skullgen.core import plugins


@pytest.mark.parametrize(
    ("text", "there", "names"),
    [
        ("a, b,,c", None, ["a", "b", "c"]),
        (("a,b", "c"), None, ["a", "b", "c"]),
        ("", ["a"], []),
        ("a,b,c", ["a,b", "c"], ["a,b", "c"]),
        ("a,b,c", ["b,c"], ["a", "b,c"]),
        ("a, b,x,c", ["a", "a, b", "c"], ["a, b", "x", "c"]),
        ("a,,b", ["a,,b"], ["a,,b"]),
        (("a,b", "c"), ["b,c", "a,b"], ["a,b", "c"]),
    ],
)
def test_commas_of_what_is_there_are_its_own(text, there, names):
    assert plugins.listed(text, there and there.__contains__) == names


@hypothesis.given(st.lists(st.text("ab,", min_size=1).filter(lambda s: s.strip(",")), max_size=4))
def test_one_name_that_is_there_is_itself(names):
    for name in names:
        assert plugins.listed(name, {name}.__contains__) == [name]
