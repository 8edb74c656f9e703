"""The pages to leaf through stores, clicked through in a browser."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.report import gallery, page
from tests import browser
from tests.report import samples
from tests.report.samples import HOSTILE, WAYS
from tests.shapes import blue

SIZE = 16
SPLITS, KINDS, SKULLS = [0, 0, 0, 1, 2, 0], [0, 1, 0, 1, 0, 1], [0, 0, 1, 2, 3, 1]
NAMES = ["a", HOSTILE, "b", "c"]


def _work(folder):
    folder.mkdir()
    columns = dict(split=SPLITS, kind=KINDS, skull=SKULLS)
    real = samples.pairs(folder / "real.zarr", WAYS, NAMES, **columns)
    return real, samples.pairs(folder / "generated.zarr", [WAYS[3], WAYS[1]])


def _run(folder, pairs=2000):
    gallery.run(ConfigDict({"gallery": {"pairs": pairs}}), folder)
    return folder / "gallery"


def _data(file):
    text = file.read_text("utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def test_a_browser_leafs_filters_sorts_and_marks_offline(tmp_path):
    _work(tmp_path / "run")
    (tmp_path / "run" / "real.zarr" / "leave_out.txt").write_text("4\n", "utf-8")
    index = _run(tmp_path / "run") / "real" / "index.html"
    with browser.chromium() as chromium, browser.opened(chromium, index) as opened:
        shown, complaints, requests = opened

        def tiles():
            return shown.locator("#tiles span").all_text_contents()

        def at(row):
            shown.wait_for_selector(f"body[data-drawn='{row}']")
            assert shown.locator("h2").inner_text() == f"Pair {row}"
            assert shown.url.endswith(f"#{row}")

        def marked():
            return shown.get_by_label("Indexes to leave out").input_value()

        at(0)
        assert tiles() == ["0", "1", "2", "3", "4", "5"] and marked() == "4"
        assert shown.locator("#tiles canvas").count() == 6
        assert blue(_picture(shown, "#tiles")).sum() > 100
        assert shown.locator("#tiles .out").all_text_contents() == ["4"]
        shown.wait_for_timeout(300)
        red, _, other = np.moveaxis(_picture(shown, "#turned"), -1, 0)
        assert ((red > other + 8) & (red < 240)).sum() > 2000  # bone
        assert (other > red + 60).sum() > 500  # the defect
        assert blue(_picture(shown, "#slices")).sum() > 100
        shown.locator("h2").click()
        shown.keyboard.press("ArrowRight")
        at(1)
        shown.keyboard.press("x")
        assert marked() == "1\n4" and shown.get_by_label("leave out x").is_checked()
        shown.get_by_label("Split").select_option("train")
        assert tiles() == ["0", "1", "2", "5"]
        assert "4 of 6 pairs" in shown.get_by_role("status").first.inner_text()
        shown.get_by_label("Kind").select_option(HOSTILE)
        assert tiles() == ["1", "5"]
        shown.locator("#skull").select_option(HOSTILE)
        assert tiles() == ["5"]
        at(5)
        shown.get_by_role("button", name="Leave out all of these").click()
        assert marked() == "1\n4\n5"
        for name in ("split", "kind", "skull"):
            shown.locator(f"#{name}").select_option("any")
        volumes = _volumes(index)
        order = sorted(volumes, key=lambda row: (-volumes[row], row))
        shown.get_by_label("Sort by").select_option("volume, ml")
        shown.get_by_label("Order").select_option("largest first")
        assert tiles() == list(map(str, order))
        shown.get_by_label("Measure").select_option("volume, ml")
        shown.get_by_label("Smallest value").fill(str(volumes[order[0]]))
        assert tiles() == [str(row) for row in order if volumes[row] == volumes[order[0]]]
        assert len(tiles()) < 6
        shown.get_by_label("Smallest value").fill("")
        assert "volume, ml" in shown.locator("#facts").inner_text()
        shown.get_by_label("only those that are left out").check()
        assert sorted(tiles()) == ["1", "4", "5"]
        shown.get_by_label("only those that are left out").uncheck()
        shown.reload()
        shown.wait_for_selector("body[data-drawn]")
        assert marked() == "1\n4\n5"  # a list of an hour is not lost with the window
        assert shown.locator("#where").inner_text() == str(tmp_path / "run/real.zarr/leave_out.txt")
        (tmp_path / "run/real.zarr/leave_out.txt").write_text(marked(), "utf-8")
        assert shown.locator("main img, aside img").count() == 0  # of no name
        assert complaints == []
        assert {one.partition("#")[0].rpartition("/")[0] for one in requests} == {
            index.parent.as_uri()
        }
    assert store.Store(tmp_path / "run" / "real.zarr").rows().tolist() == [0, 2, 3]


def _volumes(index):
    data = _data(index)
    place = data["measures"].index("volume_ml")
    return {pair["row"]: pair["values"][place] for pair in data["pairs"]}


def _picture(shown, what):
    return np.asarray(Image.open(io.BytesIO(shown.locator(what).screenshot())).convert("RGB"), int)


def test_files_hold_the_pairs(tmp_path):
    real, made = _work(tmp_path / "run")
    pages = _run(tmp_path / "run")
    for name, pairs in (("real", real), ("generated", made)):
        script = (pages / name / "pairs-000.js").read_text("utf-8")
        held = json.loads(script.removeprefix('bits("000",').removesuffix(")"))
        bits = [np.frombuffer(zlib.decompress(base64.b64decode(one)), np.uint8) for one in held]
        np.testing.assert_array_equal(store.unpack(np.stack(bits), SIZE), pairs)
    for row, volume in _volumes(pages / "real" / "index.html").items():
        expected = real[row, ..., 1].sum() * 12.8**3 / 1000
        assert volume == pytest.approx(expected, rel=1e-4)
    assert HOSTILE not in (pages / "real" / "index.html").read_text("utf-8")
    assert 'href="gallery/real/index.html"' in page.write(tmp_path / "run").read_text("utf-8")


def test_a_page_holds_the_first_pairs(tmp_path):
    samples.pairs(tmp_path / "generated.zarr")
    data = _data(_run(tmp_path, pairs=4) / "generated" / "index.html")
    assert [p["row"] for p in data["pairs"]] == [0, 1, 2, 3] and data["all"] == 6
    with pytest.raises(UserError, match="no store of pairs here: run `ingest`"):
        _run(tmp_path / "none")
