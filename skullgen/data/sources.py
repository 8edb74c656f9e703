"""Where pairs come from: SkullBreak's files, complete skulls, phantoms, each planned as cases.

A plan lists a source's cases in order, each with its kinds, skull and split; a worker process makes
a case's pairs, of `D` voxels a side.
"""

import contextlib
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from scipy import ndimage

from skullgen.core import plugins
from skullgen.core.errors import UserError
from skullgen.data import defects, grids, phantom, store, volumes
from skullgen.data.grids import Affine, Mask
from skullgen.data.volumes import Volume

NATIVE_SIDE = 128  # voxels a side at which phantoms are grown and cut
SIDES = ("defective_skull", "implant")
GAP_MM = 3.0  # an implant may lie this far from its skull, as ones made with a tolerance do
OVERLAP = 0.1  # of an implant may be in its skull, too: borders of masks that were resampled


class Pair(NamedTuple):
    """One pair: its packed bits, affine and native truth, and two counts."""

    bits: UInt8[np.ndarray, " bytes"]
    affine: Affine
    native: store.Native | None
    ties: int  # voxels in both channels
    redraws: int  # defects drawn before one that did not vanish at the model's grid


class Case(NamedTuple):
    """One task for a worker: `make(*arguments)` returns a list of pairs, one for each kind."""

    make: Callable[..., list[Pair]]
    arguments: tuple
    kinds: tuple[int, ...]
    skull: int


class Plan(NamedTuple):
    """What a source holds."""

    cases: list[Case]  # in the order of the store
    names: list[str]  # of the skulls
    split: dict[str, int]  # name -> index of `store.SPLITS`
    sources: dict[str, str]  # file -> SHA-256
    problems: list[str]  # lines about files missing or not used
    field_mm: float = grids.FIELD_MM  # the side of the cube that is made `D` voxels
    kinds: tuple[str, ...] = defects.KINDS  # names of `Case.kinds`


class Cutting(NamedTuple):
    """How skulls are cut: see `cut_skull`."""

    size: int
    threshold: float
    turns: range
    seed: int
    reframe: bool = True
    kinds: tuple[str, ...] = defects.KINDS


# --- SkullBreak: the dataset's own layout, never reframed -------------------------------------


def _plan_skullbreak(size, config):
    root = _folder(config.root, "the folder that holds SkullBreak's train/ and test/")
    for name in filter(config.get, ("test", "validation", "folds", "kinds", "bone_hu", "label")):
        raise UserError(
            f"data.{name} is not for data.source=skullbreak, whose masks are cut and split "
            "already: leave it empty"
        )
    plan = Plan([], [], {}, {}, [])
    for part in ("train", "test"):
        _add_part(plan, root / part, size, config)
    for case in plan.cases:
        with contextlib.suppress(UserError):  # which its worker raises again
            source = volumes.describe(case.arguments[0], config.max_voxels)
            return plan._replace(field_mm=_side_mm(source.affine, source.shape))
    return plan


def _add_part(plan, folder, size, config):
    """Add the pairs of `train` or `test` to a plan."""
    part = folder.name
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    sides = [f"{side}/{kind}" for side in SIDES for kind in defects.KINDS]
    used = [p for p in map(Path, found) if p.parent.as_posix() in sides]
    expected = set()
    for number in sorted({p.stem for p in used if p.suffix == ".nrrd"}):
        pairs = [[f"{side}/{kind}/{number}.nrrd" for side in SIDES] for kind in defects.KINDS]
        expected.update([f"complete_skull/{number}.nrrd"], *pairs)
        usable = [kind for kind, files in enumerate(pairs) if found.issuperset(files)]
        if not usable:
            continue
        plan.names.append(f"{part}_{number}")
        plan.split[plan.names[-1]] = 0 if part == "train" else 2
        for kind in usable:
            paths = [folder / file for file in pairs[kind]]
            arguments = (*paths, size, config.threshold, config.max_voxels)
            case = Case(_skullbreak_pair, arguments, (kind,), len(plan.names) - 1)
            plan.cases.append(case)
            for file in pairs[kind]:
                plan.sources[f"{part}/{file}"] = _sha256(folder / file, config.max_voxels)
    for side in ("complete_skull", *sides):
        lost = sorted(f"{part}/{f}" for f in expected - found if f.startswith(f"{side}/"))
        more = f", and {len(lost) - 1} more of its folder" * (len(lost) > 1)
        plan.problems.extend([f"{lost[0]} is missing{more}"] if lost else [])
    plan.problems.extend(f"{part}/{n} is not SkullBreak's" for n in sorted(found - expected))


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
    paths, masks, blocks = (defective_path, implant_path), [], []
    for path in paths:
        masks.append(volumes.in_ras(volumes.read(path, max_voxels=max_voxels)))
        with _named(path):
            blocks.append(volumes.count_blocks(masks[-1], size))
    with _named(implant_path):
        _check_pair(masks, blocks, defective_path)
    shares = [part.counts / np.float32(part.factor**3) for part in blocks]
    if threshold >= 0.5:
        pair = np.stack([share >= threshold for share in shares], axis=-1)
    else:
        pair = np.stack(grids.split_share(shares[0] + shares[1], shares[1], threshold), axis=-1)
    if not pair[..., 1].any():
        raise UserError(
            f"{implant_path}: vanishes at {size}^3 and data.threshold={threshold}: lower it"
        )
    ties = int(np.sum(pair[..., 0] & pair[..., 1]))
    return [Pair(store.pack(pair), blocks[1].affine, _native(*masks[1]), ties, 0)]


