"""An implant for a real skull: a V-Net's answer at the scan's own grid, and what it measures.

A scan is brought to the net as skulls are for training (`sources.prepare`); the implant lies on the
voxels of the scan's file. Research only: not a medical device.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skullgen.core import files, jobs
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import grids, sources, store, vault, volumes
from skullgen.data.grids import FIELD_MM
from skullgen.delivery import implants, mesh, release
from skullgen.evaluation import judges, verdict
from skullgen.report import figures
from skullgen.training import checkpoint, trained
from skullgen.training.methods import Trained

NOTICE = "Research only. Not a medical device: not for diagnosis, planning or treatment."
SUFFIXES = (".nrrd", ".nii.gz", ".nii")
LOOSE = 0.6  # of its outline on bone: an implant with less does not close its hole
CLOSED = 0.95  # of the opening: with less, part of it stays open
SOURCES = {"phantom": "phantoms", "skulls": "skulls of data.root", "skullbreak": "SkullBreak"}
PICTURE = 128  # voxels a side of what is drawn


class Designer(NamedTuple):
    """A trained net and how skulls were brought to it.

    net: packed pairs [n, bytes] -> probability float32 [n, D, D, D] (`verdict.network`). size:
    `D`. threshold: the share of bone that made a voxel bone. reframe: skulls were placed in the
    frame, not taken in their own cube. about: what the net is, for the record.
    """

    net: Callable[[np.ndarray], np.ndarray]
    size: int
    threshold: float
    reframe: bool
    about: dict


class Implant(NamedTuple):
    """A designed implant and the skull it is for, on the scan's own voxels.

    mask, skull: bool [X, Y, Z] in the file's order. affine: [4, 4], voxel -> RAS mm. frame: [4, 4],
    voxel of the model's grid -> RAS mm. numbers: those of `implants.measure`, and what the net is.
    """

    mask: np.ndarray
    skull: np.ndarray
    affine: np.ndarray
    frame: np.ndarray
    numbers: dict


def check(config, names, workdir):
    """UserError for what `config.predict` names that is not there, nor made by stages `names`."""
    settings = config.predict
    if settings.net:
        one_of("predict.net", settings.net, judges.NETS)
    for suffix in _listed(settings.suffixes):
        one_of("predict.suffixes", suffix, SUFFIXES)
    files(settings.file)
    if not settings.weights and "segment" in names:
        return
    folder = release.place(settings.weights) if settings.weights else workdir
    try:
        judges.choose(folder, settings.net)
    except judges.Unfinished as error:
        weights = not settings.weights and config.get("generate", {}).get("weights")
        more = f", or set predict.weights={weights}, too: generate.weights only makes pairs"
        raise UserError(f"{error}{more if weights else ''}") from None


def files(named):
    """The skull files that `predict.file` names: files and folders of them, comma-separated.

    Raises UserError where it names none, or a place that is not there.
    """
    found = []
    for place in map(Path, _listed(named)):
        if not place.exists():
            raise UserError(f"{place}: no such file or folder (predict.file): check the path")
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        inside = [p for p in inside if p.name.lower().endswith(volumes.SUFFIXES) and not p.is_dir()]
        if not inside:
            raise UserError(f"{place}: holds no skull ({', '.join(volumes.SUFFIXES)})")
        found += inside
    if not found:
        raise UserError("predict.file is empty: name a defective skull, --config.predict.file=FILE")
    return found


def _listed(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def designer(config, workdir):
    """The V-Net `config.predict.net` of a work directory (`judges.choose`): `Designer`.

    Raises UserError where it is not trained, or on skulls in a frame that no scan is brought to.
    """
    name = judges.choose(workdir, config.predict.net)
    size, real = config.model.resolution, workdir / "real.zarr"
    model, state = judges.newest(config.segment, size, workdir, name)
    data, updates = config.data, int(state.step)
    if store.exists(real):  # which another run may have made
        data = store.Store(real).recipe.get("config", data)
        field = store.Store(real).attrs["voxel_mm"] * size
        if not _near(field):
            what = f"{name} was trained on cubes of {field:.1f} mm, and scans are brought to"
            raise UserError(f"{real}: {what} {FIELD_MM} mm: train on such pairs")
    if updates < config.segment.updates:
        print(f"warning: {name} is of update {updates} of {config.segment.updates}")
    weights = checkpoint.fingerprint(state)
    about = {"name": name, "updates": updates, "weights": weights, "voxel_mm": FIELD_MM / size}
    about["pairs_of"] = SOURCES.get(data["source"], data["source"])
    own_cube = data["source"] == "skullbreak" or not data["reframe"]
    net = verdict.network(Trained(model, state), size, 1)
    return Designer(net, size, data["threshold"], not own_cube, about)


def predict(designer, path, settings, max_voxels=volumes.MAX_VOXELS):
    """Designs the implant of the skull in a file: `Implant`.

    The file is a mask, or of `settings` (`config.predict`) where `bone_hu` is not 0 a CT, and where
    `label` is not 0 a segmentation. Raises UserError for a file that cannot be used, and as
    `design`.
    """
    path = Path(path)
    skull = sources.read(path, settings.bone_hu, settings.label, max_voxels)
    try:
        return design(designer, skull.data, skull.affine, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def design(designer, skull, affine, settings):
    """Designs the implant of a defective skull: `Implant`.

    skull: bool [X, Y, Z], of any size and orientation; affine: [4, 4], voxel -> RAS mm. settings:
    `config.predict`. Raises UserError where nothing of `dust_mm3` or more is predicted.
    """
    turn, size = grids.to_ras(affine, skull.shape), designer.size
    bone, ras = grids.turned(skull, turn), affine @ turn
    own_cube = not designer.reframe and _near(np.linalg.norm(affine[:3, :3], axis=0) * skull.shape)
    whole = bone if own_cube else vault.closed(bone, ras)
    frame, share = sources.prepare(bone, ras, size, reframe=not own_cube, whole=whole)
    pair = np.stack([share >= designer.threshold, np.zeros(share.shape, bool)], axis=-1)
    implant = implants.fit(designer.net(store.pack(pair)[None])[0], frame, bone, ras, settings)
    if not implant.any():
        raise UserError(
            f"no implant: the net found no hole of {settings.dust_mm3:g} mm^3 or more beside bone "
            "(predict.dust_mm3, predict.threshold); is this skull complete?"
        )
    numbers = implants.measure(implant, bone, ras, vault.middle(frame, size))
    share = vault.covered(bone, ras, implant)
    numbers = {**numbers, "opening_covered": share and round(share, 3), "net": designer.about}
    mask = grids.turned(implant, np.linalg.inv(turn))
    return Implant(mask, skull, affine, frame, numbers)


def _near(field_mm):
    """Whether sides in mm are those of the models' frame, or of SkullBreak's cube."""
    return np.abs(np.asarray(field_mm) - FIELD_MM).max() < 0.01 * FIELD_MM


def save(implant, folder, name, suffixes):
    """Writes an implant: `<name>_implant` as volumes and STL, its picture and its numbers.

    suffixes: of the volumes, some of `SUFFIXES`. The STL is in LPS mm (`mesh.write_stl`). Returns
    the paths. Raises UserError for a place that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    *masks, stl, png, told = _paths(folder, name, suffixes)
    for path in masks:
        volumes.write(path, implant.mask, implant.affine)
    mesh.write_stl(stl, mesh.solid(implant.mask, implant.affine))
    turn, scale = grids.to_ras(implant.affine, implant.mask.shape), np.eye(4)
    ras, side = implant.affine @ turn, np.linalg.norm(implant.frame[:3, 0])
    ratio = FIELD_MM / PICTURE / side
    scale[:3] = np.column_stack([np.eye(3) * ratio, np.full(3, (ratio - 1) / 2)])
    shares = [
        grids.reduce(grids.turned(part, turn), ras, implant.frame @ scale, PICTURE)
        for part in (implant.skull, implant.mask)
    ]
    title = f"Research only, not a medical device: {name}"
    figures.implant_sheet(png, *shares, title=title, note=describe(implant))
    text = json.dumps({"notice": NOTICE, **implant.numbers}, indent=2)
    files.replace(told, f"{text}\n".encode())
    return [*masks, stl, png, told]


