"""What the headers of skull files say: NIfTI by nibabel; NRRD, MetaImage and DICOM by SimpleITK.

Neither refuses what no skull can be (voxels of metres, no voxel size, forms that contradict each
other), and each takes a side where a file does not say which way it faces: this page asks.
"""

import contextlib
import functools
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num

from skullgen.core.errors import UserError
from skullgen.data.grids import Affine

WRITTEN = (".nrrd", ".nii", ".nii.gz")
SUFFIXES = (*WRITTEN, ".nhdr", ".mha", ".mhd")
SURFACES = (".stl", ".obj", ".ply", ".vtp", ".vtk")
FORMS = ("sform", "qform", "none")  # of a NIfTI
SPACES = {  # signs of x and y against RAS mm, and NRRD's name
    "LPS": (-1, -1, "left-posterior-superior"),
    "RAS": (1, 1, "right-anterior-superior"),
    "LAS": (-1, 1, "left-anterior-superior"),
}
MAX_VOXELS = 2**29
DECIMALS = 6  # of affines, mm: float32 and DICOM's text hold as many
MAX_HEAD, MAX_LINE, MAX_SKIP = 2**20, 600, 2**26  # bytes; the last before the voxels
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.05, 10.0
MAX_APART = 0.1  # voxels between the places that the two forms of a NIfTI say
MAX_UNEVEN_MM = 0.05  # between a DICOM series' steps, or a tenth of one: places are rounded
MAX_TILT = 1e-3  # radians between the slices' normal and the way from one to the next
_NIFTI_UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units & 7; 0 (unknown) is taken as mm


class Segment(NamedTuple):
    """A segment of 3D Slicer's seg.nrrd: the voxels of a value in a layer."""

    name: str
    layer: int
    value: int


class Space(NamedTuple):
    """Where an NRRD lies that is written: the name of its mm, "" for none, and its own affine."""

    name: str
    affine: Affine


class Source(NamedTuple):
    """What a header says, in the file's own order; `files` hold the header and the voxels."""

    shape: tuple[int, ...]
    affine: Affine
    files: tuple[Path, ...]
    load: Callable[[], Num[np.ndarray, "X Y Z *layers"]]
    geometry: Any  # a NIfTI's header, or the `Space` of others: what is written lies on this file
    scale: tuple[float, float] = (1.0, 0.0)  # slope and intercept of the values
    segments: tuple[Segment, ...] = ()
    notes: tuple[str, ...] = ()  # programs that place it elsewhere


def describe(path: str | Path, form: str = "", space: str = "") -> Source:
    """What a file's header says, checked; no voxel is read.

    form: which of `FORMS` a NIfTI goes by whose forms differ, or are not there; space: that of an
    NRRD or MetaImage that says none (`SPACES`).
    """
    path = Path(path)
    try:
        # A link to nothing, as of datalad's files that were not fetched, is no file either.
        series, plain = path.is_dir(), path.is_file()
        require(path, series or plain, "there is no such file, or no plain one: check the path")
        surface = path.suffix.lower() in SURFACES
        cure = "make it voxels in 3D Slicer (import as segmentation, export as a label map)"
        require(path, series or not surface, f"is a surface, not voxels: {cure}")
        what = f"unknown kind of file: give one of {', '.join(SUFFIXES)}"
        require(path, series or suffix(path), what)
        if series:
            source = _dicom(path)
        elif ".nii" in suffix(path):
            source = _nifti(path, form)
        else:
            source = _itk(path, space)
    except OSError as error:
        what = f"cannot be opened ({error.strerror}): check the path and its permissions"
        raise UserError(f"{path}: {what}") from error
    fits = min(source.shape) >= 1 and math.prod(source.shape) <= MAX_VOXELS
    what = f"sizes {source.shape}: not 1 to {MAX_VOXELS} voxels"
    require(path, fits, f"{what}: crop it or mend the header")
    check_affine(path, source.affine)
    # Else the same scan in two kinds of files gives implants that differ where shares tie.
    return source._replace(affine=np.round(source.affine, DECIMALS) + 0.0)


def suffix(path: Path) -> str | None:
    """Which of `SUFFIXES` a file has."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def check_affine(path: Path, affine: Affine) -> None:
    """UserError unless an affine may be that of a head's voxels."""
    finite = np.isfinite(affine).all()
    require(path, finite, "its affine is not finite: write voxel size and origin in mm")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = _text(spacing)
    bounds = f"not {MIN_VOXEL_MM} to {MAX_VOXEL_MM}; are they metres or microns? Write mm"
    sound = MIN_VOXEL_MM <= spacing.min() and spacing.max() <= MAX_VOXEL_MM
    require(path, sound, f"voxels of {size} mm, {bounds}")
    axes = affine[:3, :3] / spacing
    square = np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3
    require(path, square, "its axes are sheared or singular: resample to a plain grid")


