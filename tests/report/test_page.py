"""The report: whole, offline, readable on a phone, and safe from what files say."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from skullgen.core import files
from skullgen.report import page
from skullgen.training import logs
from tests import browser
from tests.report import samples
from tests.report.samples import HOSTILE, WAYS

NETS = ("vnet", "vnet_real", f"net {HOSTILE}")
SECTIONS = (
    *("warnings", "what-was-run", "pairs-to-leaf-through", "verdict"),
    *("by-kind-of-defect", "what-pairs-are-worth", "copies", "generated-pairs-beside-real-ones"),
    *("generated-pairs-in-numbers", "maps", "pictures", "training"),
)


def written_metrics():
    groups = ("all", ""), ("kind", "bilateral"), ("kind", HOSTILE)
    rows = [samples.row(net, by=by, group=group) for net in NETS for by, group in groups]
    difference = samples.row(metric="hd95_mm", mean=0.5, minus="vnet_real")
    generated, held_out = np.random.default_rng(0).normal(0.8, 0.03, (2, 60)).tolist()
    return {
        "quality": samples.quality(0.8123, generated, held_out, HOSTILE),
        "verdict": samples.verdict(rows, [difference]),
        "warnings": ["the hinge is idle", HOSTILE],
    }


def filled(folder):
    """A small work directory that holds every part, hostile names in all of them."""
    folder.mkdir(exist_ok=True)
    columns = dict(split=[0, 0, 1, 2], kind=[0, 1, 0, 1], skull=[0, 0, 1, 1])
    samples.pairs(folder / "real.zarr", WAYS[:4], ["phantom_0000", HOSTILE], **columns)
    samples.pairs(folder / "generated.zarr", WAYS[:4])
    records = [
        {"phase": f"p{k // 500}", "epoch": 0, "step": k, "loss": 1e3 / k, HOSTILE: float(k % 7)}
        for k in range(1, 1001)
    ]
    records[10]["loss"] = float("nan")
    for name in ("train", "segment-vnet"):
        logs.append(folder / f"{name}.jsonl", records)
    draw = np.random.default_rng(0)
    points = [
        {"x": x, "y": y, "group": ("real, train", HOSTILE)[k % 2], "case": f"{k} {HOSTILE}"}
        for k, (x, y) in enumerate(draw.normal(size=(60, 2)).tolist())
    ]
    cells = [["real only", "0.70"], [HOSTILE, "0.71"]]
    contents = {
        "config": {"model_name": HOSTILE, "data": {"root": HOSTILE}, "phases": [{"step": "vae"}]},
        "versions": {"commit": "abc123", "devices": ["cpu"], "jax": "0.10"},
        "metrics": written_metrics(),
        "maps": {"maps": [{"title": HOSTILE, "points": points}]},
        "table": {"title": HOSTILE, "columns": ["row", HOSTILE], "rows": cells, "notes": ["note"]},
    }
    for name, value in contents.items():
        files.write_json(folder / f"{name}.json", value)
    (folder / "gallery" / "a b").mkdir(parents=True)
    (folder / "gallery" / "a b" / "index.html").touch()
    (folder / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (400, 200), "#d8e4f0").save(folder / "figures" / "interpolation.png")
    Image.new("RGB", (40, 20), "#d8e4f0").save(folder / "figures" / "a<b>.png")
    return folder


def test_a_browser_shows_the_whole_page_offline(tmp_path):
    path = page.write(filled(tmp_path / "run"))
    assert path.stat().st_size < 15e6
    with browser.chromium() as chromium:
        with browser.opened(chromium, path) as (shown, complaints, requests):
            found = shown.eval_on_selector_all("main > section", "all => all.map(one => one.id)")
            links = shown.eval_on_selector_all("nav a", "all => all.map(a => a.hash.slice(1))")
            assert tuple(found) == tuple(links) == SECTIONS
            assert shown.locator("main figure img").count() == 2  # the pictures, and no name's
            hrefs = shown.eval_on_selector_all("main a, svg a", "all => all.map(a => a.href)")
            assert hrefs == [f"{path.parent.as_uri()}/gallery/a%20b/index.html"]
            assert shown.locator("body").inner_text().count("<img src=x") > 10
            cases = shown.evaluate("document.querySelector('[data-kind=map]').data[0].text")
            assert cases[0].startswith("0 &lt;img")
            shown.set_viewport_size({"width": 390, "height": 844})
            shown.wait_for_timeout(1000)
            assert shown.evaluate("document.documentElement.scrollWidth") == 390
            assert (complaints, requests) == ([], [path.as_uri()])


def test_an_empty_work_directory_has_a_page_without_sections(tmp_path):
    made = page.write(tmp_path).read_text("utf-8")
    assert "<section" not in made and '<a href="#' not in made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_no_text_of_a_file_becomes_markup(tmp_path):
    made = page.write(filled(tmp_path / "run")).read_text("utf-8")
    assert HOSTILE not in made and "<img src=x" not in made
    assert made.count("</script>") == made.count("<script")
    for held in re.findall(r'<script type="application/json">(.*?)</script>', made):
        assert json.loads(held, parse_constant=pytest.fail)


def test_long_logs_are_thinned_and_keep_their_extremes():
    records = [{"phase": "a", "epoch": 0, "step": k, "loss": 1.0} for k in range(1, 10_001)]
    records[5000]["loss"] = 500.0
    records[6000]["loss"] = float("inf")
    (plot,) = page.curves(records, "train")
    x, y, low, high = plot.figure["phases"]["a"]
    assert len(x) <= 300 and max(high) == 500 and set(low) == {1.0} and max(y) < 30
    assert plot.title == "train: loss"


def test_distances_are_told_in_words():
    real = np.arange(100, dtype=np.float32)  # whose deviation is 28.9
    assert page.distance(real, real) == "alike"
    says = page.distance(real, real + np.float32(5.0))
    assert says == "a little apart (0.17 standard deviations; generated ones larger in the mean)"
    assert page.distance(real, real - np.float32(40.0)).startswith("far apart (1.39 standard")
    one = np.ones(9, np.float32)
    assert page.distance(one, 3 * one) == "apart by 2, where real ones do not differ"
