"""An implant for a real skull, on the voxels of its file; research only: not a medical device.

A scan is brought to a V-Net as skulls are for training (`sources.prepare`).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from skullgen.core import files, jobs, plugins, provenance
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import folders, grids, headers, heads, sources, store, volumes
from skullgen.data.grids import FIELD_MM, Affine, Mask
from skullgen.delivery import implants, mesh, release, vault
from skullgen.evaluation import judges, verdict
from skullgen.training import checkpoint, methods

NOTICE = "Research only. Not a medical device: not for diagnosis, planning or treatment."
LOOSE = 0.6  # of its outline on bone: an implant with less does not close its hole
CLOSED = 0.95  # of the opening: with less, part of it stays open
PICTURE = 128  # voxels a side of what is drawn
# The fields of `config.predict` that determine an implant, and what they are unless they are set.
SETTINGS = {**volumes.OPTIONS, "threshold": 0.5, "dust_mm3": 2000.0}


class Designer(NamedTuple):
    """A trained net and how skulls were brought to it."""

    net: Callable[[store.Packed], Float32[np.ndarray, "n D D D"]]  # probability of implant
    size: int
    threshold: float  # the share of bone that made a voxel bone
    reframe: bool  # skulls were placed in the frame, not taken in their own cube
    about: dict[str, Any]  # what the net is, for the record


class Implant(NamedTuple):
    """A designed implant and the skull it is for, on the scan's own voxels, in the file's order.

    An implant that reaches beyond the file's grid has a larger one, of the same voxels.
    """

    mask: Mask
    skull: Mask
    affine: Affine  # of both; voxel -> RAS mm
    frame: Affine  # of the model's grid
    numbers: dict[str, Any]  # of `implants.measure`, and what the net is


def check(config: ConfigDict, names: list[str], workdir: Path) -> None:
    """UserError for what `config.predict` names that is not there, nor made by stages `names`."""
    settings = config.predict
    if settings.net:
        one_of("predict.net", settings.net, judges.NETS)
    one_of("predict.form", settings.form, ("", *headers.FORMS))
    one_of("predict.space", settings.space, ("", *headers.SPACES))
    skull_files(settings.file)
    if settings.weights or "segment" not in names:
        folder = release.place(settings.weights) if settings.weights else workdir
        judges.choose(folder, settings.net)


def skull_files(names: str | Sequence[str]) -> tuple[dict[Path, str], list[str]]:
    """The scans that `predict.file` names, each with its own name, and lines about other files.

    It names files, DICOM series, folders of such (`FOLDER/**`: at any depth) and globs.
    """
    skulls, lines, places = {}, [], plugins.listed(names, folders.is_there)
    for place in places:
        if not folders.is_there(place):
            suffixes = ", ".join(headers.SUFFIXES)
            raise UserError(f"{place}: no such file or folder (predict.file: {suffixes})")
        scans, others = folders.scans(place)
        skulls |= dict.fromkeys(scans, folders.base(place))
        lines += others if scans or others else [f"{place}: holds no skull"]
    if not places:
        raise UserError("predict.file is empty: name a defective skull, --config.predict.file=FILE")
    if not skulls:
        raise UserError(lines[0])
    return folders.names(skulls), lines


def designer(config: ConfigDict, workdir: Path, net: str = "") -> Designer:
    """The V-Net `net` of a work directory (`judges.choose`)."""
    name, size = judges.choose(workdir, net), config.model.resolution
    net = judges.newest(config.segment, size, workdir, name)
    data, updates, path = config.data, int(net.state.step), workdir / "real.zarr"
    if store.exists(path):  # which another run may have made
        real = store.Store(path)
        data, field = real.recipe.get("data", data), real.attrs["voxel_mm"] * size
        if not _near(field):
            what = f"{name} was trained on cubes of {field:.1f} mm, and scans are brought to"
            raise UserError(f"{path}: {what} {FIELD_MM} mm: train on such pairs")
    if updates < config.segment.updates:
        print(f"warning: {name} is of update {updates} of {config.segment.updates}")
    about = {
        "name": name,
        "updates": updates,
        "weights": checkpoint.fingerprint(net.state),
        "voxel_mm": FIELD_MM / size,
        "source": data["source"],
    }
    framed = data["source"] not in ("skullbreak", "triplets") and data["reframe"]
    return Designer(verdict.network(net, size, 1), size, data["threshold"], framed, about)


def _near(field_mm):
    """Whether sides in mm are those of the models' frame, or of SkullBreak's cube."""
    return np.abs(np.asarray(field_mm) - FIELD_MM).max() < 0.01 * FIELD_MM


def predict(designer: Designer, path: str | Path, settings: ConfigDict) -> Implant:
    """Designs the implant of the skull in a file, by `settings`, an experiment's `predict`."""
    skull = volumes.read(path, **volumes.options(settings))
    with sources.named(path):
        heads.check(*volumes.in_ras(skull))
        grid, frame, share = _framed(designer, skull)
    pair = np.stack([share >= designer.threshold, np.zeros(share.shape, bool)], axis=-1)
    answer = designer.net(store.pack(pair)[None])[0]
    grid = volumes.holding(grid, answer > settings.threshold, frame)
    bone, ras = volumes.in_ras(grid)
    implant = implants.fit(answer, frame, bone, ras, settings)
    if not implant.any():
        raise UserError(
            f"{path}: no implant: the net found no hole of {settings.dust_mm3:g} mm^3 or more "
            "beside bone (predict.dust_mm3, predict.threshold); is this skull complete?"
        )
    numbers = implants.measure(implant, bone, ras, vault.middle(frame, designer.size))
    covered = vault.covered(bone, ras, implant)
    numbers |= {"opening_covered": covered and round(covered, 3), "net": designer.about}
    mask = grids.turned(implant, np.linalg.inv(grids.to_ras(grid.affine, grid.data.shape)))
    mask, grid, notes = _kept(mask, grid, skull)
    cut = heads.cut(*volumes.in_ras(skull))
    numbers["notes"] = [*notes, *([cut] if cut else [])]
    return Implant(mask, grid.data, grid.affine, frame, numbers)