def _text(mm):
    return " x ".join(f"{value:.4g}" for value in mm)


# --- NIfTI ---------------------------------------------------------------------------------------


def _nifti(path, form):
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    with decoding(path, HeaderDataError, WrapStructError):
        with _unzipped(path) as file:
            block = file.read(Nifti2Header.sizeof_hdr)
        kind = Nifti2Header if Nifti2Header.may_contain_header(block) else Nifti1Header
        header = kind(block[: kind.sizeof_hdr], check=False)
        shape, dtype = list(map(int, header.get_data_shape())), header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        if header["pixdim"][0] == 0:  # of older programs; the standard takes it for 1
            header["pixdim"][0] = 1
        forms = {"sform": header.get_sform(coded=True)[0], "qform": _qform(header)}
        base, offset = header.get_base_affine(), float(header["vox_offset"])
    single = header["sizeof_hdr"] == kind.sizeof_hdr and header["magic"].item()[:2] == b"n+"
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    what = "sizeof_hdr, magic or vox_offset: not those of a single NIfTI file"
    require(path, single and 0 <= offset <= MAX_SKIP, f"{what}: export it as one .nii.gz")
    require(path, dtype.kind in "iuf", f"datatype {dtype} holds no mask: save it as uint8")
    require(path, len(shape) == 3, f"dim {shape} is not one 3-D volume: save a single mask")
    unit = _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    forms = {name: np.diag([unit] * 3 + [1]) @ x for name, x in forms.items() if x is not None}
    affine, notes = _placed(path, forms or {"none": base * unit}, form, shape)
    check_affine(path, affine)
    if "sform" in forms:
        pixdim = np.abs(header["pixdim"][1:4]) * unit
        notes += _sizes(path, forms["sform"], pixdim, form, shape)
    if unit != 1:
        notes += (f"its unit is {unit:g} mm, which nibabel and FSL read as 1 mm",)
    # Some writers leave vox_offset at 0; voxels never begin inside the header and its four bytes.
    offset = max(int(offset), kind.sizeof_hdr + 4)
    load = functools.partial(_nifti_values, path, tuple(shape), dtype, offset)
    scale = float(1 if slope is None else slope), float(inter or 0)
    return Source(tuple(shape), affine, (path,), load, header, scale, notes=notes)


def _sizes(path, sform, pixdim, form, shape):
    """What programs make of an sform whose voxels are not of pixdim's size, by which ITK goes."""
    mm = np.linalg.norm(sform[:3, :3], axis=0)
    if (np.abs(pixdim - mm) * shape <= MAX_APART * mm).all():
        return ()
    what = f"its sform says voxels of {_text(mm)} mm, its pixdim {_text(pixdim)} mm"
    cure = "save it again, or set form to sform (data.form, predict.form)"
    require(path, form, f"{what}: programs differ on it: {cure}")
    return (f"{what}, which ITK goes by",)


def _qform(header):
    """The qform, None where there is none, NaN where its quaternion is no rotation."""
    from nibabel.spatialimages import HeaderDataError

    try:
        return header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def _placed(path, forms, form, shape):
    """The affine of a NIfTI by its forms, in mm, and what programs make of them."""
    field = "(data.form, predict.form)"
    if "none" in forms:
        what = "its header does not say which way it faces (sform and qform codes 0)"
        cure = f"save it again with its orientation, or set form to none {field}: x to the left"
        require(path, form == "none", f"{what}: {cure}, y to the front, z up")
        return forms["none"], ("its orientation is not known: programs place it differently",)
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1)
    places = [corners @ affine[:3, :3].T + affine[:3, 3] for affine in forms.values()]
    apart = np.linalg.norm(places[0] - places[-1], axis=1).max()
    first = next(iter(forms.values()))
    if len(forms) == 1 or apart <= MAX_APART * np.linalg.norm(first[:3, :3], axis=0).min():
        return first, ()
    what = f"its sform and qform place it {apart:.1f} mm apart"  # nan: the qform is no rotation
    cure = f"look where it lies on the scan, then set form to sform or qform {field}"
    require(path, form in forms, f"{what}: {cure}")
    return forms[form], (
        f"{what}: nibabel and FSL go by the sform, ITK (3D Slicer, ITK-SNAP) by the qform unless "
        "the sform's code is 1",
    )


