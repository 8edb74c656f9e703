"""What a fuzzer broke once is refused or read ever after: tests/fuzz/corpus/TARGET/NAME."""

from pathlib import Path

import pytest

from skullgen.core.errors import UserError
from tests.fuzz import targets

BROKE = sorted(p for p in (Path(__file__).parent / "corpus").glob("*/*") if p.is_file())


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """The target's `read` by name, made where it is asked for."""
    made = {}

    def reader(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                made[name] = targets.TARGETS[name](tmp_path_factory.mktemp(name), patch)[0]
        return made[name]

    return reader


@pytest.mark.parametrize("place", BROKE, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_broke_is_refused_or_read(place, readers):
    try:
        readers(place.parent.name)(place.read_bytes())
    except UserError as error:
        assert "\n" not in str(error)
