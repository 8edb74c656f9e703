"""Pairs in a Zarr v3 group: one format for real and generated ones.

Arrays, `N` pairs of `D` voxels a side: `pairs` bool [N, D, D, D, 2] (channel 0 the defective
skull, 1 its defect; one chunk a pair, blosc-zstd with bitshuffle and crc32c, `shard` pairs a
file), and columns of one row a pair. A shard is the unit of work: each of its files is written
atomically, that of the column `voxels` last; a shard that lacks a file is made again, after a
kill -9 too. Stores hold no times: equal work gives equal bytes.

In memory pairs are packed: uint8 [N, D^3 * 2 / 8], little-endian bits.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from skullgen.core import jobs
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import schema
from skullgen.data.schema import COLUMNS, FORMAT

SPLITS = ("train", "validation", "test")
LEFT_OUT = -2
MADE = ("real.zarr", "generated.zarr", "fresh.zarr")  # by a run, in its work directory


def pack(pairs):
    """bool [..., D, D, D, 2] -> uint8 [..., D^3 * 2 / 8]."""
    flat = np.asarray(pairs, bool).reshape(*pairs.shape[:-4], -1)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack(bits, size):
    """uint8 [..., size^3 * 2 / 8] -> bool [..., size, size, size, 2]."""
    flat = np.unpackbits(bits, axis=-1, bitorder="little")
    return flat.reshape(*bits.shape[:-1], size, size, size, 2).view(bool)


def voxels(bits):
    """Voxels of each channel of packed pairs: uint8 [..., D^3 * 2 / 8] -> int64 [..., 2]."""
    words = bits.view(np.uint16)
    channels = [words & 0x5555, words & 0xAAAA]
    return np.stack([np.bitwise_count(x).sum(axis=-1, dtype=np.int64) for x in channels], axis=-1)


def create(path, *, count, size, shard, attributes):
    """Makes an empty store, or takes up one that holds the same work.

    count: pairs. size: voxels a side. shard: pairs in a file. attributes: JSON values that say
    what the pairs are; `recipe` among them holds all that determines the pairs, and a store of
    another recipe is not to be taken up: ask `recipe` first. A larger count grows the store: a
    last shard that was not full is made again.
    """
    path = Path(path)
    schema.bounds(path, count=count, size=size, shard=shard)
    if (path / "zarr.json").exists():
        group = zarr.open_group(path, mode="r+")
        held = group["pairs"].shape[0]
        if count > held:
            if held % shard:
                _mark(path, held // shard).unlink(missing_ok=True)
            for name in (*COLUMNS, "pairs"):  # pairs last: their length is the count
                group[name].resize((count, *group[name].shape[1:]))
        return
    # Built aside and moved: a store whose zarr.json exists has all its arrays.
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex}")
    group = zarr.open_group(
        partial, mode="w", zarr_format=3, attributes=schema.summed({"format": FORMAT, **attributes})
    )
    # One block a pair of up to 128^3: smaller than level 5 in zarr's own blocks, and made faster.
    packing = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", blocksize=2**22)
    group.create_array(
        "pairs",
        shape=(count, size, size, size, 2),
        dtype="bool",
        chunks=(1, size, size, size, 2),
        shards=(shard, size, size, size, 2),
        compressors=[packing, Crc32cCodec()],
    )
    for name, (dtype, shape) in COLUMNS.items():
        # A chunk that holds nothing but the fill value is not written: no count is -1.
        group.create_array(
            name,
            shape=(count, *shape),
            dtype=dtype,
            chunks=(shard, *shape),
            compressors=[ZstdCodec(checksum=True)],
            fill_value=-1,
        )
    try:
        partial.rename(path)
    except OSError:
        if (path / "zarr.json").exists():  # a process that makes another share was first
            shutil.rmtree(partial)
        else:  # what is left of a store
            print(plain(f"{path} was no whole store: it is now {jobs.set_aside(path)}"))
            partial.rename(path)


def discard(path):
    """Removes a store: at once, whatever becomes of us meanwhile."""
    partial = Path(path).with_name(f"{Path(path).name}.partial-{uuid.uuid4().hex}")
    Path(path).rename(partial)
    shutil.rmtree(partial)


def recipe(path):
    """The attribute `recipe` of the store at `path`, or None where there is no store."""
    if not (Path(path) / "zarr.json").exists():
        return None
    return open_store(path).attrs["recipe"]


def open_store(path):
    """The store to read, a `schema.Guarded`: `attrs` a dict, `opened[name]` a Zarr array.

    Raises UserError where there is none, or anything said of its arrays is not as in `create`.
    """
    if not (Path(path) / "zarr.json").exists():
        raise UserError(
            f"{Path(path).absolute()}: no store of pairs here; run the stage that makes it first"
        )
    return schema.Guarded(path)


def _mark(path, shard):
    """The file whose presence says that a shard is whole."""
    return _files(path, shard)[0]


def _files(path, shard):
    """The files of a shard, the one that is written last first."""
    places = {name: shape for name, (_, shape) in reversed(COLUMNS.items())}
    places["pairs"] = (1,) * 4
    return [Path(path, name, "c", str(shard), *"0" * len(x)) for name, x in places.items()]


def shards(path, share=(0, 1)):
    """The shards of a store, as ranges of pairs, in order: the k-th of n runs of them.

    share: (k, n). Processes that make a store together each take one.
    """
    pairs = open_store(path)["pairs"]
    count, shard = pairs.shape[0], pairs.shards[0]
    every = [range(start, min(start + shard, count)) for start in range(0, count, shard)]
    k, n = share
    return every[len(every) * k // n : len(every) * (k + 1) // n]


def missing(path, share=(0, 1)):
    """The shards not yet written, in order, of all or of a share."""
    size = open_store(path)["pairs"].shards[0]
    every = shards(path, share)
    return [s for s in every if not all(f.exists() for f in _files(path, s.start // size))]


def require_whole(path, stage=""):
    """UserError where pairs of the store are still to be made, by `stage`."""
    left, made = sum(map(len, missing(path))), f"`{stage}`" if stage else "that makes it"
    if left:
        raise UserError(f"{path}: {left} pairs are not made yet: run the stage {made} first")


def write(path, start, bits, columns, native=()):
    """Writes one shard, or the last one's part, whole.

    start: its first pair. bits: uint8 [n, D^3 * 2 / 8]. columns: name -> [n, ...]; those left
    out are -1. native: for each pair `None` or a dict of the implant at
    the source's own grid: `bits` uint8 [.], `origin` [3], `shape` [3] (of the crop, in voxels),
    `grid` [3] (of the whole source) and `affine` [4, 4] (source voxel to RAS mm).
    """
    group = zarr.open_group(path, mode="r+")
    stop, size = start + len(bits), group["pairs"].shape[1]
    for file in _files(path, start // group["pairs"].shards[0]):
        file.unlink(missing_ok=True)  # Zarr would read a last shard that is not full
    truths = sum(truth["bits"].nbytes for truth in native if truth is not None)
    every = zarr.config.set({"array.write_empty_chunks": True})  # or a lost file is not seen
    with every, jobs.room(Path(path) / "pairs", bits.nbytes + truths):
        for row, truth in enumerate(native):
            if truth is not None:
                _write_native(path, start + row, truth)
        group["pairs"][start:stop] = unpack(bits, size)
        columns = {**columns, "voxels": voxels(bits)}
        for name, (dtype, shape) in COLUMNS.items():
            group[name][start:stop] = columns.get(name, np.full((len(bits), *shape), -1, dtype))


def _write_native(path, index, truth):
    array = zarr.create_array(
        Path(path) / "native" / f"{index:06d}",
        data=truth["bits"],
        chunks=truth["bits"].shape,
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="noshuffle"), Crc32cCodec()],
        overwrite=True,
    )
    about = {k: np.asarray(v).tolist() for k, v in truth.items() if k != "bits"}
    array.attrs.update(schema.summed(about))


def has_native(path, index):
    """Whether pair `index` has a truth at its source's grid; UserError where it was lost."""
    opened, place = open_store(path), Path(path) / "native" / f"{index:06d}" / "zarr.json"
    if opened.attrs.get("native") and not place.exists():
        raise UserError(f"{place}: missing: {_again(path, index)}")
    return place.exists()


