"""Where pairs come from: SkullBreak's files, complete skulls, phantoms, each planned as cases."""

import contextlib
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy import ndimage

from skullgen.core import plugins
from skullgen.core.errors import UserError
from skullgen.data import defects, grids, headers, phantom, store, volumes
from skullgen.data.grids import Affine, Mask
from skullgen.data.store import Pair
from skullgen.data.volumes import Volume

NATIVE_SIDE = 128  # voxels a side at which phantoms are grown and cut
SIDES = ("defective_skull", "implant")
GAP_MM = 3.0  # an implant may lie this far from its skull, as ones made with a tolerance do
OVERLAP = 0.1  # of an implant may be in its skull, too: borders of masks that were resampled


class Case(NamedTuple):
    """One task for a worker process: `make(*arguments)` returns a pair for each kind."""

    make: Callable[..., list[Pair]]
    arguments: tuple
    kinds: tuple[int, ...]
    skull: int


class Skull(NamedTuple):
    """A complete skull: `read(argument, config)`, in RAS; reframe: it is placed in the frame."""

    name: str
    read: Callable[[Any, ConfigDict], Volume]
    argument: Any
    reframe: bool = True


class Plan(NamedTuple):
    """What a source holds."""

    cases: list[Case]  # in the order of the store
    names: list[str]  # of the skulls
    split: dict[str, int]  # name -> index of `store.SPLITS`
    sources: dict[str, str]  # file -> SHA-256
    problems: list[str]  # lines about files missing or not used
    field_mm: float = grids.FIELD_MM  # the side of the cube that is made `D` voxels
    kinds: tuple[str, ...] = defects.KINDS  # names of `Case.kinds`
    skulls: Sequence[Skull] = ()  # those of `names`, for controls (`data.controls`)


# --- SkullBreak: the dataset's own layout, never reframed -------------------------------------


def _plan_skullbreak(size, config):
    root = _folder(config.root, "the folder that holds SkullBreak's train/ and test/")
    for name in filter(config.get, ("test", "validation", "folds", "kinds", "bone_hu", "label")):
        what = f"data.{name} is not for data.source=skullbreak, whose masks are cut and split"
        raise UserError(f"{what} already: leave it empty")
    plan = Plan([], [], {}, {}, [], skulls=[])
    for part in ("train", "test"):
        _add_part(plan, root / part, size, config)
    for case in plan.cases:
        with contextlib.suppress(UserError):  # which its worker raises again
            source = headers.describe(case.arguments[0])
            cube = _cube(source.shape, source.affine, 1)
            return plan._replace(field_mm=float(np.linalg.norm(cube[:3, :3], axis=0).mean()))
    return plan


def _add_part(plan, folder, size, config):
    """Add the pairs of `train` or `test` to a plan."""
    part = folder.name
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    sides = [f"{side}/{kind}" for side in SIDES for kind in defects.KINDS]
    files = [p for p in map(Path, present) if p.parent.as_posix() in sides and p.suffix == ".nrrd"]
    expected = set()
    for number in sorted({p.stem for p in files}):
        pairs = [[f"{side}/{kind}/{number}.nrrd" for side in SIDES] for kind in defects.KINDS]
        expected.update([f"complete_skull/{number}.nrrd"], *pairs)
        usable = [kind for kind, files in enumerate(pairs) if present.issuperset(files)]
        if usable:
            plan.names.append(f"{part}_{number}")
            plan.split[plan.names[-1]] = 0 if part == "train" else 2
            paths = tuple(folder / file for file in pairs[usable[0]])
            plan.skulls.append(Skull(plan.names[-1], _union, paths, reframe=False))
        for kind in usable:
            paths = [folder / file for file in pairs[kind]]
            arguments = *paths, size, config
            plan.cases.append(Case(_skullbreak_pair, arguments, (kind,), len(plan.names) - 1))
            plan.sources.update(_sums(folder.parent, paths))
    for side in ("complete_skull", *sides):
        lost = sorted(f"{part}/{f}" for f in expected - present if f.startswith(f"{side}/"))
        more = f", and {len(lost) - 1} more of its folder" * (len(lost) > 1)
        plan.problems.extend([f"{lost[0]} is missing{more}"] if lost else [])
    plan.problems.extend(f"{part}/{n} is not SkullBreak's" for n in sorted(present - expected))


