"""What NRRD and NIfTI files say about their voxels, and what `volume.write` says about its own.

Whatever cannot be used is refused with one line that names the file and the field.
"""

import contextlib
import errno
import io
import math
import pathlib
import re
import zlib
from typing import NamedTuple

import numpy as np

from skullgen.core.errors import UserError

SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz")
MAX_VOXELS, MAX_SIDE = 2**29, 4096  # data.max_voxels raises the first
MAX_HEAD, MAX_SKIP = 2**20, 2**26  # bytes of a header, and between it and the voxels
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.05, 10.0
MAX_FIELD_MM, MAX_FIELD_M3 = 2500.0, 0.6  # a whole body fits

_MACHINE = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
_SIGNED = {"char": "i1", "short": "i2", "int": "i4", "longlong": "i8"}
_SIGNED |= {f"int{8 * size}": f"i{size}" for size in (1, 2, 4, 8)}
_TYPES = {"float": "f4", "double": "f8", **_SIGNED}
_TYPES |= {f"u{name}": code.replace("i", "u") for name, code in _SIGNED.items()}
_SPACES = {"ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}
_NIFTI_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units & 7; 0 (unknown) is taken as mm


class Source(NamedTuple):
    """What a header says; `shape` and `affine` in the file's own order, first axis fastest."""

    path: pathlib.Path  # the header's, for messages
    data: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray  # [4, 4] voxel -> RAS mm
    zipped: bool
    offset: int = 0  # bytes before the voxels, gzipped or not
    skip: int = 0  # decoded bytes before the first voxel
    scale: tuple[float, float] | None = None  # slope and intercept


def refusal(path, what):
    """Return the error that says `what` is wrong with a file, and how to mend it, in one line."""
    what = " ".join(what.split())  # a header may hold a megabyte of words
    return UserError(f"{path}: {what if len(what) < 600 else f'{what[:300]} ... {what[-200:]}'}")


def require(holds, path, what):
    """Raise `refusal(path, what)` unless `holds`."""
    if not holds:
        raise refusal(path, what)


def suffix_of(path):
    """Return which of `SUFFIXES` a path has; raises UserError where it has none."""
    found = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    require(bool(found), path, f"unknown kind of file: give one of {', '.join(SUFFIXES)}")
    return found[0]


def read_source(path, max_voxels=MAX_VOXELS):
    """Return what a file's header says; raises UserError where no volume can be read by it.

    max_voxels: a header that claims more is refused, before any memory is spent on it.
    """
    parse = _nrrd if suffix_of(path) in (".nrrd", ".nhdr") else _nifti
    try:
        # A link to nothing, as of datalad's files that were not fetched, is no file either.
        require(path.is_file(), path, "there is no such file, or no plain one: check the path")
        with np.errstate(all="ignore"):
            source = parse(path)
    except OSError as error:
        what = f"cannot be opened ({error.strerror}): check the path and its permissions"
        raise refusal(path, what) from error
    fits = min(source.shape) >= 1 and max(source.shape) <= MAX_SIDE
    bound = f"not of 1 to {MAX_SIDE} voxels a side: crop it or mend the header"
    require(fits, path, f"sizes {source.shape}: {bound}")
    count = math.prod(source.shape)
    what = f"sizes {source.shape}: {count} voxels are more than data.max_voxels ({max_voxels})"
    require(count <= max_voxels, path, f"{what}: crop it, mend the header or raise that field")
    field = np.linalg.norm(source.affine[:3, :3], axis=0) * source.shape
    fits = field.max() <= MAX_FIELD_MM and field.prod() / 1e9 <= MAX_FIELD_M3
    what = f"{' x '.join(f'{mm:.0f}' for mm in field)} mm is more than a body takes"
    require(bool(fits), path, f"{what}: write the voxel size in mm, or crop it")
    return source


def check_affine(path, field, affine):
    """Raise UserError unless `affine` [4, 4] has square axes and voxels of 0.05 to 10 mm."""
    finite = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
    require(finite, path, f"{field}: missing or not finite: write voxel size and origin in mm")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sound = spacing.min() >= MIN_VOXEL_MM and spacing.max() <= MAX_VOXEL_MM
    size = f"{' x '.join(f'{mm:.4g}' for mm in spacing)} mm"
    bounds = f"not {MIN_VOXEL_MM} to {MAX_VOXEL_MM}; are they metres or microns? Write mm"
    require(sound, path, f"{field}: voxels of {size}, {bounds}")
    axes = affine[:3, :3] / spacing
    square = np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3
    require(square, path, f"{field}: its axes are sheared or singular: resample to a plain grid")


@contextlib.contextmanager
def decoded(source):
    """Open a file's decoded bytes; what is wrong with them becomes UserError.

    OSError stays where it is the machine's: a file that is whole must not be left out for it.
    """
    from isal import igzip, isal_zlib

    try:
        with open(source.data, "rb") as file:
            file.seek(source.offset)
            with igzip.IGzipFile(fileobj=file) if source.zipped else file as stream:
                yield stream
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, isal_zlib.error) as error:
        if getattr(error, "errno", None) in _MACHINE:
            raise OSError(error.errno, error.strerror, str(source.data)) from None
        what = f"its bytes cannot be read ({error}): it is corrupt or cut short"
        raise refusal(source.path, f"{what}; copy or export it again") from error


