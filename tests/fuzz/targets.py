"""What is fuzzed: each target reads bytes as a reader of ours would, and has seeds made by code.

`TARGETS[name](folder, patch)` gives `(read, seeds)`: `read(data)` may raise `UserError` and nothing
else. patch: a pytest.MonkeyPatch, for as long as `read` is used.
The first byte of an input says which file it is, or how it is packed; the rest is its content.
"""

import ast
import contextlib
import gzip
import io
import json
import shutil
import struct

import google_crc32c
import nibabel
import nrrd
import numpy as np
from numcodecs import Zstd

from skullgen.core.errors import UserError
from skullgen.data import volumes
from skullgen.training import logs
from tests.faults import test_hostile

MAX_VOXELS = 2**20


def _skull(side=8):
    grid = np.indices((side,) * 3) - (side - 1) / 2
    shell = np.linalg.norm(grid, axis=0)
    return ((shell < side / 2) & (shell > side / 4)).astype(np.uint8)


def _scan():
    return _skull().astype(np.int16) * 1500 - 1000


def _volumes(path, bone_hu):
    with contextlib.suppress(UserError):
        volumes.read(path, bone_hu=bone_hu, max_voxels=MAX_VOXELS)
    volumes.read_reduced(path, 4, max_voxels=MAX_VOXELS, keep_native=True)


def _nrrd(folder, patch):
    """0, 1: a file (mask, CT); 2: its data are packed here; 3: a header beside its data."""
    (folder / "a.raw").write_bytes(_skull().tobytes())

    def read(data):
        how, content = data[:1], data[1:]
        if how == b"\2":
            head, _, body = content.partition(b"\n\n")
            content = head + b"\n\n" + gzip.compress(body, 1)
        path = folder / ("a.nhdr" if how == b"\3" else "a.nrrd")
        path.write_bytes(content)
        _volumes(path, 300.0 if how == b"\1" else None)

    seeds = []
    places = {"space": "left-posterior-superior", "space origin": [0, 0, 0]}
    places["space directions"] = np.diag([1.5, 2, 1])
    for data, how in ((_skull(), 0), (_scan(), 1), (_skull().astype(np.float32), 0)):
        for encoding in ("raw", "gzip", "ascii"):
            file = io.BytesIO()
            nrrd.write(file, data, {**places, "encoding": encoding})
            seeds.append(bytes([how]) + file.getvalue())
    file = io.BytesIO()
    nrrd.write(file, _skull(), {**places, "encoding": "raw"})
    head, _, body = file.getvalue().partition(b"\n\n")
    seeds.append(b"\2" + head.replace(b"raw", b"gzip") + b"\n\n" + body)
    seeds += [b"\3" + head + line + b"\n" for line in (b"\ndata file: a.raw", b"\ndatafile: LIST")]
    seeds.append(b"\0NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nspacings: 1 1 1\n")
    return read, seeds


def _nifti(folder, patch):
    """0, 1: a plain file (mask, CT); 2: packed here; 3: packed already."""

    def read(data):
        how, content = data[:1], data[1:]
        path = folder / ("a.nii.gz" if how in (b"\2", b"\3") else "a.nii")
        path.write_bytes(gzip.compress(content, 1) if how == b"\2" else content)
        _volumes(path, 300.0 if how == b"\1" else None)

    seeds = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for data, how in ((_skull(), 0), (_scan(), 1), (_skull().astype(">f4"), 2)):
            image = kind(data, np.diag([1.0, 1.5, 2.0, 1.0]))
            image.header.set_xyzt_units("mm")
            seeds.append(bytes([how]) + image.to_bytes())
    return read, [*seeds, b"\3" + gzip.compress(seeds[0][1:], 1)]


def _sealed(content, name):
    """The chunk or shard with sums, sizes and places that are right again: deeper than they go."""
    if name.startswith("pairs") or name.startswith("native"):
        decoded = 2 * test_hostile.SIZE**3 if name.startswith("pairs") else 1
        if len(content) >= 16:
            content = content[:4] + struct.pack("<I", decoded) + content[8:]
            content = content[:12] + struct.pack("<I", len(content)) + content[16:]
        content += struct.pack("<I", google_crc32c.value(content))
    if name.startswith("pairs"):
        index = struct.pack("<2Q", 0, len(content)) * 4
        content += index + struct.pack("<I", google_crc32c.value(index))
    return content if name.startswith(("pairs", "native")) else bytes(Zstd().encode(content))


