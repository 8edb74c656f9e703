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
SPLITS = {"train": 0, "training": 0, "val": 1, "validation": 1}  # words in folders' names; the
SPLITS |= {"test": 2, "testing": 2, "eval": 2, "evaluation": 2}  # last one wins
KIND = "defect"  # of pairs whose folders name none


class Triplet(NamedTuple):
    """A pair's files; whole: those whose union is the complete skull."""

    skull: Path
    implant: Path
    whole: tuple[Path, ...]
    name: str  # of the skull
    kind: str = KIND
    split: int = 0  # index of `store.SPLITS`, by its folders


def skullbreak(root: Path) -> tuple[list[Triplet], list[str]]:
    """The pairs of SkullBreak or SkullFix, in the store's order, and lines about all files.

    In `defective_skull/` and `implant/`, at any depth, lie files of one number or, as SkullBreak
    has it, folders of them for each kind. Folders above say the split. UserError without a pair.
    """
    sides, surplus, triplets, whole = {side: {} for side in SIDES}, [], [], {}
    for file in folders.entries(root / "**"):
        *above, side, kind, _ = ("", "", *file.relative_to(root).parts)
        if kind in SIDES:  # no folders of kinds
            above, side, kind = [*above, side], kind, KIND
        if side in SIDES and folders.is_scan(file):
            above = tuple(name for name in above if name not in ("", "nrrd"))
            key = above, _number(folders.name_of(file)), kind
            surplus += [file] * (sides[side].setdefault(key, file) != file)
        elif file.is_file():
            surplus.append(file)
    skulls, implants, _ = sides.values()

    def order(key):
        kinds = [*defects.KINDS, key[2]]
        return _split(key[0]), key[0], folders.name_of(skulls[key]), kinds.index(key[2]), key[2]

    for key in sorted(skulls.keys() & implants.keys(), key=order):
        pair, name = (skulls[key], implants[key]), "_".join([*key[0], folders.name_of(skulls[key])])
        whole.setdefault(name, pair)
        triplets.append(Triplet(*pair, whole[name], name, key[2], _split(key[0])))
    lines = _lines(triplets, [skulls.values(), implants.values()], root)
    if surplus:
        lines += [
            f"{folders.first(surplus, root)}: not used (not in {', '.join(SIDES)}, or there twice)"
        ]
    if not triplets:
        what = "no pair of defective_skull/KIND/NNN.nrrd and implant/KIND/NNN.nrrd, with KIND or "
        what += f"without, in it or its folders: {'; '.join(lines)}"
        raise UserError(f"{root}: {what}: other layouts are read by data.source=triplets")
    return triplets, lines


def _split(above):
    """The split that the words of folders' names say; 0 where they say none."""
    words = [word for part in above for word in re.findall("[a-z]+", part.lower())]
    return ([SPLITS[word] for word in words if word in SPLITS] or [0])[-1]


def _lines(triplets, sides, root):
    """How many pairs there are, and a line for each side's files that are in none."""
    lines = [f"{len(triplets)} pairs of {len({one.name for one in triplets})} skulls"]
    for files, which, what in zip(sides, (0, 1), ("implant", "defective skull"), strict=True):
        rest = set(files).difference(one[which] for one in triplets)
        lines += [f"{folders.first(rest, root)}: no {what}, so no pairs of them"] if rest else []
    return lines


def globs(config: ConfigDict) -> tuple[list[Triplet], list[str]]:
    """As `skullbreak`, the pairs of `data.triplets`: files that go together by their paths."""
    root, wanted, lists, lines = folders.base(config.root), config.triplets, [], []
    for side in ("skull", "implant", "complete"):

        def under(name):
            return str(root / os.path.expanduser(name))

        places = plugins.listed(wanted[side], lambda name: folders.is_there(under(name)))
        scans = {}
        for name in places:
            skulls, others = folders.scans(under(name))
            scans |= dict.fromkeys(skulls)
            lines += others
        if not scans and (places or side != "complete"):
            what = f"data.triplets.{side} is {wanted[side]!r}: no file of a skull is there"
            raise UserError(f"{root}: {what}; write folders or globs, from data.root on")
        lists.append(scans)
    # A file that a wide glob and a narrower one name is the narrower one's.
    skulls, implants, complete = (
        [path for path in own if not any(path in some for some in lists if len(some) < len(own))]
        for own in lists
    )
    pairs, whole = matches(skulls, implants), matches(skulls, complete)
    if not pairs:
        examples = " or ".join(map(str, map(min, lists[:2])))
        what = "no path of data.triplets.skull has the words of one of data.triplets.implant"
        raise UserError(f"{root}: {what}, as {examples}")
    top = Path(os.path.commonpath([os.path.abspath(path.parent) for path in pairs]))
    names = folders.names(dict.fromkeys(pairs, top))
    triplets = []
    for skull, implant in pairs.items():
        files = (whole[skull],) if skull in whole else (skull, implant)
        triplets.append(Triplet(skull, implant, files, names[skull]))
    if rest := set(complete).difference(whole.values()):
        lines.append(f"{folders.first(rest, root)}: no defective skull")
    return triplets, _lines(triplets, [skulls, implants], root) + lines


def matches(ones: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """Files of two lists whose paths have the same words, but for those that tell the lists apart.

    Such a word is in all paths of one list and in none of the other: `defective_001.nrrd` goes with
    `implant_1.nrrd`, `skulls/001` with `plates/001`, `P1/skull` with `P1/plate`.
    """
    words, by_key = [list(map(_words, paths)) for paths in (ones, others)], []
    for own, other, paths in zip(words, words[::-1], (ones, others), strict=True):
        role = set.intersection(*map(set, own)).difference(*other) if own else set()
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
