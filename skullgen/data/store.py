"""Pairs in a Zarr v3 group: one format for real and generated ones.

Arrays: `pairs` bool [N, D, D, D, 2] (channel 0 the defective skull, 1 its defect; one chunk a pair,
`shard` pairs a file), and columns of one row a pair. A shard is the unit of work: each of its files
is written atomically, that of the column `voxels` last; a shard that lacks a file is made again.
In memory pairs are packed: uint8 [N, D^3 * 2 / 8], little-endian.
"""

import contextlib
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from skullgen.core import files, provenance
from skullgen.core.errors import UserError, plain
from skullgen.data import measures

FORMAT = "skullgen-pairs-3"
COLUMNS = {
    # 0 train, 1 validation, 2 test; -1 for generated pairs; -2 for a case left out: no pair
    "split": ("int8", ()),
    "kind": ("int8", ()),  # index into the attribute `kinds`; -1 where unknown
    "skull": ("int32", ()),  # index into the attribute `names`; -1 where unknown
    "affine": ("float64", (4, 4)),  # model voxel to RAS mm of the source
    # What post-processing removed: voxels of overlap (eq. 6), of skull dust, of defect dust.
    "removed": ("int32", (3,)),
    "sample": ("int64", ()),  # of generated pairs: its number, from which it can be made again
    "asked": ("float32", (measures.LABELS,)),  # of a conditional model: the label; else NaN
    "measures": ("float32", (len(measures.NAMES),)),  # `data.measures`; NaN where unknown
    "voxels": ("int32", (2,)),  # of each channel; written last, and checked when pairs are read
}
SPLITS = ("train", "validation", "test")
LEFT_OUT = -2
# A store that claims more was made to exhaust memory, or is damaged.
MAX_SIDE, MAX_PAIRS, MAX_SHARD, MAX_FILES, MAX_GRID = 512, 10**7, 4096, 50_000, 2**31
CODECS = BytesCodec, BloscCodec, ZstdCodec, Crc32cCodec, ShardingCodec  # they decode numbers only

Packed = UInt8[np.ndarray, "n bytes"]
Rows = Shaped[np.ndarray, " n"] | list[int]


def pack(pairs: Bool[np.ndarray, "*n D D D 2"]) -> UInt8[np.ndarray, "*n bytes"]:
    """Pairs as bits."""
    flat = np.asarray(pairs, bool).reshape(*pairs.shape[:-4], -1)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack(bits: UInt8[np.ndarray, "*n bytes"], size: int) -> Bool[np.ndarray, "*n D D D 2"]:
    """Pairs of `size` voxels a side from their bits."""
    flat = np.unpackbits(bits, axis=-1, bitorder="little")
    return flat.reshape(*bits.shape[:-1], size, size, size, 2).view(bool)


def voxels(bits: UInt8[np.ndarray, "*n bytes"]) -> Int64[np.ndarray, "*n 2"]:
    """Voxels of each channel of packed pairs."""
    words = bits.view(np.uint16)
    channels = [words & 0x5555, words & 0xAAAA]
    return np.stack([np.bitwise_count(x).sum(axis=-1, dtype=np.int64) for x in channels], axis=-1)


class Native(NamedTuple):
    """An implant at its source's own grid: the tight box of its voxels, and where that lies."""

    bits: UInt8[np.ndarray, " bytes"]  # of the box, as np.packbits in C order
    origin: tuple[int, int, int]  # of the box, in voxels of the source
    shape: tuple[int, int, int]  # of the box
    grid: tuple[int, int, int]  # of the source
    affine: Float[np.ndarray, "4 4"]  # voxel of the source to RAS mm

    def box(self) -> Bool[np.ndarray, "x y z"]:
        """The implant in its box."""
        return np.unpackbits(self.bits, count=math.prod(self.shape)).reshape(self.shape).view(bool)

    def mask(self) -> Bool[np.ndarray, "X Y Z"]:
        """The implant on the whole grid."""
        mask = np.zeros(self.grid, bool)
        mask[tuple(map(slice, self.origin, np.add(self.origin, self.shape)))] = self.box()
        return mask


Natives, Columns = Sequence[Native | None], dict[str, Any]


class Pair(NamedTuple):
    """One pair: its packed bits, the affine of its grid, and its implant at the source's own."""

    bits: UInt8[np.ndarray, " bytes"]
    affine: Float[np.ndarray, "4 4"]
    native: Native | None = None


