"""Data cards: what they say of a store, and that no text breaks them."""

import re

import numpy as np
import yaml

from skullgen.data import store
from skullgen.report import card

MODEL = {"model_name": "vae", "model": {"latent": 8}, "step": 70, "weights": "ab" * 32}
RECIPE = {**MODEL, "generate": {"seed": 3, "first": 40}, "device": "cpu"}


def _store(path, licence="Apache-2.0", names=(), trained_on=None):
    """Five pairs of 8^3 voxels of 10 mm whose defects have 0, 1, 2, 3 and 4 voxels."""
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
    made.write(0, store.pack(pairs), {})
    return path


def test_a_card_says_what_is_in_the_store(tmp_path):
    path = _store(tmp_path / "generated.zarr")
    text = card.write(path).read_text("utf-8")
    for line in (
        "| pairs | 5, 8^3 voxels of 10 mm |",
        "| empty defects | 1 |",
        "| trained on | source phantom, pairs 30, skulls 6 |",
        "| model | vae, update 70 |",
        f"| weights, SHA-256 | {'ab' * 32} |",
        "| seed; first sample | 3; 40 |",
    ):
        assert line in text
    assert "not a medical device" in text and "2308.04883" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"


def test_pairs_that_are_left_out_are_counted_apart(tmp_path):
    path = _store(tmp_path / "generated.zarr")
    (path / "leave_out.txt").write_text("0\n4\n", "utf-8")
    text = card.write(path).read_text("utf-8")
    assert "| pairs | 3, 8^3 voxels of 10 mm |" in text
    assert "| left out, in leave_out.txt | 2 |" in text and "| empty defects | 0 |" in text
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
