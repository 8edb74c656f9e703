"""Section 4.4 after binarising: equation 6 and dust; workers import it, so it imports no jax."""

import cc3d
import numpy as np

from skullgen.data import store


def separate(skull, defect):
    """Equation 6, `I = XOR(I, AND(I, S))`: the defect I without what lies in the skull S.

    skull, defect: bool arrays of one shape, of numpy or jax. Returns the new defect.
    """
    return defect ^ (defect & skull)


def remove_dust(image, voxels, connectivity=6):
    """The image without its connected components of fewer than `voxels` voxels.

    image: [D, D, D], bool, or integers: each value but 0 then has components of its own.
    connectivity: 6, 18 or 26 neighbours. Returns a new array.
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


def clean(bits, size, dust, connectivity):
    """Packed pairs uint8 [n, size^3 * 2 / 8] without either channel's dust: a new array.

    dust: components of fewer voxels are removed. connectivity: neighbours that make a component,
    6, 18 or 26. No voxel may be in both channels (equation 6): they are labelled as one image of
    two values.
    """
    out = np.empty_like(bits)
    for row, packed in enumerate(bits):
        pair = store.unpack(packed, size)
        image = pair.view(np.uint16)[..., 0]
        image[...] = remove_dust(image, dust, connectivity)
        out[row] = store.pack(pair)
    return out


def finish(path, start, bits, overlap, size, voxel_mm, dust, connectivity):
    """Removes dust from one shard's pairs and writes them: a worker's task.

    path, start: the store, and the shard's first pair. bits: uint8 [n, size^3 * 2 / 8]. overlap:
    int [n], voxels that equation 6 removed. voxel_mm: of the model's grid. dust, connectivity: as
    of `clean`. Returns the pairs' number.
    """
    kept = clean(bits, size, dust, connectivity)
    removed = np.column_stack([overlap, store.voxels(bits) - store.voxels(kept)])
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = voxel_mm * (1 - size) / 2  # the cube's centre is the origin
    columns = {"removed": removed, "affine": np.broadcast_to(affine, (len(bits), 4, 4))}
    store.Store(path).write(start, kept, columns)
    return len(bits)