def _again(path, index):
    """How a pair's shard is made again, in words."""
    file = _files(path, index // open_store(path)["pairs"].shards[0])[-1]
    return schema.REMAKE.replace("it", str(file), 1)


def read_native(path, index):
    """The implant of pair `index` at its source's grid: bool [X, Y, Z], affine [4, 4] in mm.

    Raises UserError where the pair has none (generated pairs, for example), or a damaged one.
    """
    place = Path(path) / "native" / f"{index:06d}"
    if not has_native(path, index):
        raise UserError(f"{path}: pair {index} has no native truth")
    try:
        about = schema.native(place, path)
    except UserError as error:
        raise UserError(f"{error}, or {_again(path, index)}") from None
    try:
        bits = zarr.open_array(place, mode="r", zarr_format=3)[:]
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{place}: damaged ({error}): {_again(path, index)}") from None
    shape, origin = about["shape"], about["origin"]
    crop = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
    mask = np.zeros(about["grid"], bool)
    mask[tuple(slice(o, o + s) for o, s in zip(origin, shape, strict=True))] = crop
    return mask, np.array(about["affine"])


def names(path, skulls):
    """The names of skulls by number (column `skull`), in plain text: a list, "" where unknown."""
    known = open_store(path).attrs["names"]
    return [plain(known[skull]) if 0 <= skull < len(known) else "" for skull in skulls]


def every(path, split=None):
    """Indices int [n] of the pairs of a split (`train`, `validation`, `test`), or of all."""
    column = open_store(path)["split"][:]
    return np.flatnonzero(column != LEFT_OUT if split is None else column == SPLITS.index(split))


def rows(path, split=None):
    """As `every`, without what the store's `leave_out.txt` lists: the pairs that are to be used.

    Raises UserError where the list leaves none.
    """
    found = every(path, split)
    kept = np.setdiff1d(found, schema.leave_out(path, open_store(path).count))
    if len(found) and not len(kept):
        what = f" of split {split}" if split else ""
        raise UserError(f"{Path(path) / 'leave_out.txt'}: it leaves no pair{what}: shorten it")
    return kept


def leave_out(path, row, why):
    """Notes in one line why the case whose first row is `row` has no pairs, before its shard."""
    place = Path(path) / "left_out" / f"{row:06d}.txt"
    place.parent.mkdir(exist_ok=True)
    with jobs.room(place):
        place.write_text(plain(why) + "\n")


def left_out(path):
    """Why cases have no pairs: a list of lines, in order."""
    places, root = sorted((Path(path) / "left_out").glob("*.txt")), os.path.realpath(path)
    files = [schema.plain_file(place, root, 2**16) for place in places]
    return [plain(file.read_text(errors="replace").strip()) for file in files]


def load(path, index):
    """Packed pairs uint8 [n, D^3 * 2 / 8] of these rows.

    Raises UserError for a pair that is damaged, or not the one that was written, with the file to
    delete: without it a shard is made again.
    """
    opened, counted = open_store(path), {}
    pairs, column = opened["pairs"], opened.array("voxels")
    out = np.empty((len(index), int(np.prod(pairs.shape[1:])) // 8), np.uint8)
    for row, number in enumerate(np.asarray(index).tolist()):
        shard, place = divmod(number, pairs.shards[0])
        try:
            pair = pairs[number]
            if shard not in counted:
                counted[shard] = column[number - place : number - place + pairs.shards[0]]
        except (UserError, ValueError, RuntimeError, ExceptionGroup) as error:
            error = getattr(error, "exceptions", [error])[0]  # zarr 3.4 reads in groups of tasks
            if isinstance(error, UserError):
                raise error from None
            what = f"pair {number} is damaged ({error}): {_again(path, number)}"
            raise UserError(f"{path}: {what}") from None
        out[row] = pack(pair)
        if not np.array_equal(voxels(out[row]), counted[shard][place]):
            what = f"pair {number} is not what was written: {_again(path, number)}"
            raise UserError(f"{path}: {what}")
    return out


class Part(NamedTuple):
    """Some pairs of a store: its path and their rows int [n]."""

    path: Path
    rows: np.ndarray


def mixture(text, folder, seed):
    """The stores that `path:split:pairs`, comma-separated, names: a list of Part.

    A path is looked for in `folder` first, then from where the program runs. split: `train`,
    `validation`, `test` or `all`. pairs: a number, the first of a permutation seeded by `seed`
    (of one store, a larger number takes the same pairs and more), or `all`. Raises UserError for
    a part that is none, a store that is not there, whole or of one size, or has fewer pairs.
    """
    parts = []
    for name, split, wanted in named(text):
        path = found(name, folder)
        require_whole(path)
        size = open_store(path)["pairs"].shape[1]
        if parts and size != open_store(parts[0].path)["pairs"].shape[1]:
            raise UserError(f"{path}: its pairs are not of the size of those of {parts[0].path}")
        chosen = rows(path, None if split == "all" else split)
        if wanted != "all":
            if int(wanted) > len(chosen):
                raise UserError(
                    f"{path}: {len(chosen)} pairs of split {split}, not {wanted} (generated pairs "
                    "are of no split: write PATH:all:PAIRS)"
                )
            order = np.random.default_rng([seed, len(chosen)]).permutation(len(chosen))
            chosen = chosen[np.sort(order[: int(wanted)])]
        if not len(chosen):
            raise UserError(f"{path}: it has no pair of split {split}")
        parts.append(Part(path, chosen))
    return parts


def named(text):
    """The parts `path:split:pairs` of a mixture, as lists of three; UserError for what is none."""
    parts = []
    for item in filter(None, map(str.strip, text.split(","))):
        fields = item.rsplit(":", 2)
        if len(fields) == 3:
            one_of(f"the split of {item!r}", fields[1], (*SPLITS, "all"))
        if len(fields) < 3 or not _number(fields[2]):
            raise UserError(
                f"segment.stores: {item!r} names no pairs: write PATH:SPLIT:PAIRS, for example "
                "real.zarr:train:all (splits: train, validation, test, all)"
            )
        parts.append(fields)
    return parts


def require_there(names, folder):
    """UserError where a named store is not there, nor in `folder`, where a run may make it yet."""
    for name in filter(None, map(str.strip, names)):
        path = found(name, folder)
        if name not in MADE and Path(os.path.abspath(path.parent)) != Path(os.path.abspath(folder)):
            open_store(path)


def found(name, folder):
    """The path that a field means: in `folder` where it is there, else from where we run."""
    return folder / name if (folder / name).exists() else Path(name)


def _number(text):
    return text == "all" or (text.isdecimal() and int(text) > 0)


def batch_rows(counts, size, *, seed, phase, update, batches):
    """Rows of the training pairs that one update takes: int32 [batches, size].

    counts: pairs of each part of a mixture, or their number where there is one part. The parts
    take turns, so that each has an equal share of the draws; rows count through all parts.
    A pure function of its arguments: for each part an endless row of seeded permutations, cut
    into full batches, each phase beginning a row of its own.
    """
    counts = np.atleast_1d(counts).tolist()
    first = update * batches * size
    place, part = np.divmod(np.arange(first, first + batches * size), len(counts))
    flat = np.empty(len(place), np.int32)
    for number, count in enumerate(counts):
        mine = np.flatnonzero(part == number)
        rounds, offsets = np.divmod(place[mine], count)
        for turn in np.unique(rounds).tolist():
            key = [seed, phase, turn, *([number] if number else [])]
            order = np.random.default_rng(key).permutation(count)
            flat[mine[rounds == turn]] = order[offsets[rounds == turn]] + sum(counts[:number])
    return flat.reshape(batches, size)
