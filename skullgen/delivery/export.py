"""A store's pairs as files for other programs: SkullBreak's layout, nnU-Net v2, NIfTI, STL.

An export's folder holds `recipe.json`, `pairs.csv` (a line a pair), the store's licence and, where
it has one, its data card. All files of a pair lie on one grid, in mm.
"""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from skullgen.core import files, jobs, plugins, provenance
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import grids, headers, measures, mixture, store, volumes
from skullgen.data.grids import Affine, Mask
from skullgen.delivery import mesh

# format -> role -> a pair's file. The pairs of a skull and a case share the complete skull, that
# of the first: at a cut's edge the unions of its other kinds differ by single voxels.
FORMATS = {
    "skullbreak": {
        "skull": "{part}/defective_skull/{kind}/{case:03d}.nrrd",
        "implant": "{part}/implant/{kind}/{case:03d}.nrrd",
        "complete": "{part}/complete_skull/{case:03d}.nrrd",
    },
    "nnunet": {
        "image": "images{tag}/skullgen_{row:06d}_0000.nii.gz",
        "implant": "labels{tag}/skullgen_{row:06d}.nii.gz",
    },
    "nifti": {"skull": "skull/{row:06d}.nii.gz", "implant": "implant/{row:06d}.nii.gz"},
    "stl": {"skull": "skull/{row:06d}.stl", "implant": "implant/{row:06d}.stl"},
}
MAKERS = {"real.zarr": "ingest", "generated.zarr": "generate"}
Fine = Bool[np.ndarray, "U V W"]


class Entry(NamedTuple):
    """A pair to write: its row, role -> path in the folder, columns of the table."""

    row: int
    files: dict[str, str]
    about: dict[str, str]


def run(config: ConfigDict, workdir: Path) -> None:
    """Exports `config.export.store` in each of `config.export.format`: the stage `export`."""
    settings = config.export
    names, path = formats(settings), mixture.find(settings.store, workdir)
    folder = Path(settings.folder or workdir / "export").resolve()
    for name in names:
        write(path, folder / name, name, settings, config.workers)


def check(config: ConfigDict, names: list[str], workdir: Path) -> None:
    """UserError for what `run` would refuse; of a store that stages `names` make, for formats."""
    formatted, *_ = formats(config.export)
    path = mixture.find(config.export.store, workdir)
    if MAKERS.get(path.name) not in names:
        plan(store.Store(path), formatted, config.export)


def formats(settings: ConfigDict) -> list[str]:
    """The names in `settings.format`."""
    names = list(dict.fromkeys(plugins.listed(settings.format)))
    if "nnunet" in names and not re.fullmatch(r"Dataset\d{3}_\w+", settings.dataset):
        raise UserError(f"export.dataset is {settings.dataset!r}: write DatasetNNN_Name")
    return [one_of("export.format", name, FORMATS) for name in names or [""]]


def write(path: Path, folder: Path, name: str, settings: ConfigDict, workers: int = 0) -> None:
    """Exports pairs of a store by `config.export`, or goes on; a folder of others is refused."""
    opened = store.Store(path)
    entries, empty = plan(opened, name, settings)
    if empty:
        print(f"{empty} pairs without an implant or a skull are not exported")
    folder = folder / settings.dataset if name == "nnunet" else folder
    files.clear(folder)
    before = provenance.read(folder)
    if before is None and any(folder.glob("*")):
        cure = "name another export.folder, or move them away"
        raise UserError(f"{folder}: holds files that no export wrote: {cure}")
    rows = np.array([entry.row for entry in entries])
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    recipe = {
        "format": name,
        "voxel_mm": float(settings.voxel_mm),
        "rows": ",".join(f"{run[0]}:{run[-1] + 1}" for run in runs),
        "store": provenance.digest(opened.recipe),
    }
    provenance.require_same(folder, before, recipe)
    provenance.write(folder, recipe)
    tasks, lines = _tasks(opened, folder, entries, settings.voxel_mm), []
    answers = jobs.ordered(write_pair, tasks, min(jobs.workers(workers), len(entries)))
    with jobs.progress(len(entries), 0, f"export {name}", "pair") as bar:
        for entry, voxels in zip(entries, answers, strict=True):
            paths = {f"{role}_file": file for role, file in entry.files.items()}
            lines.append({"index": entry.row, **paths, **entry.about, **voxels})
            bar.update()
    _write_papers(opened, folder, lines)
    if name == "nnunet":
        licence = opened.attrs.get("licence", "not stated")
        _write_nnunet(folder, licence, [e for e in entries if e.about["split"] != "test"])
    print(plain(f"{folder}: {len(entries)} pairs"))


