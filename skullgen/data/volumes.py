"""Skull files in and out: NIfTI by nibabel; NRRD, MetaImage and DICOM folders by SimpleITK.

Arrays are `[X, Y, Z]`; an affine `[4, 4]` maps voxel centres to RAS mm. Neither library refuses
what no skull can be (voxels of metres, a missing voxel size, labels, NaN): this page does, in one
line that names the file.
"""

import contextlib
import functools
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data.grids import Affine, Mask, block_counts, box, to_ras, turned

WRITTEN = (".nrrd", ".nii", ".nii.gz")
SUFFIXES = (*WRITTEN, ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2**29  # data.max_voxels raises it
MAX_HEAD, MAX_LINE, MAX_SKIP = 2**20, 600, 2**26  # bytes; the last before the voxels
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.05, 10.0
MAX_FIELD_MM, MAX_FIELD_M3 = 2500.0, 0.6  # a whole body fits
MAX_UNEVEN_MM = 0.05  # between the steps from slice to slice of a DICOM series
MAX_FACTOR = 40  # 40^3 voxels still fit the uint16 of a block count
MAX_LABELS = 64  # more distinct values than this are a scan, not labels
_NIFTI_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units & 7; 0 (unknown) is taken as mm
_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior")
_SPACES += ("ras", "las", "lps")


class Volume(NamedTuple):
    """A skull: a view of any strides, and its affine, voxel -> RAS mm."""

    data: Mask
    affine: Affine


class Crop(NamedTuple):
    """The tight box of a mask's bone, in voxels; `bits` as of `np.packbits` in C order."""

    bits: UInt8[np.ndarray, " N"]
    origin: tuple[int, ...]
    shape: tuple[int, ...]


class Blocks(NamedTuple):
    """Bone voxels in each block of `factor`^3, and the affine of the blocks' centres."""

    counts: Num[np.ndarray, "D D D"]
    affine: Affine
    factor: int


class Source(NamedTuple):
    """What a header says, in the file's own order; `files` hold the header and the voxels."""

    shape: tuple[int, ...]
    affine: Affine
    files: tuple[Path, ...]
    load: Callable[[], Num[np.ndarray, "X Y Z"]]
    scale: tuple[float, float] | None = None  # slope and intercept of the values


def read(
    path: str | Path,
    *,
    bone_hu: float | None = None,
    label: int | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """Read a bone mask, a label of a segmentation, or a CT cut at `bone_hu`, in the file's order.

    A mask has one value that is not 0, or soft ones of at most 1: all of them are bone. A NRRD
    without `space` is taken as RAS; a NIfTI without known units as mm.

    Args:
      path: a file of `SUFFIXES`, or a folder of one DICOM series.
      bone_hu: threshold in Hounsfield units (bone is data >= bone_hu), for a CT only.
      label: the value that is bone, of a file that may hold others.
      max_voxels: a larger file is refused unread.

    Raises:
      UserError: the file is missing, corrupt or empty of bone, or its geometry is not usable; a
        CT without `bone_hu`, a mask with it; several labels without `label`.
    """
    path = Path(path)
    one = bone_hu is None or label is None
    require(one, path, f"bone_hu is for a CT, label ({label}) for a segmentation: leave one out")
    source = describe(path, max_voxels)
    with _decoding(path):
        values = source.load()
    mask = np.empty(source.shape[::-1], bool).T
    low, high, labels = math.inf, -math.inf, set()
    for plane, bone in zip(values.T, mask.T, strict=True):
        if source.scale:
            with np.errstate(all="ignore"):
                plane = plane * source.scale[0] + source.scale[1]
        least, most = float(plane.min()), float(plane.max())
        finite = math.isfinite(least) and math.isfinite(most)
        require(finite, path, "has NaN or infinite voxels: set them to 0 (in a CT, to air)")
        low, high = min(low, least), max(high, most)
        if len(labels) <= MAX_LABELS:
            labels.update(np.unique(plane[plane != 0])[: MAX_LABELS + 1].tolist())
        if bone_hu is None:
            bone[:] = plane != 0 if label is None else plane == label
        else:
            bone[:] = plane >= bone_hu
    _check_values(path, (low, high, sorted(labels)), bool(mask.any()), bone_hu, label)
    return Volume(mask, source.affine)


def _check_values(path, values, found, bone_hu, label):
    low, high, labels = values
    scan = low < 0 or (len(labels) > MAX_LABELS and label is None)
    several = len(labels) > 1 and high > 1 and bone_hu is None and label is None
    blurred = label is not None and not all(float(value).is_integer() for value in labels)
    many = "threshold it" if high <= 1 else "if of labels, set label"
    usual = "150 to 300 Hounsfield units is usual for bone"
    listed = ", ".join(f"{value:g}" for value in labels[:8]) + ", ..." * (len(labels) > 8)
    choose = "set label (data.label, predict.label) to the one that is bone"
    level = "differs from 0" if bone_hu is None else f"reaches bone_hu {bone_hu:g}"
    values = f"(values {low:g} to {high:g})"
    for refused, what in (
        (
            scan and bone_hu is None,
            f"is a scan, not a mask (negative or many values; {many}): set bone_hu; {usual}",
        ),
        (not scan and bone_hu is not None, f"is a mask {values}, not a CT: leave bone_hu out"),
        (blurred, "holds values between its labels: resample it by the nearest"),
        (
            label is not None and not found,
            f"has no voxel of label {label}, only {listed}: {choose}",
        ),
        (several, f"is no mask of one label, it holds {listed}: {choose}"),
        (not found, f"holds no bone, no voxel {level} {values}: check the file"),
    ):
        require(not refused, path, what)


def in_ras(volume: Volume) -> Volume:
    """The same skull with its axes flipped and permuted to the closest of RAS: a view."""
    turn = to_ras(volume.affine, volume.data.shape)
    return Volume(turned(volume.data, turn), volume.affine @ turn)


def count_blocks(volume: Volume, size: int) -> Blocks:
    """Count the bone in the blocks of a cube: uint8 where factor^3 <= 255, else uint16.

    Raises UserError where the sides are not `size` times one factor of at most 40.
    """
    shape = volume.data.shape
    factor = shape[0] // max(1, size)
    if not 1 <= factor <= MAX_FACTOR or shape != (size * factor,) * 3:
        what = f"{shape} voxels are not {size} blocks of one size along every side"
        raise UserError(f"{what} (at most {MAX_FACTOR} voxels): choose another size or resample")
    centres = np.diag([factor, factor, factor, 1.0])
    centres[:3, 3] = (factor - 1) / 2
    return Blocks(block_counts(volume.data, factor), volume.affine @ centres, factor)


def pack(mask: Mask) -> Crop:
    """Crop `mask` to its bone's tight box and pack it, one bit a voxel."""
    sides = box(mask)
    part = mask[sides]
    return Crop(np.packbits(part), tuple(side.start for side in sides), part.shape)


def scans(place: Path) -> list[Path]:
    """The skulls of a place, by name: files and DICOM folders in it, or the one that it is."""
    several = place.is_dir() and not _holds_slices(place)
    inside = sorted(place.iterdir()) if several else [place]
    # A link to nothing is a skull that cannot be read: it must not be left out in silence.
    named = [path for path in inside if path.name.lower().endswith(SUFFIXES) or path.is_dir()]
    return [path for path in named if not path.is_dir() or _holds_slices(path)]


def name_of(scan: Path) -> str:
    """A skull's name: its file's without the suffix, or its folder's."""
    return scan.name if scan.is_dir() else re.sub(r"\.[^.]+(\.gz)?$", "", scan.name, flags=re.I)


def _holds_slices(folder):
    with contextlib.suppress(OSError):
        for file in filter(Path.is_file, folder.iterdir()):
            with open(file, "rb") as content:
                if content.read(132)[128:] == b"DICM":
                    return True
    return False


def write(path: str | Path, mask: Mask | UInt8[np.ndarray, "X Y Z"], affine: Affine) -> None:
    """Write uint8 voxels as one of `WRITTEN`, atomically; equal arguments, equal bytes.

    The folder is made if need be. Raises UserError for an unknown suffix, an unusable affine, or
    a place that cannot be written.
    """
    path = Path(path)
    suffix = suffix_of(path)
    require(suffix in WRITTEN, path, f"is only read: write one of {', '.join(WRITTEN)}")
    _check_affine(path, affine)
    content = _nrrd_bytes if suffix == ".nrrd" else _nifti_bytes
    content = content(mask.astype(np.uint8, copy=False), affine)
    content = gzip.compress(content, 3, mtime=0) if suffix == ".nii.gz" else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
    except OSError as error:
        what = f"cannot be written ({error.strerror}): choose another place"
        raise _refusal(path, what) from error


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


def suffix_of(path: Path) -> str:
    """Which of `SUFFIXES` a path has; raises UserError where it has none."""
    found = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    require(bool(found), path, f"unknown kind of file: give one of {', '.join(SUFFIXES)}")
    return found[0]


def describe(path: str | Path, max_voxels: int = MAX_VOXELS) -> Source:
    """What a file's header says, checked; no voxel is read.

    max_voxels: a header that claims more is refused, before any memory is spent on it.
    """
    path = Path(path)
    try:
        # A link to nothing, as of datalad's files that were not fetched, is no file either.
        there = path.is_dir() or path.is_file()
        require(there, path, "there is no such file, or no plain one: check the path")
        header = _dicom if path.is_dir() else _nifti if ".nii" in suffix_of(path) else _itk
        source = header(path)
    except OSError as error:
        what = f"cannot be opened ({error.strerror}): check the path and its permissions"
        raise _refusal(path, what) from error
    fits = min(source.shape) >= 1 and math.prod(source.shape) <= max_voxels
    what = f"sizes {source.shape}: not 1 to {max_voxels} voxels (data.max_voxels)"
    require(fits, path, f"{what}: crop it, mend the header or raise that field")
    _check_affine(path, source.affine)
    field = np.linalg.norm(source.affine[:3, :3], axis=0) * source.shape
    fits = field.max() <= MAX_FIELD_MM and field.prod() / 1e9 <= MAX_FIELD_M3
    what = f"{' x '.join(f'{mm:.0f}' for mm in field)} mm is more than a body takes"
    require(bool(fits), path, f"{what}: write the voxel size in mm, or crop it")
    return source


def _check_affine(path, affine):
    finite = bool(np.isfinite(affine).all())
    require(finite, path, "its affine is not finite: write voxel size and origin in mm")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sound = bool(spacing.min() >= MIN_VOXEL_MM and spacing.max() <= MAX_VOXEL_MM)
    size = f"{' x '.join(f'{mm:.4g}' for mm in spacing)} mm"
    bounds = f"not {MIN_VOXEL_MM} to {MAX_VOXEL_MM}; are they metres or microns? Write mm"
    require(sound, path, f"voxels of {size}, {bounds}")
    axes = affine[:3, :3] / spacing
    square = bool(np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3)
    require(square, path, "its axes are sheared or singular: resample to a plain grid")


def _nifti(path):
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    with _decoding(path), _unzipped(path) as file:
        block = file.read(540)
    second = 540 in (int.from_bytes(block[:4], end) for end in ("little", "big"))
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    try:
        header = kind(block[: kind.sizeof_hdr], check=False)
        dtype, shape = header.get_data_dtype(), [int(side) for side in header.get_data_shape()]
        slope, inter = header.get_slope_inter()
        affine, offset = np.array(header.get_best_affine(), float), float(header["vox_offset"])
    except (HeaderDataError, WrapStructError, ValueError, LookupError) as error:
        raise _refusal(path, f"no NIfTI header can be read ({error}): export it again") from error
    sound = header["sizeof_hdr"] == kind.sizeof_hdr and header["magic"].item()[:2] == b"n+"
    what = "sizeof_hdr, magic or vox_offset: not those of a single NIfTI file"
    require(bool(sound and 0 <= offset <= MAX_SKIP), path, f"{what}: export it as one .nii.gz")
    require(dtype.kind in "iuf", path, f"datatype {dtype} holds no mask: save it as uint8")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    require(len(shape) == 3, path, f"dim {shape} is not one 3-D volume: save a single mask")
    affine[:3] *= _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    scale = None if slope in (None, 1) and not inter else (float(slope), float(inter))
    # Some writers leave vox_offset at 0; voxels never begin inside the header and its four bytes.
    offset = max(int(offset), kind.sizeof_hdr + 4)
    load = functools.partial(_nifti_values, path, tuple(shape), dtype, offset)
    return Source(tuple(shape), affine, (path,), load, scale)


def _nifti_values(path, shape, dtype, offset):
    from nibabel.volumeutils import array_from_file

    with _unzipped(path) as file:
        values = array_from_file(shape, dtype, file, offset, mmap=False)
        # Reading on also makes gzip verify the checksum at its end.
        what = "holds more bytes than the header's sizes and type account for"
        require(not file.read(1), path, f"{what}: mend the header or export it again")
    return values


def _unzipped(path):
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def _itk(path):
    nrrd = suffix_of(path) in (".nrrd", ".nhdr")
    fields = _fields(path, nrrd)
    reader = _reader("NrrdImageIO" if nrrd else "MetaImageIO", path)
    shape = reader.GetSize()
    single = len(shape) == 3 and reader.GetNumberOfComponents() == 1
    require(single, path, f"sizes {shape} are not those of one 3-D volume: save a single mask")
    require(min(reader.GetSpacing()) > 0, path, "spacings: not positive: write them in mm")
    affine = _affine(reader, 1 if nrrd and "space" not in fields else -1)
    name = fields.get("datafile", fields.get("elementdatafile", "LOCAL"))
    parts = (path,) if name == "LOCAL" else (path, path.parent / name)
    return Source(shape, affine, parts, functools.partial(_itk_values, reader))


def _fields(path, nrrd):
    """The fields of a text header; refused is what SimpleITK would pass over.

    It takes a voxel size that is missing or NaN as 1, any unit as mm and an unknown space as LPS,
    opens whatever file a header names, and crashes on long lines and many dimensions.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_HEAD).decode("latin-1").replace("\r\n", "\n")
    end = "\n\n" if nrrd else "ElementDataFile"
    text, end, rest = text.partition(end)
    text += end + rest.partition("\n")[0] * (not nrrd)
    pairs = re.findall(r"^([\w ]+?) *(?:: |=) *(.*)$", text, re.M)
    fields = {name.replace(" ", "").lower(): value.strip() for name, value in reversed(pairs)}
    sizes = re.findall(r"\(.*?\)", fields.get("spacedirections", ""))
    plain = ("spacings", "elementspacing", "elementsize")
    sizes = sizes or next((fields[name] for name in plain if name in fields), "").split()
    sizes = [size for size in sizes if size.lower() != "nan"]  # of an axis that is not spatial
    known = len(sizes) == 3 and "nan" not in "".join(sizes).lower()
    long = [line for line in text.split("\n") if len(line) > MAX_LINE and ":=" not in line]
    known = known and fields.get("ndims", "3") == "3" and not long
    what = "no header of one 3-D volume with its voxel size can be read"
    require(known, path, f"{what}: write the voxel size in mm, or export it again")
    units = fields.get("spaceunits", fields.get("units", ""))
    mm = re.fullmatch(r'( *"(mm|millimeters?|)")*', units.lower())
    require(bool(mm), path, f"units {units}: lengths are read in mm only: write them so")
    space = fields.get("space", "ras").lower()
    require(space in _SPACES, path, f"space '{space}' is not known: write LPS, RAS or LAS")
    name = fields.get("datafile", fields.get("elementdatafile", "LOCAL"))
    data = path if name == "LOCAL" and path.suffix.lower() != ".nhdr" else path.parent / name
    inside = data.is_file() and data.resolve().is_relative_to(path.parent.resolve())
    what = f"data file '{name}': missing, outside of the header's folder or several files"
    require(data == path or inside, path, f"{what}: put one file next to the header")
    return fields


def _dicom(path):
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    what = f"holds {len(series)} DICOM series ({', '.join(series)}): give a folder of one"
    require(len(series) == 1, path, what)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
    slices = [_reader("GDCMImageIO", Path(name)) for name in names]
    sizes = {part.GetSize() for part in slices}
    steps = np.diff([part.GetOrigin() for part in slices], axis=0)
    even = len(sizes) == 1 and len(steps) > 0 and np.ptp(steps, axis=0).max() < MAX_UNEVEN_MM
    what = "its slices are not of one size, or one is missing: export one whole series"
    require(bool(even), path, what)
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
def _decoding(path: Path) -> Iterator[None]:
    """Make UserError of what is wrong with a file's bytes.

    OSError stays where it is the machine's: a file that is whole must not be left out for it.
    """
    try:
        yield
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, RuntimeError) as error:
        if getattr(error, "errno", None):
            raise OSError(error.errno, error.strerror, str(path)) from None
        why = str(error).strip().rpartition("\n")[2]  # of SimpleITK's many lines the last tells
        what = f"its bytes cannot be read ({why}): it is corrupt or cut short"
        raise _refusal(path, f"{what}; copy or export it again") from error


def _refusal(path, what):
    what = " ".join(what.split())  # a header may hold a megabyte of words
    return UserError(f"{path}: {what if len(what) < 600 else f'{what[:300]} ... {what[-200:]}'}")


def require(holds: bool, path: Path, what: str) -> None:
    """Raise the UserError that says in one line `what` is wrong with a file, unless `holds`."""
    if not holds:
        raise _refusal(path, what)
