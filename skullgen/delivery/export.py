"""A store's pairs as files for other programs: SkullBreak's layout, nnU-Net v2, NIfTI, STL.

An export's folder holds `export.json` (what it is of), `pairs.csv` (a line a pair that is there,
by which a stopped export goes on), the store's licence and, where it has one, its data card. All
files of a pair lie on one grid, in mm, whose place NRRD and NIfTI headers tell and STL has in LPS
(`mesh.write_stl`): 3D Slicer and ITK show them in one place.
"""

import csv
import io
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skullgen.core import files, jobs, plugins
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import defects, grids, schema, sources, store, volumes
from skullgen.delivery import mesh

BATCH = 16  # pairs read at once


class Entry(NamedTuple):
    """A pair to write: its row, its files (role -> path in the folder), and what says the table."""

    row: int
    files: dict[str, str]
    writes: tuple[str, ...]  # roles of the files that it writes, not another of its skull
    about: dict[str, str]


def stage(config, workdir):
    """Exports `config.export.store` in each of `config.export.format`: the stage `export`."""
    settings = config.export
    names = formats(settings)
    path = store.find(settings.store, workdir)
    for name in names:
        folder = Path(settings.folder or workdir / "export").resolve()
        folder = folder / name if len(names) > 1 or not settings.folder else folder
        run(path, folder, name, settings, config.workers)


def check(config, names, workdir):
    """UserError for what `stage` would refuse after the stages `names` before it."""
    settings, data, path = config.export, config.data, store.find(config.export.store, workdir)
    formatted, *_ = formats(settings)
    _range(settings.rows)
    made = "generate" if path.name == "generated.zarr" else "ingest"
    beside = os.path.abspath(path.parent) == os.path.abspath(workdir)
    own = path.name in store.MADE and (beside or settings.store in store.MADE)
    if not (own and made in names):
        plan(path, formatted, settings)
        return
    known = defects.kinds_of(data) if data.source in sources.PLANS else None
    _require_known(path, settings, known, made == "generate")
    weights = made == "generate" and config.generate.get("weights")
    if data.source in ("phantom", "skulls") and not weights:  # of others, the files tell
        size = config.model.resolution
        _check_grid(path, size, grids.FIELD_MM / size, settings.voxel_mm)


def formats(settings):
    """The names in `settings.format`, comma-separated; UserError for what cannot be written."""
    names = list(dict.fromkeys(n.strip() for n in settings.format.split(",") if n.strip()))
    if "nnunet" in names and not re.fullmatch(r"Dataset\d{3}_\w+", settings.dataset):
        raise UserError(f"export.dataset is {settings.dataset!r}: write DatasetNNN_Name")
    return [one_of("export.format", name, FORMATS) for name in names or [settings.format]]


def run(path, folder, name, settings, workers=0):
    """Exports pairs of the store `path` to a folder, or goes on.

    name: of the format. settings: an experiment's `config.export`. workers: processes; 0: one a
    core. What is there, whole, is not made again; more pairs of the same store may be added.
    Raises UserError for a folder of another export, for a selection that holds no pair, and for
    voxels too small or too large.
    """
    entries, empty = plan(path, name, settings)
    if empty:
        print(f"{empty} pairs without an implant or a skull are not exported")
    folder = folder / settings.dataset if name == "nnunet" else folder
    if not (folder / "export.json").exists() and folder.exists():
        ours = (".lock", "export.json")  # the first that an export writes, if half
        if not all(file.name.startswith(ours) for file in folder.iterdir()):
            raise UserError(f"{folder}: holds files of others: name an empty export.folder")
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder / ".lock", "export.folder"):
        _write(path, folder, name, settings, entries, workers)


def _write(path, folder, name, settings, entries, workers):
    """Writes the entries that the folder, which is ours alone, does not hold."""
    attrs, size = store.Store(path).attrs, store.Store(path).size
    held = _begin(path, folder, name, settings, attrs, {entry.row for entry in entries})
    table, lines = folder / "pairs.csv", {}
    for entry in entries:
        if entry.row in held and all((folder / file).is_file() for file in entry.files.values()):
            lines[entry.row] = held[entry.row]
    todo = [entry for entry in entries if entry.row not in lines]
    with open(table, "a", newline="") as file, files.room(table):
        with jobs.progress(len(entries), len(lines), f"export {name}", "pair") as bar:
            tasks = _tasks(path, folder, todo, size, settings.voxel_mm)
            done = jobs.ordered(write_pair, tasks, min(jobs.workers(workers), max(1, len(todo))))
            for entry, measured in zip(todo, done, strict=True):
                lines[entry.row] = _line(entry, measured)
                file.write(_text([lines[entry.row]], header=not file.tell()))
                file.flush()
                bar.update(1)
    files.replace(table, _text([lines[row] for row in sorted(lines)], header=True).encode())
    if name == "nnunet":
        learnt = [entry for entry in entries if entry.files["image"].startswith("imagesTr/")]
        files.replace(folder / "dataset.json", _json(_nnunet_about(len(learnt), attrs, settings)))
        _fold(folder, learnt, store.Store(path).column("skull").tolist())
    shown = f"{folder}: {len(entries)} pairs"
    if not any(entry.about["split"] != "test" for entry in entries) and name == "nnunet":
        shown += ", none of them to train on"
    validation = sum(entry.about["split"] == "validation" for entry in entries)
    if validation and name in ("skullbreak", "nnunet"):
        shown += f", {validation} of split validation among those to train on"
    print(plain(shown))


