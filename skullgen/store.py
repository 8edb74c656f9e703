"""Pairs in a Zarr v3 group: one format for real and generated ones.

Arrays, `N` pairs of `D` voxels a side: `pairs` bool [N, D, D, D, 2] (channel 0 the defective
skull, 1 its defect; one chunk a pair, blosc-zstd with bitshuffle and crc32c, `shard` pairs a
file), and columns of one row a pair. A shard is the unit of work: its columns are written before
its pairs, each file atomically, so a shard whose pairs' file exists is whole and any other is
made again, after a kill -9 too. Stores hold no times: equal work gives equal bytes.

In memory pairs are packed: uint8 [N, D^3 * 2 / 8], little-endian bits.
"""

import shutil
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from skullgen.errors import UserError

FORMAT = "skullgen-pairs-1"
SPLITS = ("train", "validation", "test")
COLUMNS = {
    "split": ("int8", ()),  # 0 train, 1 validation, 2 test; -1 for generated pairs
    "kind": ("int8", ()),  # index into the attribute `kinds`; -1 where unknown
    "skull": ("int32", ()),  # index into the attribute `names`; -1 where unknown
    "affine": ("float64", (4, 4)),  # model voxel to RAS mm of the source
    # What post-processing removed (eq. 6 and dust): voxels of overlap, of skull dust, of defect
    # dust, and of the defect before all of it. Zero for real pairs.
    "removed": ("int32", (4,)),
}


def pack(pairs):
    """bool [..., D, D, D, 2] -> uint8 [..., D^3 * 2 / 8]."""
    flat = np.asarray(pairs, bool).reshape(*pairs.shape[:-4], -1)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack(bits, size):
    """uint8 [..., size^3 * 2 / 8] -> bool [..., size, size, size, 2]."""
    flat = np.unpackbits(bits, axis=-1, bitorder="little")
    return flat.reshape(*bits.shape[:-1], size, size, size, 2).view(bool)


def create(path, *, count, size, shard, attributes):
    """Makes an empty store, or takes up one that holds the same work.

    count: pairs. size: voxels a side. shard: pairs in a file. attributes: JSON values that say
    what the pairs are; `recipe` among them holds all that determines the pairs, and a store of
    another recipe is not to be taken up: ask `recipe` first. A larger count grows the store: a last shard that was not full is made again.
    """
    path = Path(path)
    if (path / "zarr.json").exists():
        group = zarr.open_group(path, mode="r+")
        held = group["pairs"].shape[0]
        if count > held:
            if held % shard:
                _shard_file(path, held // shard).unlink(missing_ok=True)
            for name in (*COLUMNS, "pairs"):  # pairs last: their length is the count
                group[name].resize((count, *group[name].shape[1:]))
        return
    # Built aside and moved: a store whose zarr.json exists has all its arrays.
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    group = zarr.open_group(
        partial, mode="w", zarr_format=3, attributes={"format": FORMAT, **attributes}
    )
    common = {"config": {"write_empty_chunks": True}}
    group.create_array(
        "pairs",
        shape=(count, size, size, size, 2),
        dtype="bool",
        chunks=(1, size, size, size, 2),
        shards=(shard, size, size, size, 2),
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        **common,
    )
    for name, (dtype, shape) in COLUMNS.items():
        group.create_array(
            name, shape=(count, *shape), dtype=dtype, chunks=(shard, *shape), **common
        )
    partial.rename(path)


def recipe(path):
    """The attribute `recipe` of the store at `path`, or None where there is no store."""
    if not (Path(path) / "zarr.json").exists():
        return None
    return open_store(path).attrs["recipe"]


def open_store(path, mode="r"):
    """The store's Zarr group; UserError where there is none, or another format."""
    path = Path(path)
    if not (path / "zarr.json").exists():
        raise UserError(f"{path}: no store of pairs here; run the stage that makes it first")
    group = zarr.open_group(path, mode=mode)
    if group.attrs.get("format") != FORMAT:
        raise UserError(f"{path}: not a store of pairs in the format {FORMAT}; make it again")
    return group


def _shard_file(path, index):
    return Path(path) / "pairs" / "c" / str(index) / "0" / "0" / "0" / "0"


def missing(path):
    """The shards not yet written, as ranges of pairs, in order."""
    pairs = open_store(path)["pairs"]
    count, shard = pairs.shape[0], pairs.shards[0]
    return [
        range(start, min(start + shard, count))
        for start in range(0, count, shard)
        if not _shard_file(path, start // shard).exists()
    ]


def write(path, start, bits, columns, native=()):
    """Writes one shard, or the last one's part, whole.

    start: its first pair. bits: uint8 [n, D^3 * 2 / 8]. columns: name -> [n, ...]; those left
    out are -1 (affine and removed: 0). native: for each pair `None` or a dict of the implant at
    the source's own grid: `bits` uint8 [.], `origin` [3], `shape` [3] (of the crop, in voxels),
    `grid` [3] (of the whole source) and `affine` [4, 4] (source voxel to RAS mm).
    """
    group = zarr.open_group(path, mode="r+")
    stop, size = start + len(bits), group["pairs"].shape[1]
    for row, truth in enumerate(native):
        if truth is not None:
            _write_native(path, start + row, truth)
    for name, (dtype, shape) in COLUMNS.items():
        empty = np.full((len(bits), *shape), 0 if shape else -1, dtype)
        group[name][start:stop] = columns.get(name, empty)
    group["pairs"][start:stop] = unpack(bits, size)


def _write_native(path, index, truth):
    array = zarr.create_array(
        Path(path) / "native" / f"{index:06d}",
        data=truth["bits"],
        chunks=truth["bits"].shape,
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="noshuffle"), Crc32cCodec()],
        overwrite=True,
    )
    array.attrs.update({k: np.asarray(v).tolist() for k, v in truth.items() if k != "bits"})


