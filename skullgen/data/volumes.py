"""Skull files in and out: NIfTI by nibabel; NRRD, MetaImage and DICOM folders by SimpleITK.

Neither refuses what no skull can be (voxels of metres, no voxel size, labels, NaN): this page does.
"""

import contextlib
import functools
import gzip
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data.grids import Affine, Mask, to_ras, turned

WRITTEN = (".nrrd", ".nii", ".nii.gz")
SUFFIXES = (*WRITTEN, ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2**29
MAX_HEAD, MAX_LINE, MAX_SKIP = 2**20, 600, 2**26  # bytes; the last before the voxels
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.05, 10.0
MAX_UNEVEN_MM = 0.05  # between the steps from slice to slice of a DICOM series
MAX_LABELS = 64  # more distinct values than this are a scan, not labels
_NIFTI_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units & 7; 0 (unknown) is taken as mm
_SPACES = "ras las lps right-anterior-superior left-anterior-superior left-posterior-superior"


class Volume(NamedTuple):
    """A skull: a view of any strides, and its affine, voxel -> RAS mm."""

    data: Mask
    affine: Affine


class Source(NamedTuple):
    """What a header says, in the file's own order; `files` hold the header and the voxels."""

    shape: tuple[int, ...]
    affine: Affine
    files: tuple[Path, ...]
    load: Callable[[], Num[np.ndarray, "X Y Z"]]
    scale: tuple[float, float] = (1.0, 0.0)  # slope and intercept of the values


def read(path: str | Path, *, bone_hu: float = 0, label: int = 0) -> Volume:
    """A bone mask, a `label` of a segmentation, or a CT cut at `bone_hu`, in the file's order.

    A mask has one value that is not 0, or soft ones of at most 1: all of them are bone.
    """
    path = Path(path)
    _require(path, not (bone_hu and label), "bone_hu is for a CT, label for a segmentation")
    source = describe(path)
    with _decoding(path):
        values = source.load()
    mask = np.empty(source.shape[::-1], bool).T
    low, high, labels = math.inf, -math.inf, set()
    for plane, bone in zip(values.T, mask.T, strict=True):
        if source.scale != (1.0, 0.0):
            with np.errstate(all="ignore"):
                plane = plane * source.scale[0] + source.scale[1]
        low, high = np.minimum(low, plane.min()), np.maximum(high, plane.max())
        if len(labels) <= MAX_LABELS:
            labels.update(np.unique(plane[plane != 0])[: MAX_LABELS + 1].tolist())
        bone[:] = plane >= bone_hu if bone_hu else plane == label if label else plane != 0
    scan = low < 0 or (len(labels) > MAX_LABELS and not label)
    one = len(labels) < 2 or high <= 1
    whole = all(float(value).is_integer() for value in labels)
    span, some = f"values {low:g} to {high:g}", ", ".join(f"{v:g}" for v in sorted(labels)[:8])
    choose = f"{some}: set label (data.label, predict.label) to the one that is bone"
    hu = "set bone_hu, 150 to 300 Hounsfield units, of labels set label, else threshold it"
    for holds, what in (
        (np.isfinite([low, high]).all(), "has NaN or infinite voxels: set them to 0 (a CT: air)"),
        (bone_hu or not scan, f"is a scan, not a mask ({span}, negative or many): {hu}"),
        (scan or not bone_hu, f"is a mask ({span}), not a CT: leave bone_hu out"),
        (whole or not label, "holds values between its labels: resample it by the nearest"),
        (mask.any() or not label, f"has no voxel of label {label}, only {choose}"),
        (one or label or bone_hu, f"is no mask of one label, it holds {choose}"),
        (mask.any(), f"holds no bone ({span}): check the file and, for a CT, bone_hu"),
        (not mask.all(), "is bone everywhere: give a mask whose voxels are 0 around it"),
    ):
        _require(path, holds, what)
    return Volume(mask, source.affine)


def in_ras(volume: Volume) -> Volume:
    """The same skull with its axes flipped and permuted to the closest of RAS: a view."""
    turn = to_ras(volume.affine, volume.data.shape)
    return Volume(turned(volume.data, turn), volume.affine @ turn)


def _suffix(path):
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def write(path: str | Path, mask: Mask | UInt8[np.ndarray, "X Y Z"], affine: Affine) -> None:
    """Write uint8 voxels as one of `WRITTEN`, atomically; equal arguments, equal bytes."""
    path = Path(path)
    suffix = _suffix(path)
    _require(path, suffix in WRITTEN, f"is only read: write one of {', '.join(WRITTEN)}")
    _check_affine(path, affine)
    encode = _nrrd_bytes if suffix == ".nrrd" else _nifti_bytes
    content = encode(mask.astype(np.uint8, copy=False), affine)
    content = gzip.compress(content, 3, mtime=0) if suffix == ".nii.gz" else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
    except OSError as error:
        what = f"cannot be written ({error.strerror}): choose another place"
        raise UserError(f"{path}: {what}") from error


def _nrrd_bytes(voxels, affine):
    """Not by SimpleITK, which says nothing where the disk is full at a file's end."""
    vectors = [f"({','.join(repr(float(v)) for v in column)})" for column in affine[:3].T]
    text = "NRRD0005\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\n"
    text += f"sizes: {' '.join(map(str, voxels.shape))}\n"
    text += f"space directions: {' '.join(vectors[:3])}\nkinds: domain domain domain\n"
    text += f"encoding: gzip\nspace origin: {vectors[3]}\n\n"
    return text.encode() + gzip.compress(voxels.tobytes("F"), 3, mtime=0)


def _nifti_bytes(voxels, affine):
    import nibabel

    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 2)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def describe(path: str | Path) -> Source:
    """What a file's header says, checked; no voxel is read."""
    path = Path(path)
    try:
        # A link to nothing, as of datalad's files that were not fetched, is no file either.
        series, plain = path.is_dir(), path.is_file()
        _require(path, series or plain, "there is no such file, or no plain one: check the path")
        what = f"unknown kind of file: give one of {', '.join(SUFFIXES)}"
        _require(path, series or _suffix(path), what)
        header = _dicom if series else _nifti if ".nii" in _suffix(path) else _itk
        source = header(path)
    except OSError as error:
        what = f"cannot be opened ({error.strerror}): check the path and its permissions"
        raise UserError(f"{path}: {what}") from error
    fits = min(source.shape) >= 1 and math.prod(source.shape) <= MAX_VOXELS
    what = f"sizes {source.shape}: not 1 to {MAX_VOXELS} voxels"
    _require(path, fits, f"{what}: crop it or mend the header")
    _check_affine(path, source.affine)
    return source