def plan(path, name, settings):
    """What is to be written of the store `path` in a format: a list of `Entry`, rows rising.

    Pairs without a skull or an implant are not among them, but counted second, nor those of the
    store's leave-out list. Raises UserError for a store that is not whole, for a selection that is
    none or empty, and for voxels too small or too large.
    """
    store.Store(path).require_whole()
    opened, split, wanted = store.Store(path), settings.split, plugins.listed(settings.kinds)
    _check_grid(path, opened.size, opened.attrs["voxel_mm"], settings.voxel_mm)
    splits, numbers = opened.column("split"), opened.column("kind").tolist()
    known, skulls = opened.attrs.get("kinds", []), opened.column("skull").tolist()
    _require_known(path, settings, known, (splits == -1).all())
    for kind in known:  # some disks know no capitals
        alike = [other for other in known if other.casefold() == kind.casefold()]
        if len(alike) > 1 or not re.fullmatch(r"\w[\w .-]{,99}", kind):
            raise UserError(f"{path}: kind {kind!r} is no name of a folder of its own: rename it")
    titles = [known[number] if number >= 0 else "" for number in numbers]
    rows = store.Store(path).rows(split or None).tolist()
    first, stop = _range(settings.rows, opened.count)
    chosen = [r for r in rows if first <= r < stop and (not wanted or titles[r] in wanted)]
    filled = (opened.column("voxels") > 0).all(axis=1)
    entries, cases, names = [], _cases(splits, numbers, skulls), store.Store(path).names(skulls)
    for row in [row for row in chosen if filled[row]]:
        files = FORMATS[name](row, splits[row] == 2, titles[row], cases[row])
        about = {
            "split": store.SPLITS[splits[row]] if splits[row] >= 0 else "",
            "kind": titles[row],
            "skull": names[row],
        }
        entries.append(Entry(row, files, (), about))
    if not entries:
        why = "check export.rows, export.split, export.kinds"
        why = f"of {len(chosen)}, none has a skull and an implant" if chosen else why
        raise UserError(f"{path}: no pair to export: {why}")
    owners = {file: entry.row for entry in reversed(entries) for file in entry.files.values()}
    return [
        entry._replace(writes=tuple(r for r, f in entry.files.items() if owners[f] == entry.row))
        for entry in entries
    ], len(chosen) - len(entries)


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


def write_pair(bits, size, affine, voxel_mm, files):
    """Writes a pair's files: a worker's task.

    bits: uint8 [D^3 * 2 / 8]. affine: [4, 4] voxel -> RAS mm. voxel_mm: of the files, 0 for the
    pair's own. files: (role, path) of each. Returns the voxels of skull and implant, and the grid.
    Raises UserError where a finer grid loses a speck, or the disk is full.
    """
    skull, implant = (np.ascontiguousarray(x) for x in np.moveaxis(store.unpack(bits, size), -1, 0))
    if voxel_mm:
        skull, implant, affine = finer(skull, implant, affine, voxel_mm)
        if not (skull.any() and implant.any()):
            raise UserError(f"{files[0][1]}: a speck is lost: set export.voxel_mm to half as much")
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
        else:
            _write_volume(path, parts[role], affine)
    return np.count_nonzero(skull), np.count_nonzero(implant), affine


def _write_volume(path, data, affine):
    """Writes [X, Y, Z] as NRRD or NIfTI."""
    if path.suffix == ".nrrd":  # SkullBreak's voxels are in LAS order, and many read no header
        turn = np.diag([-1.0, 1, 1, 1])
        turn[0, 3] = len(data) - 1
        data, affine = data[::-1], affine @ turn
    volumes.write(path, data, affine)