def _paths(folder, name, suffixes):
    endings = (*suffixes, ".stl", ".png", ".json")
    return [folder / f"{name}_implant{ending}" for ending in endings]


def describe(implant):
    """An implant in one line of words."""
    found, share = implant.numbers, implant.numbers["opening_covered"]
    closes = "no opening of the vault above the orbits was found to compare it with"
    if share is not None:
        closes = f"covers {share:.0%} of the opening as seen from within"
    loose = "it does not fill the hole; is the face where the file's axes say it is?"
    told = "part of it stays open" if share is not None else "is there a hole?"
    told = loose if found["rim_contact"] < LOOSE else told
    warned = found["rim_contact"] < LOOSE or share is None or share < CLOSED
    sizes = [f"{piece['volume_ml']:.1f}" for piece in found["pieces"]]
    what = "implant" if len(sizes) == 1 else f"{len(sizes)} implants ({' and '.join(sizes)} ml)"
    return (
        f"{what} of {found['volume_ml']:.1f} ml, {found['extent_mm']:.0f} mm across, on bone along "
        f"{found['rim_contact']:.0%} of its outline, {closes}{f' (warning: {told})' * warned}"
    )


def run(config, workdir):
    """Designs an implant for each file of `config.predict.file` into `predictions/`.

    A file that cannot be used is listed at the end, and the others go on. Raises UserError where
    none can.
    """
    settings, todo = config.predict, files(config.predict.file)
    folder = Path(settings.folder) if settings.folder else workdir / "predictions"
    names = [re.sub(r"\.[^.]+(\.gz)?$", "", path.name, flags=re.I) for path in todo]
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise UserError(f"predict.file: two files are called {doubled[0]}: rename one")
    if settings.weights:
        workdir = release.place(settings.weights)
        config = trained.config(workdir)
        config.predict = settings
    made, most, left = designer(config, workdir), config.data.max_voxels, []
    if not settings.net and made.about["name"] != judges.NETS[0]:
        print(f"{workdir}: {made.about['name']} is its only net: it is taken")
    net = f"{made.about['name']}: voxels of {made.about['voxel_mm']:.3g} mm, pairs of "
    print(plain(f"{net}{made.about['pairs_of']}: look at each picture before you trust an implant"))
    with jobs.progress(len(todo), 0, "predict", "skull") as bar:
        for path, name in zip(todo, names, strict=True):
            jobs.check()
            try:
                suffixes = _listed(settings.suffixes) or [_suffix_of(path)]
                wanted = {"net": made.about, "made_of": _made_of(path, settings, most)}
                if _is_made(folder, name, suffixes, wanted):
                    bar.write(plain(f"{name}: is made already"))
                else:
                    implant = predict(made, path, settings, most)
                    implant.numbers.update(wanted)
                    save(implant, folder, name, suffixes)
                    bar.write(plain(f"{name}: {describe(implant)}"))
            except UserError as error:
                left.append(str(error))
            bar.update()
    if len(left) == len(todo):
        several = f"{len(left)} files, and none can be used, the first: "
        raise UserError(several * (len(left) > 1) + left[0])
    print(f"{folder}: {len(todo) - len(left)} skulls. {NOTICE}")
    if left:
        print("\n".join([f"left out, {len(left)} of {len(todo)} files:", *left]))


def _suffix_of(path):
    """The suffix of an implant's volume: the scan's own, where such files are written."""
    suffix = ".nrrd" if path.is_dir() else volumes.suffix_of(path)
    return suffix if suffix in volumes.WRITTEN else ".nrrd"


def _made_of(path, settings, max_voxels):
    """What determines an implant beside the net: the file and the settings."""
    content = b"".join(file.read_bytes() for file in volumes.describe(path, max_voxels).files)
    sha256 = hashlib.sha256(content).hexdigest()
    names = ("bone_hu", "label", "threshold", "dust_mm3", "pieces")
    used = {name: settings[name] for name in names}
    return {"file": path.name, "sha256": sha256, "settings": used}


def _is_made(folder, name, suffixes, wanted):
    """Whether `save` wrote this implant before, whole: its numbers are the last that it writes."""
    *others, told = _paths(folder, name, suffixes)
    if not told.exists() or not all(path.exists() for path in others):
        return False
    try:
        held = json.loads(told.read_text())
        return all(held.get(field) == value for field, value in wanted.items())
    except (ValueError, AttributeError):
        return False
