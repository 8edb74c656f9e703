"""Skull files in and out: NRRD and NIfTI masks, exact block counts of big files, packed crops.

Voxels are streamed a few slices at a time, so that neither a wide dtype nor a 512^3 grid is ever
held whole. Arrays are `[X, Y, Z]` in RAS order; an affine `[4, 4]` maps voxel centres to RAS mm.
"""

import contextlib
import gzip
import math
import os
import pathlib
import uuid
from typing import NamedTuple

import numpy as np

from skullgen.data import headers
from skullgen.data.grids import block_counts, box, to_ras, turned
from skullgen.data.headers import require

SUFFIXES = headers.SUFFIXES
MAX_FACTOR = 40  # 40^3 voxels still fit the uint16 of a block count
MAX_LABELS = 64  # more distinct values than this are a scan, not labels
SLAB_BYTES = 2**21


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
    affine: np.ndarray
    native_affine: np.ndarray
    shape: tuple[int, int, int]
    factor: int
    turn: np.ndarray
    packed: np.ndarray | None

    @property
    def crop(self):
        """The `Crop` of the native mask in RAS order; needs `packed`."""
        counts = turned(self.counts, np.linalg.inv(self.turn)).T
        z, y, x = (slice(s.start * self.factor, s.stop * self.factor) for s in box(counts))
        bits = np.unpackbits(self.packed[z, y], axis=2)[..., x]
        crop = pack(turned(bits.T, self.turn))
        starts = [side.start * self.factor for side in box(self.counts)]
        origin = tuple(start + inner for start, inner in zip(starts, crop.origin, strict=True))
        return crop._replace(origin=origin)


def read(path, *, bone_hu=None, label=None, max_voxels=headers.MAX_VOXELS):
    """Read a bone mask, a label of a segmentation, or a CT cut at `bone_hu`, into RAS order.

    A mask has one value that is not 0, or soft ones of at most 1: all of them are bone. A NRRD
    without `space` is taken as RAS; a NIfTI without known units as mm. Axes are flipped and
    permuted to the closest of RAS, never interpolated.

    Args:
      path: `.nrrd`, `.nhdr`, `.nii` or `.nii.gz`.
      bone_hu: threshold in Hounsfield units (bone is data >= bone_hu), for a CT only.
      label: the value that is bone, of a file that may hold others.
      max_voxels: a larger file is refused unread; the mask takes as many bytes.

    Returns:
      `Volume` of bool [X, Y, Z] and its affine [4, 4], voxel -> RAS mm.

    Raises:
      UserError: the file is missing, corrupt or empty of bone, or its geometry is not usable; a
        CT without `bone_hu`, a mask with it; several labels without `label`.
    """
    source = headers.read_source(pathlib.Path(path), max_voxels)
    mask = np.empty(source.shape[::-1], bool)
    for first, slab in _slabs(source, 1, bone_hu, label):
        mask[first : first + len(slab)] = slab
    turn = to_ras(source.affine, source.shape)
    return Volume(turned(mask.T, turn), source.affine @ turn)


