"""An implant for a real skull: a V-Net's answer at the scan's own grid, and what it measures.

A scan is brought to the net as skulls are for training (`sources.prepare`); the implant lies on the
voxels of the scan's file. Research only: not a medical device.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from ml_collections import ConfigDict

from skullgen.core import files, jobs, plugins, provenance
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import grids, sources, store, volumes
from skullgen.data.grids import FIELD_MM
from skullgen.delivery import implants, mesh, release, vault
from skullgen.evaluation import judges, verdict
from skullgen.training import checkpoint, methods

NOTICE = "Research only. Not a medical device: not for diagnosis, planning or treatment."
LOOSE = 0.6  # of its outline on bone: an implant with less does not close its hole
CLOSED = 0.95  # of the opening: with less, part of it stays open
SOURCES = {"phantom": "phantoms", "skulls": "skulls of data.root", "skullbreak": "SkullBreak"}
PICTURE = 128  # voxels a side of what is drawn

Mask = Bool[np.ndarray, "X Y Z"]
Affine = Float[np.ndarray, "4 4"]


class Designer(NamedTuple):
    """A trained net and how skulls were brought to it.

    net: packed pairs -> probability of implant (`verdict.network`). threshold: the share of bone
    that made a voxel bone. reframe: skulls were placed in the frame, not taken in their own cube.
    about: what the net is, for the record.
    """

    net: Callable[[store.Packed], Float32[np.ndarray, "n D D D"]]
    size: int
    threshold: float
    reframe: bool
    about: dict[str, Any]


class Implant(NamedTuple):
    """A designed implant and the skull it is for, on the scan's own voxels, in the file's order.

    affine: of both; frame: of the model's grid; each voxel -> RAS mm. numbers: those of
    `implants.measure`, and what the net is.
    """

    mask: Mask
    skull: Mask
    affine: Affine
    frame: Affine
    numbers: dict[str, Any]


def check(config: ConfigDict, names: list[str], workdir: Path) -> None:
    """UserError for what `config.predict` names that is not there, nor made by stages `names`."""
    settings = config.predict
    if settings.net:
        one_of("predict.net", settings.net, judges.NETS)
    for suffix in plugins.listed(settings.suffixes):
        one_of("predict.suffixes", suffix, volumes.WRITTEN)
    skull_files(settings.file)
    if not settings.weights and "segment" in names:
        return
    folder = release.place(settings.weights) if settings.weights else workdir
    try:
        judges.choose(folder, settings.net)
    except judges.Unfinished as error:
        weights = not settings.weights and config.get("generate", {}).get("weights")
        more = f", or set predict.weights={weights}, too: generate.weights only makes pairs"
        raise UserError(f"{error}{more if weights else ''}") from None


def skull_files(names: str | Sequence[str]) -> list[Path]:
    """The scans that `predict.file` names: files, DICOM series, and folders of such.

    Raises UserError where it names none, or a place that is not there.
    """
    skulls = []
    for place in map(Path, plugins.listed(names)):
        if not place.exists():
            raise UserError(f"{place}: no such file or folder (predict.file): check the path")
        inside = volumes.scans(place)
        if not inside:
            raise UserError(f"{place}: holds no skull ({', '.join(volumes.SUFFIXES)})")
        skulls += inside
    if not skulls:
        raise UserError("predict.file is empty: name a defective skull, --config.predict.file=FILE")
    return skulls


def designer(config: ConfigDict, workdir: Path) -> Designer:
    """The V-Net `config.predict.net` of a work directory (`judges.choose`).

    Raises UserError where it is not trained, or on skulls in a frame that no scan is brought to.
    """
    name = judges.choose(workdir, config.predict.net)
    size, path = config.model.resolution, workdir / "real.zarr"
    net = judges.newest(config.segment, size, workdir, name)
    data, updates = config.data, int(net.state.step)
    if store.exists(path):  # which another run may have made
        real = store.Store(path)
        data, field = real.recipe.get("config", data), real.attrs["voxel_mm"] * size
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
        "pairs_of": SOURCES.get(data["source"], data["source"]),
    }
    framed = data["source"] != "skullbreak" and data["reframe"]
    return Designer(verdict.network(net, size, 1), size, data["threshold"], framed, about)


def _near(field_mm):
    """Whether sides in mm are those of the models' frame, or of SkullBreak's cube."""
    return np.abs(np.asarray(field_mm) - FIELD_MM).max() < 0.01 * FIELD_MM


def predict(
    designer: Designer, path: str | Path, settings: ConfigDict, max_voxels: int = volumes.MAX_VOXELS
) -> Implant:
    """Designs the implant of the skull in a file.

    The file is a mask, or of `settings` (`config.predict`) where `bone_hu` is not 0 a CT, and where
    `label` is not 0 a segmentation. Raises UserError for a file that cannot be used, and as
    `design`.
    """
    skull = sources.read(Path(path), settings.bone_hu, settings.label, max_voxels)
    try:
        return design(designer, skull.data, skull.affine, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def design(designer: Designer, skull: Mask, affine: Affine, settings: ConfigDict) -> Implant:
    """Designs the implant of a defective skull of any size and orientation.

    settings: `config.predict`. Raises UserError where nothing of `dust_mm3` or more is predicted.
    """
    turn, size = grids.to_ras(affine, skull.shape), designer.size
    bone, ras = grids.turned(skull, turn), affine @ turn
    cube = not designer.reframe and _near(np.linalg.norm(affine[:3, :3], axis=0) * skull.shape)
    whole = bone if cube else vault.closed(bone, ras)
    frame, share = sources.prepare(bone, ras, size, reframe=not cube, whole=whole)
    pair = np.stack([share >= designer.threshold, np.zeros(share.shape, bool)], axis=-1)
    implant = implants.fit(designer.net(store.pack(pair)[None])[0], frame, bone, ras, settings)
    if not implant.any():
        raise UserError(
            f"no implant: the net found no hole of {settings.dust_mm3:g} mm^3 or more beside bone "
            "(predict.dust_mm3, predict.threshold); is this skull complete?"
        )
    numbers = implants.measure(implant, bone, ras, vault.middle(frame, size))
    covered = vault.covered(bone, ras, implant)
    numbers |= {"opening_covered": covered and round(covered, 3), "net": designer.about}
    return Implant(grids.turned(implant, np.linalg.inv(turn)), skull, affine, frame, numbers)


def save(implant: Implant, folder: Path, name: str, suffixes: list[str], draw: Callable) -> None:
    """Writes an implant: `<name>_implant` as volumes, as STL in LPS mm, its picture and numbers.

    suffixes: some of `volumes.WRITTEN`. draw: `(path, skull share, implant share, title=, note=)`.
    The numbers come first: by them a stopped call knows its files.
    """
    numbers, stl, png, *others = _paths(folder, name, suffixes)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(numbers, {"notice": NOTICE, **implant.numbers})
    for path in others:
        volumes.write(path, implant.mask, implant.affine)
    mesh.write_stl(stl, mesh.solid(implant.mask, implant.affine))
    turn, scale = grids.to_ras(implant.affine, implant.mask.shape), np.eye(4)
    ratio = FIELD_MM / PICTURE / np.linalg.norm(implant.frame[:3, 0])
    scale[:3] = np.column_stack([np.eye(3) * ratio, np.full(3, (ratio - 1) / 2)])
    grid = implant.affine @ turn, implant.frame @ scale, PICTURE
    shares = [grids.reduce(grids.turned(x, turn), *grid) for x in (implant.skull, implant.mask)]
    title = f"Research only, not a medical device: {name}"
    draw(png, *shares, title=title, note=describe(implant.numbers))


def _paths(folder, name, suffixes):
    return [folder / f"{name}_implant{ending}" for ending in (".json", ".stl", ".png", *suffixes)]


def describe(numbers: dict[str, Any]) -> str:
    """An implant in one line of words."""
    contact, share = numbers["rim_contact"], numbers["opening_covered"]
    closes, warning = f"covers {share or 0:.0%} of the opening as seen from within", ""
    if share is None:
        closes = "no opening of the vault above the orbits was found to compare it with"
        warning = " (warning: is there a hole?)"
    elif share < CLOSED:
        warning = " (warning: part of it stays open)"
    if contact < LOOSE:
        warning = (
            " (warning: it does not fill the hole; is the face where the file's axes say it is?)"
        )
    sizes = [f"{piece['volume_ml']:.1f}" for piece in numbers["pieces"]]
    what = "implant" if len(sizes) == 1 else f"{len(sizes)} implants ({' and '.join(sizes)} ml)"
    return (
        f"{what} of {numbers['volume_ml']:.1f} ml, {numbers['extent_mm']:.0f} mm across, on bone "
        f"along {contact:.0%} of its outline, {closes}{warning}"
    )


def run(config: ConfigDict, workdir: Path, draw: Callable) -> None:
    """Designs an implant for each file of `config.predict.file` into `predictions/`.

    draw: as of `save`. A file that cannot be used is listed at the end, and the others go on.
    Raises UserError where none can.
    """
    settings, todo = config.predict, skull_files(config.predict.file)
    folder = Path(settings.folder) if settings.folder else workdir / "predictions"
    names = list(map(volumes.name_of, todo))
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"predict.file: two files are called {twice[0]}: rename one")
    if settings.weights:
        workdir = release.place(settings.weights)
        config = methods.load_config(workdir)
        config.predict = settings
    net, refused = designer(config, workdir), []
    name, mm = net.about["name"], net.about["voxel_mm"]
    if not settings.net and name != judges.NETS[0]:
        print(f"{workdir}: {name} is its only net: it is taken")
    pairs = f"voxels of {mm:.3g} mm, pairs of {net.about['pairs_of']}"
    print(plain(f"{name}: {pairs}: look at each picture before you trust an implant"))
    with jobs.progress(len(todo), 0, "predict", "skull") as bar:
        for path, name in zip(todo, names, strict=True):
            jobs.check()
            try:
                words = _design_file(net, path, config, (folder, name), draw)
                bar.write(plain(f"{name}: {words}"))
            except UserError as error:
                refused.append(str(error))
            bar.update()
    if len(refused) == len(todo):
        several = f"{len(refused)} files, and none can be used, the first: "
        raise UserError(several * (len(refused) > 1) + refused[0])
    print(f"{folder}: {len(todo) - len(refused)} skulls. {NOTICE}")
    if refused:
        print("\n".join([f"left out, {len(refused)} of {len(todo)} files:", *refused]))


def _design_file(net, path, config, place, draw):
    """Designs and saves the implant of a file, where it is not there; returns words for it.

    place: the folder and the name. UserError where it would write over another.
    """
    settings, most = config.predict, config.data.max_voxels
    own = [suffix for suffix in volumes.WRITTEN if path.name.lower().endswith(suffix)]
    suffixes = plugins.listed(settings.suffixes) or own or [".nrrd"]
    recipe = {"net": net.about, "made_of": _made_of(path, settings, most)}
    numbers, *others = _paths(*place, suffixes)
    before = files.read_json(numbers)
    if before:
        own = {name: before[name] for name in recipe if name in before}
        provenance.require_same(numbers, own, recipe)
        if all(other.exists() for other in others):
            return "is made already"
    else:
        for other in (other for other in others if other.exists()):
            raise UserError(f"{other}: is there, and not ours: choose another predict.folder")
    implant = predict(net, path, settings, most)
    implant.numbers.update(recipe)
    save(implant, *place, suffixes, draw)
    return describe(implant.numbers)


def _made_of(path, settings, max_voxels):
    """What determines an implant beside the net: the file and the settings."""
    digest = hashlib.sha256()
    for part in volumes.describe(path, max_voxels).files:
        digest.update(part.read_bytes())
    names = ("bone_hu", "label", "threshold", "dust_mm3", "pieces")
    used = {name: settings[name] for name in names}
    return {"file": path.name, "sha256": digest.hexdigest(), "settings": used}
