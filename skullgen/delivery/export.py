"""A store's pairs as files for other programs: SkullBreak's layout, nnU-Net v2, NIfTI, STL.

An export's folder holds `recipe.json` (what it is of), `pairs.csv` (a line a pair), the store's
licence and, where it has one, its data card. All files of a pair lie on one grid, in mm, whose
place NRRD and NIfTI headers tell and STL has in LPS (`mesh.write_stl`): 3D Slicer and ITK show them
in one place. Files are written whole, and a stopped export goes on with those that lack.
"""

import csv
import io
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict

from skullgen.core import files, jobs, plugins, provenance
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import defects, grids, mixture, sources, store, volumes
from skullgen.delivery import mesh

PAPERS = (provenance.FILE, ".lock", "pairs.csv", "LICENCE.txt", "README.md")
PAPERS += ("dataset.json", "splits_final.json")
Mask = Bool[np.ndarray, "X Y Z"]
Affine = Float[np.ndarray, "4 4"]


class Entry(NamedTuple):
    """A pair to write."""

    row: int
    files: dict[str, str]  # role -> path in the folder
    writes: tuple[str, ...]  # roles; the other files are those of another pair of its skull
    about: dict[str, str]  # columns of the table


def run(config: ConfigDict, workdir: Path) -> None:
    """Exports `config.export.store` in each of `config.export.format`: the stage `export`."""
    settings = config.export
    names, path = formats(settings), mixture.find(settings.store, workdir)
    folder = Path(settings.folder or workdir / "export").resolve()
    for name in names:
        own = len(names) > 1 or not settings.folder
        write(path, folder / name if own else folder, name, settings, config.workers)


def check(config: ConfigDict, names: list[str], workdir: Path) -> None:
    """UserError for what `run` would refuse after the stages `names` before it."""
    settings, path = config.export, mixture.find(config.export.store, workdir)
    formatted, *_ = formats(settings)
    _range(settings.rows)
    generated = path.name == "generated.zarr"
    beside = os.path.abspath(path.parent) == os.path.abspath(workdir)
    own = path.name in mixture.OWN and (beside or settings.store in mixture.OWN)
    if not (own and ("generate" if generated else "ingest") in names):
        plan(store.Store(path), formatted, settings)
        return
    known = defects.kinds_of(config.data) if config.data.source in sources.PLANS else None
    _require_known(path, settings, known, generated)
    weights = generated and config.generate.get("weights")
    if config.data.source in ("phantom", "skulls") and not weights:  # of others, the files tell
        size = config.model.resolution
        _require_grid(path, size, grids.FIELD_MM / size, settings.voxel_mm)


def formats(settings: ConfigDict) -> list[str]:
    """The names in `settings.format`; UserError for what cannot be written."""
    names = list(dict.fromkeys(plugins.listed(settings.format)))
    if "nnunet" in names and not re.fullmatch(r"Dataset\d{3}_\w+", settings.dataset):
        raise UserError(f"export.dataset is {settings.dataset!r}: write DatasetNNN_Name")
    return [one_of("export.format", name, FORMATS) for name in names or [""]]


def write(path: Path, folder: Path, name: str, settings: ConfigDict, workers: int = 0) -> None:
    """Exports pairs of the store `path` to a folder in the format `name`, or goes on.

    settings: an experiment's `config.export`. workers: processes; 0: one a core. More pairs of the
    same store may be added. Raises UserError for a folder of another export or of other files, and
    as `plan`.
    """
    opened = store.Store(path)
    entries, empty = plan(opened, name, settings)
    if empty:
        print(f"{empty} pairs without an implant or a skull are not exported")
    folder = folder / settings.dataset if name == "nnunet" else folder
    recipe = {
        "format": name,
        "voxel_mm": float(settings.voxel_mm),
        "split": settings.split,
        "kinds": plugins.listed(settings.kinds),
        "first": _range(settings.rows)[0],
        "store": provenance.digest(opened.recipe),
    }
    _claim(folder, recipe, entries)
    with files.alone(folder / ".lock", "export.folder"):
        files.clear(folder)
        answers = jobs.ordered(
            write_pair,
            _tasks(opened, folder, entries, settings.voxel_mm),
            min(jobs.workers(workers), len(entries)),
        )
        lines = []
        with jobs.progress(len(entries), 0, f"export {name}", "pair") as bar:
            for entry, measures in zip(entries, answers, strict=True):
                lines.append(_line(entry, *measures))
                bar.update()
        _write_papers(opened, folder, lines)
        if name == "nnunet":
            _write_nnunet(opened, folder, [e for e in entries if e.about["split"] != "test"])
    splits = Counter(entry.about["split"] for entry in entries)
    more = ", none of them to train on" * (name == "nnunet" and splits["test"] == len(entries))
    if splits["validation"] and name in ("skullbreak", "nnunet"):
        more += f", {splits['validation']} of split validation among those to train on"
    print(plain(f"{folder}: {len(entries)} pairs{more}"))


