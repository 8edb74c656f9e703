"""Stores and checkpoints of strangers: refused in one line, and nothing of them is executed."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import google_crc32c
import nrrd
import numpy as np
import pytest
import zarr
from numcodecs import Blosc, Zstd

from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import metrics

SIZE = 4
ROOT = Path(__file__).parents[2]


def make(path, count=6):
    """A small whole store with a native truth of its first pair."""
    attributes = {"recipe": {"seed": 1}, "names": ["a"], "kinds": ["b"], "voxel_mm": 2.0}
    store.create(path, count=count, size=SIZE, shard=4, attributes=attributes)
    implant = np.random.default_rng(1).random((2, 3, 1)) < 0.7
    truth = {"bits": np.packbits(implant), "origin": (1, 2, 3), "shape": (2, 3, 1)}
    truth |= {"grid": (5, 6, 7), "affine": np.eye(4)}
    for shard in store.Store(path).missing():
        pairs = np.random.default_rng(shard.start).random((len(shard), SIZE, SIZE, SIZE, 2)) < 0.4
        splits = {"split": np.arange(len(shard)) % 3, "affine": np.full((len(shard), 4, 4), 1.0)}
        store.Store(path).write(
            shard.start, store.pack(pairs), splits, [truth] * (shard.start == 0)
        )


def read(path):
    """All that readers read of a store."""
    store.Store(path).recipe
    opened = store.Store(path)
    for name in store.COLUMNS:
        opened[name][:]
    store.Store(path).left_out()
    store.Store(path).require_whole("ingest")
    store.Store(path).load(store.Store(path).rows())
    store.mixture(f"{path}:train:all", path, 0)
    if store.Store(path).has_native(0):
        store.Store(path).native(0)


def _json(name, *change):
    """Sets values in a `zarr.json`: pairs of a dotted place and its value."""

    def damage(path):
        file = path / name / "zarr.json"
        content = json.loads(file.read_text())
        for place, value in zip(change[::2], change[1::2], strict=True):
            *keys, last = [int(k) if k.isdigit() else k for k in place.split(".")]
            inner = content
            for key in keys:
                inner = inner[key]
            inner[last] = value
        file.write_text(json.dumps(content))

    return damage


def _file(name, content):
    def damage(path):
        (path / name).write_bytes(content(path / name) if callable(content) else content)

    return damage


def _gone(name):
    def damage(path):
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return damage


def _link(name):
    """The file or folder moved out of the store, with a link in its place."""

    def damage(path):
        out = path.parent / "outside"
        (path / name).rename(out)
        (path / name).symlink_to(out)

    return damage


def _all(*damages):
    def damage(path):
        for each in damages:
            each(path)

    return damage


def _pipe(name):
    def damage(path):
        (path / name).unlink()
        os.mkfifo(path / name)

    return damage


def _pair(content):
    """The first pair's chunk replaced, with sums and index as they should be."""

    def damage(path):
        chunk = content(2 * SIZE**3)
        chunk += struct.pack("<I", google_crc32c.value(chunk))
        index = struct.pack("<2Q", 0, len(chunk)) + b"\xff" * 16 * 3
        index += struct.pack("<I", google_crc32c.value(index))
        (path / "pairs/c/0/0/0/0/0").write_bytes(chunk + index)

    return damage


def _range(start, length):
    def damage(path):
        file = path / "pairs/c/0/0/0/0/0"
        content = bytearray(file.read_bytes())
        content[-68:-4] = struct.pack("<2Q", start, length) * 4
        content[-4:] = struct.pack("<I", google_crc32c.value(bytes(content[-68:-4])))
        file.write_bytes(content)

    return damage


def _blosc(nbytes, data=None):
    def content(decoded):
        packed = bytes(Blosc(cname="zstd").encode(np.zeros(data or decoded, np.uint8)))
        return packed[:4] + struct.pack("<I", nbytes) + packed[8:]

    return _pair(content)


def _old(path):
    """A column in Zarr's second format, whose filter unpickles."""
    shutil.rmtree(path / "split")
    old = {"zarr_format": 2, "shape": [6], "chunks": [6], "dtype": "|O", "fill_value": None}
    old |= {"order": "C", "compressor": None, "filters": [{"id": "pickle", "protocol": 4}]}
    (path / "split").mkdir()
    (path / "split/.zarray").write_text(json.dumps(old))
    (path / "split/0").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")