def _check_affine(path, affine):
    finite = np.isfinite(affine).all()
    _require(path, finite, "its affine is not finite: write voxel size and origin in mm")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = " x ".join(f"{mm:.4g}" for mm in spacing)
    bounds = f"not {MIN_VOXEL_MM} to {MAX_VOXEL_MM}; are they metres or microns? Write mm"
    sound = MIN_VOXEL_MM <= spacing.min() and spacing.max() <= MAX_VOXEL_MM
    _require(path, sound, f"voxels of {size} mm, {bounds}")
    axes = affine[:3, :3] / spacing
    square = np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3
    _require(path, square, "its axes are sheared or singular: resample to a plain grid")


def _nifti(path):
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    with _decoding(path, HeaderDataError, WrapStructError):
        with _unzipped(path) as file:
            block = file.read(Nifti2Header.sizeof_hdr)
        kind = Nifti2Header if Nifti2Header.may_contain_header(block) else Nifti1Header
        header = kind(block[: kind.sizeof_hdr], check=False)
        shape, dtype = list(map(int, header.get_data_shape())), header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        affine, offset = np.array(header.get_best_affine(), float), float(header["vox_offset"])
    single = header["sizeof_hdr"] == kind.sizeof_hdr and header["magic"].item()[:2] == b"n+"
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    what = "sizeof_hdr, magic or vox_offset: not those of a single NIfTI file"
    _require(path, single and 0 <= offset <= MAX_SKIP, f"{what}: export it as one .nii.gz")
    _require(path, dtype.kind in "iuf", f"datatype {dtype} holds no mask: save it as uint8")
    _require(path, len(shape) == 3, f"dim {shape} is not one 3-D volume: save a single mask")
    affine[:3] *= _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    # Some writers leave vox_offset at 0; voxels never begin inside the header and its four bytes.
    offset = max(int(offset), kind.sizeof_hdr + 4)
    load = functools.partial(_nifti_values, path, tuple(shape), dtype, offset)
    scale = float(1 if slope is None else slope), float(inter or 0)
    return Source(tuple(shape), affine, (path,), load, scale)


def _nifti_values(path, shape, dtype, offset):
    from nibabel.volumeutils import array_from_file

    with _unzipped(path) as file:
        values = array_from_file(shape, dtype, file, offset, mmap=False)
        more = "holds more bytes than the header's sizes and type account for"
        # Reading on also makes gzip verify the checksum at its end.
        _require(path, not file.read(1), f"{more}: mend the header or export it again")
    return values