def _claim(folder, recipe, entries):
    """`provenance.claim` of a folder that holds nothing but files of such an export."""
    ours = {file for entry in entries for file in entry.files.values()}.union(PAPERS)
    ours = ours if (folder / provenance.FILE).exists() else ()
    there = [file for file in folder.rglob("*") if file.is_file() and ".partial-" not in file.name]
    others = sorted({file.relative_to(folder).as_posix() for file in there}.difference(ours))
    provenance.require_same(folder, provenance.read(folder), recipe)
    if others:
        raise UserError(
            f"{folder}: holds {others[0]}, which is not among what is to be exported "
            "(export.rows, leave_out.txt): name another export.folder, or move it away"
        )
    provenance.claim(folder, recipe)


def plan(opened: store.Store, name: str, settings: ConfigDict) -> tuple[list[Entry], int]:
    """What is to be written of a store in a format, rows rising, and how many pairs are empty.

    Pairs without a skull or an implant are only counted; those of the store's leave-out list are
    no part. Raises UserError for a store that is not whole, for a selection that is none or empty,
    and for voxels too small or too large.
    """
    opened.require_whole()
    path, known = opened.path, opened.attrs.get("kinds", [])
    _require_grid(path, opened.size, opened.attrs["voxel_mm"], settings.voxel_mm)
    splits, skulls = opened.column("split"), opened.column("skull")
    _require_known(path, settings, known, bool((splits == -1).all()))
    _require_folders(path, known)
    titles = [known[kind] if kind >= 0 else "" for kind in opened.column("kind").tolist()]
    first, stop = _range(settings.rows, opened.count)
    wanted = plugins.listed(settings.kinds)
    rows = opened.rows(settings.split or None).tolist()
    rows = [r for r in rows if first <= r < stop and (not wanted or titles[r] in wanted)]
    filled = (opened.column("voxels") > 0).all(axis=1)
    entries, owned = [], set()
    cases = _cases((splits == 2).tolist(), skulls.tolist(), titles)
    names = opened.names(skulls)
    for row in (row for row in rows if filled[row]):
        paths = FORMATS[name](row, splits[row] == 2, titles[row], cases[row])
        writes = tuple(role for role, file in paths.items() if file not in owned)
        owned.update(paths.values())
        split = store.SPLITS[splits[row]] if splits[row] >= 0 else ""
        about = {"split": split, "kind": titles[row], "skull": names[row]}
        entries.append(Entry(row, paths, writes, about))
    if not entries:
        why = "check export.rows, export.split, export.kinds"
        why = f"of {len(rows)}, none has a skull and an implant" if rows else why
        raise UserError(f"{path}: no pair to export: {why}")
    return entries, len(rows) - len(entries)


def _require_known(path, settings, known, generated):
    """UserError for a split or a kind that no pair can have; known: kinds, None where not told."""
    split, wanted = settings.split, plugins.listed(settings.kinds)
    if split:
        one_of("export.split", split, store.SPLITS)
    if generated and (split or wanted):
        field = "export.split" if split else "export.kinds"
        raise UserError(f"{path}: generated pairs have no split and no kind: leave {field} empty")
    for kind in wanted if known is not None else ():
        one_of("export.kinds", kind, known)


def _require_folders(path, kinds):
    """UserError unless each kind is the name of a folder of its own."""
    times = Counter(kind.casefold() for kind in kinds)  # some disks know no capitals
    for kind in kinds:
        if times[kind.casefold()] > 1 or not re.fullmatch(r"\w[\w .-]{,99}", kind):
            raise UserError(f"{path}: kind {kind!r} is no name of a folder of its own: rename it")


