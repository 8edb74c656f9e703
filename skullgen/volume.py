"""Skull files in and out: NRRD and NIfTI masks, their geometry, exact block counts of big files.

Voxels are streamed a few slices at a time, so that neither a wide dtype nor a 512^3 grid is ever
held whole. Arrays are `[X, Y, Z]` in RAS order; an affine `[4, 4]` maps voxel centres to RAS mm.
"""

import bz2
import contextlib
import gzip
import io
import math
import os
import pathlib
import re
import uuid
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from skullgen.errors import UserError
from skullgen.resample import block_counts, box, to_ras, turned

SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz")
MAX_VOXELS, MAX_SIDE = 1024**3, 4096
MAX_FACTOR = 40  # 40^3 voxels still fit the uint16 of a block count
MAX_LABELS = 64  # more distinct values than this are a scan, not labels
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.05, 10.0
SLAB_BYTES = 2**21

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"longlong": "i8", "ulonglong": "u8", "float": "f4", "double": "f8"},
    **{f"{sign}int{8 * n}": f"{sign or 'i'}{n}" for sign in ("", "u") for n in (1, 2, 4, 8)},
}
_ENCODINGS = {
    **{"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"},
    **{"ascii": "ascii", "text": "ascii", "txt": "ascii"},
}
_SPACES = {"ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}
_UNITS = {"": 1.0, "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1e3, "meter": 1e3, "um": 1e-3}
_NIFTI_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units & 7; 0 (unknown) is taken as mm


class Volume(NamedTuple):
    """A skull: `data` [X, Y, Z] (a view of any strides), `affine` [4, 4] voxel -> RAS mm."""

    data: np.ndarray
    affine: np.ndarray


class Crop(NamedTuple):
    """The tight box of a mask's bone, in voxels; `bits` as of `np.packbits` in C order."""

    bits: np.ndarray
    origin: tuple[int, int, int]
    shape: tuple[int, int, int]


class Reduced(NamedTuple):
    """Block counts of a file and where they lie: see `read_reduced`."""

    counts: np.ndarray
    crop: Crop | None
    affine: np.ndarray
    native_affine: np.ndarray
    shape: tuple[int, int, int]
    factor: int


class _Source(NamedTuple):
    """What a header says; `shape` and `affine` in the file's own order, first axis fastest."""

    data: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    encoding: str
    offset: int = 0  # bytes before the encoded voxels
    lines: int = 0  # lines skipped after them
    skip: int = 0  # decoded bytes before the first voxel
    scale: tuple[float, float] | None = None
    exact: bool = False  # nothing may follow the last voxel


def read(path: str | os.PathLike, *, bone_hu: float | None = None) -> Volume:
    """Read a bone mask, or a CT cut at `bone_hu`, into RAS order.

    Any non-zero voxel of a mask is bone. A NRRD without `space` is taken as RAS; a NIfTI without
    known units as mm. Axes are flipped and permuted to the closest of RAS, never interpolated.

    Args:
      path: `.nrrd`, `.nhdr`, `.nii` or `.nii.gz`.
      bone_hu: threshold in Hounsfield units (bone is data >= bone_hu), for a CT only.

    Returns:
      `Volume` of bool [X, Y, Z] and its affine [4, 4], voxel -> RAS mm.

    Raises:
      UserError: the file is missing, corrupt or empty of bone, or its geometry is not usable; a
        CT without `bone_hu`, a mask with it.
    """
    path = pathlib.Path(path)
    source = _source(path)
    mask = np.empty(source.shape[::-1], bool)
    for first, slab in _slabs(path, source, 1, bone_hu):
        mask[first : first + len(slab)] = slab
    turn = to_ras(source.affine, source.shape)
    return Volume(turned(mask.T, turn), source.affine @ turn)


def read_reduced(path: str | os.PathLike, factor: int, *, keep_native: bool = False) -> Reduced:
    """Count the bone voxels in each factor^3 block of a mask file, without holding the file.

    Args:
      path: as in `read`; masks only.
      factor: source voxels along the side of a block, at most 40; it divides every side.
      keep_native: also keep the tight box of the mask at the file's own grid.

    Returns:
      `Reduced`: `counts` [X/factor, Y/factor, Z/factor] in RAS order, uint8 where factor^3 <= 255,
      else uint16; `affine` [4, 4] of the blocks' centres; `native_affine` [4, 4] and `shape` [3]
      of the file turned to RAS (mm, voxels); `crop` of the native mask, or None; `factor`.

    Raises:
      UserError: as `read`, or a side that `factor` does not divide.
    """
    path = pathlib.Path(path)
    source = _source(path)
    divides = 1 <= factor <= MAX_FACTOR and not any(side % factor for side in source.shape)
    what = f"{source.shape} voxels are not whole blocks of {factor} (at most {MAX_FACTOR})"
    _require(divides, path, f"{what}: choose a size that divides every side, or resample it")
    x, y, z = source.shape
    counts = np.zeros(
        (z // factor, y // factor, x // factor), np.uint8 if factor**3 <= 255 else np.uint16
    )
    packed = np.zeros((z, y, -(-x // 8)) if keep_native else 0, np.uint8)
    for first, slab in _slabs(path, source, factor, None):
        if slab.any():
            last = first + len(slab)
            counts[first // factor : last // factor] = block_counts(slab, factor)
            if keep_native:
                packed[first:last] = np.packbits(slab, axis=2)
    turn = to_ras(source.affine, source.shape)
    crop = _native_crop(packed, source.shape, turn, box(counts), factor) if keep_native else None
    centres = np.diag([factor, factor, factor, 1.0])
    centres[:3, 3] = (factor - 1) / 2
    native = source.affine @ turn
    shape = tuple(int(side) for side in np.abs(turn[:3, :3]).T @ source.shape)
    counts = np.ascontiguousarray(turned(counts.T, turn))
    return Reduced(counts, crop, native @ centres, native, shape, factor)


def write(path: str | os.PathLike, mask: np.ndarray, affine: np.ndarray) -> None:
    """Write a mask as uint8, atomically; equal arguments give equal bytes.

    Args:
      path: `.nrrd` (gzip), `.nii.gz` or `.nii`; its folder is made if need be.
      mask: [X, Y, Z], non-zero is bone.
      affine: [4, 4] voxel -> RAS mm.

    Raises:
      UserError: an unknown suffix, an unusable affine, or a place that cannot be written.
    """
    path, affine = pathlib.Path(path), np.asarray(affine, float)
    suffix = _suffix(path)
    _require(suffix != ".nhdr", path, "detached headers are only read: write a .nrrd file")
    _require(mask.ndim == 3, path, f"a mask has three axes, not {mask.ndim}: give one volume")
    _check_affine(path, "affine", affine)
    header = (_nrrd_header if suffix == ".nrrd" else _nifti_header)(mask.shape, affine)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    step = max(1, 8 * SLAB_BYTES // max(1, mask.shape[0] * mask.shape[1]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            if suffix == ".nrrd":
                file.write(header)
            with file if suffix == ".nii" else gzip.GzipFile("", "wb", 6, file, mtime=0) as out:
                if suffix != ".nrrd":
                    out.write(header)
                for first in range(0, mask.shape[2], step):
                    slab = mask[:, :, first : first + step] != 0
                    out.write(slab.view(np.uint8).tobytes("F"))
        os.replace(temporary, path)
    except OSError as error:
        raise _error(path, f"cannot be written ({error.strerror}): choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def pack(mask: np.ndarray) -> Crop:
    """Crop `mask` [X, Y, Z] to its bone's tight box and pack it, one bit a voxel."""
    sides = box(mask)
    part = mask[sides] != 0
    return Crop(np.packbits(part.ravel()), tuple(side.start for side in sides), part.shape)


def unpack(crop: Crop) -> np.ndarray:
    """Return the bool box of a `Crop`, [shape]; it lies at `crop.origin` of the whole mask."""
    bits = np.unpackbits(crop.bits, count=math.prod(crop.shape))
    return bits.view(bool).reshape(crop.shape)


def _error(path: pathlib.Path, what: str) -> UserError:
    return UserError(f"{path}: {' '.join(what.split())}")


def _require(holds: bool, path: pathlib.Path, what: str) -> None:
    if not holds:
        raise _error(path, what)


def _suffix(path: pathlib.Path) -> str:
    found = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    _require(bool(found), path, f"unknown kind of file: give one of {', '.join(SUFFIXES)}")
    return found[0]


def _source(path: pathlib.Path) -> _Source:
    parse = _read_nrrd if _suffix(path) in (".nrrd", ".nhdr") else _read_nifti
    _require(path.is_file(), path, "there is no such file: check the path")
    source = parse(path)
    fits = min(source.shape) >= 1 and max(source.shape) <= MAX_SIDE
    bound = f"of 1 to {MAX_SIDE} a side and {MAX_VOXELS} in all: crop it or mend the header"
    fits = fits and math.prod(source.shape) <= MAX_VOXELS
    _require(fits, path, f"sizes {source.shape}: the header's voxels are not {bound}")
    return source


def _check_affine(path: pathlib.Path, field: str, affine: np.ndarray) -> None:
    finite = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
    _require(finite, path, f"{field}: missing or not finite: write voxel size and origin in mm")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sound = spacing.min() >= MIN_VOXEL_MM and spacing.max() <= MAX_VOXEL_MM
    size = f"a voxel of {' x '.join(f'{mm:.4g}' for mm in spacing)} mm"
    bounds = f"outside {MIN_VOXEL_MM} to {MAX_VOXEL_MM} mm: the units may be metres or microns"
    _require(sound, path, f"{field}: {size} is {bounds}; write the voxel size in mm")
    axes = affine[:3, :3] / spacing
    square = np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3
    _require(square, path, f"{field}: its axes are sheared or singular: resample to a plain grid")


def _read_nrrd(path: pathlib.Path) -> _Source:
    import nrrd

    try:
        with open(path, "rb") as file:
            header = nrrd.read_header(file)
            offset = file.tell()
    except (nrrd.NRRDError, OSError, ValueError, LookupError, RuntimeError, StopIteration) as error:
        raise _error(path, f"no NRRD header can be read ({error}): export it again") from error
    for field in ("type", "dimension", "sizes", "encoding"):
        _require(field in header, path, f"the header has no '{field}': it is cut short")
    # "signed long long int", "uint8_t" and their like come down to a word each.
    kind = header["type"].lower().replace("unsigned ", "u")
    kind = re.sub(r"_t$| int$|^signed ", "", kind).replace(" ", "")
    _require(kind in _TYPES, path, f"type '{header['type']}' holds no mask: save it as uint8")
    encoding = _ENCODINGS.get(header["encoding"].lower(), "")
    _require(bool(encoding), path, f"encoding '{header['encoding']}' is not read: save it as gzip")
    dtype = np.dtype(_TYPES[kind])
    if dtype.itemsize > 1 and encoding != "ascii":
        known = header.get("endian") in ("little", "big")
        _require(known, path, "endian is neither 'little' nor 'big': add it to the header")
        dtype = dtype.newbyteorder(header["endian"])
    shape, affine = _nrrd_geometry(path, header)
    name = header.get("data file", header.get("datafile"))
    attached = name is not None or path.suffix.lower() != ".nhdr"
    _require(attached, path, "data file: missing: name the file of the voxels in the header")
    data, offset = (path, offset) if name is None else (_nrrd_data(path, name), 0)
    lines = header.get("line skip", header.get("lineskip", 0))
    skip = header.get("byte skip", header.get("byteskip", 0))
    if skip == -1 and encoding == "raw":  # the voxels end the file
        offset = max(0, data.stat().st_size - math.prod(shape) * dtype.itemsize)
        lines = skip = 0
    usable = lines >= 0 and 0 <= skip < 2**30
    _require(usable, path, "line skip, byte skip: out of range: save it as one .nrrd")
    return _Source(data, shape, dtype, affine, encoding, offset, lines, skip, exact=True)


def _nrrd_geometry(path: pathlib.Path, header: dict) -> tuple[tuple[int, ...], np.ndarray]:
    sizes = [int(size) for size in header["sizes"]]
    field = "space directions" if "space directions" in header else "spacings"
    oriented = field == "space directions"
    rows = header[field] if oriented else np.diag(header.get(field, np.zeros(0)))[:, :3]
    agree = len(sizes) == header["dimension"] == len(rows)
    _require(agree, path, f"{field}: missing, or not as many as the sizes: write the voxel size")
    rows = rows if oriented else np.where(np.arange(len(rows))[:, None] < 3, rows, np.nan)
    # An axis that is not spatial has no direction: a row of NaN.
    spatial = [k for k, row in enumerate(rows) if not np.isnan(row).all()]
    single = len(spatial) == 3 and all(n == 1 for k, n in enumerate(sizes) if k not in spatial)
    _require(single, path, f"sizes {sizes} are not one 3-D volume: save a single mask")
    rows = rows[spatial]
    origin = np.asarray(header.get("space origin", np.zeros(3)), float)
    three = rows.shape == (3, 3) and origin.shape == (3,)
    _require(three, path, "space directions and space origin are not vectors of three: mend them")
    positive = oriented or bool((np.diag(rows) > 0).all())
    _require(positive, path, "spacings: not positive: write the voxel size in mm")
    space = header.get("space", "ras").lower() if oriented else "ras"
    # A long name is known by its words' initials: left-posterior-superior is lps.
    space = "".join(word[:1] for word in space.split("-")) if "-" in space else space
    _require(space in _SPACES, path, f"space '{space}' is not known: write LPS, RAS or LAS")
    units = header.get("space units" if oriented else "units", [])
    units = [unit.strip().lower().replace("metre", "meter").removesuffix("s") for unit in units]
    known = all(unit in _UNITS for unit in units)
    _require(known, path, f"units {units}: not all of them are lengths that are known: write mm")
    scale = np.array([_UNITS[unit] for unit in units[:3]] + [1.0] * 3)[:3] * _SPACES[space]
    affine = np.eye(4)
    affine[:3] = scale[:, None] * np.column_stack([rows.T, origin])
    _check_affine(path, field, affine)
    return tuple(sizes[k] for k in spatial), affine


def _nrrd_data(path: pathlib.Path, name: str) -> pathlib.Path:
    single = not name.startswith("LIST") and "%" not in name
    _require(single, path, f"data file '{name}': several files are not read: save one .nrrd")
    parts = re.split(r"[\\/]", name)
    inside = ".." not in parts and parts[0] != "" and ":" not in parts[0]
    _require(inside, path, f"data file '{name}' is outside the header's folder: move it there")
    missing = f"data file '{name}' is missing: put it next to the header"
    _require((path.parent / name).is_file(), path, missing)
    return path.parent / name


def _read_nifti(path: pathlib.Path) -> _Source:
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    encoding = "gzip" if _suffix(path) == ".nii.gz" else "raw"
    with _decoded(path, _Source(path, (), np.dtype("u1"), np.eye(4), encoding)) as stream:
        block = stream.read(540)
    size = {int.from_bytes(block[:4], order) for order in ("little", "big")} & {348, 540}
    length = size.pop() if size else 0
    whole = 0 < length <= len(block)
    _require(whole, path, "no NIfTI header: the file is cut short or of another kind")
    try:
        header = (Nifti1Header if length == 348 else Nifti2Header)(block[:length], check=False)
        dtype, shape = header.get_data_dtype(), [int(side) for side in header.get_data_shape()]
        slope, inter = header.get_slope_inter()
        affine = np.array(header.get_best_affine(), float)
        offset, magic = float(header["vox_offset"]), header["magic"].item()[:3]
    except (HeaderDataError, ValueError, LookupError, np.linalg.LinAlgError) as error:
        raise _error(path, f"no NIfTI header can be read ({error}): export it again") from error
    sound = magic in (b"n+1", b"n+2") and 0 <= offset < 2**30
    _require(sound, path, "magic or vox_offset: not those of a single NIfTI file: export it again")
    plain = dtype.kind in "iuf" and dtype.itemsize <= 8
    _require(plain, path, f"datatype {dtype} holds no mask: save it as uint8")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    _require(len(shape) == 3, path, f"dim {shape} is not one 3-D volume: save a single mask")
    affine[:3] *= _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    _check_affine(path, "sform, qform or pixdim", affine)
    scale = None if slope in (None, 1) and not inter else (float(slope), float(inter))
    # Some writers leave vox_offset at 0; voxels never begin inside the header and its four bytes.
    skip = max(int(offset), length + 4)
    return _Source(path, tuple(shape), dtype, affine, encoding, skip=skip, scale=scale)


@contextlib.contextmanager
def _decoded(path: pathlib.Path, source: _Source) -> Iterator[io.BufferedIOBase]:
    """Open the decoded bytes of a file; every way in which reading fails becomes a UserError."""
    from isal import igzip, isal_zlib

    try:
        with open(source.data, "rb") as file, contextlib.ExitStack() as stack:
            file.seek(source.offset)
            for _ in range(source.lines):
                file.readline()
            if source.encoding == "gzip":
                yield stack.enter_context(igzip.IGzipFile(fileobj=file))
            elif source.encoding == "bzip2":
                yield stack.enter_context(bz2.BZ2File(file))
            elif source.encoding == "ascii":
                yield io.BytesIO(np.array(file.read().split()).astype(source.dtype).tobytes())
            else:
                yield file
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, isal_zlib.error) as error:
        what = f"its bytes cannot be read ({error}): it is corrupt or cut short"
        raise _error(path, f"{what}; copy or export it again") from error


def _slabs(
    path: pathlib.Path, source: _Source, multiple: int, bone_hu: float | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first slice, bone as 0/1 uint8 [t, Y, X]) in file order, t a multiple of `multiple`.

    Slabs share one buffer. What the values are is only known at the end, so a UserError may come
    after the last slab: use nothing built from slabs before the generator is exhausted.
    """
    usual = "150 to 300 Hounsfield units is usual for bone"
    finite = bone_hu is None or math.isfinite(bone_hu)
    _require(finite, path, f"bone_hu {bone_hu} is not a number: {usual}")
    x, y, z = source.shape
    step = multiple * max(1, SLAB_BYTES // (x * y * source.dtype.itemsize * multiple))
    buffer = np.empty((min(step, z), y, x), source.dtype)
    low, high, labels, bone, scan = math.inf, -math.inf, set(), False, False
    with _decoded(path, source) as stream:
        _fill(stream, np.empty(source.skip, np.uint8))
        for first in range(0, z, step):
            slab = buffer[: min(step, z - first)]
            _fill(stream, slab)
            if source.scale:
                slab = slab * source.scale[0] + source.scale[1]
            least, most = float(slab.min()), float(slab.max())
            finite = math.isfinite(least) and math.isfinite(most)
            _require(finite, path, "has NaN or infinite voxels: set them to 0 (in a CT, to air)")
            low, high = min(low, least), max(high, most)
            binary = slab.dtype.kind != "f" and least >= 0 and most <= 1
            if not binary and len(labels) <= MAX_LABELS:
                others = np.unique(slab[(slab != 0) & (slab != high)])[: MAX_LABELS + 1]
                labels.update([high], others.tolist())
            scan = low < 0 or len(labels) > MAX_LABELS
            what = "is a scan, not a mask (it has negative or many different values)"
            _require(not scan or bone_hu is not None, path, f"{what}: set bone_hu; {usual}")
            slab = slab >= bone_hu if bone_hu is not None else slab
            if not (binary and slab.dtype.itemsize == 1):
                slab = slab != 0
            bone = bone or bool(slab.any())
            yield first, slab.view(np.uint8)
        # Reading on also makes gzip verify the checksum at its end.
        if stream.read(1) and source.exact:
            raise ValueError("more bytes than the header's sizes and type account for")
    mask = f"is a mask (values {low:g} to {high:g}), not a CT: leave bone_hu out"
    _require(bone_hu is None or scan, path, mask)
    level = "differs from 0" if bone_hu is None else f"reaches bone_hu {bone_hu:g}"
    values = f"(values {low:g} to {high:g})"
    _require(bone, path, f"holds no bone, no voxel {level} {values}: check the file")


def _fill(stream: io.BufferedIOBase, slab: np.ndarray) -> None:
    view = memoryview(slab.reshape(-1).view(np.uint8))
    while len(view):
        got = stream.readinto(view)
        if not got:
            raise EOFError("it ends before its last voxel")
        view = view[got:]


def _native_crop(packed: np.ndarray, shape, turn: np.ndarray, blocks, factor: int) -> Crop:
    """Turn and pack the box `blocks` (z, y, x) of a file's bits [Z, Y, X/8]."""
    sides = [slice(side.start * factor, side.stop * factor) for side in blocks]
    part = np.unpackbits(packed[sides[0], sides[1]], axis=2, count=shape[0])[..., sides[2]]
    crop = pack(turned(part.T, turn))
    # Where the box begins in RAS: the image of its first or, on a flipped axis, its last voxel.
    first = [*(side.start for side in sides[::-1]), 1]
    last = [*(side.stop - 1 for side in sides[::-1]), 1]
    corners = np.linalg.inv(turn) @ np.transpose([first, last])
    origin = np.rint(corners.min(axis=1)[:3]).astype(int) + crop.origin
    return crop._replace(origin=tuple(int(voxel) for voxel in origin))


def _nrrd_header(shape: tuple[int, ...], affine: np.ndarray) -> bytes:
    vectors = [f"({','.join(repr(float(v)) for v in column)})" for column in affine[:3].T]
    text = "NRRD0005\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\n"
    text += f"sizes: {shape[0]} {shape[1]} {shape[2]}\nspace directions: {' '.join(vectors[:3])}\n"
    text += f"kinds: domain domain domain\nencoding: gzip\nspace origin: {vectors[3]}\n\n"
    return text.encode("ascii")


def _nifti_header(shape: tuple[int, ...], affine: np.ndarray) -> bytes:
    from nibabel import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(affine, 2)
    header.set_qform(affine, 2)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)