def _nifti_values(path, shape, dtype, offset):
    from nibabel.volumeutils import array_from_file

    with _unzipped(path) as file:
        values = array_from_file(shape, dtype, file, offset, mmap=False)
        more = "holds more bytes than the header's sizes and type account for"
        # Reading on also makes gzip verify the checksum at its end.
        require(path, not file.read(1), f"{more}: mend the header or export it again")
    return values


def _unzipped(path):
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


# --- NRRD and MetaImage --------------------------------------------------------------------------


def _itk(path, space):
    nrrd = suffix(path) in (".nrrd", ".nhdr")
    fields = _fields(path, nrrd)
    reader = _reader("NrrdImageIO" if nrrd else "MetaImageIO", path)
    shape = reader.GetSize()
    with decoding(path):
        segments = _segments(fields)
    single = len(shape) == 3 and (reader.GetNumberOfComponents() == 1 or segments)
    require(path, single, f"sizes {shape} are not those of one 3-D volume: save a single mask")
    require(path, min(reader.GetSpacing()) > 0, "spacings: not positive: write them in mm")
    own, name = _space(fields, nrrd), "" if nrrd else SPACES["LPS"][2]
    field = "space" if nrrd else "TransformMatrix"
    what = f"its header does not say which way it faces (no {field})"
    cure = "save it again from 3D Slicer, or set space (data.space, predict.space) to LPS or RAS"
    require(path, own or space in SPACES, f"{what}: {cure}")
    x, y, long = SPACES[own or space]
    # SimpleITK turns the spaces that it knows to LPS, and leaves numbers without one as they are.
    affine = _affine(reader, SPACES["LPS" if own else space][:2])
    notes = () if own else (f"{what}: programs may take it for another than {space}",)
    parts = (path,) if fields["data"] == "LOCAL" else (path, path.parent / fields["data"])
    load = functools.partial(_itk_values, reader)
    written = Space(long if own else name, np.diag([x, y, 1, 1]) @ affine)
    return Source(shape, affine, parts, load, written, segments=segments, notes=notes)


def _space(fields, nrrd):
    """Which of `SPACES` a text header says, "" where it says none."""
    if not nrrd:
        directions = {"transformmatrix", "rotation", "orientation"} & fields.keys()
        return "LPS" if directions else ""
    space = fields.get("space", "").lower()
    return next((s for s, names in SPACES.items() if space in (s.lower(), names[2])), "")


def _segments(fields):
    """The segments that 3D Slicer notes in a seg.nrrd."""
    segments = []
    while (own := f"segment{len(segments)}") + "_name" in fields:
        layer, value = (fields.get(f"{own}_{key}", "") for key in ("layer", "labelvalue"))
        segments.append(Segment(fields[f"{own}_name"], int(layer or 0), int(value or 1)))
    return tuple(segments)


