"""Mixtures of stores, and the batches that are drawn from them."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from skullgen.core import plugins
from skullgen.core.errors import UserError, one_of
from skullgen.data import measures
from skullgen.data.store import SPLITS, Store

Rows = Int32[np.ndarray, "batches size"]
OWN = tuple(
    f"{name}.zarr" for name in "real generated fresh transplants phantoms ceiling".split()
)  # what a run makes in its work directory


class Part(NamedTuple):
    """Some pairs of a store, by their rows."""

    store: Store
    rows: Int[np.ndarray, " n"]


def parts(text: str, folder: Path, seed: int, field: str = "segment.stores") -> list[Part]:
    """The stores that `path:split:pairs[:skulls]`, comma-separated, names.

    pairs: a number, the first of a permutation seeded by `seed` (a larger number takes the same and
    more), or `all`. skulls: so many of the store's, the first of a permutation, too; else all.
    """
    parts = []
    for name, split, wanted, skulls in named(text, field):
        store = Store(find(name, folder))
        store.require_whole()
        first = parts[0].store if parts else store
        if store.size != first.size:
            raise UserError(f"{store.path}: its pairs are not of the size of those of {first.path}")
        rows = store.rows(None if split == "all" else split)
        if skulls:
            rows = _of_skulls(store, rows, int(skulls), seed)
        if wanted != "all":
            if int(wanted) > len(rows):
                what = f"{len(rows)} pairs of split {split}, not {wanted}"
                cure = "generated pairs are of no split: write PATH:all:PAIRS"
                raise UserError(f"{store.path}: {what} ({cure})")
            order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
            rows = rows[np.sort(order[: int(wanted)])]
        if not len(rows):
            raise UserError(f"{store.path}: it has no pair of split {split}")
        parts.append(Part(store, rows))
    return parts


def _of_skulls(store, rows, count, seed):
    """The rows of `count` skulls."""
    skull = store.column("skull")[rows]
    names = np.unique(skull)
    if count > len(names) or (skull < 0).any():
        raise UserError(f"{store.path}: it has not {count} skulls by name: take fewer, or all")
    chosen = np.random.default_rng([seed, len(names)]).permutation(names)[:count]
    return rows[np.isin(skull, chosen)]


def named(text: str, field: str = "segment.stores") -> list[tuple[str, str, str, str | None]]:
    """The parts `path:split:pairs[:skulls]` of a mixture, in four; UserError for what is none."""
    parts = []
    for item in plugins.listed(text, _is_part):
        part = re.fullmatch(r"(.+?):([a-z]+):(all|[1-9][0-9]*)(?::([1-9][0-9]*))?", item)
        if not part:
            cure = "write PATH:SPLIT:PAIRS, for example real.zarr:train:all"
            raise UserError(f"{field}: {item!r} names no pairs: {cure}")
        one_of(f"the split of {item!r}", part[2], (*SPLITS, "all"))
        parts.append(part.groups())
    return parts


def _is_part(text):
    """Whether a text ends as a part does, and a comma in it is of its path."""
    ends = re.findall(r":[a-z]+:(?:all|[0-9]+)(?::[0-9]+)?\s*(?:,|$)", text)
    return len(ends) == 1 and not ends[0].endswith(",")


def paths(text: str, folder: Path) -> list[str]:
    """The stores that a comma-separated field names, commas in a path and all."""
    return plugins.listed(text, lambda name: any(map(os.path.exists, (folder / name, name))))


def require_there(names: list[str], folder: Path) -> None:
    """UserError where a named store is not there, nor in `folder`, where a run may make it yet."""
    for name in names:
        path = find(name, folder)
        if name not in OWN and path.parent.absolute() != Path(folder).absolute():
            Store(path)


def labels(parts: list[Part]) -> Float32[np.ndarray, "n labels"]:
    """The labels (`measures.labels`) of all pairs of a mixture, by the kinds of its first part."""
    names, rows = parts[0].store.attrs.get("kinds", []), []
    for store, own in parts:
        kinds = store.attrs.get("kinds", [])
        number = np.array([names.index(kind) if kind in names else -1 for kind in kinds] + [-1])
        kind = number[store.column("kind")[own]]  # -1 is the last, too
        rows.append(measures.labels(kind, store.column("measures")[own]))
    return np.concatenate(rows)


def titles(paths: list[Path]) -> list[str]:
    """A name for each store: its run's folder's, or its own; where two are alike, the paths."""
    names = [p.resolve().parent.name if p.name in OWN else p.stem for p in paths]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def find(name: str, folder: Path) -> Path:
    """The path that a field means: in `folder` where it is there, else from where we run."""
    return folder / name if (folder / name).exists() else Path(name)


class Place(NamedTuple):
    """Where in a run a batch is drawn: the phase's number, and the update within it."""

    seed: int
    phase: int
    update: int


def batch_rows(counts: list[int], size: int, place: Place, batches: int = 1) -> Rows:
    """Rows of the training pairs that one update takes, a pure function of its arguments.

    counts: pairs of each part of a mixture, which take turns; rows count through all parts. For
    each part an endless row of seeded permutations is cut into batches; each phase begins its own.
    """
    first = place.update * batches * size
    round_robin, part = np.divmod(np.arange(first, first + batches * size), len(counts))
    flat = np.empty(len(part), np.int32)
    for number, count in enumerate(counts):
        mine = np.flatnonzero(part == number)
        rounds, offsets = np.divmod(round_robin[mine], count)
        for turn in np.unique(rounds).tolist():
            key = [place.seed, place.phase, turn, *([number] if number else [])]
            order = np.random.default_rng(key).permutation(count)
            flat[mine[rounds == turn]] = order[offsets[rounds == turn]] + sum(counts[:number])
    return flat.reshape(batches, size)
