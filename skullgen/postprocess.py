"""Section 4.4 after binarising: equation 6 and dust; workers import it, so it imports no jax."""

import cc3d
import numpy as np

from skullgen import store


def separate(skull, defect):
    """Equation 6, `I = XOR(I, AND(I, S))`: the defect I without what lies in the skull S.

    skull, defect: bool arrays of one shape, of numpy or jax. Returns the new defect.
    """
    return defect ^ (defect & skull)


def remove_dust(mask, voxels, connectivity=6):
    """The mask without its connected components of fewer than `voxels` voxels.

    mask: bool [D, D, D]. connectivity: 6, 18 or 26 neighbours. Returns a new array.
    """
    out = np.zeros_like(mask)
    places = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if places[0].size == 0:
        return out
    box = tuple(slice(place[0], place[-1] + 1) for place in places)
    # cc3d 4.1 fails on some boxes of a few voxels whose bone touches their sides.
    padded = np.pad(mask[box], 1)
    labels = cc3d.connected_components(padded, connectivity=connectivity)[1:-1, 1:-1, 1:-1]
    keep = np.bincount(labels.ravel()) >= voxels
    keep[0] = False
    out[box] = keep[labels]
    return out


def finish(path, start, bits, overlap, size, voxel_mm, dust, connectivity):
    """Removes dust from one shard's pairs and writes them: a worker's task.

    dust: components of fewer voxels are removed from both channels. Returns the pairs' number.
    """
    pairs = store.unpack(bits, size)
    removed = np.zeros((len(bits), 3), np.int32)
    removed[:, 0] = overlap
    for row, pair in enumerate(pairs):
        for channel in (0, 1):
            clean = remove_dust(pair[..., channel], dust, connectivity)
            removed[row, 1 + channel] = pair[..., channel].sum() - clean.sum()
            pair[..., channel] = clean
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = voxel_mm * (1 - size) / 2  # the cube's centre is the origin
    columns = {"removed": removed, "affine": np.broadcast_to(affine, (len(bits), 4, 4))}
    store.write(path, start, store.pack(pairs), columns)
    return len(pairs)
