"""Section 4.4 after binarising: equation 6 and dust. Workers import it, so it imports no jax."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Integer, UInt8

from skullgen.data import grids, measures, store, where
from skullgen.data.measures import KINDS
from skullgen.data.where import Bounds

Counts = Integer[np.ndarray, " n"]
Part = tuple[Path, tuple[int, ...]]  # a store, and rows of it
Labels = Float32[np.ndarray, "n labels"]
NEAREST = [measures.NAMES.index(name) for name in ("nearest_skull", "nearest_pair")]
Image = Bool[np.ndarray, "X Y Z"] | Integer[np.ndarray, "X Y Z"]


class Rules(NamedTuple):
    """How probabilities become pairs (section 4.4)."""

    channels: str  # `independent` or `exclusive`: `modules.binarise`
    threshold: float
    dust: int = 0  # components of fewer voxels are removed


def separate(skull: Bool[Any, "*shape"], defect: Bool[Any, "*shape"]) -> Bool[Any, "*shape"]:
    """Equation 6, `I = XOR(I, AND(I, S))`, of numpy or jax: the defect I without the skull S."""
    return defect ^ (defect & skull)


def remove_dust(image: Image, voxels: int) -> Image:
    """The image without its components (one value, connected by faces) of fewer voxels."""
    out, sides = image.copy(), grids.box(image)
    # cc3d 4.1 fails on some boxes of a few voxels whose bone touches their sides.
    padded = np.pad(image[sides], 1)
    labels = cc3d.connected_components(padded, connectivity=6)
    # Bone is a twentieth of the grid: looked at alone, it takes half the time of cc3d.dust.
    places = np.flatnonzero(padded)
    label = labels.ravel()[places]
    np.put(padded, places[(np.bincount(label) < voxels)[label]], 0)
    out[sides] = padded[1:-1, 1:-1, 1:-1]
    return out


def clean(bits: store.Packed, size: int, rules: Rules) -> store.Packed:
    """Packed pairs without either channel's dust: both are labelled as one image of two values."""
    pairs = [store.unpack(row, size) for row in bits]
    images = [remove_dust(pair.view(np.uint16)[..., 0], rules.dust) for pair in pairs]
    return np.stack([store.pack(image[..., None].view(bool)) for image in images])


class Source(NamedTuple):
    """What makes pairs of samples' bits: the store to write, rules, training pairs to keep from."""

    generated: store.Store
    rules: Rules
    train: Part | None  # of which `nearest_*` are measured
    bounds: Bounds  # what a pair must keep


def measured(
    source: Source, samples: range, bits: store.Packed, overlap: Counts, labels: Labels
) -> tuple[UInt8[np.ndarray, "_ bytes"], store.Columns]:
    """The pairs of some samples without dust that pass, and their columns: a worker's task."""
    size, voxel_mm = source.generated.size, source.generated.attrs["voxel_mm"]
    clear = clean(bits, size, source.rules)
    values = [measures.measure(pair, voxel_mm) for pair in store.unpack(clear, size)]
    values = np.stack(values)
    if source.train:
        values[:, NEAREST] = measures.nearest(clear, _training(*source.train))
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = voxel_mm * (1 - size) / 2  # the cube's centre is the origin
    columns = {
        "removed": np.column_stack([overlap, store.voxels(bits) - store.voxels(clear)]),
        "affine": np.broadcast_to(affine, (len(bits), 4, 4)),
        "sample": np.array(samples),
        "measures": values,
    }
    if labels.shape[1]:
        columns["asked"] = labels
        columns["kind"] = np.where(labels[:, :KINDS].any(1), labels[:, :KINDS].argmax(1), -1)
    keep = where.passes(values, source.bounds)
    return clear[keep], {name: column[keep] for name, column in columns.items()}


def finish(source: Source, start: int, samples: range, *parts: Any) -> int:
    """Writes the shard that begins at pair `start`, where all samples pass: a worker's task."""
    source.generated.write(start, *measured(source, samples, *parts))
    return len(samples)


@functools.lru_cache(1)
def _training(path, rows):
    return store.Store(path).load(list(rows))