def nrrd_header(shape, affine):
    """Return the NRRD header of gzipped uint8 voxels, `affine` [4, 4] voxel -> RAS mm."""
    vectors = [f"({','.join(repr(float(v)) for v in column)})" for column in affine[:3].T]
    text = "NRRD0005\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\n"
    text += f"sizes: {shape[0]} {shape[1]} {shape[2]}\nspace directions: {' '.join(vectors[:3])}\n"
    text += f"kinds: domain domain domain\nencoding: gzip\nspace origin: {vectors[3]}\n\n"
    return text.encode("ascii")


def nifti_header(shape, affine):
    """Return the NIfTI-1 header of uint8 voxels, `affine` [4, 4] voxel -> RAS mm."""
    from nibabel import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(affine, 2)
    header.set_qform(affine, 2)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


def _nrrd_head(path):
    """The lines of a header, and how many bytes it has."""
    with open(path, "rb") as file:
        head = file.read(MAX_HEAD)
    lines, length = [], 0
    for line in io.BytesIO(head):
        length += len(line)
        if not line.strip():
            return lines, length
        lines.append(line)
    # A detached header may do without the blank line.
    require(length < MAX_HEAD, path, f"its header does not end within {MAX_HEAD} bytes: no NRRD")
    return lines, length


def _nrrd(path):
    import nrrd

    (lines, offset), data = _nrrd_head(path), path
    known = bool(lines) and lines[0].startswith(b"NRRD")
    require(
        known, path, "no NRRD header can be read (it does not begin with NRRD): export it again"
    )
    for number, line in enumerate(lines[1:], 2):
        several = re.match(rb"data ?file:\s*LIST", line)
        require(not several, path, "data file: several files: put one file next to the header")
        what = f"line {number} of the header is not 'field: value'"
        require(b":" in line or line[:1] == b"#", path, f"{what}: export it again")
    try:
        header = nrrd.read_header(lines)
    except (nrrd.NRRDError, ValueError, LookupError, RuntimeError, StopIteration) as error:
        raise refusal(path, f"no NRRD header can be read ({error}): export it again") from error
    for field in ("type", "dimension", "sizes", "encoding"):
        require(field in header, path, f"the header has no '{field}': it is cut short")
    encoding, endian = header["encoding"].lower(), header.get("endian", "none")
    known = encoding in ("raw", "gzip", "gz")
    require(known, path, f"encoding '{encoding}' is not read: save it as gzip")
    # "signed long long int", "uint8_t" and their like come down to a word each.
    kind = header["type"].lower().replace("unsigned ", "u")
    kind = re.sub(r"_t$| int$|^signed ", "", kind).replace(" ", "")
    dtype = np.dtype(_TYPES.get(kind, "V1"))
    known = dtype.kind != "V" and (dtype.itemsize == 1 or endian in ("little", "big"))
    what = f"type '{header['type']}', endian '{endian}'"
    require(known, path, f"{what}: not those of a mask: save it as uint8")
    dtype = dtype.newbyteorder(endian) if dtype.itemsize > 1 else dtype
    shape, affine = _nrrd_geometry(path, header)
    name = header.get("data file", header.get("datafile"))
    if name is not None or path.suffix.lower() == ".nhdr":
        name = pathlib.PurePath(name or "")
        data, offset = path.parent / name, 0
        inside = not name.is_absolute() and ".." not in name.parts and data.is_file()
        inside = inside and data.resolve().is_relative_to(path.parent.resolve())  # nor by a link
        what = f"data file '{name}': missing, outside of the header's folder or several files"
        require(inside, path, f"{what}: put one file next to the header")
    lines = header.get("line skip", header.get("lineskip", 0))
    skip = header.get("byte skip", header.get("byteskip", 0))
    if skip == -1 and encoding == "raw":  # the voxels end the file
        skip, offset = 0, max(0, data.stat().st_size - math.prod(shape) * dtype.itemsize)
    usable = lines == 0 and 0 <= skip <= MAX_SKIP
    what = f"line skip {lines}, byte skip {skip}: not 0, and 0 to {MAX_SKIP} bytes"
    require(usable, path, f"{what}: save it as one .nrrd")
    return Source(path, data, shape, dtype, affine, encoding != "raw", offset, skip)