def plan(opened: store.Store, name: str, settings: ConfigDict) -> tuple[list[Entry], int]:
    """What is to be written of a store in a format, rows rising, and how many pairs are empty."""
    opened.require_whole()
    _require_grid(opened, settings.voxel_mm)
    own = opened.attrs.get("kinds", [])
    if settings.split:
        one_of("export.split", settings.split, store.SPLITS)
    for kind in own:
        if not re.fullmatch(r"\w[\w .-]{,99}", kind):
            raise UserError(f"{opened.path}: kind {kind!r} is no name of a folder")
    splits = [store.SPLITS[split] if split >= 0 else "" for split in opened.column("split")]
    kinds = [own[kind] if kind >= 0 else "" for kind in opened.column("kind")]
    filled, (first, stop) = opened.column("voxels").all(1), _range(settings.rows, opened.count)
    rows = [row for row in opened.rows(settings.split or None).tolist() if first <= row < stop]
    names, cases, entries = opened.names(opened.column("skull")), _cases(opened), []
    values = opened.column("measures")
    for row in (row for row in rows if filled[row]):
        part, tag = ("test", "Ts") if splits[row] == "test" else ("train", "Tr")
        words = dict(row=row, part=part, tag=tag, case=cases[row], kind=kinds[row] or "random_1")
        paths = {role: form.format(**words) for role, form in FORMATS[name].items()}
        about = {"split": splits[row], "kind": kinds[row], "skull": names[row]}
        about |= measures.words(values[row])
        entries.append(Entry(row, paths, about))
    if not entries:
        why = "check export.rows, export.split"
        why = f"of {len(rows)}, none has a skull and an implant" if rows else why
        raise UserError(f"{opened.path}: no pair to export: {why}")
    return entries, len(rows) - len(entries)


def _cases(opened):
    """SkullBreak's number of each pair: pairs of one skull and one number differ in kind.

    A skull that was cut several times has several numbers; a generated pair, its row.
    """
    cuts, numbers, cases = Counter(), {True: {}, False: {}}, []
    columns = (opened.column(name).tolist() for name in ("split", "skull", "kind"))
    for row, (split, skull, kind) in enumerate(zip(*columns, strict=True)):
        part, cut = numbers[split == 2], (split == 2, skull, kind)
        cases.append(row if skull < 0 else part.setdefault((skull, cuts[cut]), len(part)))
        cuts[cut] += 1
    return cases


def _require_grid(opened, wanted):
    """UserError where files cannot have voxels of `wanted` mm (0: the store's own)."""
    own, least = opened.attrs["voxel_mm"], opened.size / headers.MAX_VOXELS ** (1 / 3)
    mm, least, most = wanted or own, least * own, min(own, headers.MAX_VOXEL_MM)
    if not least <= mm <= most * 1.001:
        what = f"export.voxel_mm is {mm:g}: write {least:.2g} to {most:g}"
        raise UserError(f"{opened.path}: {what} (the store's own is {own:g})")


def _range(text, count):
    """FIRST:STOP, pairs FIRST to STOP - 1 of `count`, as two numbers."""
    numbers = re.fullmatch(r"(\d+):(\d+)", text or f"0:{count}")
    first, stop = map(int, numbers.groups() if numbers else (0, 0))
    if not first < stop <= count:
        what = f"write FIRST:STOP, for example 0:100; the store has pairs 0 to {count - 1}"
        raise UserError(f"export.rows is {text!r}: {what}")
    return first, stop


# --- Writing ------------------------------------------------------------------------------------


