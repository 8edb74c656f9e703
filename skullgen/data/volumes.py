"""Skull files in and out: which voxels are bone, and masks that lie on the file they are for."""

import gzip
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import headers, heads
from skullgen.data.grids import Affine, Cells, Mask, to_ras, turned
from skullgen.data.headers import (
    WRITTEN,
    Source,
    Space,
    decoding,
    describe,
    require,
    suffix,
)

MAX_LABELS = 64  # more distinct values than this are a scan, not labels
MAX_SCALED = 1024  # distinct values, of labels that were scaled
# By which a file is read: fields of `config.data` and `config.predict`, and what says nothing.
OPTIONS = {"bone_hu": 0.0, "label": "", "form": "", "space": ""}
_PLACES = (
    "sform_code qform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z".split()
)
_PLACES += ["srow_x", "srow_y", "srow_z"]


class Volume(NamedTuple):
    """A skull: a view of any strides, and its affine, voxel -> RAS mm."""

    data: Mask
    affine: Affine


def read(
    path: str | Path, *, bone_hu: float = 0, label: str | int = "", form: str = "", space: str = ""
) -> Volume:
    """A bone mask, a `label` of a segmentation, or a CT cut at `bone_hu`, in the file's order.

    A mask has one value that is not 0, or soft ones of at most 1: all of them are bone. label: a
    value, or the name of a segment; form, space: as for `headers.describe`.
    """
    path = Path(path)
    label = "" if label in (0, "0") else str(label)
    require(path, not (bone_hu and label), "bone_hu is for a CT, label for a segmentation")
    source = describe(path, form, space)
    layer, value = _segment(path, source, label)
    with decoding(path):
        values = source.load()
    values = values if values.ndim == 4 else values[..., None]
    what = f"its segment is in layer {layer}, of {values.shape[3]}: save it again from 3D Slicer"
    require(path, 0 <= layer < values.shape[3], what)
    values = values[..., layer]
    wrong = heads.hounsfield(values, source.scale, bone_hu) if bone_hu else None
    require(path, not wrong, wrong or "")
    scaled, mask = _scaling(values, source.scale), np.empty(source.shape[::-1], bool).T
    low, high, labels = math.inf, -math.inf, set()
    for plane, bone in zip(values.T, mask.T, strict=True):
        plane = scaled(plane)
        low, high = np.minimum(low, plane.min()), np.maximum(high, plane.max())
        if len(labels) <= MAX_LABELS:
            labels.update(np.unique(plane[plane != 0])[: MAX_LABELS + 1].tolist())
        bone[:] = plane >= bone_hu if bone_hu else plane == value if value else plane != 0
    scan = low < 0 or (len(labels) > MAX_LABELS and not value)
    single = len(labels) < 2 or high <= 1
    whole = all(float(one).is_integer() for one in labels)
    span, some = f"values {low:g} to {high:g}", ", ".join(f"{v:g}" for v in sorted(labels)[:8])
    choose = f"{some}: set label (data.label, predict.label) to the one that is bone"
    hu = "set bone_hu, 150 to 300 Hounsfield units, of labels set label, else threshold it"
    for holds, what in (
        (np.isfinite([low, high]).all(), "has NaN or infinite voxels: set them to 0 (a CT: air)"),
        (bone_hu or not scan, f"is a scan, not a mask ({span}, negative or many): {hu}"),
        (scan or not bone_hu, f"is a mask ({span}), not a CT: leave bone_hu out"),
        (whole or not value, "holds values between its labels: resample it by the nearest"),
        (mask.any() or not value, f"has no voxel of label {value:g}, only {choose}"),
        (single or value or bone_hu, f"is no mask of one label, it holds {choose}"),
        (mask.any(), f"holds no bone ({span}): check the file and, for a CT, bone_hu"),
        (not mask.all(), "is bone everywhere: give a mask whose voxels are 0 around it"),
    ):
        require(path, holds, what)
    return Volume(mask, source.affine)


def _segment(path, source, label):
    """The layer that holds bone, and its value there; 0: all that is not 0."""
    own = [one for one in source.segments if label in ("", one.name, str(one.value))]
    names = ", ".join(f"{one.name!r} ({one.value})" for one in source.segments)
    if source.segments:
        what = f"holds the segments {names}: set label (data.label, predict.label)"
        require(path, len(own) == 1, f"{what} to the name of the one that is bone")
        return own[0].layer, own[0].value
    number = re.fullmatch(r"\d*(\.0*)?", label)
    require(path, number, f"names no segments: label is {label!r}, where its value is wanted")
    return 0, float(label or 0)