class Store:
    """A store of pairs; opening one checks its format, shapes, dtypes, bounds and codecs.

    Attributes: `path`; `attrs` (`voxel_mm`, `kinds`, `names`, ...); `count` N, `size` D, `shard`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not exists(self.path):
            what = "no store of pairs here; run the stage that makes it first"
            raise UserError(f"{self.path.absolute()}: {what}")
        self.attrs, pairs = _attributes(self.path), _open(self.path / "pairs", "bool")
        shape, shards = pairs.shape, pairs.shards
        _require(len(shape) == 5 and shards, pairs, "shape")
        self.count, self.size, self.shard = *shape[:2], shards[0]
        _check_bounds(self.path, Shape(self.count, self.size, self.shard))
        pair = (self.size, self.size, self.size, 2)
        whole = (shape[1:], shards[1:], pairs.chunks) == (pair, pair, (1, *pair))
        _require(whole, pairs, "shape")
        self._arrays = {"pairs": pairs}  # in the order in which a shard's files are written
        for name, (dtype, rest) in COLUMNS.items():
            column = self._arrays[name] = _open(self.path / name, dtype)
            # Longer where a kill stopped its growth.
            longer = column.shape[:1] >= (self.count,) and column.shape[1:] == rest
            _require(longer and column.chunks == (self.shard, *rest), column, "shape")

    def __reduce__(self):
        return Store, (self.path,)

    @property
    def recipe(self) -> provenance.Recipe:
        """All that determines the pairs (`core.provenance`)."""
        return provenance.read(self.path) or {}

    def column(self, name: str) -> Shaped[np.ndarray, "N ..."]:
        """A column, one of `COLUMNS`; of a damaged one the error names the file to delete."""
        parts = []
        for shard in self.shards():
            with _damage(self._file(name, shard.start)):
                parts.append(self._arrays[name][shard.start : shard.stop])
        return np.concatenate(parts)

    def every(self, split: str | None = None) -> Int64[np.ndarray, " n"]:
        """Rows of the pairs of a split (`train`, `validation`, `test`), or of all."""
        splits = self.column("split")
        wanted = splits != LEFT_OUT if split is None else splits == SPLITS.index(split)
        return np.flatnonzero(wanted)

    def rows(self, split: str | None = None) -> Int64[np.ndarray, " n"]:
        """As `every`, without what the store's `leave_out.txt` lists: the pairs to be used."""
        every = self.every(split)
        rows = np.setdiff1d(every, self.unwanted())
        if len(every) and not len(rows):
            what = f" of split {split}" if split else ""
            raise UserError(f"{self.path / 'leave_out.txt'}: it leaves no pair{what}: shorten it")
        return rows

    def unwanted(self) -> Int64[np.ndarray, " n"]:
        """Rows that `leave_out.txt` lists, one a line, comments after a #; UserError for others."""
        file = self.path / "leave_out.txt"
        if not file.exists():
            return np.zeros(0, np.int64)
        lines = file.read_text("utf-8-sig", "replace").splitlines()
        words = [line.partition("#")[0].strip() for line in lines]
        for number, word in enumerate(words, 1):
            if word and not (re.fullmatch("[0-9]{1,9}", word) and int(word) < self.count):
                cure = f"write the index of one pair a line, 0 to {self.count - 1}"
                what = f"line {number} is {word[:40]!r}: {cure}, and comments after a #"
                raise UserError(f"{file}: {what}")
        return np.unique(np.array([word for word in words if word], np.int64))

    def names(self, skulls: Shaped[np.ndarray, " n"]) -> list[str]:
        """The names of skulls by number (column `skull`), in plain text; "" where unknown."""
        names = self.attrs["names"]
        return [plain(names[skull]) if 0 <= skull < len(names) else "" for skull in skulls]

    def load(self, rows: Rows) -> Packed:
        """The packed pairs of some rows; of a damaged one the error names the file to delete."""
        counts = {}  # of the shard that begins at a row
        out = np.empty((len(rows), 2 * self.size**3 // 8), np.uint8)
        for bits, row in zip(out, np.asarray(rows).tolist(), strict=True):
            start, file = row - row % self.shard, self._file("pairs", row)
            with _damage(file, f"pair {row}"):
                bits[:] = pack(self._arrays["pairs"][row])
                if start not in counts:
                    counts[start] = self._arrays["voxels"][start : start + self.shard]
            if not np.array_equal(voxels(bits), counts[start][row - start]):
                raise UserError(f"{file}: pair {row} is not what was written: {_REMAKE}")
        return out

    def shards(self, share: tuple[int, int] = (0, 1)) -> list[range]:
        """The shards, as ranges of rows, in order: the k-th of n runs of them, share (k, n)."""
        starts = range(0, self.count, self.shard)
        every = [range(start, min(start + self.shard, self.count)) for start in starts]
        k, n = share
        return every[len(every) * k // n : len(every) * (k + 1) // n]

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[range]:
        """The shards that are not written yet, in order, of all or of a share."""

        def whole(shard):
            return all(self._file(name, shard.start).exists() for name in self._arrays)

        return [shard for shard in self.shards(share) if not whole(shard)]

    def require_whole(self, stage: str = "") -> None:
        """UserError where pairs are still to be made, by `stage`."""
        count, stage = sum(map(len, self.missing())), f"`{stage}`" if stage else "that makes it"
        if count:
            what = f"{count} pairs are not made yet"
            raise UserError(f"{self.path}: {what}: run the stage {stage} first")

    def _file(self, name, row):
        """The file of an array that holds a row."""
        array = self._arrays[name]
        chunk = (row // self.shard, *[0] * (array.ndim - 1))
        return self.path / name / array.metadata.encode_chunk_key(chunk)

    def write(self, start: int, bits: Packed, columns: Columns, natives: Natives = ()) -> None:
        """Writes one shard, from its first row on; of columns [n, ...] left out all is unknown."""
        stop = start + len(bits)
        group = zarr.open_group(self.path, mode="r+")
        for name in reversed(self._arrays):  # Zarr would read a last shard that is not full
            self._file(name, start).unlink(missing_ok=True)
        needed = bits.nbytes + sum(native.bits.nbytes for native in natives if native)
        every = zarr.config.set({"array.write_empty_chunks": True})  # or a lost file is not seen
        with every, files.room(self.path / "pairs", needed):
            for row, native in enumerate(natives, start):
                if native:
                    _write_native(self.path / "native" / f"{row:06d}", native)
            group["pairs"][start:stop] = unpack(bits, self.size)
            columns = {**columns, "voxels": voxels(bits)}
            for name, (dtype, shape) in COLUMNS.items():
                nothing = np.nan if dtype == "float32" else -1
                unknown = np.full((len(bits), *shape), nothing, dtype)
                group[name][start:stop] = columns.get(name, unknown)

    def native(self, row: int) -> Native | None:
        """A pair's implant at its source's grid, or None without; UserError where it was lost."""
        place = self.path / "native" / f"{row:06d}"
        if not (place / "zarr.json").exists():
            if not (self.attrs.get("native") and place.parent.exists()):  # a source may give none
                return None
            file = self._file("pairs", row)
            raise UserError(f"{place / 'zarr.json'}: missing: {file}: {_REMAKE}")
        array = _open(place, "uint8")
        with _damage(place / "zarr.json", cure=_AGAIN):
            box = np.array([array.attrs[name] for name in ("origin", "shape", "grid")])
            affine = np.array(array.attrs["affine"], float).reshape(4, 4)
            origin, shape, grid = map(tuple, box.tolist())
        whole = box.shape == (3, 3) and box.dtype.kind == "i" and (0 <= box).all()
        sound = whole and (box <= MAX_GRID).all() and math.prod(grid) <= MAX_GRID
        _require(sound and (box[0] + box[1] <= box[2]).all() and box[1].all(), array, "grid")
        _require(array.shape == array.chunks == (-(-math.prod(shape) // 8),), array, "shape")
        with _damage(self._file("pairs", row), f"the native truth of pair {row}"):
            return Native(array[:], origin, shape, grid, affine)

    def leave_out(self, row: int, why: str) -> None:
        """Notes in one line why the case that begins at `row` has no pairs, before its shard."""
        place = self.path / "left_out" / f"{row:06d}.txt"
        place.parent.mkdir(exist_ok=True)
        files.replace(place, f"{plain(why)}\n".encode())

    def left_out(self) -> list[str]:
        """Why cases have no pairs, a line each, in order."""
        places = sorted((self.path / "left_out").glob("*.txt"))
        return [plain(place.read_text("utf-8", "replace").strip()) for place in places]


def exists(path: str | Path) -> bool:
    """Whether there is a store at `path`, whole or not."""
    return (Path(path) / "zarr.json").exists()


class Shape(NamedTuple):
    """Pairs of a store, voxels a side, and pairs of a file."""

    count: int
    size: int
    shard: int


def create(
    path: str | Path, shape: Shape, attributes: dict[str, Any], recipe: provenance.Recipe
) -> Store:
    """Makes an empty store, or takes up the one that has this recipe; more pairs make it grow."""
    path = Path(path)
    _check_bounds(path, shape)
    if not exists(path):
        _build(path, shape, attributes, recipe)
    store = Store(path)
    provenance.require_same(path, store.recipe, recipe)
    if shape.count <= store.count:
        return store
    group = zarr.open_group(path, mode="r+")
    if store.count % store.shard:
        store._file("voxels", store.count).unlink(missing_ok=True)
    for name in (*COLUMNS, "pairs"):  # pairs last: their length is the count
        group[name].resize((shape.count, *group[name].shape[1:]))
    return Store(path)


def _build(path, shape, attributes, recipe):
    """Builds a store aside and moves it: where a `zarr.json` is, all arrays are."""
    partial = files.partial_of(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    attributes = {"format": FORMAT, **attributes}
    group = zarr.open_group(partial, mode="w", zarr_format=3, attributes=attributes)
    provenance.write(partial, recipe)
    pair = (shape.size, shape.size, shape.size, 2)
    # One block a pair of up to 128^3: smaller than level 5 in zarr's own blocks, and faster.
    blosc = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", blocksize=2**22)
    layout = {"chunks": (1, *pair), "shards": (shape.shard, *pair)}
    layout |= {"compressors": [blosc, Crc32cCodec()]}
    group.create_array("pairs", shape=(shape.count, *pair), dtype="bool", **layout)
    for name, (dtype, rest) in COLUMNS.items():
        layout = {"chunks": (shape.shard, *rest), "compressors": [ZstdCodec(), Crc32cCodec()]}
        group.create_array(name, shape=(shape.count, *rest), dtype=dtype, fill_value=-1, **layout)
    try:
        partial.rename(path)
    except OSError:
        shutil.rmtree(partial)
        if not exists(path):  # else another process of this run was first
            raise UserError(f"{path}: not a store, and in the way of one: delete it") from None


def discard(path: Path) -> None:
    """Removes a store: at once, whatever becomes of us meanwhile."""
    partial = files.partial_of(Path(path))
    Path(path).rename(partial)
    shutil.rmtree(partial)


def _write_native(place, native):
    about = {name: np.asarray(value).tolist() for name, value in native._asdict().items()}
    del about["bits"]
    codecs = [BloscCodec(cname="zstd", clevel=5, shuffle="noshuffle"), Crc32cCodec()]
    shape, data = native.bits.shape, native.bits
    array = zarr.create_array(place, data=data, chunks=shape, compressors=codecs, overwrite=True)
    array.attrs.update(about)


# --- What a store must look like before its arrays are read: a stranger may have made it --------

_REMAKE = "delete it and run the stage that made it, which makes only what is missing"
_AGAIN = "not as skullgen writes it: get it again, or move it away and make it again"


def _check_bounds(path, shape):
    """UserError unless a store may have as many pairs, voxels a side, and pairs a file."""
    limits = {"pairs": MAX_PAIRS, "voxels a side": MAX_SIDE, "pairs a file": MAX_SHARD}
    for value, (what, most) in zip(shape, limits.items(), strict=True):
        if not 0 < value <= most:
            raise UserError(f"{path}: {value} {what}: it must be 1 to {most}")
    if -(-shape.count // shape.shard) > MAX_FILES:
        what = f"{shape.count} pairs, {shape.shard} a file"
        raise UserError(f"{path}: {what}: more than {MAX_FILES} files")


def _attributes(path):
    about = files.read_json(path / "zarr.json")
    attrs = about.get("attributes")
    if not isinstance(attrs, dict) or attrs.get("format") != FORMAT:
        raise UserError(f"{path}: not a store of pairs in the format {FORMAT}; make it again")
    _require(about.get("zarr_format") == 3 and about.get("node_type") == "group", path, "node_type")
    for name, kind in {"licence": str, "trained_on": dict, "versions": dict, "split": dict}.items():
        _require(isinstance(attrs.get(name, kind()), kind), path, name)
    for name in ("kinds", "names", "notes"):
        texts = attrs.get(name, [])
        _require(isinstance(texts, list) and all(isinstance(t, str) for t in texts), path, name)
    mm = attrs.get("voxel_mm", 1)
    _require(isinstance(mm, int | float) and 1e-3 < mm < 1e3, path, "voxel_mm")
    return attrs


def _open(place, dtype):
    """An array of this dtype, and of codecs of `CODECS`; UserError where it is another."""
    with _damage(place / "zarr.json", cure=_AGAIN):
        array = zarr.open_array(place, mode="r", zarr_format=3)
    codecs = list(array.metadata.codecs)
    for codec in codecs:  # those within others are appended
        codecs += [*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())]
    _require(all(isinstance(codec, CODECS) for codec in codecs), array, "codecs")
    _require(array.dtype == dtype, array, "data_type")
    return array


def _require(sound, where, what):
    """UserError unless `sound`; where: an array, or the folder of one."""
    if not sound:
        place = where if isinstance(where, Path) else Path(where.store.root, where.path)
        raise UserError(f"{place / 'zarr.json'}: its {what} is {_AGAIN}")


@contextlib.contextmanager
def _damage(file, what="it", cure=_REMAKE):
    """UserError that names `file` where what Zarr reads within cannot be decoded."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "exceptions", [error])[0]  # zarr 3.4 reads in groups of tasks
        broken = ArithmeticError, AssertionError, AttributeError, FileNotFoundError, LookupError
        if not isinstance(cause, (*broken, RuntimeError, TypeError, ValueError)):
            raise
        raise UserError(f"{file}: {what} is damaged ({cause}): {cure}") from None
