"""The README's Python runs as shown; its commands are run by .ci/run."""

import pathlib
import re

import numpy as np

from skullgen import store

ROOT = pathlib.Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_reading_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "vae_wgan" / "generated.zarr"
    path.parent.mkdir(parents=True)
    store.create(path, count=1, size=32, shard=1, attributes={"recipe": {}})
    pairs = np.random.default_rng(0).random((1, 32, 32, 32, 2)) < 0.1
    store.write(path, 0, store.pack(pairs), {})
    names = {}
    exec(SNIPPETS[0], names)
    np.testing.assert_array_equal(names["defect"], pairs[0, ..., 1])


def test_cutting_a_skull():
    names = {}
    exec(SNIPPETS[1], names)
    assert names["implant"].any()


def test_figures_and_links_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
