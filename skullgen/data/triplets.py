"""Pairs that come as files: a defective skull, its implant, and maybe the complete skull."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from skullgen.core import plugins
from skullgen.core.errors import UserError
from skullgen.data import defects, folders

SIDES = ("defective_skull", "implant", "complete_skull")
SPLITS = {"train": 0, "val": 1, "test": 2, "eval": 2}  # words in folders' names; the last one wins
KIND = "defect"  # of pairs whose folders name none


class Triplet(NamedTuple):
    """A pair's files; whole: those whose union is the complete skull."""

    skull: Path
    implant: Path
    whole: tuple[Path, ...]
    name: str  # of the skull
    kind: str = KIND
    split: int = 0  # index of `store.SPLITS`, by its folders


class Layout(NamedTuple):
    """The pairs of some folders, in the order of the store, and lines about all files."""

    triplets: list[Triplet]
    lines: list[str]

    @property
    def names(self) -> list[str]:
        """The skulls, in the order of their first pairs."""
        return list(dict.fromkeys(triplet.name for triplet in self.triplets))

    @property
    def split(self) -> bool:
        """Whether the folders say the split: pairs are in more than one of them."""
        return len({triplet.split for triplet in self.triplets}) > 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """SkullBreak's kinds where there is one of them, and others."""
        names = {triplet.kind for triplet in self.triplets}
        ours = defects.KINDS if names.intersection(defects.KINDS) else ()
        return *ours, *sorted(names.difference(ours))


def skullbreak(root: Path) -> Layout:
    """The pairs of SkullBreak or SkullFix: `defective_skull/` and `implant/`, at any depth.

    In both lie files of one number or, as SkullBreak has it, a folder of them for each kind. The
    folders above say the part (`train`, `SkullBreak_evaluation`, `nrrd`). UserError without a pair.
    """
    parts, surplus, triplets, lines = {}, [], [], []
    for file in folders.entries(root / "**"):
        *above, side, kind, _ = ("", "", *file.relative_to(root).parts)
        if kind in SIDES:  # no folders of kinds
            above, side, kind = [*above, side], kind, KIND
        if side in SIDES and folders.is_scan(file):
            part = parts.setdefault(tuple(filter(None, above)), {side: {} for side in SIDES})
            part[side][_number(folders.name_of(file)), kind] = file
        elif file.is_file():
            surplus.append(file)
    for above in sorted(parts, key=lambda above: (_split(above), above)):
        skulls, implants, _ = parts[above].values()
        pairs = _part(above, skulls, implants)
        triplets += pairs
        place = f"{'/'.join(above) or '.'} (defective_skull, implant)"
        lines.append(f"{place}: {len(pairs)} pairs of {len({one.name for one in pairs})} skulls")
        for what, some, others in (("implant", skulls, implants), ("skull", implants, skulls)):
            lines += _alone([some[key] for key in some.keys() - others.keys()], what, root)
    lines += folders.lines(surplus, root)
    if not triplets:
        what = "no pair of defective_skull/KIND/NNN.nrrd and implant/KIND/NNN.nrrd, with KIND or "
        what += f"without, in it or its folders ({'; '.join(lines) or 'they are empty'})"
        raise UserError(f"{root}: {what}: other layouts are read by data.source=triplets")
    return Layout(triplets, lines)


def _part(above, skulls, implants):
    """The pairs of one part, by number and kind; a skull is the union of its first pair."""
    kinds = {kind: number for number, kind in enumerate(defects.KINDS)}
    keys = sorted(skulls.keys() & implants.keys(), key=lambda key: (kinds.get(key[1], 99), key[1]))
    whole, prefix, triplets = {}, [name for name in above if name != "nrrd"], []
    for key in sorted(keys, key=lambda key: folders.name_of(skulls[key])):
        pair, name = (skulls[key], implants[key]), folders.name_of(skulls[key])
        whole.setdefault(name, pair)
        own = "_".join([*prefix, name])
        triplets.append(Triplet(*pair, whole[name], own, key[1], _split(above)))
    return triplets


