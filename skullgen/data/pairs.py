"""The pairs of a store as a map-style dataset for PyTorch, MONAI and grain; it imports no jax."""

import hashlib
import json
import operator
import os
from pathlib import Path

import numpy as np

from skullgen.core.errors import UserError, one_of
from skullgen.data import store


class Pairs:
    """Pairs of a store, real or generated, read one at a time when they are asked for.

    `pairs[3]`, also counted from the end, is a dict of two arrays, float32 [1, D, D, D] of 0 and
    1, RAS: `skull`, the defective skull, and `defect`, the implant: channels first, as networks of
    PyTorch and MONAI's dictionary transforms take them. `pairs[2:9]` and `pairs[[4, 1]]` are
    `Pairs` again, of those rows, and read nothing. It can be pickled, and forked.

    path: the store, for example `runs/vae_wgan/generated.zarr`.
    split: `train`, `validation` or `test`; None: all, as for generated pairs, which have none.
    kind: of defect, one of `skullgen.data.defects.KINDS`; None: all.

    Attributes: `path`; `rows` int [n], the pairs' rows in the store; `voxel_mm`.

    Pairs that the store's list `leave_out.txt` names, and cases that could not be ingested, are
    not among them. Raises UserError for a store that is not there or not whole, and where no pair
    is left; where a pair is read, for one that is damaged.
    """

    def __init__(self, path, split=None, kind=None):
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"{path!r} is no path: name a store, runs/vae_wgan/generated.zarr")
        self.path = Path(os.path.expanduser(path))
        inside = sorted(one.name for one in self.path.glob("*.zarr"))
        if inside and not (self.path / "zarr.json").exists():
            raise UserError(f"{path}: no store of pairs, but a folder with {', '.join(inside)}")
        store.Store(self.path).require_whole()
        opened = store.Store(self.path)
        if split is not None:
            one_of("split", split, store.SPLITS)
        if (split is not None or kind is not None) and (opened.column("split") == -1).all():
            raise UserError(f"{path}: generated pairs have no split and no kind: leave them out")
        self.rows = store.Store(self.path).rows(split)
        if kind is not None:
            number = opened.attrs["kinds"].index(one_of("kind", kind, opened.attrs["kinds"]))
            self.rows = self.rows[opened.column("kind")[self.rows] == number]
        if not len(self.rows):
            raise UserError(f"{path}: no pair of split {split} and kind {kind} (None: all)")
        self._recipe = json.dumps(opened.recipe, sort_keys=True).encode()
        self.voxel_mm, self._size = opened.attrs["voxel_mm"], opened.size

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice) or np.ndim(index) == 1:
            index = index if isinstance(index, slice | list) else np.asarray(index)
            part = object.__new__(Pairs)
            part.__dict__.update(self.__dict__, rows=self.rows[index])
            return part
        bits = store.Store(self.path).load([self.rows[operator.index(index)]])
        pair = store.unpack(bits, self._size)[0].astype(np.float32)
        return {"skull": pair[None, ..., 0].copy(), "defect": pair[None, ..., 1].copy()}

    def __repr__(self):  # grain tells by it whether a checkpoint is of these data
        told = hashlib.sha256(np.asarray(self.rows, "<i8").tobytes() + self._recipe)
        return f"Pairs({str(self.path)!r}: {len(self)} pairs, {told.hexdigest()[:12]})"
