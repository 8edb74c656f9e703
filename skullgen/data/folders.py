"""What a path names: files of skulls, DICOM series, folders of patients; and the skulls' names."""

import contextlib
import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from skullgen.core.errors import UserError
from skullgen.data import headers

HIDDEN = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin")  # and .*
ANY_DEPTH = 99


def entries(place: str | Path) -> list[Path]:
    """What a folder, `FOLDER/**`, a glob or a file names: files and DICOM series, none hidden.

    Of a folder, what is in it and in its own folders; of `FOLDER/**`, at any depth.
    """
    place, top = Path(place), base(place)
    depth = ANY_DEPTH if place == top / "**" else 1
    if depth == 1 and place != top:
        inside = [path for match in _matches(place, top) for path in _tree(match, 0)]
        return [path for path in dict.fromkeys(inside) if not _is_hidden(path)]
    return list(_tree(top, depth))


def scans(place: str | Path) -> tuple[list[Path], list[str]]:
    """The skulls' files and series of a place, and a line for each sort of its other entries."""
    inside, top, sorts = entries(place), base(place), {}
    skulls = [path for path in inside if is_scan(path)]
    passed = set(skulls)
    for path in (path for path in skulls if not path.is_dir()):
        with contextlib.suppress(UserError):  # which whoever reads it tells
            passed.update(headers.describe(path).files)
    for path in (path for path in inside if path not in passed):
        sort = f"holds no skull ({', '.join(headers.SUFFIXES)})"
        if path.is_dir():
            sort = "holds no skull itself (FOLDER/** is read at any depth)"
        elif path.name.lower().endswith(headers.SURFACES):
            sort = "a surface, no mask: voxelise it in 3D Slicer (import it as a segmentation, "
            sort += "export that as a labelmap)"
        sorts.setdefault(sort, []).append(path)
    return skulls, [f"{first(some, top)}: {what}" for what, some in sorts.items()]


def _tree(place, depth):
    """What is in a folder and, `depth` folders deep, in those within it; or the place itself."""
    if not place.is_dir() or is_series(place):
        yield place
        return
    for path in sorted(p for p in place.iterdir() if not _is_hidden(p)):
        # A link to a folder that it lies in has no end; one that is closed is told, not entered.
        entered = path.is_dir() and os.access(path, os.R_OK | os.X_OK)
        entered = entered and path.resolve() not in [p.resolve() for p in path.parents]
        entered = entered and (depth or is_series(path))
        yield from (list(_tree(path, depth - 1)) if entered else []) or [path]


def _is_hidden(path):
    return path.name.startswith(".") or path.name.lower() in HIDDEN


def base(place: str | Path) -> Path:
    """The part of a path or glob that is there: the names of its skulls begin below it."""
    place = Path(place)
    return next((p for p in (place, *place.parents) if os.path.lexists(p)), place)


def is_there(place: str) -> bool:
    """Whether a path or a glob names anything."""
    place, top = Path(place), base(place)
    return place in (top, top / "**") or bool(_matches(place, top))


def _matches(place, top):
    """What a glob names, of which `top` is there."""
    parts = glob.glob(str(place.relative_to(top)), root_dir=top, recursive=True)
    return [top / part for part in sorted(parts) if os.path.lexists(top / part)]


def is_scan(path: Path) -> bool:
    """Whether a path may be a skull's, by its suffix or the DICOM slices in it.

    A link to nothing is a skull that cannot be read: it must not be left out in silence.
    """
    return is_series(path) if path.is_dir() else path.name.lower().endswith(headers.SUFFIXES)


def is_series(folder: Path) -> bool:
    """Whether a folder holds slices of DICOM, beside the table of a disc."""
    paths = (p for p in folder.iterdir() if not _is_hidden(p) and p.name.upper() != "DICOMDIR")
    return any(b"DICM" in _magic(path) for path in paths if path.is_file())


def _magic(path):
    with contextlib.suppress(OSError):
        return np.fromfile(path, "S4", 1, offset=128)
    return b""


def name_of(scan: Path) -> str:
    """The name of a file without its suffix, or of a folder."""
    return scan.name if scan.is_dir() else re.sub(r"\.[^.]+(\.gz)?$", "", scan.name, flags=re.I)


def names(scans: Mapping[Path, Path]) -> dict[Path, str]:
    """A name for each scan of a place, `scans[scan]`: distinct, and as short as the folders allow.

    The folders below the place, from the first to that which holds this scan alone, joined by `_`;
    where none does, all and the file's name. Names that several have get the folders above, too.
    """
    absolute = {path: Path(os.path.abspath(path)).parts for path in {*scans, *scans.values()}}
    parts = {scan: (*absolute[scan][:-1], name_of(scan)) for scan in scans}
    twins = Counter(parts.values())
    parts = {s: p if twins[p] == 1 else (*p[:-1], s.name) for s, p in parts.items()}
    heads = Counter(p[:n] for p in parts.values() for n in range(len(p) + 1))
    start = {s: min(len(absolute[top]), len(parts[s]) - 1) for s, top in scans.items()}
    stop = {
        s: next((n for n in range(start[s] + 1, len(p)) if heads[p[:n]] == 1), len(p))
        for s, p in parts.items()
    }
    labels = {}
    for _ in range(max(map(len, parts.values()), default=0)):
        labels = {s: "_".join(p[start[s] : stop[s]]) for s, p in parts.items()}
        count = Counter(labels.values())
        if len(count) == len(labels):
            break
        start |= {s: max(1, start[s] - 1) for s in scans if count[labels[s]] > 1}
    return labels


def first(paths: Collection[Path], top: Path) -> str:
    """The first of some paths, and how many more there are."""
    path = min(paths)
    name = path.relative_to(top) if path != top and path.is_relative_to(top) else path
    return str(name) + f" and {len(paths) - 1} more" * (len(paths) > 1)