def _nrrd_geometry(path, header):
    field, space, units = "spacings", "ras", header.get("units", ())
    what = f"dimension {header['dimension']} is not 3"
    require(header["dimension"] <= 16, path, f"{what}: save a single mask")
    rows = np.diag(header.get(field, ())[:17])  # a matrix: not of a header's thousands
    require(not (rows < 0).any(), path, "spacings: not positive: write the voxel size in mm")
    if "space directions" in header:
        field, rows = "space directions", header["space directions"]
        space, units = header.get("space", "ras").lower(), header.get("space units", ())
    agree = len(header["sizes"]) == header["dimension"] == len(rows)
    require(agree, path, f"{field}: missing, or not as many as the sizes: write the voxel size")
    spatial = ~np.isnan(rows).all(axis=1)  # an axis that is not spatial has no direction: NaN
    sizes = np.asarray(header["sizes"])
    rows, origin = rows[spatial], np.asarray(header.get("space origin", np.zeros(3)), float)
    single = rows.shape == (3, 3) and origin.shape == (3,) and (sizes[~spatial] == 1).all()
    what = f"sizes {sizes}, {field} and space origin are not those of one 3-D volume"
    require(bool(single), path, f"{what}: save a single mask")
    # A long name is known by its words' initials: left-posterior-superior is lps.
    space = "".join(word[:1] for word in space.split("-")) if "-" in space else space
    require(space in _SPACES, path, f"space '{space}' is not known: write LPS, RAS or LAS")
    mm = all(unit.strip().lower() in ("", "mm", "millimeter", "millimeters") for unit in units)
    require(mm, path, f"units {units}: lengths are read in mm only: write them so")
    affine = np.eye(4)
    affine[:3] = np.array(_SPACES[space])[:, None] * np.column_stack([rows.T, origin])
    check_affine(path, field, affine)
    return tuple(int(size) for size in sizes[spatial]), affine


def _nifti(path):
    from nibabel import Nifti1Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    bare = Source(path, path, (), np.dtype("u1"), np.eye(4), suffix_of(path) == ".nii.gz")
    with decoded(bare) as stream:
        block = stream.read(348)
    try:
        header = Nifti1Header(block, check=False)
        dtype, shape = header.get_data_dtype(), [int(side) for side in header.get_data_shape()]
        slope, inter = header.get_slope_inter()
        affine, offset = np.array(header.get_best_affine(), float), float(header["vox_offset"])
    except (HeaderDataError, WrapStructError, ValueError, LookupError) as error:
        raise refusal(path, f"no NIfTI-1 header can be read ({error}): export it again") from error
    sound = header["sizeof_hdr"] == 348 and header["magic"].item()[:3] == b"n+1"
    what = "sizeof_hdr, magic or vox_offset: not those of a single NIfTI-1 file"
    require(bool(sound and 0 <= offset <= MAX_SKIP), path, f"{what}: export it as one .nii.gz")
    plain = dtype.kind in "iuf" and dtype.itemsize <= 8
    require(plain, path, f"datatype {dtype} holds no mask: save it as uint8")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    require(len(shape) == 3, path, f"dim {shape} is not one 3-D volume: save a single mask")
    affine[:3] *= _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    check_affine(path, "sform, qform or pixdim", affine)
    scale = None if slope in (None, 1) and not inter else (float(slope), float(inter))
    # Some writers leave vox_offset at 0; voxels never begin inside the header and its four bytes.
    skip = max(int(offset), 352)
    return bare._replace(shape=tuple(shape), dtype=dtype, affine=affine, skip=skip, scale=scale)