def _unzipped(path):
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def _itk(path):
    nrrd = _suffix(path) in (".nrrd", ".nhdr")
    fields = _fields(path, nrrd)
    reader = _reader("NrrdImageIO" if nrrd else "MetaImageIO", path)
    shape = reader.GetSize()
    single = len(shape) == 3 and reader.GetNumberOfComponents() == 1
    _require(path, single, f"sizes {shape} are not those of one 3-D volume: save a single mask")
    _require(path, min(reader.GetSpacing()) > 0, "spacings: not positive: write them in mm")
    affine = _affine(reader, 1 if nrrd and "space" not in fields else -1)
    parts = (path,) if fields["data"] == "LOCAL" else (path, path.parent / fields["data"])
    return Source(shape, affine, parts, functools.partial(_itk_values, reader))


def _fields(path, nrrd):
    """The fields of a text header; refused is what SimpleITK passes over, or crashes on."""
    with open(path, "rb") as file:
        text = file.read(MAX_HEAD).decode("latin-1").replace("\r\n", "\n")
    text = re.match(r".*?\n\n|.*" if nrrd else r".*?ElementDataFile[^\n]*|.*", text, re.S)[0]
    pairs = re.findall(r"^([\w ]+?) *(?:: |=) *(.*)$", text, re.M)
    fields = {name.replace(" ", "").lower(): value.strip() for name, value in reversed(pairs)}
    local = "" if path.suffix.lower() == ".nhdr" else "LOCAL"
    data = fields.get("datafile", fields.get("elementdatafile", local))
    names = ("spacedirections", "spacings", "elementspacing", "elementsize")
    size = next((fields[name] for name in names if name in fields), "")
    sized = len(re.sub(", +", ",", size).split()) == 3 and not re.search("nan|none", size, re.I)
    long = any(len(line) > MAX_LINE and ":=" not in line for line in text.split("\n"))
    sound = sized and not long and fields.get("ndims", "3") == "3"
    units = fields.get("spaceunits", fields.get("units", ""))
    space = fields.get("space", "ras").lower()
    file = path.parent / data
    beside = file.is_file() and file.resolve().is_relative_to(path.parent.resolve())
    lost = "missing, outside of the header's folder or several files: put one file next to it"
    what = "no header of one 3-D volume with its voxel size can be read"
    millimetres = re.fullmatch(r'( *"(mm|millimeters?|)")*', units.lower())
    _require(path, sound, f"{what}: write the voxel size in mm, or export it again")
    _require(path, millimetres, f"units {units} are read in mm only")
    _require(path, space in _SPACES.split(), f"space '{space}' is not known: write LPS, RAS or LAS")
    _require(path, beside or data == local == "LOCAL", f"data file '{data}': {lost}")
    return {**fields, "data": data}


def _dicom(path):
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    what = f"holds {len(series)} DICOM series ({', '.join(series)}): give a folder of one"
    _require(path, len(series) == 1, what)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
    slices = [_reader("GDCMImageIO", Path(name)) for name in names]
    steps = np.diff([part.GetOrigin() for part in slices], axis=0)
    even = len(steps) > 0 and np.ptp(steps, axis=0).max() < MAX_UNEVEN_MM
    even = even and len({part.GetSize() for part in slices}) == 1
    what = "its slices are not of one size, or one is missing: export one whole series"
    _require(path, even, what)
    affine = _affine(slices[0], -1)
    affine[:3, 2] = steps.mean(axis=0) * (-1, -1, 1)
    shape = (*slices[0].GetSize()[:2], len(slices))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    return Source(shape, affine, tuple(map(Path, names)), functools.partial(_itk_values, reader))


def _reader(kind, path):
    """A reader of SimpleITK that has read a file's header."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    with _decoding(path):
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    return reader


def _affine(reader, sign):
    """The affine of a reader whose mm are LPS (`sign` -1) or RAS (1)."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    affine[:2] *= sign
    return affine + 0.0  # -0.0 becomes 0.0


def _itk_values(reader):
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(reader.Execute()).T


@contextlib.contextmanager
def _decoding(path, *errors):
    """UserError of what is wrong with a file's bytes; the machine's own OSError stays one."""
    bad = (EOFError, ValueError, LookupError, OverflowError, zlib.error, RuntimeError)
    try:
        yield
    except (OSError, *bad, *errors) as error:
        if getattr(error, "errno", None):
            raise OSError(error.errno, error.strerror, str(path)) from None
        why = str(error).strip().rpartition("\n")[2]  # of SimpleITK's many lines the last tells
        cut = "it is corrupt or cut short; copy or export it again"
        _require(path, False, f"its bytes cannot be read ({why}): {cut}")


def _require(path, holds, what):
    """UserError that says in one line what is wrong with a file, unless this holds."""
    if not holds:
        raise UserError(f"{path}: {' '.join(what.split())[:600]}")
