"""Text from files and configs is safe in terminals and in HTML, whatever it is called."""

import math
import os
import pickle
import re

import nibabel
import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from skullgen.core import files
from skullgen.core.errors import UserError, in_range, one_of, plain
from skullgen.data import phantom
from tests.faults import faults
from tests.test_launch import TOY

NAMES = (
    b"\x1b[2J\x1b]0;mine\x07",
    "\u202egnp.exe".encode(),
    b"<img src=x onerror=alert(1)>",
    b"two\nlines\rand\ttabs",
    b"not \xff utf-8",
    rb"$\frac{1}$ $& {{body}} \u0041",
    "née 頭蓋 ' \" ; --config.seed=3".encode(),
)


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


def test_hostile_names_go_through_a_whole_run(tmp_path):
    """In a terminal that knows ASCII only: each skull's file has one of the names."""
    (tmp_path / "skulls").mkdir()
    folder = os.fsencode(tmp_path / "skulls")
    for number, name in enumerate(NAMES):
        image = nibabel.Nifti1Image(phantom.skull(number, 48).astype(np.uint8), phantom.affine(48))
        nibabel.save(image, tmp_path / "skull.nii")
        os.rename(tmp_path / "skull.nii", os.path.join(folder, name + b".nii"))
        open(os.path.join(folder, name + b".txt"), "w").close()
    work = tmp_path / "run"
    stages = "ingest,train,generate,segment,evaluate,explore,report"
    fields = {"stages": stages, "data.source": "skulls", "data.root": tmp_path / "skulls"}
    fields |= {"data.test_fraction": 0.4, "data.bone_hu": 0.0, "explore.pairs": 9}
    fields |= {"generate.count": 9, "segment.updates": 5, "phases[0].updates": 5}
    command = [*TOY, "--workdir", work, *(f"--config.{k}={value}" for k, value in fields.items())]
    code, out, err = faults.end(faults.launch(*command, PYTHONUTF8="1", PYTHONIOENCODING="ascii"))
    assert code == 0, err
    assert not re.search(r"[^\n\r -~]", out + err)  # tqdm ends its lines with \r
    assert out.count("note: ") == len(NAMES) and r"note: \x1b[2J\x1b]0;mine\x07.txt" in out
    page = (work / "report.html").read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert not re.search("[\x1b\x07\u202e\ud800-\udfff]", page) and r"\u202egnp" in page
    verdict = files.read_json(work / "metrics.json")["verdict"]
    skulls = {case["skull"] for case in verdict["cases"]} - {""}  # generated pairs have none
    assert len(skulls) == len(NAMES) and all(map(str.isprintable, skulls))
    assert (work / "figures" / "closest.png").exists() and (work / "maps.json").exists()