def _framed(designer, skull):
    """A skull on a grid that has room for its implant; the model's frame, and its bone there."""
    mm = np.linalg.norm(skull.affine[:3, :3], axis=0)
    if not designer.reframe and _near(mm * skull.data.shape):  # its own cube is the frame
        return skull, *sources.prepare(*volumes.in_ras(skull), designer.size, reframe=False)
    caps, place = vault.caps(*volumes.in_ras(skull))
    grid = volumes.holding(skull, caps, place)
    bone, ras = volumes.in_ras(grid)
    whole = bone | grids.enlarge(caps, place, ras, bone.shape)
    return grid, *sources.prepare(bone, ras, designer.size, whole=whole)


def _kept(mask, grid, skull):
    """An implant and its skull on the file's voxels, or on more where it reaches beyond these."""
    first = np.rint(np.linalg.inv(grid.affine) @ skull.affine[:, 3]).astype(int)[:3]
    own = tuple(slice(a, a + n) for a, n in zip(first, skull.data.shape, strict=True))
    if np.count_nonzero(mask[own]) == np.count_nonzero(mask):
        return mask[own], skull, []
    size = " x ".join(map(str, mask.shape))
    return mask, grid, [f"it reaches beyond the file's voxels and is written on {size} of them"]


def _shares(implant):
    """The skull and the implant on the frame's cube, of `PICTURE` voxels a side, to be drawn."""
    turn, scale = grids.to_ras(implant.affine, implant.mask.shape), np.eye(4)
    ratio = FIELD_MM / PICTURE / np.linalg.norm(implant.frame[:3, 0])
    scale[:3] = np.column_stack([np.eye(3) * ratio, np.full(3, (ratio - 1) / 2)])
    grid = implant.affine @ turn, implant.frame @ scale, PICTURE
    return [grids.reduce(grids.turned(x, turn), *grid) for x in (implant.skull, implant.mask)]


