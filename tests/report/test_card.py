"""Data cards: what they say of a store whose numbers are known, and that no text breaks them."""

import re

import numpy as np
import yaml

from skullgen.core import files
from skullgen.data import store
from skullgen.report import card
from tests.report import samples

MODEL = {"model_name": "vae", "model": {"latent": 8}, "step": 70, "weights": "ab" * 32}
RECIPE = {**MODEL, "generate": {"seed": 3, "first": 40}, "device": "cpu"}


def _store(path, licence="Apache-2.0", names=(), trained_on=None):
    """Five pairs of 8^3 voxels of 10 mm (1 ml each) whose defects have 0, 1, 2, 3 and 4 voxels."""
    attributes = {
        "voxel_mm": 10.0,
        "kinds": [],
        "names": list(names),
        "licence": f"as of the pairs that it was trained on: {licence}",
        "trained_on": trained_on or {"source": "phantom", "pairs": 30, "skulls": 6},
    }
    made = store.create(path, store.Shape(5, 8, 5), attributes, RECIPE)
    pairs = np.zeros((5, 8, 8, 8, 2), bool)
    pairs[:, 5, ..., 0] = True
    for number in range(5):
        pairs[number, 0, 0, :number, 1] = True
    made.write(0, store.pack(pairs), {"removed": np.tile([[2, 1, 0]], (5, 1))})
    return path


def _metrics(path, **more):
    rows = [samples.row(mean=0.667), samples.row(column="train", mean=0.9)]
    identity = card.identity(store.Store(path))
    quality, verdict = samples.quality(), samples.verdict(rows)
    return {"generated": identity, "quality": quality, "verdict": verdict, **more}


def test_a_card_says_what_is_in_the_store(tmp_path):
    path = _store(tmp_path / "generated.zarr")
    text = card.write(path).read_text("utf-8")
    for line in (
        "| pairs | 5, 8^3 voxels of 10 mm |",
        "| empty defects | 1 (20.0%) |",
        "| defects, ml: least, quartiles, most | 1.0, 1.8, 2.5, 3.2, 4.0 |",
        "| trained on | source phantom, pairs 30, skulls 6 |",
        "| model | vae, update 70 |",
        f"| weights, SHA-256 | {'ab' * 32} |",
        "| seed; first sample | 3; 40 |",
    ):
        assert line in text
    # Equation 6 took 2 of 2 + 0 + 2 voxels of a mean defect; 1 voxel of dust a skull.
    assert "took 50.00% of the defects' voxels" in text and "1.00 of skull, 0.00 of defect" in text
    assert "Not evaluated." in text and "not a medical device" in text and "2308.04883" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"


def test_pairs_that_are_left_out_are_counted_apart(tmp_path):
    path = _store(tmp_path / "generated.zarr")
    (path / "leave_out.txt").write_text("0\n4\n", "utf-8")
    text = card.write(path).read_text("utf-8")
    assert "| pairs | 3, 8^3 voxels of 10 mm |" in text
    assert "| left out, in leave_out.txt | 2 |" in text and "| empty defects | 0 (0.0%) |" in text
    assert "| defects, ml: least, quartiles, most | 1.0, 1.5, 2.0, 2.5, 3.0 |" in text
    snippet = re.search(r"```python\n(.*?)```", text, re.S)[1]
    names = {}
    exec(snippet.replace("generated.zarr", str(path)), names)
    assert names["defect"].sum() == 0 and names["skull"].sum() == 64


def test_the_licence_is_that_of_the_real_pairs(tmp_path):
    licence = "CC BY-NC-SA 4.0"
    text = card.write(_store(tmp_path / "generated.zarr", licence)).read_text("utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-nc-sa-4.0" and f"| licence | {licence} |" in text
    assert "no commercial use" in text and "license_name" not in front


def test_text_from_a_store_breaks_no_card(tmp_path):
    hostile = 'x"\n---\n# y | <script>alert(1)</script> [a](b) `c`'
    data = {"source": hostile}
    text = card.write(_store(tmp_path / "generated.zarr", hostile, trained_on=data)).read_text(
        "utf-8"
    )
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other" and front["license_name"].startswith('x"\\n---')
    assert "<script>" not in text.split("---\n")[2] and "\n# y" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| licence", "| trained on"))]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows) and len(rows) == 2


def test_a_verdict_is_shown_only_on_the_pairs_that_it_is_about(tmp_path):
    path = _store(tmp_path / "generated.zarr")
    files.write_json(tmp_path / "metrics.json", _metrics(path))
    text = card.write(path).read_text("utf-8")
    assert "| nearest training pair: generated | 0.500 | 0.500 |" in text
    assert "20.0% of 5 generated skulls" in text and "the closest has 0.750" in text
    assert "| vnet | test | 0.667 [0.567, 0.767] |" in text
    assert "Doe" not in text and "/home" not in text and "0.900" not in text
    other = {"recipe": {**RECIPE, "step": 60}, "pairs": 5}
    files.write_json(tmp_path / "metrics.json", _metrics(path, generated=other))
    assert "Not evaluated." in card.write(path).read_text("utf-8")