def _check_pair(masks, blocks, defective_path):
    """Raises UserError unless two masks may be a skull and what was cut out of it."""
    defective, implant = (part.data for part in masks)
    if defective.shape != implant.shape or not np.allclose(blocks[0].affine, blocks[1].affine):
        raise UserError(f"its grid is not that of {defective_path}")
    _side_mm(masks[1].affine, implant.shape)
    bone = [np.count_nonzero(part) for part in (defective, implant)]
    if bone[1] > bone[0]:
        raise UserError(f"larger than {defective_path}: are the two swapped?")
    crowded = (blocks[0].counts.astype(np.uint32) + blocks[1].counts).max() > blocks[0].factor ** 3
    if crowded or np.count_nonzero(defective & implant) > OVERLAP * bone[1]:
        raise UserError(f"overlaps {defective_path}: they are no pair")
    # On the model's grid, any bone counts: thin bone touches there, too.
    skull, piece = (part.counts > 0 for part in blocks)
    reach = max(1, round(GAP_MM / np.linalg.norm(blocks[1].affine[:3, 0])))
    sides = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in grids.box(piece))
    near = ndimage.binary_dilation(piece[sides], np.ones((3, 3, 3)), iterations=reach)
    if not (near & skull[sides]).any():
        raise UserError(f"does not touch {defective_path}: they are no pair")


# --- Complete skulls, files or phantoms, cut by defects.py -------------------------------------


def _plan_skulls(size, config):
    root = _folder(config.root, "a folder of complete skulls (.nrrd, .nii.gz)")
    scans = volumes.scans(root)
    names = [volumes.name_of(scan) for scan in scans]
    if not names:
        raise UserError(f"{root}: holds no skull ({', '.join(volumes.SUFFIXES)})")
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise UserError(f"{root}: two files are called {doubled[0]}: rename one")
    split, how = assign(names, config), _cutting(size, config)
    reading = config.bone_hu, config.label, config.max_voxels
    kinds = tuple(range(len(how.kinds))) * config.cuts
    cases = [
        Case(_cut_file, (scan, *reading, name, how), kinds, number)
        for number, (scan, name) in enumerate(zip(scans, names, strict=True))
    ]
    files = list(scans)
    for scan in scans:
        with contextlib.suppress(UserError):  # which its worker raises again
            files += volumes.describe(scan, config.max_voxels).files
    sources = {
        file.relative_to(root).as_posix(): _sha256(file, config.max_voxels)
        for file in dict.fromkeys(files)
    }
    surplus = sorted(p.name for p in root.iterdir() if p not in files)
    problems = [f"{name} is no {', '.join(volumes.SUFFIXES)} file" for name in surplus]
    return Plan(cases, names, split, sources, problems, kinds=how.kinds)


def _plan_phantom(size, config):
    names = [f"phantom_{number:04d}" for number in range(config.skulls)]
    how = _cutting(size, config)
    kinds = tuple(range(len(how.kinds))) * config.cuts
    cases = [
        Case(_cut_phantom, (_seed(config.seed, name), NATIVE_SIDE, name, how), kinds, number)
        for number, name in enumerate(names)
    ]
    return Plan(cases, names, assign(names, config), {}, [], kinds=how.kinds)


def _cutting(size, config):
    turns = range(config.first_cut, config.first_cut + config.cuts)
    kinds = defects.kinds_of(config)
    return Cutting(size, config.threshold, turns, config.seed, config.reframe, kinds)