def write_pair(
    opened: store.Store, row: int, affine: Affine, voxel_mm: float, paths: dict[str, Path]
) -> dict[str, Any]:
    """Writes a pair's files by role where they lack; what the table says of their voxels."""
    pair = store.unpack(opened.load([row])[0], opened.size)
    skull, implant = (np.ascontiguousarray(part) for part in np.moveaxis(pair, -1, 0))
    if voxel_mm:
        skull, implant, affine = finer(skull, implant, affine, voxel_mm)
    parts = {"skull": skull, "implant": implant, "complete": skull | implant}
    # nnU-Net cuts an image to the box of what is not 0: an implant may lie outside the skull's.
    parts["image"] = skull + np.uint8(1)
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = len(skull) - 1
    for role, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            continue
        if path.suffix == ".stl":
            mesh.write_stl(path, mesh.solid(parts[role], affine))
        elif path.suffix == ".nrrd":  # LAS, as SkullBreak's own: many read no header
            volumes.write(path, parts[role][::-1], affine @ mirror)
        else:
            volumes.write(path, parts[role], affine)
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {
        "skull_voxels": skull.sum(),
        "implant_voxels": implant.sum(),
        "skull_ml": f"{skull.sum() * ml:.4f}",
        "implant_ml": f"{implant.sum() * ml:.4f}",
        "voxel_mm": " ".join(f"{mm:.6g}" for mm in np.linalg.norm(affine[:3, :3], axis=0)),
        "affine_ras": " ".join(f"{value:.9g}" for value in affine[:3].ravel()),
    }


def finer(skull: Mask, implant: Mask, affine: Affine, voxel_mm: float) -> tuple[Fine, Fine, Affine]:
    """A pair on a finer grid over the same cube: skull, implant, affine.

    Bone is where their union is, interpolated; it goes to the one with the larger share: they stay
    disjoint, and no crack opens between them.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(np.ceil(skull.shape * spacing / voxel_mm - 1e-6).astype(int).tolist())
    scale, grid = voxel_mm / spacing, affine.copy()
    grid[:3, :3] = affine[:3, :3] * scale
    grid[:3, 3] += affine[:3, :3] @ ((scale - 1) / 2)  # from one outer corner
    bone = grids.enlarge(skull | implant, affine, grid, shape)
    lead = (np.float32(1) + implant - skull) / 2
    implant = grids.enlarge(lead, affine, grid, shape) & bone
    return bone & ~implant, implant, grid


def _tasks(opened, folder, entries, voxel_mm):
    """What `write_pair` takes; a file that several pairs have is of the first one."""
    affines = opened.column("affine")
    owner = {file: entry.row for entry in reversed(entries) for file in entry.files.values()}
    for row, paths, _ in entries:
        own = {role: folder / file for role, file in paths.items() if owner[file] == row}
        yield opened, row, affines[row], voxel_mm, own


def _write_papers(opened, folder, lines):
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([lines[0], *(line.values() for line in lines)])
    files.replace(folder / "pairs.csv", table.getvalue().encode())
    licence = plain(opened.attrs.get("licence", "not stated"))
    files.replace(folder / "LICENCE.txt", f"{licence}\n".encode())
    card = opened.path / "README.md"
    if card.exists():
        part = f"\n\nThis folder holds {len(lines)} of the {opened.count} pairs.\n"
        files.replace(folder / "README.md", card.read_bytes().rstrip() + part.encode())


def _write_nnunet(folder, licence, entries):
    """Writes nnU-Net's notes on the pairs to train on; no fold has a skull on both sides."""
    about = {
        "name": folder.name.partition("_")[2],
        "description": "defective skull (1 background, 2 bone) to implant",
        "licence": licence,
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "implant": 1},
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
    }
    files.write_json(folder / "dataset.json", about)
    # A generated pair is a skull of its own.
    skulls = {f"skullgen_{entry.row:06d}": entry.about["skull"] or entry.row for entry in entries}
    order = list(dict.fromkeys(skulls.values()))
    count = min(5, len(order))
    if count < 2:
        return
    folds = [{x for x, skull in skulls.items() if skull in order[k::count]} for k in range(count)]
    splits = [{"train": sorted(skulls.keys() - fold), "val": sorted(fold)} for fold in folds]
    files.replace(folder / "splits_final.json", (json.dumps(splits, indent=1) + "\n").encode())
    print(f"splits_final.json, by skull: copy it to nnUNet_preprocessed/{folder.name}/")