def _skullbreak_pair(defective_path, implant_path, size, config):
    """Reduces one pair by block means; at a threshold under 0.5 bone goes to the larger share."""
    threshold, paths = config.threshold, (defective_path, implant_path)
    masks = [volumes.in_ras(volumes.read(path)) for path in paths]
    with named(implant_path):
        (one, other), affines = zip(*masks, strict=True)
        if one.shape != other.shape or not np.allclose(*affines):
            raise UserError(f"its grid is not that of {defective_path}")
        grid, part = prepare(*masks[1], size, reframe=False)
        rest = grids.reduce(*masks[0], grid, size)
        _check_pair(masks, rest, part, defective_path)
    sides = rest >= threshold, part >= threshold
    if threshold < 0.5:
        sides = grids.split_share(rest + part, part, threshold)
    pair = np.stack(sides, axis=-1)
    if not pair[..., 1].any():
        what = f"vanishes at {size}^3 and data.threshold={threshold}: lower it"
        raise UserError(f"{implant_path}: {what}")
    return [Pair(store.pack(pair), grid, _native(*masks[1]))]


def _union(paths, config):
    """The complete skull of a pair's two files."""
    (skull, affine), (implant, _) = (volumes.in_ras(volumes.read(path)) for path in paths)
    return Volume(skull | implant, affine)


def _check_pair(masks, rest, part, defective_path):
    """Raises UserError unless two masks, and their shares, may be a skull and its implant."""
    bone = [np.count_nonzero(mask.data) for mask in masks]
    if bone[1] > bone[0]:
        raise UserError(f"larger than {defective_path}: are the two swapped?")
    both = np.count_nonzero(masks[0].data & masks[1].data)
    if (rest + part).max() > 1 + 1e-5 or both > OVERLAP * bone[1]:
        raise UserError(f"overlaps {defective_path}: they are no pair")
    # On the model's grid, any bone counts: thin bone touches there, too.
    mm = np.linalg.norm(masks[1].affine[:3, 0]) * len(masks[1].data) / len(part)
    reach = max(1, round(GAP_MM / mm))
    sides = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in grids.box(part))
    near = ndimage.binary_dilation(part[sides] > 0, np.ones((3, 3, 3)), iterations=reach)
    if not (near & (rest[sides] > 0)).any():
        raise UserError(f"does not touch {defective_path}: they are no pair")


# --- Complete skulls, files or phantoms, cut by defects.py -------------------------------------


def _plan_skulls(size, config):
    root = _folder(config.root, "a folder of complete skulls (.nrrd, .nii.gz)")
    scans = volumes.scans(root)
    names = [volumes.name_of(scan) for scan in scans]
    if not names:
        raise UserError(f"{root}: holds no skull ({', '.join(headers.SUFFIXES)})")
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise UserError(f"{root}: two files are called {doubled[0]}: rename one")
    skulls = [Skull(volumes.name_of(scan), _file, scan, config.reframe) for scan in scans]
    plan = _cut_plan(skulls, size, config)
    files = list(scans)
    for scan in scans:
        with contextlib.suppress(UserError):  # which its worker raises again
            files += headers.describe(scan).files
    surplus = sorted(p.name for p in root.iterdir() if p not in files)
    problems = [f"{name} is no {', '.join(headers.SUFFIXES)} file" for name in surplus]
    return plan._replace(sources=_sums(root, files), problems=problems)


def _plan_phantom(size, config):
    return phantoms("phantom", phantom.Variety(**config.variety), size, config)


def phantoms(name: str, variety: phantom.Variety, size: int, config: ConfigDict) -> Plan:
    """A plan of `config.skulls` phantoms, NAME_0000 and so on."""
    names = [f"{name}_{number:04d}" for number in range(config.skulls)]
    skulls = [
        Skull(name, _phantom, (seed(config.seed, name), variety), config.reframe) for name in names
    ]
    return _cut_plan(skulls, size, config)


def _cut_plan(skulls, size, config):
    """A plan of complete skulls that are cut."""
    names, kinds = [skull.name for skull in skulls], defects.kinds_of(config)
    numbers = tuple(range(len(kinds))) * config.cuts
    cases = [
        Case(cut_skull, (skull, range(config.cuts), size, config), numbers, number)
        for number, skull in enumerate(skulls)
    ]
    return Plan(cases, names, assign(names, config), {}, [], kinds=kinds, skulls=skulls)


def _file(path, config):
    return volumes.in_ras(volumes.read(path, **volumes.options(config)))


def _phantom(individual, config):
    number, variety = individual
    return Volume(phantom.skull(number, NATIVE_SIDE, variety), phantom.affine(NATIVE_SIDE))