def _bomb(blocks):
    """A frame of zstd that does not say its size: 128 KiB of zeros a block of four bytes."""
    block = struct.pack("<I", (131072 << 3) | 2)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (blocks - 1) + b"\x03" + block[1:]


def _codec(name, codec):
    return _json(name, "codecs.1", codec)


_PAIRS, _NATIVE = "pairs", "native/000000"
_INNER = "codecs.0.configuration"
_CHUNKS = "chunk_grid.configuration.chunk_shape"
HOSTILE = {
    "empty json": (_file("zarr.json", b""), "damaged"),
    "cut json": (_file("zarr.json", lambda f: f.read_bytes()[:40]), "damaged"),
    "no dict": (_file("zarr.json", b"[1]"), "not a JSON object"),
    "no utf-8": (_file("pairs/zarr.json", b'{"\xff\xfe": 1}'), "damaged"),
    "nested": (_file("zarr.json", b"[" * 100_000), "nested too deeply"),
    "recipe nested": (_json("", "attributes.recipe.a", eval("[" * 60 + "]" * 60)), "deeply"),
    "digits": (_file("pairs/zarr.json", b'{"shape": [' + b"9" * 5000 + b"]}"), "damaged"),
    "json of gigabytes": (lambda p: os.truncate(p / "zarr.json", 2**33), "8589934592 bytes, more"),
    "format": (_json("", "attributes.format", "x"), "not a store of pairs in the format"),
    "attributes": (_json("", "attributes", [1]), "not a store of pairs in the format"),
    "recipe": (_json("", "attributes.recipe", [1]), "recipe"),
    "voxel_mm": (_json("", "attributes.voxel_mm", float("nan")), "voxel_mm is nan"),
    "voxel_mm negative": (_json("", "attributes.voxel_mm", -1), "voxel_mm is -1"),
    "kinds": (_json("", "attributes.kinds", "frontal"), "kinds is 'frontal'"),
    "names": (_json("", "attributes.names", ["a", 1]), "names"),
    "v2 group": (_json("", "zarr_format", 2), "zarr_format is 2"),
    "a pipe": (_pipe("zarr.json"), "not a plain file"),
    "a pipe of voxels": (_pipe("voxels/c/0/0"), "not a plain file"),
    "no pairs": (_gone("pairs"), "cannot be read"),
    "no column": (_gone("affine"), "cannot be read"),
    "pairs not 5-D": (_json(_PAIRS, "shape", [6]), "not as"),
    "10^12 pairs": (_json(_PAIRS, "shape.0", 10**12), "1000000000000 pairs, more than 10000000"),
    "10^30 pairs": (_json(_PAIRS, "shape.0", 10**30), "pairs, more than"),
    "no pairs at all": (_json(_PAIRS, "shape.0", 0), "is 0"),
    "-1 pairs": (_json(_PAIRS, "shape.0", -1), "is -1"),
    "half a pair": (_json(_PAIRS, "shape.0", 1.5), "is 1.5"),
    "true pairs": (_json(_PAIRS, "shape.0", True), "is True"),
    "side": (_json(_PAIRS, "shape.1", 4096), "4096 voxels a side, more than 512"),
    "not cubes": (_json(_PAIRS, "shape.2", 5), r"shape.2 is 5"),
    "shard": (_json(_PAIRS, f"{_CHUNKS}.0", 10**9), "pairs a file, more than"),
    "shards": (
        _json(_PAIRS, f"{_CHUNKS}.0", 1, "shape.0", 10**6),
        "1000000 files of pairs, more than",
    ),
    "chunks": (_json(_PAIRS, f"{_INNER}.chunk_shape.0", 2), "chunk_shape.0 is 2"),
    "other count": (_json("skull", "shape.0", 5), "shape.0 is 5"),
    "other chunks": (_json("kind", f"{_CHUNKS}.0", 10**9), "chunk_shape.0"),
    "other dtype": (_json("kind", "data_type", "int64"), "data_type is 'int64'"),
    "dtype of objects": (_json("kind", "data_type", {"name": "pickle"}), "data_type"),
    "other fill": (_json("split", "fill_value", 0), "fill_value is 0"),
    "transformer": (_json("split", "storage_transformers", [{"name": "x"}]), "transformers"),
    "unknown codec": (_codec("split", {"name": "skullgen.core.errors.UserError"}), r"codecs.1"),
    "pickle codec": (
        _codec("split", {"name": "numcodecs.pickle", "configuration": {"protocol": 4}}),
        r"codecs.1",
    ),
    "extra codec": (_json("split", "codecs", [{"name": "bytes"}] * 3), "codecs"),
    "codec of pairs": (_json(_PAIRS, f"{_INNER}.codecs.1.name", "gzip"), "name is 'gzip'"),
    "no crc": (_json(_PAIRS, f"{_INNER}.codecs.2.name", "bytes"), "name is 'bytes'"),
    "index first": (_json(_PAIRS, f"{_INNER}.index_location", "start"), "index_location"),
    "keys climb": (_json("split", "chunk_key_encoding.configuration.separator", "/../"), "sepa"),
    "extra key": (_json("split", "must_understand", False), "not as"),
    "link to json": (_link("pairs/zarr.json"), "a link that leads out"),
    "link to an array": (_link("pairs"), "a link that leads out"),
    "link to chunks": (_link("pairs/c"), "a link that leads out"),
    "link to a column": (_link("voxels/c/0"), "a link that leads out"),
    "link to native": (_link("native"), "a link that leads out"),
    "link to a device": (
        _all(_gone("split/c/0"), lambda p: (p / "split/c/0").symlink_to("/dev/zero")),
        "a link that leads out",
    ),
    "loop": (_all(_gone("split/c"), lambda p: (p / "split/c").symlink_to("c")), "cannot be read"),
    "cut column": (_file("split/c/0", lambda f: f.read_bytes()[:-3]), "split/c/0: damaged"),
    "empty column": (_file("voxels/c/0/0", b""), "voxels/c/0/0: damaged"),
    "short column": (_file("split/c/0", lambda f: bytes(Zstd().encode(bytes(3)))), "damaged"),
    "long column": (_file("split/c/0", lambda f: bytes(Zstd().encode(bytes(5)))), "damaged"),
    "bomb in a column": (_file("split/c/0", _bomb(2**13)), "split/c/0: damaged"),
    "two frames": (_file("split/c/0", lambda f: f.read_bytes() + _bomb(2**13)), "damaged"),
    "column of gigabytes": (lambda p: os.truncate(p / "split/c/0", 2**33), "bytes, more than"),
    "split 7": (_file("split/c/0", lambda f: bytes(Zstd().encode(bytes([7] * 4)))), "damaged"),
    "no such kind": (
        lambda p: zarr.open_array(p / "kind", mode="r+").__setitem__(0, 1),
        "kind/c/0: damaged",
    ),
    "no such skull": (
        lambda p: zarr.open_array(p / "skull", mode="r+").__setitem__(0, 1),
        "skull/c/0: damaged",
    ),
    "affine of nan": (
        lambda p: zarr.open_array(p / "affine", mode="r+").__setitem__((0, 0, 0), np.nan),
        "affine/c/0/0/0: damaged",
    ),
    "a bomb of a pair": (_blosc(2**27, 2**27), r"pairs/c/.*: damaged"),
    "a pair that lies": (_blosc(2**31 - 1), r"pairs/c/.*: damaged"),
    "a small pair": (_blosc(64, 64), r"pairs/c/.*: damaged"),
    "garbage": (_pair(lambda size: bytes(range(200))), r"pairs/c/.*: damaged"),
    "a short pair": (_pair(lambda size: b"ab"), r"pairs/c/.*: damaged"),
    "a pair of terabytes": (_range(0, 2**50), r"pairs/c/.*: damaged"),
    "a pair beyond the end": (_range(2**63, 2**63), r"pairs/c/.*: damaged"),
    "a shard of gigabytes": (lambda p: os.truncate(p / "pairs/c/0/0/0/0/0", 2**33), "damaged"),
    "native of terabytes": (
        _json(_NATIVE, "attributes.grid", [10**4] * 3),
        "1000000000000 voxels of a source, more than",
    ),
    "native crop": (_json(_NATIVE, "attributes.shape", [2**11] * 3), "voxels of an implant"),
    "native outside": (_json(_NATIVE, "attributes.origin", [4, 2, 3]), "attributes.shape"),
    "native before": (_json(_NATIVE, "attributes.origin", [-1, 2, 3]), "origin.0 is -1"),
    "native bits": (_json(_NATIVE, "attributes.shape", [4, 3, 1]), "shape.0"),
    "native 2-D": (_json(_NATIVE, "attributes.shape", [2, 3]), "attributes.shape"),
    "native affine": (_json(_NATIVE, "attributes.affine.0.0", 0.0), "attributes.affine"),
    "native codec": (_json(_NATIVE, "codecs", [{"name": "bytes"}]), "codecs"),
    "native chunk gone": (_gone(f"{_NATIVE}/c"), "cannot be read"),
    "native chunk cut": (_file(f"{_NATIVE}/c/0", b"abc"), "damaged"),
    "a link for a note": (
        lambda p: [(p / "left_out").mkdir(), (p / "left_out/1.txt").symlink_to("/dev/zero")],
        "a link that leads out",
    ),
    "pickles": (_old, "split/zarr.json: cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stores_are_refused_in_one_line(name, tmp_path):
    damage, words = HOSTILE[name]
    path = tmp_path / "a.zarr"
    make(path)
    read(path)
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not Path("executed").exists()


def test_affines_that_fit_no_grid_are_named(tmp_path):
    path = tmp_path / "a.zarr"
    make(path)
    zarr.open_array(path / "affine", mode="r+")[0] = 0
    with pytest.raises(UserError, match="pair 0: its affines fit no grid"):
        metrics.case(store.Store(path), 0, np.zeros((SIZE,) * 3), "probability", 0.5)


def test_a_missing_attribute_is_named(tmp_path):
    make(tmp_path / "a.zarr")
    with pytest.raises(UserError, match="it has no attribute 'licence'"):
        store.Store(tmp_path / "a.zarr").attrs["licence"]


def test_a_link_to_a_store_and_links_within_one_are_read(tmp_path):
    make(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").symlink_to("a.zarr")
    (tmp_path / "a.zarr/split/c/0").rename(tmp_path / "a.zarr/split/c/old")
    (tmp_path / "a.zarr/split/c/0").symlink_to("old")
    read(tmp_path / "b.zarr")


def test_other_levels_and_consolidated_metadata_are_read(tmp_path):
    """What other versions of Zarr may write, and what one may do to a store to serve it."""
    path = tmp_path / "a.zarr"
    make(path)
    _json("split", "codecs.1.configuration.level", 9)(path)
    _json("split", "codecs.1.configuration.checksum", True)(path)
    _json("split", "dimension_names", [None])(path)
    _json("pairs", f"{_INNER}.codecs.1.configuration.clevel", 7)(path)
    zarr.consolidate_metadata(path)
    read(path)


_WATCHED = """
import pickle, sys
from pathlib import Path

def watch(event, arguments):
    if event == "pickle.find_class":
        raise SystemExit(f"unpickled: {arguments}")

sys.addaudithook(watch)
folder = Path(sys.argv[1])
if sys.argv[2] == "pickle":
    pickle.loads(pickle.dumps(Path("a")))
from skullgen.data import volumes
from skullgen.run import workdir
from skullgen.training import logs
from tests import toy_config

volumes.read(folder / "a.nrrd")
config = toy_config.get_config()
config.workers, config.compilation_cache = 1, ""
config.generate.count, config.segment.updates, config.data.skulls = 20, 4, 4
config.phases = [dict(step="toy", updates=3)]
config.stages = "ingest,train,generate,segment,evaluate"
workdir.run(config, folder / "run")
assert logs.read(folder / "run" / "train.jsonl")
"""


@pytest.mark.parametrize("what", ["read", "pickle"])
def test_nothing_is_unpickled(what, tmp_path):
    """A whole run whose every stage reads what others wrote, watched by an audit hook."""
    grid = np.indices((8, 8, 8)) - 3.5
    shell = (np.linalg.norm(grid, axis=0) < 4).astype(np.uint8)
    nrrd.write(str(tmp_path / "a.nrrd"), shell, {"spacings": [1, 1, 1]})
    command = [sys.executable, "-c", _WATCHED, str(tmp_path), what]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ("unpickled" in done.stderr) == (what == "pickle"), done.stderr
    assert done.returncode == (what == "pickle"), done.stderr


@pytest.mark.parametrize(
    "change", [('"seed": 1', '"seed": 2'), ('"voxel_mm": 2.0', '"voxel_mm": 3.0')]
)
def test_a_changed_letter_in_what_a_store_says_of_itself_is_found(change, tmp_path):
    make(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "zarr.json"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match="crc32 is"):
        store.Store(tmp_path / "a.zarr")
