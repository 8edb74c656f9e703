"""Section 4.4 after binarising: equation 6 and dust. Workers import it, so it imports no jax."""

from typing import Any, NamedTuple

import cc3d
import numpy as np
from jaxtyping import Bool, Integer, Shaped

from skullgen.data import store


class Rules(NamedTuple):
    """How probabilities become pairs (section 4.4).

    channels: `independent` or `exclusive` (`modules.binarise`). dust: components of fewer voxels
    are removed. connectivity: neighbours that make a component, 6, 18 or 26.
    """

    channels: str
    threshold: float
    dust: int = 0
    connectivity: int = 6


def separate(skull: Bool[Any, "*shape"], defect: Bool[Any, "*shape"]) -> Bool[Any, "*shape"]:
    """Equation 6, `I = XOR(I, AND(I, S))`: the defect I without what lies in the skull S.

    Of numpy, or of jax.
    """
    return defect ^ (defect & skull)


def remove_dust(
    image: Bool[np.ndarray, "X Y Z"] | Integer[np.ndarray, "X Y Z"],
    voxels: int,
    connectivity: int = 6,
) -> Shaped[np.ndarray, "X Y Z"]:
    """A copy of the image without its connected components of fewer than `voxels` voxels.

    Each value but 0 has components of its own.
    """
    out, bone = image.copy(), image != 0
    plane = bone.any(axis=0)
    places = [np.flatnonzero(x) for x in (bone.any((1, 2)), plane.any(1), plane.any(0))]
    if places[0].size == 0:
        return out
    box = tuple(slice(place[0], place[-1] + 1) for place in places)
    # cc3d 4.1 fails on some boxes of a few voxels whose bone touches their sides.
    padded = np.pad(image[box], 1)
    labels = cc3d.connected_components(padded, connectivity=connectivity)
    # Bone is a twentieth of the grid: components are counted and cleared by its places alone.
    place = np.flatnonzero(padded != 0)
    label = labels.ravel()[place]
    np.put(padded, place[(np.bincount(label) < voxels)[label]], 0)
    out[box] = padded[1:-1, 1:-1, 1:-1]
    return out


def clean(bits: store.Packed, size: int, rules: Rules) -> store.Packed:
    """Packed pairs of `size` voxels a side without either channel's dust.

    No voxel may be in both channels (equation 6): they are labelled as one image of two values.
    """
    out = np.empty_like(bits)
    for row, packed in enumerate(bits):
        pair = store.unpack(packed, size)
        image = pair.view(np.uint16)[..., 0]
        image[...] = remove_dust(image, rules.dust, rules.connectivity)
        out[row] = store.pack(pair)
    return out


def finish(
    generated: store.Store,
    start: int,
    bits: store.Packed,
    overlap: Integer[np.ndarray, " n"],
    rules: Rules,
) -> int:
    """Removes dust from the shard that begins at pair `start` and writes it: a worker's task.

    overlap: voxels that equation 6 removed from each pair. Returns the number of pairs.
    """
    size, voxel_mm = generated.size, generated.attrs["voxel_mm"]
    kept = clean(bits, size, rules)
    removed = np.column_stack([overlap, store.voxels(bits) - store.voxels(kept)])
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = voxel_mm * (1 - size) / 2  # the cube's centre is the origin
    columns = {"removed": removed, "affine": np.broadcast_to(affine, (len(bits), 4, 4))}
    generated.write(start, kept, columns)
    return len(bits)
