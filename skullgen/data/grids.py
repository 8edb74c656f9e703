"""Between grids: the frame of the models, exact reduction, enlarging; flips and boxes.

Arrays are `[X, Y, Z]` in RAS order; an affine `[4, 4]` maps voxel centres to RAS mm. Grids that
are resampled into each other have parallel axes, so that all of it is separable.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Shaped

from skullgen.core.errors import UserError

FIELD_MM = 204.8  # SkullBreak's field of view
VERTEX_MM = 125.0  # height of the vertex above the cube's floor
VAULT_MM = 80.0  # the vault reaches this far below the vertex: above the nose, below the widest
PLANE_MM2 = 20.0  # a plane that cuts less bone than this is a speck, a wire or noise
PIECE_MM = 1.0  # pieces are told apart on a grid no coarser than this, where the source allows
MAX_CELLS = 2**25  # of that grid: a larger field, as of a whole body, gets a coarser one
TIE = 1e-6  # of a share: what float32 rounding lifts a value on the threshold by, at most
SNAP = 1e-3  # voxels; float32 affines put edges that coincide this far apart at worst

Mask = Bool[np.ndarray, "X Y Z"]
Affine = Float[np.ndarray, "4 4"]
Cube = Float[np.ndarray, "D D D"]
Cells = Bool[np.ndarray, "D D D"]
Share = Cells | Cube
Shape = tuple[int, ...]


def frame(mask: Mask, affine: Affine, size: int) -> Affine:
    """The affine of the models' cube, placed on a skull in RAS order as SkullBreak does.

    The vertex is the top of the largest piece of bone; the vault the largest piece of the 80 mm
    below it. The cube has 204.8 mm, the vault in its middle left-right and front-back, the vertex
    125 mm above its floor; nothing is turned or scaled.
    """
    from scipy import ndimage

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sides = box(mask)
    pools, bone = np.maximum(1, (PIECE_MM / spacing + SNAP).astype(int)), mask[sides]
    pools *= int(np.ceil(np.cbrt(max(1.0, np.prod(bone.shape / pools) / MAX_CELLS))))
    steps = spacing * pools
    for axis, pool in enumerate(pools):  # is there bone in each block?
        if pool > 1:
            bone = np.logical_or.reduceat(bone, np.arange(0, bone.shape[axis], pool), axis=axis)

    def extents(piece):
        """From where to where, in mm, the planes across each axis of its largest part matter."""
        labels, count = ndimage.label(piece, np.ones((3, 3, 3)))
        if not count:
            raise UserError("no bone to frame: check the mask and, for a CT, bone_hu")
        # Plane by plane: of all at once, bincount makes a copy of 8 bytes a cell.
        sizes = sum(np.bincount(plane.ravel(), minlength=count + 1) for plane in labels)
        piece = labels == np.argmax(sizes[1:]) + 1
        for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
            area = np.count_nonzero(piece, axis=others) * np.prod(steps[list(others)])
            planes = np.flatnonzero(area >= min(PLANE_MM2, area.max()))
            yield planes[0] * steps[axis], (planes[-1] + 1) * steps[axis]

    top = list(extents(bone))[2][1]
    *spans, _ = extents(bone[:, :, max(0, int(np.ceil((top - VAULT_MM) / steps[2]))) :])
    for name, (low, high) in zip(("wide", "long"), spans, strict=True):
        if high - low > FIELD_MM:
            what = f"the vault is {high - low:.1f} mm {name} and the frame {FIELD_MM} mm"
            raise UserError(f"{what}: remove what is not skull, or check the voxel size")
    middle = [(low + high) / 2 - FIELD_MM / 2 for low, high in spans]
    # In mm from the source's outer corner, which lies half a voxel before its first centre.
    corner = np.array([side.start for side in sides]) * spacing + [*middle, top - VERTEX_MM]
    voxel = FIELD_MM / size
    model = np.eye(4)
    model[:3, :3] = affine[:3, :3] / spacing * voxel
    model[:3, 3] = affine[:3, 3] + affine[:3, :3] / spacing @ (corner - spacing / 2 + voxel / 2)
    return model


def reduce(mask: Mask, affine: Affine, target_affine: Affine, size: int) -> Cube:
    """The exact share of bone in `size`^3 voxels of a target grid; block means where they align."""
    sides, edges = box(mask), _edges(affine, target_affine, size)
    share, part = np.zeros((size,) * 3, np.float32), mask[sides]
    if not part.size:
        return share
    # Whole planes are added along the axis of the longest stride, and the sums of overlaps stay
    # whole numbers in float32 where the ratio is: the division by the voxel's volume comes last.
    # No matrix products: BLAS threads of many worker processes fight over the cores.
    order = np.argsort(np.abs(part.strides), kind="stable")[::-1]
    part = part.transpose(order)
    slow, middle, fast = (_taps(sides[axis], edges[axis]) for axis in order)
    for plane, *taps in zip(share.transpose(order), *slow, strict=True):
        total = np.zeros(part.shape[1:], np.float32)
        for k, amount in zip(*taps, strict=True):
            if amount > 0:
                total += part[k] if amount == 1 else part[k] * amount
        if total.any():
            rows = sum(total[k] * w[:, None] for k, w in zip(middle[0].T, middle[1].T, strict=True))
            plane[:] = sum(rows[:, k] * w for k, w in zip(fast[0].T, fast[1].T, strict=True))
    share /= np.float32(np.prod([(edge[-1] - edge[0]) / size for edge in edges]))
    return np.minimum(share, 1, out=share)


def enlarge(
    share: Share, model_affine: Affine, affine: Affine, shape: Shape, threshold: float = 0.5
) -> Mask:
    """Bring a share back to a native grid of `shape`, as `planes`."""
    parts = planes(share, model_affine, affine, shape, threshold)
    return np.fromiter(parts, np.dtype((bool, shape[1:])), shape[0])


def planes(
    share: Share, model_affine: Affine, affine: Affine, shape: Shape, threshold: float = 0.5
) -> Iterator[Bool[np.ndarray, "Y Z"]]:
    """The planes [Y, Z] of a share on a native grid: bone is what is above `threshold`, >= 0.

    A value of exactly that is not bone, by whatever rounding it comes. Trilinear between voxels'
    centres; beyond the outer ones the share is constant, outside of its cube empty.
    """
    size, slices, taps, empty = share.shape[0], [], [], np.zeros(shape[1:], bool)
    above = box(share > threshold)
    for count, bone, edge in zip(shape, above, _edges(affine, model_affine, size), strict=True):
        at = (np.arange(count) + 0.5 - edge[0]) * size / (edge[-1] - edge[0]) - 0.5
        # Only what is near bone, and within the share, is interpolated; -1 and size are empty.
        near = (at > bone.start - 1) & (at < bone.stop) & (at >= -0.5) & (at <= size - 0.5)
        rows = np.flatnonzero(near)
        if not len(rows):
            yield from itertools.repeat(empty, shape[0])
            return
        at = np.clip(at[rows], 0, size - 1)
        low = np.minimum(at.astype(int), max(0, size - 2))
        slices.append(slice(low[0], low[-1] + 2))
        part, high = (at - low).astype(np.float32), np.minimum(low + 1, size - 1)
        taps.append((slice(rows[0], rows[-1] + 1), low - low[0], high - low[0], part))
    (xs, *x), (ys, y0, y1, y), (zs, z0, z1, z) = taps
    y, coarse = y[:, None], np.asarray(share[tuple(slices)], np.float32)
    room = np.empty((2, len(y), len(z)), np.float32)
    yield from itertools.repeat(empty, xs.start)
    for low, high, part in zip(*x, strict=True):
        plane, whole = coarse[low] * (1 - part) + coarse[high] * part, empty.copy()
        above = plane.max(axis=1) > threshold
        rows = np.flatnonzero(above[y0] | above[y1])
        if len(rows):
            plane = plane[:, z0] * (1 - z) + plane[:, z1] * z
            one, other = room[:, : len(rows)]  # whose memory is asked for once: half of the time
            np.take(plane, y0[rows], 0, one, "clip")
            np.take(plane, y1[rows], 0, other, "clip")
            one *= 1 - y[rows]
            other *= y[rows]
            one += other
            whole[ys.start + rows, zs] = one > threshold + TIE
        yield whole
    yield from itertools.repeat(empty, shape[0] - xs.stop)


def split_share(complete: Cube, implant: Cube, threshold: float) -> tuple[Mask, Mask]:
    """The defective skull and the implant: bone goes to the larger share, ties to the skull."""
    bone = complete >= threshold
    piece = bone & (2 * implant > complete)
    return bone & ~piece, piece


def box(mask: Shaped[np.ndarray, "X Y Z"]) -> tuple[slice, ...]:
    """The tight box of the voxels that are not 0; 0:0 where there are none."""
    order = np.argsort(np.abs(mask.strides), kind="stable")[::-1]
    ways = tuple(slice(None, None, -1 if step < 0 else 1) for step in mask.strides)
    ordered = mask[ways].transpose(order)  # backwards numpy reads ten times slower
    plane = ordered.any(axis=0)
    hits = (ordered.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    planes = [np.flatnonzero(hits[k][ways[order[k]]]).tolist() for k in np.argsort(order)]
    return tuple(slice(k[0], k[-1] + 1) if k else slice(0, 0) for k in planes)


def to_ras(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """Voxel of the grid turned closest to RAS -> voxel of this one; `affine @ it` is its affine."""
    from nibabel import orientations

    return orientations.inv_ornt_aff(orientations.io_orientation(affine), shape)


def turned(data: Shaped[np.ndarray, "X Y Z"], turn: Affine) -> Shaped[np.ndarray, "x y z"]:
    """A view of `data` in the order of `to_ras`'s matrix (its offsets are not used)."""
    axes = np.abs(turn[:3, :3]).argmax(axis=0)
    signs = turn[axes, range(3)].astype(int)
    return data.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]


def _edges(affine, target_affine, size):
    """The target's size + 1 voxel edges along each axis, in source voxels, snapped to whole."""
    between = np.linalg.inv(affine) @ target_affine
    ratio = np.diag(between)[:3]
    if (ratio <= 0).any() or np.abs(between[:3, :3] - np.diag(ratio)).max() * size > 0.1:
        raise ValueError("the axes of the two grids are not parallel")
    edges = []
    for ends in zip(between[:3, 3] - ratio / 2 + 0.5, ratio * size, strict=True):
        first, length = (round(x) if abs(x - round(x)) < SNAP else x for x in ends)
        edges.append(first + length * np.arange(size + 1) / size)
    return edges


def _taps(side, edge):
    """The source voxels of `side` [T, K] that each target voxel may overlap, and by how much."""
    low, high = edge[:-1, None], edge[1:, None]
    first = np.floor(low).astype(int)
    where = first + np.arange(int((np.ceil(high) - first).max()))
    weights = np.minimum(high, where + 1) - np.maximum(low, where)
    weights[(weights < 0) | (where < side.start) | (where >= side.stop)] = 0
    return np.clip(where, side.start, side.stop - 1) - side.start, weights.astype(np.float32)
