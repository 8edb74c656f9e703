"""One comparison of recipes: absent, same, or the fields that differ, and one refusal."""

import hypothesis
import pytest
from hypothesis import strategies as st

from skullgen.core import provenance
from skullgen.core.errors import UserError

EMPTY = (0, "", False, None, [], {}, 0.0)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
)
RECIPES = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES)


def claim(folder, recipe):
    """What every stage does that makes an artifact."""
    provenance.require_same(folder, provenance.read(folder), recipe)
    provenance.write(folder, recipe)


def test_absent_is_made_and_the_same_goes_on(tmp_path):
    folder, recipe = tmp_path / "a" / "b", {"config": {"rate": 0.1}, "widths": (8, 16), "of": {}}
    assert provenance.read(folder) is None
    claim(folder, recipe)
    assert [path.name for path in folder.iterdir()] == ["recipe.json"]
    claim(folder, recipe)
    claim(folder, {**recipe, "widths": [8, 16]})  # JSON knows no tuples
    assert provenance.read(folder) == {**recipe, "widths": [8, 16]}


def test_another_is_refused_in_one_line_with_fields_values_and_the_ways_out(tmp_path):
    claim(tmp_path, {"config": {"rate": 0.1, "kinds": ()}, "size": 16, "old": "\x1b"})
    with pytest.raises(UserError) as error:
        claim(tmp_path, {"config": {"rate": 0.2, "kinds": ()}, "size": 16, "new": None})
    assert str(error.value) == (
        f"{tmp_path}: made with config.rate 0.1, now 0.2; old '\\x1b', now missing; new missing, "
        "now None: set it back, or choose another --workdir "
        "(or delete this folder: it is made anew)"
    )
    assert provenance.read(tmp_path)["size"] == 16 and "new" not in provenance.read(tmp_path)


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [[value]]])
def test_what_is_empty_differs_from_all_else_that_is(wrap):
    """0, 0.0, "", False, None, (), {} and missing: eight values."""
    for a in EMPTY:
        assert provenance.differences({"x": {"y": wrap(a)}}, {"x": {"y": wrap(a)}}) == {}
        for b in EMPTY:
            pair = provenance.differences({"x": {"y": wrap(a)}}, {"x": {"y": wrap(b)}})
            assert pair == ({} if a is b else {"x.y": (repr(wrap(a)), repr(wrap(b)))})
        assert provenance.differences({}, {"x": wrap(a)}) == {"x": ("missing", repr(wrap(a)))}
        assert provenance.differences({"x": wrap(a)}, {}) == {"x": (repr(wrap(a)), "missing")}


@hypothesis.given(RECIPES, RECIPES)
def test_recipes_differ_exactly_where_their_json_does(a, b):
    assert provenance.differences(a, a) == {}
    assert (provenance.differences(a, b) == {}) == (provenance.digest(a) == provenance.digest(b))
    swapped = {name: pair[::-1] for name, pair in provenance.differences(b, a).items()}
    assert repr(sorted(swapped)) == repr(sorted(provenance.differences(a, b)))


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path):
    for content in (b"", b"{", b"[1]", b"\xff", b"[" * 10**5):
        (tmp_path / "recipe.json").write_bytes(content)
        with pytest.raises(UserError, match=r"recipe.json: cannot be read \(.*put a copy back"):
            claim(tmp_path, {"a": 1})