def _require_grid(path, size, own, wanted):
    """UserError where files cannot have voxels of `wanted` mm (0: the store's own)."""
    mm, largest = wanted or own, volumes.MAX_VOXEL_MM
    if mm > largest:
        most = f"voxels of {mm:g} mm are larger than files may have ({largest:g})"
        raise UserError(f"{path}: {most}: set export.voxel_mm to {own / 2:g}, for example")
    if mm > own * 1.001:
        raise UserError(f"export.voxel_mm is {mm:g}: larger than the store's own, {own:g}")
    if (size * own / mm) ** 3 > volumes.MAX_VOXELS:
        least = size * own / volumes.MAX_VOXELS ** (1 / 3)
        raise UserError(f"export.voxel_mm is {mm:g}: at least {least:.2g}, or memory runs out")


def _range(text, count=math.inf):
    """FIRST:STOP, pairs FIRST to STOP - 1 of `count`, as two numbers."""
    if not text:
        return 0, count
    first, colon, stop = text.partition(":")
    if not (colon and first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
        raise UserError(f"export.rows is {text!r}: write FIRST:STOP, for example 0:100")
    if int(stop) > count:
        raise UserError(f"export.rows is {text!r}: the store has pairs 0 to {count - 1}")
    return int(first), int(stop)


# --- The layouts: the files of a pair -----------------------------------------------------------


def _cases(tests, skulls, titles):
    """SkullBreak's number of each pair: pairs of one skull and one number differ in kind.

    A skull that was cut several times has several numbers; a generated pair, its row.
    """
    cuts, numbers, cases = Counter(), {True: {}, False: {}}, []
    for row, (test, skull, kind) in enumerate(zip(tests, skulls, titles, strict=True)):
        part, cut = numbers[test], (skull, cuts[test, skull, kind])
        cuts[test, skull, kind] += 1
        cases.append(row if skull < 0 else part.setdefault(cut, len(part)))
    return cases


def _skullbreak(row, test, kind, case):
    # A number has one complete skull, of its first kind: at a threshold of 0.5 or more, where
    # thin bone is lost at a cut's edge, the unions of its other kinds differ by single voxels.
    part, kind = "test" if test else "train", kind or "random_1"
    sides = {"skull": f"defective_skull/{kind}", "implant": f"implant/{kind}"}
    sides["complete"] = "complete_skull"
    return {role: f"{part}/{side}/{case:03d}.nrrd" for role, side in sides.items()}


def _nnunet(row, test, kind, case):
    tag, name = "Ts" if test else "Tr", f"skullgen_{row:06d}"
    images = f"images{tag}/{name}_0000.nii.gz"
    return {"image": images, "implant": f"labels{tag}/{name}.nii.gz"}


def _sides(ending):
    return lambda row, *_: {role: f"{role}/{row:06d}{ending}" for role in ("skull", "implant")}


FORMATS = {
    "skullbreak": _skullbreak,
    "nnunet": _nnunet,
    "nifti": _sides(".nii.gz"),
    "stl": _sides(".stl"),
}


# --- Writing ------------------------------------------------------------------------------------


def write_pair(
    bits: UInt8[np.ndarray, " bytes"],
    size: int,
    affine: Affine,
    voxel_mm: float,
    files: list[tuple[str, Path]],
) -> tuple[int, int, Affine]:
    """Writes a pair's files, (role, path) of each: voxels of skull and implant, and their grid.

    affine: voxel -> RAS mm. voxel_mm: of the files, 0 for the pair's own. Raises UserError where a
    finer grid loses a speck.
    """
    skull, implant = (np.ascontiguousarray(x) for x in np.moveaxis(store.unpack(bits, size), -1, 0))
    if voxel_mm:
        skull, implant, affine = finer(skull, implant, affine, voxel_mm)
        if not (skull.any() and implant.any()):
            raise UserError(
                "a speck is lost on the finer grid: set export.voxel_mm to half as much"
            )
    # nnU-Net cuts an image to the box of what is not 0: an implant may lie outside the skull's.
    parts = {
        "skull": skull,
        "implant": implant,
        "complete": skull | implant,
        "image": skull + np.uint8(1),
    }
    for role, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".stl":
            mesh.write_stl(path, mesh.solid(parts[role], affine))
        elif (
            path.suffix == ".nrrd"
        ):  # SkullBreak's voxels are in LAS order, and many read no header
            turn = np.diag([-1.0, 1, 1, 1])
            turn[0, 3] = len(skull) - 1
            volumes.write(path, parts[role][::-1], affine @ turn)
        else:
            volumes.write(path, parts[role], affine)
    return int(skull.sum()), int(implant.sum()), affine


def finer(
    skull: Mask, implant: Mask, affine: Affine, voxel_mm: float
) -> tuple[Bool[np.ndarray, "U V W"], Bool[np.ndarray, "U V W"], Affine]:
    """A pair on a finer grid over the same cube: skull, implant, affine.

    Bone is where their union is, interpolated; it goes to the one with the larger share: they stay
    disjoint, and no crack opens between them.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(np.ceil(skull.shape * spacing / voxel_mm - 1e-6).astype(int))
    scale, grid = voxel_mm / spacing, affine.copy()
    grid[:3, :3] = affine[:3, :3] * scale
    grid[:3, 3] += affine[:3, :3] @ ((scale - 1) / 2)  # from one outer corner
    bone = grids.enlarge(skull | implant, affine, grid, shape)
    lead = (np.float32(1) + implant - skull) / 2
    implant = grids.enlarge(lead, affine, grid, shape) & bone
    return bone & ~implant, implant, grid


def _tasks(opened, folder, entries, voxel_mm):
    affines = opened.column("affine")
    for row, paths, writes, _ in entries:
        lacking = [(role, folder / paths[role]) for role in writes]
        lacking = [(role, file) for role, file in lacking if not file.exists()]
        yield opened.load([row])[0], opened.size, affines[row], voxel_mm, lacking


def _line(entry, skull, implant, affine):
    """The table's line of a pair; skull, implant: voxels."""
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {
        "index": entry.row,
        **{f"{role}_file": file for role, file in entry.files.items()},
        **entry.about,
        "skull_voxels": skull,
        "implant_voxels": implant,
        "skull_ml": f"{skull * ml:.4f}",
        "implant_ml": f"{implant * ml:.4f}",
        "voxel_mm": " ".join(f"{mm:.6g}" for mm in np.linalg.norm(affine[:3, :3], axis=0)),
        "affine_ras": " ".join(f"{value:.9g}" for value in affine[:3].ravel()),
    }


def _write_papers(opened, folder, lines):
    """Writes the table, the store's licence, and its card where it has one."""
    table = io.StringIO()
    writer = csv.DictWriter(table, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.replace(folder / "pairs.csv", table.getvalue().encode())
    licence = plain(opened.attrs.get("licence", "not stated"))
    files.replace(folder / "LICENCE.txt", f"{licence}\n".encode())
    card = opened.path / "README.md"
    if card.exists():
        part = f"\n\nThis folder holds {len(lines)} of the {opened.count} pairs.\n"
        files.replace(folder / "README.md", card.read_bytes().rstrip() + part.encode())


def _write_nnunet(opened, folder, entries):
    """Writes nnU-Net's notes on the pairs to train on.

    In `splits_final.json` a skull's cases are in one fold; generated pairs are folded singly.
    """
    about = {
        "name": folder.name.partition("_")[2],
        "description": "defective skull (1 background, 2 bone) to implant",
        "licence": opened.attrs.get("licence", "not stated"),
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "implant": 1},
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
    }
    files.write_json(folder / "dataset.json", about)
    skulls, keys = opened.column("skull").tolist(), {}
    for row, paths, *_ in entries:
        name = Path(paths["implant"]).name.removesuffix(".nii.gz")
        keys[name] = skulls[row] if skulls[row] >= 0 else -1 - row
    order = list(dict.fromkeys(keys.values()))
    count, file = min(5, len(order)), "splits_final.json"
    if count < 2:
        print(f"no {file}: its folds are by skull, and there are {count} to train on")
        return
    folds = [{name for name, key in keys.items() if key in order[k::count]} for k in range(count)]
    splits = [{"train": sorted(keys.keys() - fold), "val": sorted(fold)} for fold in folds]
    files.replace(folder / file, (json.dumps(splits, indent=1) + "\n").encode())
    print(f"{file}: {count} folds by skull: copy it to nnUNet_preprocessed/{folder.name}/")
