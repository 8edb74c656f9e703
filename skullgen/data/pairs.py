"""The pairs of a store as a map-style dataset for PyTorch, MONAI and grain; it imports no jax."""

import hashlib
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32

from skullgen.core import provenance
from skullgen.core.errors import UserError, one_of
from skullgen.data import store
from skullgen.data import where as wanted


class Pairs:
    """Pairs of a store, real or generated, read one at a time when they are asked for.

    `pairs[3]` is a dict of two arrays of 0 and 1 in RAS, channels first: `skull`, the defective
    skull, and `defect`, the implant. It can be pickled, and forked.

    path: the store. split: `train`, `validation` or `test`; None: all, as for generated pairs.
    kind: of defect, one of `skullgen.data.defects.KINDS`; None: all. where: bounds of measures
    (`data.measures`), as `{"side": "left", "area_cm2": (40, 90)}`. Attributes: `path`; `rows`,
    those of the pairs in the store, without `leave_out.txt`'s; `voxel_mm`.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        kind: str | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(os.path.expanduser(path))
        self._store = store.Store(self.path)
        self._store.require_whole()
        one_of("split", split, (*store.SPLITS, None))
        if split and (self._store.column("split") == -1).all():
            raise UserError(f"{path}: generated pairs have no split: leave it out")
        if kind and (self._store.column("kind") == -1).all():
            raise UserError(f"{path}: its pairs have no kind: leave it out")
        self.rows = self._store.rows(split)
        if kind is not None:
            kinds = self._store.attrs["kinds"]
            number = kinds.index(one_of("kind", kind, kinds))
            self.rows = self.rows[self._store.column("kind")[self.rows] == number]
        if where:
            if not isinstance(where, Mapping):
                raise UserError(f"where is {where!r}: it must be a dict of bounds by measure")
            bounds = wanted.bounds(where)
            if unknown := [
                name for name, text in where.items() if text == "real" and name not in bounds
            ]:
                what = f"where.{unknown[0]} is {where[unknown[0]]!r}"
                raise UserError(f"{what}: which pairs are real is not known: write LOW,HIGH")
            self.rows = self.rows[wanted.passes(self._store.column("measures")[self.rows], bounds)]
        if not len(self.rows):
            what = f"no pair of split {split} and kind {kind} (None: all)"
            raise UserError(f"{path}: {what}{f' where {where}' if where else ''}")
        self.voxel_mm = self._store.attrs["voxel_mm"]
        self._recipe = provenance.digest(self._store.recipe).encode()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Float32[np.ndarray, "1 D D D"]]:
        bits = self._store.load([int(self.rows[operator.index(index)])])
        skull, defect = np.moveaxis(store.unpack(bits, self._store.size)[0], -1, 0)
        return {"skull": np.float32(skull)[None], "defect": np.float32(defect)[None]}

    def __repr__(self) -> str:  # grain tells by it whether a checkpoint is of these data
        name = hashlib.sha256(np.asarray(self.rows, "<i8").tobytes() + self._recipe).hexdigest()
        return f"Pairs({str(self.path)!r}: {len(self)} pairs, {name[:12]})"
