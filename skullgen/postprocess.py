"""Section 4.4 after binarising: equation 6 and the removal of dust. numpy and cc3d only."""

import cc3d
import numpy as np


def separate(pair):
    """Equation 6, `I = XOR(I, AND(I, S))`: the defect loses what lies in the skull.

    pair: bool [..., 2], channel 0 the defective skull S, 1 its defect I. Returns a new array.
    """
    skull, defect = pair[..., 0], pair[..., 1]
    return np.stack([skull, defect ^ (defect & skull)], axis=-1)


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