def _fields(path, nrrd):
    """The fields of a text header; refused is what SimpleITK passes over, or crashes on."""
    with open(path, "rb") as file:
        text = file.read(MAX_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
    text = re.match(r".*?\n\n|.*" if nrrd else r".*?ElementDataFile[^\n]*|.*", text, re.S)[0]
    pairs = re.findall(r"^([\w ]+?) *(?:: |=) *(.*)$|^(Segment\w+):=(.*)$", text, re.M)
    pairs = [(a or b, (c or d).strip()) for a, c, b, d in reversed(pairs)]
    fields = {name.replace(" ", "").lower(): value for name, value in pairs}
    local = "" if path.suffix.lower() == ".nhdr" else "LOCAL"
    data = fields.get("datafile", fields.get("elementdatafile", local))
    names = ("spacedirections", "spacings", "elementspacing", "elementsize")
    size = next((fields[name] for name in names if name in fields), "")
    if fields.get("kinds", "").startswith("list"):  # of a seg.nrrd's layers
        size = re.sub("^(none|nan) ", "", size, flags=re.I)
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
    require(path, sound, f"{what}: write the voxel size in mm, or export it again")
    require(path, millimetres, f"units {units} are read in mm only")
    unlike = f"space '{space}' is not known: write LPS, RAS or LAS"
    require(path, not nrrd or "space" not in fields or _space(fields, nrrd), unlike)
    require(path, beside or data == local == "LOCAL", f"data file '{data}': {lost}")
    return {**fields, "data": data}


def _reader(kind, path):
    """A reader of SimpleITK that has read a file's header."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    with decoding(path):
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    return reader


def _affine(reader, signs):
    """The RAS affine of a reader whose x and y have these signs against it."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    affine[:2] *= np.array(signs)[:, None]
    return affine + 0.0  # -0.0 becomes 0.0


def _itk_values(reader):
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(reader.Execute())
    return values.T if values.ndim == 3 else np.moveaxis(values.T, 0, -1)  # the layers last


# --- DICOM ---------------------------------------------------------------------------------------


def _dicom(path):
    """A series: its slices in order of place, evenly apart. Of the files no text is kept."""
    import SimpleITK as sitk

    names = _series(path)
    slices = [_reader("GDCMImageIO", name) for name in names]
    affine = _affine(slices[0], SPACES["LPS"][:2])
    if len(slices) == 1 and slices[0].GetSize()[2] > 1:  # enhanced: all slices in one file
        shape, reader = slices[0].GetSize(), slices[0]
    else:
        affine[:3, 2] = _step(path, names, slices)
        shape, reader = (*slices[0].GetSize()[:2], len(slices)), sitk.ImageSeriesReader()
        reader.SetFileNames(list(map(str, names)))
    load, space = functools.partial(_itk_values, reader), SPACES["LPS"]
    space = Space(space[2], np.diag([*space[:2], 1, 1]) @ affine)
    return Source(shape, affine, names, load, space)


def _series(path):
    """The files of the one series in a folder, in the order of their places."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    series = [
        tuple(map(Path, reader.GetGDCMSeriesFileNames(str(path), uid)))
        for uid in reader.GetGDCMSeriesIDs(str(path))
    ]
    counts = "; ".join(f"{len(names)} files, {names[0].name} first" for names in series if names)
    what = f"holds {len(series)} DICOM series ({counts})"
    require(path, len(series) == 1, f"{what}: give a folder of one")
    ending, inside = series[0][0].suffix, set(path.iterdir()) - set(series[0])
    inside = [p for p in inside if p.is_file() and p.name[0] != "." and p.name != "DICOMDIR"]
    rest = sorted(p.name for p in inside if p.suffix == ending)
    what = f"{' and '.join(rest[:2])} ({len(rest)} in all) are no slices of its series"
    require(path, not rest, f"{what}: cut short? Copy them again, or move them away")
    return series[0]


def _step(path, names, slices):
    """The way from a slice to the next, RAS mm; UserError names files that make no even grid."""
    require(path, len(slices) > 1, "holds one slice: give the folder of a whole series")
    for name, part in zip(names, slices, strict=True):
        same = part.GetSize() == slices[0].GetSize() and np.allclose(
            part.GetDirection(), slices[0].GetDirection(), atol=1e-4
        )
        what = f"{name.name} has another size or direction than {names[0].name}"
        require(path, same, f"{what}: give the folder of one series")
    steps = np.diff([part.GetOrigin() for part in slices], axis=0)
    usual = steps[np.argsort(np.linalg.norm(steps, axis=1))[(len(steps) - 1) // 2]]
    normal = np.reshape(slices[0].GetDirection(), (3, 3))[:, 2]
    for step, *pair in zip(steps, names, names[1:], strict=False):
        uneven = np.linalg.norm(step - usual) > max(MAX_UNEVEN_MM, 0.1 * np.linalg.norm(usual))
        what = f"{pair[0].name} and {pair[1].name} are {np.linalg.norm(step):.2f} mm apart"
        cure = f"the others {np.linalg.norm(usual):.2f}: a slice is missing, or one too many"
        again = "export the whole series, or resample it evenly"
        require(path, not uneven, f"{what}, {cure}: {again}")
    tilt = np.arccos(min(1.0, abs(normal @ usual) / max(np.linalg.norm(usual), 1e-9)))
    what = f"its gantry was tilted by {np.rad2deg(tilt):.1f} degrees"
    require(path, tilt <= MAX_TILT, f"{what}: resample it to a plain grid (3D Slicer, dcm2niix)")
    return (steps.mean(axis=0) * (-1, -1, 1)).astype(float)


# --- Errors --------------------------------------------------------------------------------------


@contextlib.contextmanager
def decoding(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """UserError of what is wrong with a file's bytes; the machine's own OSError stays one."""
    bad = (EOFError, ValueError, LookupError, OverflowError, zlib.error, RuntimeError)
    try:
        yield
    except (OSError, *bad, *errors) as error:
        if getattr(error, "errno", None):
            raise OSError(error.errno, error.strerror, str(path)) from None
        why = str(error).strip().rpartition("\n")[2]  # of SimpleITK's many lines the last tells
        cut = "it is corrupt or cut short; copy or export it again"
        require(path, False, f"its bytes cannot be read ({why}): {cut}")


def require(path: Path, holds: Any, what: str) -> None:
    """UserError that says in one line what is wrong with a file, unless this holds."""
    if not holds:
        raise UserError(f"{path}: {' '.join(what.split())[:600]}")
