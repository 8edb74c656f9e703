"""Where pairs come from: SkullBreak's files, complete skulls, phantoms, each planned as cases.

Shapes: `D` voxels a side of the model's grid. A plan lists a source's cases in order, each with
its files, kind, skull and split; a worker process makes a case's pairs.
"""

import contextlib
import hashlib
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from skullgen.core.errors import UserError
from skullgen.data import defects, grids, headers, kinds, phantom, store, volumes

NATIVE_SIDE = 128  # voxels a side at which phantoms are grown and cut
SIDES = ("defective_skull", "implant")
GAP_MM = 3.0  # an implant may lie this far from its skull, as ones made with a tolerance do
OVERLAP = 0.1  # of an implant may be in its skull, too: borders of masks that were resampled


class Case(NamedTuple):
    """One task for a worker: `make(*arguments)` returns a list of pairs, one for each kind."""

    make: Any
    arguments: tuple
    kinds: tuple[int, ...]
    skull: int


class Plan(NamedTuple):
    """What a source holds.

    cases: in the order of the store. names: of the skulls. split: name -> index of
    `store.SPLITS`. sources: file -> SHA-256. problems: lines about files missing or not used.
    field_mm: the side of the cube that is made `D` voxels. kinds: names of `Case.kinds`.
    """

    cases: list[Case]
    names: list[str]
    split: dict[str, int]
    sources: dict[str, str]
    problems: list[str]
    field_mm: float = grids.FIELD_MM
    kinds: tuple[str, ...] = defects.KINDS


class Pair(NamedTuple):
    """One pair: packed bits, affine [4, 4], native truth (`store.write`), and two counts."""

    bits: np.ndarray
    affine: np.ndarray
    native: dict
    ties: int  # voxels in both channels
    redraws: int  # defects drawn before one that did not vanish at the model's grid


# --- SkullBreak: the dataset's own layout, never reframed -------------------------------------


def _plan_skullbreak(size, config):
    root = _folder(config.root, "the folder that holds SkullBreak's train/ and test/")
    for name in filter(config.get, ("test", "validation", "folds", "kinds", "bone_hu", "label")):
        raise UserError(
            f"data.{name} is not for data.source=skullbreak, whose masks are cut and split "
            "already: leave it empty"
        )
    cases, names, split, sources, problems = [], [], {}, {}, []
    for part, place in (("train", 0), ("test", 2)):
        folder = root / part
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        sides = [f"{side}/{kind}" for side in SIDES for kind in defects.KINDS]
        used = [p for p in map(Path, found) if p.parent.as_posix() in sides]
        numbers = sorted({p.stem for p in used if p.suffix == ".nrrd"})
        expected = set()
        for number in numbers:
            expected.add(f"complete_skull/{number}.nrrd")
            name = f"{part}_{number}"
            usable = []
            for kind, title in enumerate(defects.KINDS):
                files = [f"{side}/{title}/{number}.nrrd" for side in SIDES]
                expected.update(files)
                if all(file in found for file in files):
                    usable.append((kind, files))
            if not usable:
                continue
            names.append(name)
            split[name] = place
            for kind, files in usable:
                paths = [str(folder / file) for file in files]
                arguments = (*paths, size, config.threshold, config.max_voxels)
                cases.append(Case(_skullbreak_pair, arguments, (kind,), len(names) - 1))
                sources.update(
                    {f"{part}/{f}": _sha256(folder / f, config.max_voxels) for f in files}
                )
        for side in ("complete_skull", *sides):
            lost = sorted(f"{part}/{f}" for f in expected - found if f.startswith(f"{side}/"))
            more = f", and {len(lost) - 1} more of its folder" * (len(lost) > 1)
            problems += [f"{lost[0]} is missing{more}"] if lost else []
        problems += [f"{part}/{name} is not SkullBreak's" for name in sorted(found - expected)]
    field_mm = _field_mm([case.arguments[0] for case in cases], config.max_voxels)
    return Plan(cases, names, split, sources, problems, field_mm)


