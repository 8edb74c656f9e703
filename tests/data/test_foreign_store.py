"""Stores that others made or changed: one line that names the file; nothing of them is executed."""

import copy
import json
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import store
from tests.data.test_store import create, pairs_of, truth_of


@pytest.fixture
def path(tmp_path):
    """A small whole store with native truths."""
    opened = create(tmp_path / "a.zarr", 6)
    for shard in opened.missing():
        bits = store.pack(pairs_of(len(shard)))
        opened.write(shard.start, bits, {}, [truth_of()[1]] * len(shard))
    return opened.path


def read(path):
    """All that readers read of a store."""
    opened = store.Store(path)
    for name in store.COLUMNS:
        opened.column(name)
    opened.names(np.arange(2))
    opened.load(opened.rows())
    opened.native(0)
    return opened.recipe


def change(path, place, value):
    """Sets the value at a dotted place in a `zarr.json`."""
    about = files.read_json(path)
    *keys, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner = about
    for key in keys:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(about), "utf-8")


INNER, CHUNKS = "codecs.0.configuration", "chunk_grid.configuration.chunk_shape"
PICKLE = {"name": "numcodecs.pickle", "configuration": {"protocol": 4}}
CHANGED = [  # folder of the zarr.json, place in it, value, words of the error
    ("", "attributes.format", "skullgen-pairs-1", "not a store of pairs in the format"),
    ("", "attributes", [1], "not a store of pairs in the format"),
    ("", "attributes.voxel_mm", -1, "voxel_mm"),
    ("", "attributes.names", ["a", 1], "names"),
    ("", "attributes.versions", [], "versions"),
    ("", "node_type", "array", "node_type"),
    ("pairs", "shape", [6], "shape"),
    ("pairs", "shape.0", 2**40, "1099511627776 pairs: it must be 1 to 10000000"),
    ("pairs", "shape.0", 10**7, "more than 50000 files"),
    ("pairs", "shape.0", 0, "0 pairs: it must be 1 to 10000000"),
    ("pairs", "shape.1", 4096, "4096 voxels a side: it must be 1 to 512"),
    ("pairs", f"{CHUNKS}.0", 2**40, "pairs a file: it must be 1 to 4096"),
    ("pairs", f"{CHUNKS}.1", 2, "pairs/zarr.json: it is damaged .*divisible"),
    ("pairs", f"{INNER}.chunk_shape.0", 2**40, "pairs/zarr.json: it is damaged .*divisible"),
    ("pairs", f"{INNER}.codecs.1", PICKLE, "codecs"),
    ("pairs", f"{INNER}.index_codecs.0", PICKLE, "codecs"),
    ("pairs", f"{INNER}.codecs.0.configuration", 5, "pairs/zarr.json: it is damaged"),
    ("pairs", "data_type", "uint8", "data_type"),
    ("voxels", "shape.0", 5, "shape"),
    ("kind", "shape", [], "shape"),
    ("kind", f"{CHUNKS}.0", 2**40, "kind/zarr.json: its shape is not as skullgen writes it"),
    ("split", "codecs", [], "split/zarr.json: it is damaged .*Codec is required"),
    ("split", "codecs.1", {"name": "os.system"}, "split/zarr.json: it is damaged .*Unknown codec"),
    ("affine", "zarr_format", 2, "affine/zarr.json: it is damaged"),
    ("native/000000", "attributes.grid", [10**4] * 3, "grid"),
    ("native/000000", "attributes.origin", [-1, 2, 3], "grid"),
    ("native/000000", "attributes.origin", [4, 2, 3], "grid"),
    ("native/000000", "attributes.shape", [2, 3, 9], "grid"),
    ("native/000000", "attributes.shape", [4, 3, 1], "shape"),
    ("native/000000", "attributes.shape", [2, 3, 2**70], "grid"),
    ("native/000000", "attributes.affine", [1], "is damaged"),
    ("native/000000", "codecs.1", PICKLE, "codecs"),
]


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        read(path)
    line = str(error.value)
    assert line.startswith(str(path)) and line.isprintable() and len(line) < 600
    assert not Path("executed").exists()


@pytest.mark.parametrize(("folder", "place", "value", "words"), CHANGED)
def test_a_changed_description_is_refused_in_one_line(folder, place, value, words, path):
    read(path)
    change(path / folder / "zarr.json", place, value)
    refused(path, words)


@pytest.mark.parametrize("name", ["zarr.json", "pairs/zarr.json", "recipe.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"\xff": 1}', b"[" * 10**5])
def test_what_is_no_json_is_refused_in_one_line(name, content, path):
    (path / name).write_bytes(content)
    refused(path, f"{name}: (cannot be read|it is damaged)")


def test_zarrs_older_format_whose_filters_unpickle_is_not_read(path):
    old = {"zarr_format": 2, "shape": [6], "chunks": [6], "dtype": "|O", "fill_value": None}
    old |= {"order": "C", "compressor": None, "filters": [{"id": "pickle", "protocol": 4}]}
    shutil.rmtree(path / "split")
    (path / "split").mkdir()
    (path / "split/.zarray").write_text(json.dumps(old), "utf-8")
    (path / "split/0").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    refused(path, "split/zarr.json: it is damaged .*No array found")


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="no store of pairs here; run the stage"):
        store.Store(tmp_path / "none.zarr")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    path = create(tmp_path_factory.mktemp("store") / "a.zarr", 6).path
    folders = ("", "pairs", "voxels", "affine")
    return path, {folder: files.read_json(path / folder / "zarr.json") for folder in folders}


@hypothesis.settings(max_examples=60)
@hypothesis.given(data=st.data(), folder=st.sampled_from(["", "pairs", "voxels", "affine"]))
def test_any_value_in_any_place_is_read_or_refused(data, folder, arrays):
    path, whole = arrays
    about = inner = copy.deepcopy(whole[folder])
    while True:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = data.draw(st.sampled_from(keys))
        deeper = inner[key] and isinstance(inner[key], dict | list)
        if not deeper or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(JSON)
    (path / folder / "zarr.json").write_text(json.dumps(about), "utf-8")
    try:
        opened = store.Store(path)
        for name in store.COLUMNS:
            opened.column(name)
    except UserError as error:
        assert str(error).startswith(str(path))
    finally:
        (path / folder / "zarr.json").write_text(json.dumps(whole[folder]), "utf-8")