def _store(folder, patch):
    """The number of a file of a small store; 128 and more: of a chunk, sealed here."""
    path = folder / "a.zarr"
    test_hostile.make(path)
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    whole = [(path / name).read_bytes() for name in files]

    def read(data):
        number, content = data[0] % 128 % len(files), data[1:]
        if data[0] >= 128 and "/c/" in files[number]:
            content = _sealed(content, files[number])
        try:
            (path / files[number]).write_bytes(content)
            test_hostile.read(path)
        finally:
            (path / files[number]).write_bytes(whole[number])

    seeds = [bytes([number]) + content for number, content in enumerate(whole)]
    for number, name in enumerate(files):
        if name.startswith(("pairs/c", "native/000000/c")):
            chunk = whole[number][: struct.unpack("<I", whole[number][12:16])[0]]
            seeds.append(bytes([128 + number]) + chunk)
        elif "/c/" in name:
            seeds.append(bytes([128 + number]) + bytes(Zstd().decode(whole[number])))
    return read, seeds


def _log(folder, patch):
    """A log."""
    path = folder / "a.jsonl"

    def read(data):
        path.write_bytes(data)
        logs.read(path)

    logs.append(folder / "seed.jsonl", [dict(phase="vae", epoch=1, step=s, kl=0.5) for s in (1, 2)])
    return read, [(folder / "seed.jsonl").read_bytes()]


def _config(folder, patch):
    """Lines `field=value` on an experiment's smoke size; a value is a literal, or text."""
    from experiments import vae_wgan
    from skullgen.run import workdir

    patch.setattr(workdir, "_stage", lambda *_, **__: None)  # all but the work itself
    patch.setattr(workdir, "record", lambda *_: None)
    base = vae_wgan.get_config("smoke")
    fields = [".".join(keys) for keys, _ in _leaves(base)]

    def read(data):
        config = vae_wgan.get_config("smoke")
        config.stages = "ingest"
        for line in data.decode(errors="surrogateescape").split("\n"):
            name, equals, value = line.partition("=")
            if not equals or name not in fields or name.endswith("model_name"):
                continue  # the name of a module is the name of a program
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                value = ast.literal_eval(value)
            section, _, last = name.rpartition(".")
            held = config
            for key in filter(None, section.split(".")):
                held = held.get(key) if hasattr(held, "get") else None
            if hasattr(held, "unlock"):
                with (
                    held.unlocked(),
                    held.ignore_type(),
                    contextlib.suppress(TypeError, ValueError),
                ):
                    held[last] = value
        workdir = folder / "run"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                workdir.run(config, workdir)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)

    lines = [f"{'.'.join(keys)}={value!r}" for keys, value in _leaves(base)]
    seeds = [line.encode() for line in lines]
    stages = b"stages='ingest,train,generate,segment,evaluate,explore,report'\n"
    texts = (b"share=1/4", b"segment.stores=a.zarr:train:all,b.zarr:all:7", b"stages=train,report")
    more = (b"phases=[{'step': 'vae', 'updates': 3}, {'step': 'hybrid', 'epochs': 1}]",)
    return read, [*seeds, *texts, *more, *(stages + seed for seed in (*texts, *more, *seeds[::5]))]


def _leaves(config, keys=()):
    for name in config:
        value = config[name]
        if hasattr(value, "keys"):
            yield from _leaves(value, (*keys, name))
        else:
            yield (*keys, name), value


TARGETS = {
    "nrrd": _nrrd,
    "nifti": _nifti,
    "store": _store,
    "log": _log,
    "config": _config,
}


def words(folder):
    """A dictionary for libFuzzer: names of headers, of Zarr's metadata and of configs' fields."""
    from experiments import vae_wgan

    known = {".".join(keys) + "=" for keys, _ in _leaves(vae_wgan.get_config("smoke"))}
    known |= {f"{name}:" for name in ("sizes", "type", "encoding", "space", "endian", "spacings")}
    known |= {
        "space directions:",
        "data file:",
        "byte skip:",
        "line skip:",
        "kinds:",
        "none",
        "nan",
    }
    known |= {'"shape"', '"codecs"', '"attributes"', "null", "1e999", "-1", "../", "true", "0/1"}
    path = folder / "words"
    path.write_text("".join(f"{json.dumps(word)}\n" for word in sorted(known)))
    return path
