"""JSON lines: what a kill cuts short, and what is written again."""

import pytest

from skullgen.core.errors import UserError
from skullgen.training import logs

RECORDS = [{"phase": "vae", "epoch": 1, "step": n, "loss": 0.5 / n} for n in (1, 2, 3)]


@pytest.mark.parametrize(("rest", "kept"), [("", 3), ('{"step": 4, "lo', 3), ('{"step": 4}', 3)])
def test_a_last_line_that_a_kill_cut_short_is_left_out(rest, kept, tmp_path):
    path = tmp_path / "a.jsonl"
    assert logs.read(path) == [] and logs.cut(path, 5) == [] and not path.exists()
    logs.append(path, RECORDS[:1])
    logs.append(path, RECORDS[1:])
    with open(path, "a") as file:
        file.write(rest)
    assert logs.read(path) == RECORDS[:kept]
    assert logs.cut(path, 2) == RECORDS[:2] == logs.read(path)
    assert path.read_text().count("\n") == 2


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    logs.append(path, RECORDS)
    path.write_text(path.read_text().replace('"step": 2', '"step" 2'))
    with pytest.raises(UserError, match=r"a\.jsonl: line 2 is damaged: delete it"):
        logs.read(path)