def _field_mm(paths, max_voxels):
    """The side in mm of the cube that the first file's voxels fill of those that can be read."""
    for path in paths:
        with contextlib.suppress(UserError):  # which its worker raises again
            source = headers.read_source(Path(path), max_voxels)
            return _side_mm(source.affine, source.shape)
    return grids.FIELD_MM


def _side_mm(affine, shape):
    """The side in mm of the cube that voxels fill; raises UserError where it is no cube."""
    sides = np.linalg.norm(affine[:3, :3], axis=0) * shape
    if np.ptp(sides) > 0.01 * sides.max():
        raise UserError(
            f"{sides.round(1).tolist()} mm is no cube, as SkullBreak's are: "
            "resample it, or set config.data.reframe of complete skulls"
        )
    return float(sides.mean())


def _skullbreak_pair(defective_path, implant_path, size, threshold, max_voxels):
    """Reduces one pair by block means; at a threshold under 0.5 bone goes to the larger share."""
    defective, implant = (
        volumes.read_reduced(path, size, keep_native=True, max_voxels=max_voxels)
        for path in (defective_path, implant_path)
    )
    _check_pair(defective, implant, defective_path, implant_path)
    shares = [part.counts / np.float32(implant.factor**3) for part in (defective, implant)]
    if threshold >= 0.5:
        pair = np.stack([share >= threshold for share in shares], axis=-1)
    else:
        pair = np.stack(grids.split_share(shares[0] + shares[1], shares[1], threshold), axis=-1)
    if not pair[..., 1].any():
        raise UserError(
            f"{implant_path}: vanishes at {size}^3 and data.threshold={threshold}: lower it"
        )
    ties = int(np.sum(pair[..., 0] & pair[..., 1]))
    native = store.Native(*implant.crop, implant.shape, implant.native_affine)
    return [Pair(store.pack(pair), implant.affine, native, ties, 0)]


def _check_pair(defective, implant, defective_path, implant_path):
    """Raises UserError unless two `volumes.Reduced` may be a skull and what was cut out of it."""
    if defective.shape != implant.shape or not np.allclose(defective.affine, implant.affine):
        raise UserError(f"{implant_path}: its grid is not that of {defective_path}")
    try:
        _side_mm(implant.affine, implant.counts.shape)
    except UserError as error:
        raise UserError(f"{implant_path}: {error}") from None
    volumes = [int(part.counts.sum(dtype=np.int64)) for part in (defective, implant)]
    if volumes[1] > volumes[0]:
        raise UserError(f"{implant_path}: larger than {defective_path}: are the two swapped?")
    both = 0
    if np.array_equal(defective.turn, implant.turn):  # else only whole blocks are compared
        both = int(np.bitwise_count(defective.packed & implant.packed).sum(dtype=np.int64))
    crowded = (defective.counts.astype(np.uint32) + implant.counts).max() > implant.factor**3
    if crowded or both > OVERLAP * volumes[1]:
        raise UserError(f"{implant_path}: overlaps {defective_path}: they are no pair")
    # On the model's grid, any bone counts: thin bone touches there, too.
    bone = implant.counts > 0
    reach = max(1, round(GAP_MM / np.linalg.norm(implant.affine[:3, 0])))
    sides = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in grids.box(bone))
    near = ndimage.binary_dilation(bone[sides], np.ones((3, 3, 3)), iterations=reach)
    if not (near & (defective.counts[sides] > 0)).any():
        raise UserError(f"{implant_path}: does not touch {defective_path}: they are no pair")


# --- Complete skulls, files or phantoms, cut by defects.py -------------------------------------


