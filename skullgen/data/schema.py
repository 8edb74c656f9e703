"""What a store must look like before a byte of its arrays is read: a stranger may have made it.

`zarr.json` may name any codec, size and path. Here each is compared with what `store.create`
writes, and chunks are read through `Guarded`, which refuses files that lie outside the store and
chunks that would not decode to what they must. Zarr gets to see only what has passed.
"""

import json
import math
import os
import re
import stat
import zlib
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Zstd
from zarr.storage import LocalStore

from skullgen.core.errors import UserError

FORMAT = "skullgen-pairs-1"
COLUMNS = {
    # 0 train, 1 validation, 2 test; -1 for generated pairs; -2 for a case left out: no pair
    "split": ("int8", ()),
    "kind": ("int8", ()),  # index into the attribute `kinds`; -1 where unknown
    "skull": ("int32", ()),  # index into the attribute `names`; -1 where unknown
    "affine": ("float64", (4, 4)),  # model voxel to RAS mm of the source
    # What post-processing removed: voxels of overlap (eq. 6), of skull dust, of defect dust.
    "removed": ("int32", (3,)),
    "voxels": ("int32", (2,)),  # of each channel; written last, and checked when pairs are read
}
MAX_SIDE, MAX_PAIRS, MAX_SHARD, MAX_FILES = 512, 10**7, 4096, 50_000
MAX_CROP, MAX_GRID = 2**29, 2**31  # voxels of a native implant, and of its source
MAX_JSON, MAX_DEPTH = 2**24, 50
REMAKE = "delete it and run the stage that made it, which makes only what is missing"
_AGAIN = "get it again, or move it away and make it again"
_WHY = f"not as `store.create` writes it: {_AGAIN}"
_CRC = {"name": "crc32c"}


def summed(attributes):
    """A store's attributes and their sum, by which a changed letter in them is found."""
    crc = zlib.crc32(json.dumps(attributes, sort_keys=True).encode())
    return {**attributes, "crc32": crc}


def read_json(file, root):
    """A `zarr.json` as a dict; UserError where it is damaged, too large or outside of `root`."""
    content = plain_file(file, root, MAX_JSON).read_bytes()
    try:
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        _depth(value)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{file}: damaged ({what}): {_AGAIN}") from None
    return value


def plain_file(file, root, most):
    """`file`, if it is a plain file in the resolved folder `root` of at most `most` bytes.

    Returns the Path that links in it lead to. Raises UserError for any other: a link that leads
    out, a pipe that nobody writes.
    """
    real = os.path.realpath(file)
    if os.path.commonpath([real, root]) != root:
        raise UserError(f"{file}: a link that leads out of its folder, to {real}: put a copy there")
    try:
        status = os.stat(real)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): {_AGAIN}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{file}: not a plain file: {_AGAIN}")
    _bounded(status.st_size, most, "bytes", file)
    return Path(real)


def leave_out(root, count):
    """Indices int [n] in `leave_out.txt` of the store `root`, one a line; none without that file.

    What follows a # is a comment. Raises UserError for a line that is no index below `count`.
    """
    file = Path(root) / "leave_out.txt"
    if not os.path.lexists(file):
        return np.zeros(0, int)
    content = plain_file(file, os.path.realpath(root), MAX_JSON).read_bytes()
    lines = content.decode("utf-8-sig", "replace").splitlines()
    words = [line.partition("#")[0].strip() for line in lines]
    for number, word in enumerate(words, 1):
        if word and not (re.fullmatch("[0-9]{1,9}", word) and int(word) < count):
            raise UserError(
                f"{file}: line {number} is {word[:40]!r}: write the index of one pair a line, "
                f"0 to {count - 1}, and comments after a #"
            )
    return np.unique(np.array([word for word in words if word], int))


