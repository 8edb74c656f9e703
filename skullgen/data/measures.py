"""What a surgeon would say of a pair, in numbers: columns of a store, in the order of `NAMES`.

Directions are seen from the middle of the braincase, 58 mm below the vertex. All is measured on
the pair's own grid: coarse voxels hold more bone than there is.
"""

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from scipy import spatial

from skullgen.data.grids import box

NAMES = (
    "area_cm2",  # of the defect: its outer surface
    "volume_ml",
    "pieces",  # connected by faces, edges or corners
    "side",  # an index into `SIDES`
    "azimuth",  # of its middle, in degrees: 0 ahead, 90 right, -90 left
    "elevation",  # 90 at the vertex
    "region",  # an index into `REGIONS`
    "rim_on_bone",  # share of its rim, 0 to 1
    "thickness_mm",  # its volume / its area
    "length_mm",  # of the braincase, defect and all: front to back
    "breadth_mm",
    "height_mm",  # from the lowest bone in the cube to the vertex
    "vault_mm",  # thickness of the dome: volume / area, defect and all
    "skull_pieces",  # of skull and defect together
    "pinholes",  # percent of the dome's directions that meet no bone
    "nearest_skull",  # greatest Dice with a training skull, defects filled
    "nearest_pair",  # and with a training pair, of both channels
)
SIDES = "left", "both", "right"
KINDS = 8  # of defects that labels tell apart: the first of a store's
LABELS = KINDS + 2
AREA_CM2 = 50.0  # whose label is 0
REGIONS = "frontal", "parietal", "temporal", "occipital", "orbital rim"
WORDS = {"side": SIDES, "region": REGIONS}
ONE_SIDE = 0.85  # share of a defect that lies in one half of the head; else it is on both sides
BELOW_MM = 58.0  # the vertex: the middle of the braincase
DOME = np.sin(np.deg2rad(20))  # a direction's height, from which on a vault has no opening
COUNT, LOWEST = 4000, -0.6  # of the directions that are looked in; of their heights
APART = np.sqrt(2 * np.pi * (1 - LOWEST) / COUNT)  # about, in radians
REACH_MM = 40.0, 125.0  # where a skull's bone is, seen from its middle

Packed = UInt8[np.ndarray, "n bytes"]


def _directions():
    """Unit vectors, half of a golden spiral and its mirror image."""
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(COUNT)
    height = LOWEST + (1 - LOWEST) * (np.arange(COUNT) + 0.5) / COUNT
    flat = np.sqrt(1 - height**2)
    rays = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], -1)
    right = rays[rays[:, 0] > 0]
    return np.concatenate([right, right * [-1, 1, 1]])


RAYS = _directions()


def measure(pair: Bool[np.ndarray, "D D D 2"], voxel_mm: float) -> Float32[np.ndarray, " names"]:
    """The measures of a pair in RAS; NaN of what is not there, and of `nearest_*`."""
    whole, defect = pair[..., 0] | pair[..., 1], pair[..., 1]
    values = dict.fromkeys(NAMES, np.nan)
    if whole.any():
        pieces = cc3d.connected_components(whole, connectivity=26)
        counts = np.bincount(pieces.ravel())[1:]
        head = pieces == counts.argmax() + 1  # a speck elsewhere moves nothing
        middle = _middle(head, voxel_mm)
        bone, hole = _met(pair, voxel_mm, middle)
        values |= {**_of_skull(head, voxel_mm, middle), "skull_pieces": len(counts)}
        values["pinholes"] = 100 * (~(bone | hole)[RAYS[:, 2] > DOME]).mean()
        if defect.any():
            values |= _of_defect(whole, defect, voxel_mm, middle)
            values["rim_on_bone"] = _rim(hole, bone, voxel_mm)
    return np.array([values[name] for name in NAMES], np.float32)


def nearest(bits: Packed, train: UInt8[np.ndarray, "m bytes"]) -> Float32[np.ndarray, "n 2"]:
    """`nearest_skull` and `nearest_pair` of packed pairs, among some training pairs."""
    both = dice(whole(bits), whole(train)), dice(bits, train)
    return np.stack([matrix.max(1) for matrix in both], -1)


def whole(bits: Packed) -> Packed:
    """Packed pairs with their defects filled: skull or defect in the skull's channel, no other."""
    return (bits | bits >> 1) & 0x55  # channels alternate


def dice(a: Packed, b: UInt8[np.ndarray, "m bytes"]) -> Float32[np.ndarray, "n m"]:
    """Dice of every pair of `a` with every one of `b`, over both channels."""
    a, b = a.view(np.uint16), b.view(np.uint16)  # counted faster than bytes
    sizes = np.bitwise_count(b).sum(1, dtype=np.int64)
    rows = []
    for row in a:
        total = sizes + np.bitwise_count(row).sum(dtype=np.int64)
        rows.append(2 * np.bitwise_count(row & b).sum(1, dtype=np.int64) / np.maximum(total, 1))
    return np.array(rows, np.float32).reshape(len(a), len(b))


