"""Text from files and configs is safe in terminals and in HTML, whatever it is called."""

import math
import os
import pickle

import pytest

from skullgen.core.errors import UserError, in_range, one_of, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("née 頭蓋, 5 % of 3³", "née 頭蓋, 5 % of 3³"),
        ("\x1b[2J\a", r"\x1b[2J\x07"),
        ("a\nb\r\u2028c\x85", r"a\nb\r\u2028c\x85"),
        ("\u202egnp.exe\u2066\u200b", r"\u202egnp.exe\u2066\u200b"),
        (os.fsdecode(b"\xff"), r"\udcff"),
        (r"a\nb", r"a\nb"),
    ],
)
def test_plain_text_is_one_line_without_control_characters(text, shown):
    assert plain(text) == plain(plain(text)) == shown
    assert str(UserError(text)) == str(pickle.loads(pickle.dumps(UserError(text)))) == shown
    with pytest.raises(UserError) as caught:
        one_of("field", text, ("a",))
    assert str(caught.value).isprintable()


def test_one_of_names_field_value_and_choices():
    with pytest.raises(UserError, match=r"^data\.kind is 'x': choose one of a, b$"):
        one_of("data.kind", "x", ("a", "b"))


@pytest.mark.parametrize("value", [0.99, 3, math.nan, math.inf, True, None, "1", 10**30])
def test_what_is_out_of_range_is_refused_with_the_bounds(value):
    with pytest.raises(UserError) as error:
        in_range("a.b", value, 1, 2)
    assert str(error.value) == f"config.a.b is {value!r}: it must be 1 to 2"
    in_range("a.b", 1, 1, 2)
    with pytest.raises(UserError, match="it must be 4 or more"):
        in_range("a.b", 3, 4)