def _plan_skulls(size, config):
    root = _folder(config.root, "a folder of complete skulls (.nrrd, .nii.gz)")
    # A link to nothing is a skull that cannot be read: it must not be left out in silence.
    files = sorted(
        p for p in root.iterdir() if p.name.lower().endswith(volumes.SUFFIXES) and not p.is_dir()
    )
    names = [re.sub(r"\.[^.]+(\.gz)?$", "", file.name, flags=re.I) for file in files]
    if not names:
        raise UserError(f"{root}: holds no skull ({', '.join(volumes.SUFFIXES)})")
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise UserError(f"{root}: two files are called {doubled[0]}: rename one")
    split, titles = assign(names, config), kinds.named_by(config)
    how = config.bone_hu, config.label, config.max_voxels
    cases = [
        Case(
            _cut_file,
            (str(file), *how, *_recipe(name, size, config)),
            tuple(range(len(titles))) * config.cuts,
            number,
        )
        for number, (file, name) in enumerate(zip(files, names, strict=True))
    ]
    voxels = set()
    for file in files:
        with contextlib.suppress(UserError):  # which its worker raises again
            if file.suffix.lower() == ".nhdr":
                voxels.add(headers.read_source(file, config.max_voxels).data)
    sources = {
        file.relative_to(root).as_posix(): _sha256(file, config.max_voxels)
        for file in [*files, *sorted(voxels)]
    }
    surplus = sorted(p.name for p in root.iterdir() if p.name not in sources)
    problems = [f"{name} is no {', '.join(volumes.SUFFIXES)} file" for name in surplus]
    return Plan(cases, names, split, sources, problems, kinds=titles)


def _plan_phantom(size, config):
    names = [f"phantom_{number:04d}" for number in range(config.skulls)]
    titles = kinds.named_by(config)
    cases = [
        Case(
            _cut_phantom,
            (_seed(config.seed, name), NATIVE_SIDE, *_recipe(name, size, config)),
            tuple(range(len(titles))) * config.cuts,
            number,
        )
        for number, name in enumerate(names)
    ]
    return Plan(cases, names, assign(names, config), {}, [], kinds=titles)


def _recipe(name, size, config):
    turns = range(config.first_cut, config.first_cut + config.cuts)
    return name, size, config.threshold, turns, config.seed, config.reframe, kinds.named_by(config)


def _cut_file(path, bone_hu, label, max_voxels, *recipe):
    skull = read(path, bone_hu, label, max_voxels)
    try:
        return cut_skull(skull.data, skull.affine, *recipe)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _cut_phantom(seed, side, *recipe):
    return cut_skull(phantom.skull(seed, side), phantom.affine(side), *recipe)


def read(path, bone_hu, label, max_voxels):
    """A skull's `volumes.Volume` in RAS order: of a mask, a `label`, or a CT at `bone_hu`; 0: none.

    Raises UserError as `volumes.read`, and where all is bone.
    """
    skull = volumes.read(path, bone_hu=bone_hu or None, label=label or None, max_voxels=max_voxels)
    if skull.data.all():
        raise UserError(f"{path}: is bone everywhere: give a mask whose voxels are 0 around it")
    return skull


def prepare(skull, affine, size, *, reframe=True, whole=None):
    """Brings a skull to the models' grid: one way for training and for prediction.

    skull: bool [X, Y, Z] at its own grid, RAS; affine: [4, 4], voxel to RAS mm; size: `D`.
    reframe: place it in the frame (`grids.frame`); False: its own cube is the frame, as in
    SkullBreak. whole: what the frame is placed on, where that is more than the skull.

    Returns the grid's affine [4, 4] and the share of bone in its voxels, float32 [D, D, D]: bone is
    where that is `data.threshold` or more. Raises UserError as `grids.frame`, or for no cube.
    """
    whole = skull if whole is None else whole
    model = grids.frame(whole, affine, size) if reframe else _cube(skull, affine, size)
    return model, grids.reduce(skull, affine, model, size)