def _cut_file(path, bone_hu, label, max_voxels, name, how):
    skull = volumes.in_ras(read(path, bone_hu, label, max_voxels))
    with _named(path):
        return cut_skull(*skull, name, how)


def _cut_phantom(seed, side, name, how):
    return cut_skull(phantom.skull(seed, side), phantom.affine(side), name, how)


def read(path: Path, bone_hu: float, label: int, max_voxels: int) -> Volume:
    """A skull in its file's order: of a mask, a `label`, or a CT at `bone_hu`; 0: none.

    Raises UserError as `volumes.read`, and where all is bone.
    """
    skull = volumes.read(path, bone_hu=bone_hu or None, label=label or None, max_voxels=max_voxels)
    if skull.data.all():
        raise UserError(f"{path}: is bone everywhere: give a mask whose voxels are 0 around it")
    return skull


def prepare(
    skull: Mask, affine: Affine, size: int, *, reframe: bool = True, whole: Mask | None = None
) -> tuple[Affine, Float[np.ndarray, "D D D"]]:
    """Brings a skull in RAS order to the models' grid: one way for training and for prediction.

    reframe: place it in the frame (`grids.frame`); False: its own cube is the frame, as in
    SkullBreak. whole: what the frame is placed on, where that is more than the skull.

    Returns the grid's affine and the share of bone in its voxels: bone is where that is
    `data.threshold` or more. Raises UserError as `grids.frame`, or for no cube.
    """
    whole = skull if whole is None else whole
    model = grids.frame(whole, affine, size) if reframe else _cube(skull, affine, size)
    return model, grids.reduce(skull, affine, model, size)


def cut_skull(complete: Mask, affine: Affine, name: str, how: Cutting) -> list[Pair]:
    """Cuts one skull in RAS order into each kind, once for each turn: natively, then reduced.

    Each turn draws its defects anew. Each bone voxel of the model's grid goes to the channel with
    the larger share, so that `defective | implant == complete` and `defective & implant == 0` hold
    there too. A defect that vanishes at the model's grid is drawn again, larger.

    Returns the kinds in order, for each turn. Raises UserError where no defect of a kind can be
    placed.
    """
    model, share = prepare(complete, affine, how.size, reframe=how.reframe)
    shares = Volume(share, model)
    return [
        _cut_once(Volume(complete, affine), shares, f"{name} {kind} {turn}", kind, how)
        for turn in how.turns
        for kind in how.kinds
    ]


def _cut_once(skull, shares, draw, kind, how):
    """One pair of a skull, whose shares on the model's grid are given; `draw` names its seeds."""
    voxel_mm = np.linalg.norm(skull.affine[:3, :3], axis=0)
    for attempt in range(8):
        number, area = _seed(how.seed, f"{draw} {attempt}"), (10 * 1.4**attempt, 150.0)
        _, implant = defects.cut(skull.data, kind, number, voxel_mm=voxel_mm, area_cm2=area)
        part = grids.reduce(implant, skull.affine, shares.affine, how.size)
        pair = np.stack(grids.split_share(shares.data, part, how.threshold), axis=-1)
        if pair[..., 1].any():
            return Pair(store.pack(pair), shares.affine, _native(implant, skull.affine), 0, attempt)
    raise UserError(
        f"{kind} defects vanish at {how.size}^3: lower data.threshold ({how.threshold})"
    )


def _native(implant, affine):
    return store.Native(*volumes.pack(implant), grid=implant.shape, affine=affine)


def _cube(complete, affine, size):
    """The affine of `size` voxels a side over a file's own cube."""
    _side_mm(affine, complete.shape)
    scale = np.array(complete.shape) / size
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = np.diag(scale), (scale - 1) / 2
    return affine @ step


def assign(names: list[str], config: ConfigDict) -> dict[str, int]:
    """The split of each skull: name -> index of `store.SPLITS`.

    By `config.test` and `config.validation` (comma-separated names) where either is given, else
    by seeded fractions `config.test_fraction` and `config.validation_fraction`; with
    `config.folds`, the test skulls are fold number `config.fold` of as many. Raises UserError for
    a name that no skull has, or where no skull is left to train on.
    """
    lists = [plugins.listed(text) for text in (config.validation, config.test)]
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


@contextlib.contextmanager
def _named(path):
    """A UserError within names the file that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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
        if path.is_file() and path.stat().st_size <= 9 * max_voxels + 2 * volumes.MAX_SKIP:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return "unreadable"