def _scaling(values, scale):
    """Stored values -> values: labels that a scaling moved by up to its step are whole again."""
    slope, intercept = scale

    def scaled(plane):
        with np.errstate(all="ignore"):
            return plane * slope + intercept

    if scale == (1.0, 0.0):
        return lambda plane: plane
    some = set()
    for plane in values.T:
        some.update(np.unique(plane).tolist())
        if len(some) > MAX_SCALED or abs(slope) >= 0.5:
            return scaled
    labels = scaled(np.array(sorted(some), float))
    whole = np.abs(labels - np.rint(labels)).max() <= 1.001 * abs(slope)
    return (lambda plane: np.rint(scaled(plane))) if whole else scaled


def options(config: ConfigDict) -> dict[str, Any]:
    """The `OPTIONS` of a `config.data` or `config.predict`."""
    return {name: config[name] for name in OPTIONS}


def in_ras(volume: Volume) -> Volume:
    """The same skull with its axes flipped and permuted to the closest of RAS: a view."""
    turn = to_ras(volume.affine, volume.data.shape)
    return Volume(turned(volume.data, turn), volume.affine @ turn)


def holding(volume: Volume, cells: Cells, frame: Affine, margin_mm: float = 8.0) -> Volume:
    """The same skull, on a grid that holds these cells of another grid, too, with a margin."""
    (mask, affine), shape = volume, np.array(volume.data.shape)
    at = np.argwhere(cells) @ frame[:3, :3].T + frame[:3, 3] - affine[:3, 3]
    at = np.concatenate([at @ np.linalg.inv(affine[:3, :3]).T, [shape / 2]])
    more = margin_mm / np.linalg.norm(affine[:3, :3], axis=0)
    before = np.maximum(0, np.ceil(more - at.min(0))).astype(int)
    after = np.maximum(0, np.ceil(at.max(0) + more - shape + 1)).astype(int)
    if not (before.any() or after.any()):
        return volume
    origin = affine.copy()
    origin[:3, 3] -= affine[:3, :3] @ before
    return Volume(np.pad(mask, np.stack([before, after], axis=1)), origin)


def write(
    path: str | Path,
    mask: Mask | UInt8[np.ndarray, "X Y Z"],
    affine: Affine,
    like: Source | None = None,
) -> None:
    """Write uint8 voxels as one of `WRITTEN`, atomically; equal arguments, equal bytes.

    like: a file whose forms and codes, unit and space are kept, so that programs which read it
    alike place both alike; `affine` is its own, or whole voxels away.
    """
    path = Path(path)
    ending = suffix(path)
    require(path, ending in WRITTEN, f"is only read: write one of {', '.join(WRITTEN)}")
    headers.check_affine(path, affine)
    encode = _nrrd_bytes if ending == ".nrrd" else _nifti_bytes
    content = encode(mask.astype(np.uint8, copy=False), affine, like)
    content = gzip.compress(content, 3, mtime=0) if ending == ".nii.gz" else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
    except OSError as error:
        what = f"cannot be written ({error.strerror}): choose another place"
        raise UserError(f"{path}: {what}") from error


def _nrrd_bytes(voxels, affine, like):
    """Not by SimpleITK, which says nothing where the disk is full at a file's end."""
    space = Space(headers.SPACES["RAS"][2], affine)
    if like and isinstance(like.geometry, Space):
        space = like.geometry._replace(affine=like.geometry.affine @ _way(like, affine))
    columns = (space.affine + 0.0)[:3].T
    vectors = [f"({','.join(repr(float(v)) for v in column)})" for column in columns]
    text = "NRRD0005\ntype: uint8\ndimension: 3\n"
    text += f"space: {space.name}\n" if space.name else "space dimension: 3\n"
    text += f"sizes: {' '.join(map(str, voxels.shape))}\n"
    text += f"space directions: {' '.join(vectors[:3])}\nkinds: domain domain domain\n"
    text += f"encoding: gzip\nspace origin: {vectors[3]}\n\n"
    return text.encode() + gzip.compress(voxels.tobytes("F"), 3, mtime=0)


def _way(like, affine):
    """From voxels of a grid to those of the file that it lies on: whole ones."""
    way = np.eye(4)
    way[:3, 3] = (np.linalg.inv(like.affine) @ affine)[:3, 3].round()
    return way


def _nifti_bytes(voxels, affine, like):
    import nibabel

    if not like or isinstance(like.geometry, Space):
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(affine, 2)
        image.set_qform(affine, 2)
        image.header.set_xyzt_units("mm")
        return image.to_bytes()
    own = like.geometry
    large = own["sizeof_hdr"] == nibabel.Nifti2Header.sizeof_hdr
    image = (nibabel.Nifti2Image if large else nibabel.Nifti1Image)(voxels, None)
    new, way = image.header, _way(like, affine)[:, 3]
    for field in ("pixdim", "xyzt_units", *_PLACES):  # no other: texts may name a patient
        new[field] = own[field]
    new["pixdim"][4:] = 0
    if way[:3].any():
        for row in _PLACES[-3:]:
            new[row][3] = own[row] @ way
        if own["qform_code"]:
            for field, value in zip(_PLACES[5:8], own.get_qform() @ way, strict=False):
                new[field] = value
    return image.to_bytes()