def check(found, wanted, file, place=""):
    """UserError unless `found`, from the JSON `file`, is `wanted`.

    A dict in `wanted` gives all keys, a range any int of it, a type any value of it.
    """
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        for key in wanted:
            check(found[key], wanted[key], file, f"{place}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for number, item in enumerate(wanted):
            check(found[number], item, file, f"{place}.{number}")
    elif isinstance(wanted, range):
        _require(type(found) is int and found in wanted, file, place, found)
    elif isinstance(wanted, type):
        _require(type(found) is wanted, file, place, found)
    else:
        _require(type(found) is type(wanted) and found == wanted, file, place, found)


def array(file, root, *, shape, dtype, chunks, codecs, fill):
    """The attributes of the array whose `zarr.json` is `file`; UserError where it is another."""
    found = read_json(file, root)
    attributes = found.pop("attributes", {})
    _require(isinstance(attributes, dict), file, ".attributes", attributes)
    _require(not found.pop("storage_transformers", []), file, ".storage_transformers")
    _require(not any(found.pop("dimension_names", None) or []), file, ".dimension_names")
    wanted = {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "zarr_format": 3,
        "node_type": "array",
    }
    check(found, wanted, file)
    return attributes


def blosc(shuffle):
    """The codecs of one chunk of bytes; `shuffle` one of blosc's."""
    packing = {"typesize": range(1, 256), "cname": "zstd", "clevel": range(10)}
    packing |= {"shuffle": shuffle, "blocksize": range(2**31)}
    return [{"name": "bytes"}, {"name": "blosc", "configuration": packing}, _CRC]


def bounds(file, *, count, size, shard):
    """UserError unless a store may have `count` pairs of `size` voxels a side, `shard` a file."""
    for value, most, what in (
        (size, MAX_SIDE, "voxels a side"),
        (count, MAX_PAIRS, "pairs"),
        (shard, MAX_SHARD, "pairs a file"),
    ):
        _require(type(value) is int and value > 0, file, f" ({what})", value)
        _bounded(value, most, what, file)
    _bounded(-(-count // shard), MAX_FILES, "files of pairs", file)


class Attributes(dict):
    """A store's attributes; a name that is not among them is its maker's mistake, and said."""

    def __missing__(self, name):
        raise UserError(f"{self.file}: it has no attribute {name!r}: {_WHY}")


class Guarded(LocalStore):
    """A store's files for Zarr to read; making one checks all that is said of its arrays.

    `attrs`: its attributes. `guarded[name]`: a column, or the Zarr array `pairs`, which is to be
    read one pair at a time. count, size, shard: N, D and the pairs of a file.
    """

    def __init__(self, root, *, read_only=True):
        super().__init__(Path(root), read_only=read_only)
        self.real = os.path.realpath(root)
        group = read_json(self.root / "zarr.json", self.real)
        attributes = group.pop("attributes", {})
        if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
            raise UserError(f"{root}: not a store of pairs in the format {FORMAT}; make it again")
        told = attributes.pop("crc32", None)
        require_attributes(attributes, self.root / "zarr.json")
        _require(summed(attributes)["crc32"] == told, self.root / "zarr.json", ".crc32", told)
        self.attrs = Attributes(attributes)
        self.attrs.file = self.root / "zarr.json"
        group.pop("consolidated_metadata", None)  # never read: each array's own file is
        check(group, {"zarr_format": 3, "node_type": "group"}, self.root / "zarr.json")
        file = self.root / "pairs" / "zarr.json"
        found = read_json(file, self.real)
        try:
            count, size = found["shape"][:2]
            shard = found["chunk_grid"]["configuration"]["chunk_shape"][0]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{file}: {_WHY}") from None
        bounds(file, count=count, size=size, shard=shard)
        self.count, self.size, self.shard = count, size, shard
        pair = (size, size, size, 2)
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        shards = {"chunk_shape": [1, *pair], "codecs": blosc("bitshuffle")}
        shards |= {"index_codecs": [little, _CRC], "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": shards}]
        options = dict(shape=(count, *pair), dtype="bool", chunks=(shard, *pair), fill=False)
        array(file, self.real, codecs=codecs, **options)
        zstd = {"name": "zstd", "configuration": {"level": range(-(2**17), 23), "checksum": bool}}
        for name, (dtype, shape) in COLUMNS.items():
            array(
                self.root / name / "zarr.json",
                self.real,
                # Longer where a kill stopped its growth: the pairs' own length is the count.
                shape=(range(count, MAX_PAIRS + 1), *shape),
                dtype=dtype,
                chunks=(shard, *shape),
                codecs=[{"name": "bytes"} if dtype == "int8" else little, zstd],
                fill=-1.0 if dtype == "float64" else -1,
            )

    def array(self, name):
        """One of its Zarr arrays."""
        return zarr.open_array(self, path=name, mode="r", zarr_format=3)

    def __getitem__(self, name):
        array = self.array(name)
        return array if name == "pairs" else array[: self.count]

    async def get(self, key, prototype=None, byte_range=None):
        """Zarr's own, with what is read checked before and after."""
        self._before(key, byte_range)
        return self._after(key, await super().get(key, prototype, byte_range), byte_range)

    def get_sync(self, key, *, prototype=None, byte_range=None):
        """Zarr's own, with what is read checked before and after."""
        self._before(key, byte_range)
        value = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._after(key, value, byte_range)

    def _decoded(self, name):
        """Bytes of a decoded chunk of an array, or of a pair."""
        if name == "pairs":
            return 2 * self.size**3
        dtype, shape = COLUMNS[name]
        return self.shard * math.prod(shape) * np.dtype(dtype).itemsize

    def _before(self, key, byte_range):
        file, name = self.root / key, key.split("/")[0]
        if name not in ("pairs", *COLUMNS) or not _there(file):
            return
        most = self._decoded(name) * (self.shard if name == "pairs" else 1) + 2**16
        # What does not compress is stored as it is, with a head and a row of the index a pair.
        length = os.stat(plain_file(file, self.real, most + 2**6 * self.shard)).st_size
        if hasattr(byte_range, "start"):  # the place of a pair, as the shard's index claims it
            start, stop = int(byte_range.start), int(byte_range.end)
            _whole(0 <= start <= stop <= length, file)

    def _after(self, key, value, byte_range):
        file, name = self.root / key, key.split("/")[0]
        if value is None or file.name == "zarr.json" or name not in ("pairs", *COLUMNS):
            return value
        content = value.as_numpy_array().view(np.uint8)
        if name != "pairs":
            self._column(file, name, content)
        elif byte_range is None:
            tail = 16 * self.shard + 4
            _whole(len(content) >= tail, file)
            places = content[len(content) - tail : -4].tobytes()
            for start, length in np.frombuffer(places, "<u8").reshape(-1, 2).tolist():
                if start != 2**64 - 1 or length != 2**64 - 1:
                    _whole(start + length <= len(content), file)
                    packed(content[start : start + length], self._decoded(name), file)
        elif hasattr(byte_range, "start"):
            packed(content, self._decoded(name), file)
        return value

    def _column(self, file, name, content):
        dtype, shape = COLUMNS[name]
        out, zstd = np.empty((self.shard, *shape), dtype), Zstd()
        try:  # first into what it must fill, whatever it claims; then as Zarr will do it
            zstd.decode(np.ascontiguousarray(content), out=out.view(np.uint8))
            _whole(len(zstd.decode(np.ascontiguousarray(content))) == out.nbytes, file)
        except (ValueError, RuntimeError):
            _whole(False, file)
        bounds = {
            "split": (-2, 2),
            "kind": (-1, len(self.attrs.get("kinds", range(128))) - 1),
            "skull": (-1, len(self.attrs.get("names", range(2**31))) - 1),
            "affine": (-1e6, 1e6),
        }
        low, high = bounds.get(name, (-1, self.size**3))
        _whole(bool(((out >= low) & (out <= high)).all()), file)


def native(place, root):
    """What the native truth in the folder `place` of the store `root` says of itself.

    Returns its attributes, `origin`, `shape`, `grid` and `affine` (see `store.write`), after its
    array and its one chunk are checked; raises UserError.
    """
    file, real, numbers = place / "zarr.json", os.path.realpath(root), [range(1, 2**31)] * 3
    about = read_json(file, real).get("attributes")
    wanted = {"origin": [range(2**31)] * 3, "shape": numbers, "grid": numbers}
    told = about.pop("crc32", None) if isinstance(about, dict) else None
    check(about, {**wanted, "affine": [[float] * 4] * 4}, file, ".attributes")
    size, grid, affine = math.prod(about["shape"]), math.prod(about["grid"]), about["affine"]
    _bounded(size, MAX_CROP, "voxels of an implant", file)
    _bounded(grid, MAX_GRID, "voxels of a source", file)
    sides = zip(about["origin"], about["shape"], about["grid"], strict=True)
    _require(all(o + s <= g for o, s, g in sides), file, ".attributes.shape", about["shape"])
    sound = np.isfinite(affine).all() and 0 < abs(np.linalg.det(np.array(affine))) < 1e9
    _require(sound, file, ".attributes.affine", affine)
    count = -(-size // 8)
    options = dict(shape=[count], dtype="uint8", chunks=[count], fill=0)
    array(file, real, codecs=blosc("noshuffle"), **options)
    chunk = plain_file(place / "c" / "0", real, count + 2**10)
    packed(np.fromfile(chunk, np.uint8), count, chunk)
    _require(summed(about)["crc32"] == told, file, ".attributes.crc32", told)
    return about


def packed(content, decoded, file):
    """UserError unless a chunk (uint8 [n]: blosc, then crc32c) says that it is `decoded` bytes.

    Blosc believes its own head: it sets aside what that names, and reads as far.
    """
    _whole(len(content) >= 20, file)
    claimed, block, length = np.frombuffer(content[4:16].tobytes(), "<u4").tolist()
    _whole(claimed == decoded and block <= max(decoded, 1) and length == len(content) - 4, file)


def require_attributes(attrs, file):
    """UserError where an attribute of a store, or of weights, that `file` holds is of no use."""
    types = {"recipe": dict, "licence": str, "notes": list, "versions": dict, "trained_on": dict}
    for name, kind in types.items():
        _require(isinstance(attrs.get(name, kind()), kind), file, f".{name}", attrs.get(name))
    for name in ("kinds", "names"):
        value = attrs.get(name, [])
        sound = isinstance(value, list) and all(isinstance(item, str) for item in value)
        _require(sound, file, f".{name}", value)
    mm = attrs.get("voxel_mm", 1.0)
    _require(type(mm) in (int, float) and 1e-3 < mm < 1e3, file, ".voxel_mm", mm)


def _bounded(value, most, what, file):
    if value > most:
        raise UserError(
            f"{file}: {value} {what}, more than {most}: damaged, or made to exhaust memory "
            "(the bounds are at the top of skullgen/data/schema.py)"
        )


def _there(file):
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # there, and not to be read: a loop of links, say
        return True
    return True


def _depth(value, depth=0):
    inner = value.values() if isinstance(value, dict) else value
    below = [item for item in inner if isinstance(item, (dict, list))]
    if depth > MAX_DEPTH:
        raise RecursionError
    return max((_depth(item, depth + 1) for item in below), default=depth)


def _require(sound, file, place="", found=""):
    if not sound:
        shown = f"{place.lstrip('.')} is {repr(found)[:60]}: " if place else ""
        raise UserError(f"{file}: {shown}{_WHY}")


def _whole(sound, file):
    if not sound:
        raise UserError(f"{file}: damaged: {REMAKE}")