def _split(above):
    """The split that the words of folders' names say; 0 where they say none."""
    said = [n for part in above for word, n in SPLITS.items() if word in part.lower()]
    return said[-1] if said else 0


def _alone(files, what, root):
    """In one line, that files have no counterpart."""
    return [f"{folders.first(files, root)}: no {what}, so no pairs of them"] if files else []


def globs(config: ConfigDict) -> Layout:
    """The pairs of `data.triplets`: files whose paths differ only in what tells the lists apart.

    UserError where a list is empty, or nothing in it has a counterpart.
    """
    root, wanted, lists, lines = folders.base(config.root), config.triplets, {}, []
    for side in ("skull", "implant", "complete"):
        places = plugins.listed(wanted[side], lambda name: folders.is_there(_under(root, name)))
        entries = [path for name in places for path in folders.entries(_under(root, name))]
        lists[side] = [path for path in dict.fromkeys(entries) if folders.is_scan(path)]
        lines += folders.lines([path for path in entries if not folders.is_scan(path)], root)
        if not lists[side] and (places or side != "complete"):
            what = f"data.triplets.{side} is {wanted[side]!r}: no file of a skull is there"
            raise UserError(f"{root}: {what}; write folders or globs, from data.root on")
    # A file that a wide glob and a narrower one name is the narrower one's.
    sets = [set(paths) for paths in lists.values()]
    skulls, implants, complete = (
        [path for path in own if not any(path in s for s in sets if len(s) < len(own))]
        for own in lists.values()
    )
    pairs, whole = matches(skulls, implants), matches(skulls, complete)
    if not pairs:
        what = "no file of triplets.skull has a name like one of triplets.implant"
        raise UserError(f"{root}: {what}: {[*skulls, 'none'][0]}, {[*implants, 'none'][0]}")
    top = Path(os.path.commonpath([os.path.abspath(path.parent) for path in pairs]))
    names = folders.names(dict.fromkeys(pairs, top))
    triplets = []
    for skull, implant in pairs.items():
        files = (whole[skull],) if skull in whole else (skull, implant)
        triplets.append(Triplet(skull, implant, files, names[skull]))
    lines.append(f"{len(pairs)} pairs of {len(skulls)} skulls and {len(implants)} implants")
    lines += _alone([path for path in skulls if path not in pairs], "implant", root)
    lines += _alone([path for path in implants if path not in pairs.values()], "skull", root)
    lines += _alone([path for path in complete if path not in whole.values()], "skull", root)
    return Layout(triplets, lines)


def _under(root, name):
    return str(root / os.path.expanduser(name))


def matches(ones: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """Files of two lists whose paths have the same words, but for those that tell the lists apart.

    Such a word is in all paths of one list and in none of the other: `defective_001.nrrd` goes with
    `implant_1.nrrd`, `skulls/001` with `plates/001`, `P1/skull` with `P1/plate`.
    """
    words = [[_words(path) for path in paths] for paths in (ones, others)]
    if not ones or not others:
        return {}
    by_key = []
    for own, other, paths in zip(words, words[::-1], (ones, others), strict=True):
        role = set.intersection(*map(set, own)).difference(*other)
        role = {word for word in role if len(own) > 1 or not word.isdigit()}
        keys = [tuple(word for word in line if word not in role) for line in own]
        count = Counter(keys)
        by_key.append({k: p for k, p in zip(keys, paths, strict=True) if count[k] == 1})
    return {path: by_key[1][key] for key, path in by_key[0].items() if key in by_key[1]}


def _words(path):
    """The words and numbers of a path, without the suffix."""
    text = os.path.abspath(path.with_name(folders.name_of(path))).casefold()
    return re.findall(r"\d+|[^\W\d_]+", _number(text))


def _number(text):
    """A text whose numbers have no zeros before them."""
    return re.sub(r"0*(\d+)", r"\1", text)