def read_native(path, index):
    """The implant of pair `index` at its source's grid: bool [X, Y, Z], affine [4, 4] in mm.

    Raises UserError where the pair has none (generated pairs, for example).
    """
    place = Path(path) / "native" / f"{index:06d}"
    if not (place / "zarr.json").exists():
        raise UserError(f"{path}: pair {index} has no native truth")
    array = zarr.open_array(place, mode="r")
    shape, origin = array.attrs["shape"], array.attrs["origin"]
    crop = np.unpackbits(array[:], count=int(np.prod(shape)), bitorder="little").reshape(shape)
    mask = np.zeros(array.attrs["grid"], bool)
    mask[tuple(slice(o, o + s) for o, s in zip(origin, shape, strict=True))] = crop
    return mask, np.asarray(array.attrs["affine"])


def rows(path, split=None):
    """Indices int [n] of the pairs of a split (`train`, `validation`, `test`), or of all."""
    column = open_store(path)["split"][:]
    return np.arange(len(column)) if split is None else np.flatnonzero(
        column == SPLITS.index(split)
    )


def load(path, index):
    """Packed pairs uint8 [n, D^3 * 2 / 8] of these rows; memory for one shard beside them."""
    pairs = open_store(path)["pairs"]
    index = np.asarray(index)
    out = np.empty((len(index), int(np.prod(pairs.shape[1:])) // 8), np.uint8)
    for row, pair in enumerate(index):
        out[row] = pack(pairs[int(pair)])
    return out


def batch_rows(count, size, *, seed, phase, update, batches):
    """Rows of the training pairs that one update takes: int32 [batches, size].

    A pure function of its arguments: an endless row of seeded permutations of `count` pairs is
    cut into full batches, each phase beginning a row of its own.
    """
    first = update * batches * size
    place = np.arange(first, first + batches * size)
    rounds = place // count
    orders = {
        number: np.random.default_rng([seed, phase, number]).permutation(count)
        for number in np.unique(rounds).tolist()
    }
    flat = [orders[number][offset] for number, offset in zip(rounds, place % count, strict=True)]
    return np.asarray(flat, np.int32).reshape(batches, size)