def describe(numbers: dict[str, Any]) -> str:
    """An implant in one line of words."""
    contact, share = numbers["rim_contact"], numbers["opening_covered"]
    count, doubt = len(numbers["pieces"]), ""
    words = (
        f"{'implant' if count == 1 else f'{count} implants'} of {numbers['volume_ml']:.1f} ml, "
        f"{numbers['extent_mm']:.0f} mm across, on bone along {contact:.0%} of the outline, "
        f"over {share or 0:.0%} of the opening as seen from within"
    )
    if contact < LOOSE:
        doubt = "it does not fill the hole; is the face where the file's axes say it is?"
    elif share is None:
        doubt = "no opening of the vault above the orbits was found; is there a hole?"
    elif share < CLOSED:
        doubt = "part of it stays open"
    words = f"{words} (warning: {doubt})" if doubt else words
    return "; note: ".join([words, *numbers.get("notes", [])])


def run(config: ConfigDict, workdir: Path, draw: Callable) -> None:
    """Designs an implant for each file of `config.predict.file` into `predictions/`.

    draw: `(path, skull share, implant share, title, note)`. Files that cannot be used are listed at
    the end; UserError where none can.
    """
    settings, (todo, notes), refused = config.predict, skull_files(config.predict.file), []
    folder = Path(settings.folder or workdir / "predictions")
    if settings.weights:
        workdir = release.place(settings.weights)
        config = methods.load_config(workdir)
        config.predict = settings
    net = designer(config, workdir, settings.net)
    words = "{name}: voxels of {voxel_mm:.3g} mm, data.source={source}".format(**net.about)
    print(plain(f"{words}: look at each picture before you trust an implant"))
    for note in notes:
        print(plain(f"note: left out: {note}"))
    with jobs.progress(len(todo), 0, "predict", "skull") as bar:
        for path, name in todo.items():
            jobs.check()
            try:
                words = _design_file(net, path, folder / f"{name}_implant", config, draw)
                bar.write(plain(f"{name}: {words}"))
            except UserError as error:
                refused.append(str(error))
            bar.update()
    if len(refused) == len(todo):
        raise UserError(f"no implant of {len(todo)} file(s): {refused[0]}")
    print(f"{folder}: {len(todo) - len(refused)} skulls. {NOTICE}")
    if refused:
        print("\n".join([f"left out, {len(refused)} of {len(todo)} files:", *refused]))


def _design_file(net, path, place, config, draw):
    """Designs and saves an implant as `place` with endings, if not there yet; words for it."""
    settings = config.predict
    own = [suffix for suffix in headers.WRITTEN if path.name.lower().endswith(suffix)]
    endings = ".json", ".stl", ".png", *(own or [".nrrd"])
    paths = [place.with_name(f"{place.name}{ending}") for ending in endings]
    source = headers.describe(path, settings.form, settings.space)
    content = b"".join(part.read_bytes() for part in source.files)
    about = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    about["settings"] = {field: settings[field] for field in SETTINGS}
    recipe, before = {"net": net.about, "made_of": about}, files.read_json(paths[0])
    there = [other for other in paths if other.exists()]
    if there and not before:
        raise UserError(f"{there[0]}: is there, and not ours: choose another predict.folder")
    if before and before.get("made_of", {}).get("sha256") != about["sha256"]:
        what = f"is the implant of another file ({before.get('made_of', {}).get('file')})"
        raise UserError(f"{paths[0]}: {what} than {path}: choose another predict.folder")
    before = before and {field: before.get(field) for field in recipe}
    provenance.require_same(paths[0], before, recipe)
    if there == paths:
        return "is made already"
    implant, (numbers, stl, png, file) = predict(net, path, settings), paths
    implant.numbers["notes"].extend(source.notes)
    place.parent.mkdir(parents=True, exist_ok=True)
    # The numbers come first: by them a call that was stopped knows its files.
    files.write_json(numbers, {"notice": NOTICE, **implant.numbers, **recipe})
    volumes.write(file, implant.mask, implant.affine, source)
    mesh.write_stl(stl, mesh.solid(implant.mask, implant.affine))
    words, title = describe(implant.numbers), f"Research only, not a medical device: {place.name}"
    draw(png, *_shares(implant), title=title, note=words)
    return words