def finer(skull, implant, affine, voxel_mm):
    """A pair on a finer grid over the same cube: two bool [n, n, n] and the affine [4, 4].

    skull, implant: bool [D, D, D]. Bone is where their union is, interpolated; it goes to the one
    with the larger share: they stay disjoint, and no crack opens between them.
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


def _cases(splits, kinds, skulls):
    """SkullBreak's number of each pair: pairs of one skull and one number differ in kind.

    A skull that was cut several times has several numbers; a generated pair, its row.
    """
    turns, numbers, found = {}, {}, []
    for row, key in enumerate(zip((splits == 2).tolist(), skulls, kinds, strict=True)):
        turn = turns[key] = turns.get(key, -1) + 1
        part = numbers.setdefault(key[0], {})
        found.append(part.setdefault((key[1], turn), len(part)) if key[1] >= 0 else row)
    return found


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


FORMATS = {"skullbreak": _skullbreak, "nnunet": _nnunet}
FORMATS |= {"nifti": _sides(".nii.gz"), "stl": _sides(".stl")}


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


def _check_grid(path, size, own, wanted):
    """UserError where files cannot have voxels of `wanted` mm (0: the store's own)."""
    mm = wanted or own
    if mm > volumes.MAX_VOXEL_MM:
        most = f"voxels of {mm:g} mm are larger than files may have ({volumes.MAX_VOXEL_MM:g})"
        raise UserError(f"{path}: {most}: set export.voxel_mm to {own / 2:g}, for example")
    if mm > own * 1.001:
        raise UserError(f"export.voxel_mm is {mm:g}: larger than the store's own, {own:g}")
    if (size * own / mm) ** 3 > volumes.MAX_VOXELS:
        least = size * own / volumes.MAX_VOXELS ** (1 / 3)
        raise UserError(f"export.voxel_mm is {mm:g}: at least {least:.2g}, or memory runs out")


def _begin(path, folder, name, settings, attrs, rows):
    """Begins in a folder, or takes up one of the same export: the lines of its table by row."""
    recipe = {"format": name, "voxel_mm": float(settings.voxel_mm), "recipe": attrs["recipe"]}
    about, table, held = folder / "export.json", folder / "pairs.csv", {}
    if about.exists():
        try:
            told = json.loads(about.read_bytes())
            other = [key for key in recipe if told[key] != recipe[key]]
            # The last line may have been cut short.
            whole = table.read_text("utf-8-sig").rpartition("\n")[0] if table.exists() else ""
            held = {int(line["index"]): line for line in csv.DictReader(io.StringIO(whole))}
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{folder}: damaged: move it away, and start again") from None
        surplus = sorted(held.keys() - rows)
        if other or surplus:
            what = f"an export of another {other[0]}".replace("recipe", "store") if other else ""
            left = surplus and surplus[0] in schema.leave_out(path, store.Store(path).count)
            why = f"{path / 'leave_out.txt'} lists" if left else "is not among those to export"
            what = what or f"it holds pair {surplus[0]}, which {why}"
            raise UserError(f"{folder}: {what}: name another export.folder, or move it away")
    files.clear(folder)
    licence = attrs.get("licence", "not stated")
    told = {name: value for name, value in settings.items() if name not in ("folder", "store")}
    files.replace(about, _json({**recipe, "licence": licence, "settings": told}))
    files.replace(folder / "LICENCE.txt", f"{plain(licence)}\n".encode())
    card = Path(path) / "README.md"
    if card.exists():
        content = schema.plain_file(card, os.path.realpath(path), 2**20).read_bytes()
        part = f"This folder holds {len(rows)} of the {store.Store(path).count} pairs."
        files.replace(folder / "README.md", content.rstrip() + f"\n\n{part}\n".encode())
    files.replace(table, _text(list(held.values()), header=True).encode() if held else b"")
    return held


def _fold(folder, entries, skulls):
    """Writes nnU-Net's `splits_final.json`: a skull's cases in one fold; generated pairs singly."""
    rows = {Path(e.files["implant"]).name.removesuffix(".nii.gz"): e.row for e in entries}
    keys = {name: skulls[r] if skulls[r] >= 0 else -1 - r for name, r in rows.items()}
    order = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    count, file = min(5, len(order)), "splits_final.json"
    if count < 2:
        print(f"no {file}: its folds are by skull, and there are {count} to train on")
        return
    folds = [[name for name in keys if order[keys[name]] % count == k] for k in range(count)]
    splits = [{"train": sorted(keys.keys() - fold), "val": fold} for fold in folds]
    files.replace(folder / file, _json(splits))
    print(f"{file}: {count} folds by skull: copy it to nnUNet_preprocessed/{folder.name}/")


def _tasks(path, folder, entries, size, voxel_mm):
    affines = store.Store(path).column("affine")
    for start in range(0, len(entries), BATCH):
        part = entries[start : start + BATCH]
        for entry, bits in zip(part, store.Store(path).load([e.row for e in part]), strict=True):
            files = [(role, folder / entry.files[role]) for role in entry.writes]
            yield bits, size, affines[entry.row], voxel_mm, files


def _line(entry, measured):
    """The table's line of a pair that was written."""
    *voxels, affine = measured
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {
        "index": entry.row,
        **{f"{role}_file": file for role, file in entry.files.items()},
        **entry.about,
        **dict(zip(("skull_voxels", "implant_voxels"), voxels, strict=True)),
        **{f"{n}_ml": f"{v * ml:.4f}" for n, v in zip(("skull", "implant"), voxels, strict=True)},
        "voxel_mm": " ".join(f"{mm:.6g}" for mm in np.linalg.norm(affine[:3, :3], axis=0)),
        "affine_ras": " ".join(f"{value:.9g}" for value in affine[:3].ravel()),
    }


def _text(lines, header):
    """Lines of the table as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, lines[0], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _json(value):
    return (json.dumps(value, indent=1) + "\n").encode()


def _nnunet_about(count, attrs, settings):
    """nnU-Net's `dataset.json`."""
    return {
        "name": settings.dataset.partition("_")[2],
        "description": "defective skull (1 background, 2 bone) to implant",
        "licence": attrs.get("licence", "not stated"),
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "implant": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