def prepare(
    skull: Mask, affine: Affine, size: int, *, reframe: bool = True, whole: Mask | None = None
) -> tuple[Affine, grids.Cube]:
    """Brings a skull in RAS order to the models' grid: its affine, and the share of bone there.

    reframe: place it in the frame (`grids.frame`) of `whole`; else its own cube is the frame.
    """
    whole = skull if whole is None else whole
    model = grids.frame(whole, affine, size) if reframe else _cube(skull.shape, affine, size)
    return model, grids.reduce(skull, affine, model, size)


class Host(NamedTuple):
    """A complete skull, its name, the affine of its frame, and its share of bone there."""

    name: str
    skull: Volume
    frame: Affine
    share: Float[np.ndarray, "D D D"]

    def pair(self, implant: Mask, threshold: float) -> Pair | None:
        """The pair of a piece that is taken out natively; None where it vanishes on the frame."""
        part = grids.reduce(implant, self.skull.affine, self.frame, len(self.share))
        pair = np.stack(grids.split_share(self.share, part, threshold), axis=-1)
        native = _native(implant, self.skull.affine)
        return Pair(store.pack(pair), self.frame, native) if pair[..., 1].any() else None


@contextlib.contextmanager
def host(skull: Skull, size: int, config: ConfigDict) -> Iterator[Host]:
    """A skull as read; a UserError within names its file."""
    with named(skull.argument if isinstance(skull.argument, Path) else skull.name):
        volume = skull.read(skull.argument, config)
        yield Host(skull.name, volume, *prepare(*volume, size, reframe=skull.reframe))


def cut_skull(skull: Skull, turns: Sequence[int], size: int, config: ConfigDict) -> list[Pair]:
    """Cuts one skull into each kind, once for each turn; what vanishes is drawn again, larger."""
    with host(skull, size, config) as own:
        kinds, voxel_mm = defects.kinds_of(config), np.linalg.norm(own.skull.affine[:3, :3], axis=0)
        ours = any("." not in kind for kind in kinds)
        vault = defects.survey(own.skull.data, voxel_mm) if ours else None
        place = dict(voxel_mm=voxel_mm, vault=vault)
        draws = itertools.product(turns, kinds)
        return [_cut_once(own, kind, turn, config, place) for turn, kind in draws]


def _cut_once(own, kind, turn, config, place):
    for attempt in range(8):
        number, area = seed(config.seed, own.name, kind, turn, attempt), (10 * 1.4**attempt, 150.0)
        _, implant = defects.cut(own.skull.data, kind, number, area_cm2=area, **place)
        if pair := own.pair(implant, config.threshold):
            return pair
    what = f"{kind} defects vanish at {len(own.share)}^3"
    raise UserError(f"{what}: lower data.threshold ({config.threshold})")


def _native(implant, affine):
    sides = grids.box(implant)
    part, origin = implant[sides], tuple(side.start for side in sides)
    return store.Native(np.packbits(part), origin, part.shape, implant.shape, affine)


def _cube(shape, affine, size):
    """The affine of `size` voxels a side over a file's own cube; UserError where it is none."""
    sides = np.linalg.norm(affine[:3, :3], axis=0) * shape
    if np.ptp(sides) > 0.01 * sides.max():
        cure = "resample it, or set config.data.reframe of complete skulls"
        raise UserError(f"{sides.round(1).tolist()} mm is no cube, as SkullBreak's are: {cure}")
    scale = np.array(shape) / size
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (scale - 1) / 2
    return affine @ step


def assign(names: list[str], config: ConfigDict) -> dict[str, int]:
    """The split of each skull, by name: an index of `store.SPLITS`.

    By the names in `config.test` and `config.validation`, else by seeded fractions; with
    `config.folds`, the test skulls are fold number `config.fold` of as many.
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
        test = order[: round(config.test_fraction * len(names))]
        if config.folds:
            test = order[config.fold :: config.folds]
        rest = [name for name in order if name not in test]
        lists = rest[: round(config.validation_fraction * len(names))], test
    validation, test = lists
    return dict.fromkeys(names, 0) | dict.fromkeys(validation, 1) | dict.fromkeys(test, 2)


PLANS = {"skullbreak": _plan_skullbreak, "skulls": _plan_skulls, "phantom": _plan_phantom}


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
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


def seed(*parts: Any) -> int:
    """A seed from numbers and names, which may hold bytes that are no text."""
    return zlib.crc32(" ".join(map(str, parts)).encode("utf-8", "surrogateescape"))


def _sums(root, paths):
    """File -> SHA-256; of one that cannot be read, which its worker says, "unreadable"."""
    names = {path.relative_to(root).as_posix(): path for path in paths}
    sums = dict.fromkeys(names, "unreadable")
    for name, path in names.items():
        with contextlib.suppress(OSError):
            if path.is_file():  # no pipe
                with open(path, "rb") as file:
                    sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