def cut_skull(
    complete, affine, name, size, threshold, turns, seed, reframe=True, titles=defects.KINDS
):
    """Cuts one skull into each kind, once for each turn: natively, then reduced.

    complete: bool [X, Y, Z] at its own grid, RAS. affine: [4, 4], voxel to RAS mm. turns: numbers
    of the cuts; each draws its defects anew. reframe: place the skull in the frame
    (`grids.frame`); False: the file's own cube is the frame, as in SkullBreak.
    Each bone voxel of the model's grid goes to the channel with the larger share, so that
    `defective | implant == complete` and `defective & implant == 0` hold there too. A defect
    that vanishes at the model's grid is drawn again, larger.

    Returns a list of `Pair`, the kinds in order, for each turn. Raises UserError where no defect
    of a kind can be placed.
    """
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    model, share = prepare(complete, affine, size, reframe=reframe)
    pairs = []
    for turn in turns:
        for kind in titles:
            for attempt in range(8):
                number = _seed(seed, f"{name} {kind} {turn} {attempt}")
                area = (10 * 1.4**attempt, 150)
                _, implant = kinds.cut(complete, kind, number, voxel_mm=voxel_mm, area_cm2=area)
                part = grids.reduce(implant, affine, model, size)
                pair = np.stack(grids.split_share(share, part, threshold), axis=-1)
                if pair[..., 1].any():
                    break
            else:
                raise UserError(
                    f"{kind} defects vanish at {size}^3: lower data.threshold ({threshold})"
                )
            native = store.Native(*volumes.pack(implant), complete.shape, affine)
            pairs.append(Pair(store.pack(pair), model, native, 0, attempt))
    return pairs


def _cube(complete, affine, size):
    """The affine of `size` voxels a side over a file's own cube."""
    _side_mm(affine, complete.shape)
    scale = np.array(complete.shape) / size
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = np.diag(scale), (scale - 1) / 2
    return affine @ step


def assign(names, config):
    """The split of each skull: name -> index of `store.SPLITS`.

    By `config.test` and `config.validation` (comma-separated names) where either is given, else
    by seeded fractions `config.test_fraction` and `config.validation_fraction`; with
    `config.folds`, the test skulls are fold number `config.fold` of as many. Raises UserError for
    a name that no skull has, or where no skull is left to train on.
    """
    lists = [
        [name.strip() for name in text.split(",") if name.strip()]
        for text in (config.validation, config.test)
    ]
    unknown = [name for chosen in lists for name in chosen if name not in names]
    if unknown:
        raise UserError(f"data.test or data.validation names {unknown[0]!r}: no such skull")
    if any(lists) and config.folds:
        raise UserError("data.folds and data.test both say which skulls are for test: leave one")
    if not 0 <= config.fold < max(config.folds, 1):
        raise UserError(f"data.fold is {config.fold}: the folds are 0 to {config.folds - 1}")
    if not any(lists):
        order = np.random.default_rng([config.seed, 1]).permutation(sorted(names)).tolist()
        test = round(config.test_fraction * len(names))
        validation = round(config.validation_fraction * len(names))
        lists = [order[test : test + validation], order[:test]]
        if config.folds:
            fold = order[config.fold :: config.folds]
            lists = [[name for name in order if name not in fold][:validation], fold]
    split = dict.fromkeys(names, 0)
    split.update(dict.fromkeys(lists[0], 1))
    split.update(dict.fromkeys(lists[1], 2))
    if 0 not in split.values():
        raise UserError(
            f"{len(names)} skulls, and none is left to train on: "
            "lower data.test_fraction and data.validation_fraction, or give more skulls"
        )
    return split


PLANS = {"skullbreak": _plan_skullbreak, "skulls": _plan_skulls, "phantom": _plan_phantom}


def _folder(root, what):
    if not root:
        raise UserError(f"data.root is empty: give {what} by --config.data.root=FOLDER")
    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; --config.data.root must be {what}")
    return Path(root)


def _seed(*parts):
    """A seed from numbers and names: adding a skull changes no other's draws."""
    # A file's name may hold bytes that are no text: they come back as they were.
    return zlib.crc32(" ".join(map(str, parts)).encode("utf-8", "surrogateescape"))


def _sha256(path, max_voxels):
    """The SHA-256 of a file; of one that cannot be read, which its worker says, "unreadable".

    So is one of more bytes than the largest voxels take: it may be a terabyte of holes.
    """
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size <= 9 * max_voxels + 2 * headers.MAX_SKIP:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return "unreadable"