def labels(
    kind: Int[np.ndarray, " n"], values: Float32[np.ndarray, "n names"]
) -> Float32[np.ndarray, "n labels"]:
    """What models are conditioned on: the kind, one-hot; the side, -1, 0 or 1; log(area / 50 cm^2).

    What is unknown is 0.
    """
    side, area = (values[:, NAMES.index(name)] for name in ("side", "area_cm2"))
    logs = np.log(np.clip(area, 1.0, 1000.0) / AREA_CM2)
    rest = np.nan_to_num(np.stack([side - 1, logs], -1))
    return np.concatenate([kind[:, None] == np.arange(KINDS), rest], 1).astype(np.float32)


def words(values: Float32[np.ndarray, " names"]) -> dict[str, str]:
    """Measures by name in words and numbers, "" where unknown."""
    texts = {name: "" if np.isnan(x) else f"{x:.4g}" for name, x in zip(NAMES, values, strict=True)}
    for name, own in WORDS.items():
        texts[name] = own[int(texts[name])] if texts[name] else ""
    return texts


def region(azimuth: float, elevation: float) -> str:
    """The part of the vault, one of `REGIONS`, in which a direction (degrees) lies."""
    turn = abs(azimuth)
    if turn < 60:
        return "orbital rim" if elevation < 12 else "frontal" if elevation < 60 else "parietal"
    if turn < 130:
        return "temporal" if elevation < 25 else "parietal"
    return "occipital" if elevation < 35 else "parietal"


def _middle(head, mm):
    """Of the braincase, in mm from the cube's corner: as the frame has it, whatever the cube."""
    top = box(head)[2].stop * mm
    across = box(head[:, :, max(0, int((top - BELOW_MM) / mm)) :])[:2]
    return np.array([*((side.start + side.stop) / 2 * mm for side in across), top - BELOW_MM])


def _of_skull(head, mm, middle):
    places, rays = _seen(head, mm, middle)
    dome, upper = rays[:, 2] > DOME, places[(places[:, 2] + 0.5) * mm > middle[2]]
    breadth, length, _ = (np.ptp(upper, axis=0) + 1) * mm
    area = _outer_faces(head, places[dome], rays[dome]) * mm**2
    return {
        "length_mm": length,
        "breadth_mm": breadth,
        "height_mm": (np.ptp(places[:, 2]) + 1) * mm,
        "vault_mm": dome.sum() * mm**3 / area if area else np.nan,
    }


def _of_defect(whole, defect, mm, middle):
    places, rays = _seen(defect, mm, middle)
    x, y, z = rays.mean(0)
    azimuth, elevation = np.degrees([np.arctan2(x, y), np.arctan2(z, np.hypot(x, y))])
    right, volume = (rays[:, 0] > 0).mean(), len(places) * mm**3
    area = _outer_faces(whole, places, rays) * mm**2
    return {
        "area_cm2": area / 100,
        "volume_ml": volume / 1000,
        "pieces": _pieces(defect),
        "side": int(right > 1 - ONE_SIDE) + int(right > ONE_SIDE),
        "azimuth": azimuth,
        "elevation": elevation,
        "region": REGIONS.index(region(azimuth, elevation)),
        "thickness_mm": volume / area if area else np.nan,
    }


def _pieces(mask):
    return cc3d.connected_components(mask, connectivity=26, return_N=True)[1]


def _seen(mask, mm, middle):
    """The voxels [n, 3] of a mask, and unit vectors [n, 3] towards them."""
    places = np.argwhere(mask)
    away = (places + 0.5) * mm - middle
    return places, away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)


def _outer_faces(whole, places, rays):
    """The outer surface of some voxels, in faces: the flux of the rays through it.

    Outwards, a face beyond which is no bone adds what is seen of it from within: however the
    surface's steps run, it is neither larger nor smaller for them.
    """
    bone, total = np.pad(whole, 1), 0.0
    for axis in range(3):
        step = np.where(rays[:, axis] > 0, 1, -1)
        index = [places[:, k] + 1 + step * (k == axis) for k in range(3)]
        total += np.abs(rays[:, axis])[~bone[tuple(index)]].sum()
    return total


def _rim(hole, bone, mm):
    """Share of the directions beside a hole, within about a voxel and a half, that meet bone."""
    if not hole.any():
        return np.nan
    away, _ = spatial.cKDTree(RAYS[hole]).query(RAYS)
    rim = ~hole & (away < max(1.5 * mm / 90, 2 * APART))
    return bone[rim].mean() if rim.any() else np.nan


def _met(pair, mm, middle):
    """Which of `RAYS` meet the skull, and which the defect: two arrays."""
    size, far = len(pair), np.arange(*REACH_MM, min(0.7 * mm, 2.0), np.float32)
    start = (middle / mm).astype(np.float32)[:, None, None]
    index = ((RAYS / mm).astype(np.float32).T[..., None] * far + start).astype(np.int32)
    there = ((index >= 0) & (index < size)).all(0)
    flat = np.ravel_multi_index(tuple(index), (size,) * 3, mode="clip")
    return (pair.reshape(-1, 2)[flat] & there[..., None]).any(1).T