def read_reduced(path, size, *, keep_native=False, max_voxels=headers.MAX_VOXELS):
    """Count the bone voxels in each block of a cubic mask file, without holding the file.

    Args:
      path: as in `read`; masks only.
      size: voxels along every side of the result; the file's sides are `size` times one `factor`,
        the voxels along the side of a block, at most 40.
      keep_native: also keep the mask at the file's own grid.
      max_voxels: as in `read`.

    Returns:
      `Reduced`: `counts` [size, size, size] in RAS order, uint8 where factor^3 <= 255, else uint16;
      `affine` [4, 4] of the blocks' centres; `native_affine` [4, 4] and `shape` [3] of the file
      turned to RAS (mm, voxels) by `turn` [4, 4] (`resample.to_ras`); `factor`; `packed`, the
      native mask in the file's own order as bits [Z, Y, X/8], or None: `crop` is its tight box.

    Raises:
      UserError: as `read`, or sides that are not `size` times one factor.
    """
    source = headers.read_source(pathlib.Path(path), max_voxels)
    side, factor = source.shape[0], source.shape[0] // max(1, size)
    whole = 1 <= factor <= MAX_FACTOR and source.shape == (size * factor,) * 3
    what = f"{source.shape} voxels are not {size} blocks of one size along every side"
    require(
        whole, source.path, f"{what} (at most {MAX_FACTOR} voxels): choose another size or resample"
    )
    counts = np.zeros((size,) * 3, np.uint8 if factor**3 <= 255 else np.uint16)
    packed = np.zeros((side, side, -(-side // 8)), np.uint8) if keep_native else None
    for first, slab in _slabs(source, factor, None, None):
        if slab.any():
            last = first + len(slab)
            counts[first // factor : last // factor] = block_counts(slab, factor)
            if keep_native:
                packed[first:last] = np.packbits(slab, axis=2)
    turn = to_ras(source.affine, source.shape)
    native, centres = source.affine @ turn, np.diag([factor, factor, factor, 1.0])
    centres[:3, 3] = (factor - 1) / 2
    counts = _in_c_order(turned(counts.T, turn))
    return Reduced(counts, native @ centres, native, source.shape, factor, turn, packed)


def write(path, mask, affine):
    """Write `mask` [X, Y, Z], non-zero is bone, as uint8, atomically; equal arguments, equal bytes.

    `path` is `.nrrd` (gzip), `.nii.gz` or `.nii`, and its folder is made if need be; `affine`
    [4, 4] maps voxels to RAS mm. Raises UserError for an unknown suffix, an unusable affine, or a
    place that cannot be written.
    """
    path, affine = pathlib.Path(path), np.asarray(affine, float)
    suffix = headers.suffix_of(path)
    require(suffix != ".nhdr", path, "detached headers are only read: write a .nrrd file")
    require(mask.ndim == 3, path, f"a mask has three axes, not {mask.ndim}: give one volume")
    headers.check_affine(path, "affine", affine)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            if suffix == ".nrrd":
                file.write(headers.nrrd_header(mask.shape, affine))
            with file if suffix == ".nii" else gzip.GzipFile("", "wb", 6, file, mtime=0) as out:
                if suffix != ".nrrd":
                    out.write(headers.nifti_header(mask.shape, affine))
                for first in range(0, mask.shape[2], 32):
                    slab = mask[:, :, first : first + 32] != 0
                    out.write(slab.view(np.uint8).tobytes("F"))
        os.replace(temporary, path)
    except OSError as error:
        what = f"cannot be written ({error.strerror}): choose another place"
        raise headers.refusal(path, what) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def pack(mask):
    """Crop `mask` [X, Y, Z] to its bone's tight box and pack it, one bit a voxel."""
    sides = box(mask)
    part, bits = mask[sides], [np.empty(0, np.uint8)]
    for first in range(0, len(part), 64):  # a cache line of x; whole bytes, whatever Y and Z are
        bits.append(np.packbits(_in_c_order(part[first : first + 64] != 0)))
    return Crop(np.concatenate(bits), tuple(side.start for side in sides), part.shape)


def unpack(crop):
    """Return the bool box of a `Crop`, [shape]; it lies at `crop.origin` of the whole mask."""
    bits = np.unpackbits(crop.bits, count=math.prod(crop.shape))
    return bits.view(bool).reshape(crop.shape)


def _slabs(source, multiple, bone_hu, label):
    """Yield (first slice, bone as 0/1 uint8 [t, Y, X]) in file order, t a multiple of `multiple`.

    What the values are is only known at the end, so a UserError may come after the last slab: use
    nothing built from slabs before the generator is exhausted.
    """
    path, (x, y, z) = source.path, source.shape
    usual = "150 to 300 Hounsfield units is usual for bone"
    finite = bone_hu is None or math.isfinite(bone_hu)
    require(finite, path, f"bone_hu {bone_hu} is not a number: {usual}")
    one = bone_hu is None or label is None
    require(one, path, f"bone_hu is for a CT, label ({label}) for a segmentation: leave one out")
    step = multiple * max(1, SLAB_BYTES // (x * y * source.dtype.itemsize * multiple))
    low, high, labels, found, scan = math.inf, -math.inf, set(), False, False
    with headers.decoded(source) as stream:
        for size in _pieces(source.skip, 1):
            stream.read(size)
        for first in range(0, z, step):
            parts = []
            for size in _pieces(min(step, z - first) * x * y, source.dtype.itemsize):
                values = _values(stream, source, size)
                least, most = float(values.min()), float(values.max())
                finite = math.isfinite(least) and math.isfinite(most)
                require(finite, path, "has NaN or infinite voxels: set them to 0 (in a CT, to air)")
                low, high, bone = min(low, least), max(high, most), values != 0
                if len(labels) <= MAX_LABELS and (most > 1 or values.dtype.kind == "f"):
                    labels.update(np.unique(values[bone])[: MAX_LABELS + 1].tolist())
                elif most == 1:
                    labels.add(1)
                scan = low < 0 or (len(labels) > MAX_LABELS and label is None)
                many = "threshold it" if most <= 1 else "if of labels, set label"
                what = f"is a scan, not a mask (negative or many values; {many})"
                require(not scan or bone_hu is not None, path, f"{what}: set bone_hu; {usual}")
                if bone_hu is not None:
                    bone = values >= bone_hu
                elif label is not None:
                    what = "holds values between its labels: resample it by the nearest"
                    whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
                    require(whole, path, what)
                    bone = values == label
                found = found or bool(bone.any())
                parts.append(bone.view(np.uint8))
            slab = parts[0] if len(parts) == 1 else np.concatenate(parts)
            yield first, slab.reshape(-1, y, x)
        # Reading on also makes gzip verify the checksum at its end.
        what = "holds more bytes than the header's sizes and type account for"
        require(not stream.read(1), path, f"{what}: mend the header or export it again")
    values = f"(values {low:g} to {high:g})"
    mask = bone_hu is not None and not scan
    require(not mask, path, f"is a mask {values}, not a CT: leave bone_hu out")
    several = len(labels) > 1 and high > 1 and bone_hu is None
    listed = ", ".join(f"{value:g}" for value in sorted(labels)[:8]) + ", ..." * (len(labels) > 8)
    what = f"has no voxel of label {label}, only {listed or 0}: set label to the one that is bone"
    require(label is None or found, path, what)
    what = f"is no mask of one label, it holds {listed}: set label (data.label, predict.label) to"
    require(not several or label is not None, path, f"{what} the one that is bone")
    level = "differs from 0" if bone_hu is None else f"reaches bone_hu {bone_hu:g}"
    require(found, path, f"holds no bone, no voxel {level} {values}: check the file")


def _pieces(count, itemsize):
    """Split `count` items into numbers of at most `SLAB_BYTES` of them, whatever a slice holds."""
    most = SLAB_BYTES // itemsize
    return [min(most, count - first) for first in range(0, count, most)]


def _values(stream, source, count):
    """Return the next `count` voxels, scaled; raises EOFError where there are fewer."""
    block = stream.read(count * source.dtype.itemsize)
    if len(block) < count * source.dtype.itemsize:
        raise EOFError("it ends before its last voxel")
    values = np.frombuffer(block, source.dtype)
    if source.scale:
        with np.errstate(all="ignore"):
            values = values * source.scale[0] + source.scale[1]
    return values


def _in_c_order(view):
    """Copy `view` [X, Y, Z], of any strides. At once, strides of 2^n would miss the cache."""
    out = np.empty(view.shape, view.dtype)
    for y in range(view.shape[1]):
        out[:, y] = view[:, y].copy(order="K")
    return out
