"""Where pairs come from: files of pairs, complete skulls, phantoms, each planned as cases."""

import contextlib
import hashlib
import itertools
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy import ndimage

from skullgen.core import plugins
from skullgen.core.errors import UserError
from skullgen.data import (
    defects,
    folders,
    grids,
    headers,
    heads,
    phantom,
    store,
    triplets,
    volumes,
)
from skullgen.data.grids import FIELD_MM, Affine, Mask
from skullgen.data.store import Pair
from skullgen.data.volumes import Volume

NATIVE_SIDE = 128  # voxels a side at which phantoms are grown and cut
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
    field_mm: float = FIELD_MM  # the side of the cube that is made `D` voxels
    kinds: tuple[str, ...] = defects.KINDS  # names of `Case.kinds`
    skulls: Sequence[Skull] = ()  # those of `names`, for controls (`data.controls`)
    settled: bool = False  # the source's own folders say the split


# --- Pairs that are cut already: SkullBreak, SkullFix, triplets of files ------------------------


def _plan_skullbreak(size, config):
    root = _folder(config.root, "the folder that holds SkullBreak's or SkullFix's files")
    return _plan_pairs(*triplets.skullbreak(root), size, config)


def _plan_triplets(size, config):
    if config.root:
        _folder(config.root, "a folder, or empty")
    return _plan_pairs(*triplets.globs(config), size, config)


def _plan_pairs(pairs, lines, size, config):
    settled = len({one.split for one in pairs}) > 1
    splits = ("test", "validation", "folds") * settled
    for name in filter(config.get, (*splits, "kinds", "bone_hu", "label")):
        what = f"data.{name} is not for data.source={config.source}, whose masks are cut"
        raise UserError(f"{what}{' and split' * (name in splits)} already: leave it empty")
    used = dict.fromkeys(one.kind for one in pairs)
    ours = defects.KINDS * any(kind in used for kind in defects.KINDS)
    kinds = (*ours, *(kind for kind in used if kind not in ours))
    sides, field = [_side(one.skull, config) for one in pairs], FIELD_MM
    cases, skulls, numbers, odd = [], {}, {}, []
    if ours:  # SkullBreak's cubes are the frame, whatever their size
        field = next(filter(None, sides), FIELD_MM)
    for one, side in zip(pairs, sides, strict=True):
        own_cube = side is not None and abs(side - field) < 0.01 * field
        reframe = config.reframe and field == FIELD_MM and not own_cube
        skulls.setdefault(one.name, Skull(one.name, _union, one.whole, reframe))
        arguments = one.skull, one.implant, size, reframe, config
        number = numbers.setdefault(one.name, len(numbers))
        cases.append(Case(_cut_pair, arguments, (kinds.index(one.kind),), number))
        if ours and side and abs(side - FIELD_MM) > 0.01 * FIELD_MM:
            odd.append(one.skull)
    if odd:
        what = f"a cube of other sides than SkullBreak's {FIELD_MM} mm: check the voxel size"
        lines = [*lines, f"{folders.first(odd, folders.base(config.root))}: {what}"]
    split = {one.name: one.split for one in pairs} if settled else assign(list(skulls), config)
    files, notes = _files((path for one in pairs for path in one[:2]), config)
    sums = _sums(folders.base(config.root), files)
    plan = Plan(cases, list(skulls), split, sums, [*lines, *notes], field, kinds)
    return plan._replace(skulls=list(skulls.values()), settled=settled)


def _side(path, config):
    """The side in mm of the cube that a file's grid is; None where it is none."""
    with contextlib.suppress(UserError):  # a file that cannot be read its worker tells
        source = headers.describe(path, config.form, config.space)
        cube = _cube(source.shape, source.affine, 1)
        return float(np.linalg.norm(cube[:3, :3], axis=0).mean())


def _cut_pair(defective_path, implant_path, size, reframe, config):
    """Reduces one pair; at a threshold under 0.5 bone goes to the larger share."""
    threshold, paths = config.threshold, (defective_path, implant_path)
    masks = [_read(path, config) for path in paths]
    with named(implant_path):
        (one, other), affines = zip(*masks, strict=True)
        if one.shape != other.shape or not np.allclose(*affines):
            raise UserError(f"its grid is not that of {defective_path}")
        whole = one | other if reframe else None
        grid, part = prepare(*masks[1], size, reframe=reframe, whole=whole)
        rest = grids.reduce(*masks[0], grid, size)
        _check_pair(masks, rest, part, np.linalg.norm(grid[:3, 0]), defective_path)
    with named(defective_path):
        _require_head(one | other, masks[0].affine)
    sides = rest >= threshold, part >= threshold
    if threshold < 0.5:
        sides = grids.split_share(rest + part, part, threshold)
    pair = np.stack(sides, axis=-1)
    if not pair[..., 1].any():
        what = f"vanishes at {size}^3 and data.threshold={threshold}: lower it"
        raise UserError(f"{implant_path}: {what}")
    return [Pair(store.pack(pair), grid, _native(*masks[1]))]


def _union(paths, config):
    """The complete skull that some files are together: a pair's, or one."""
    (skull, affine), *rest = (_read(path, config) for path in paths)
    return Volume(np.logical_or.reduce([skull, *(other for other, _ in rest)]), affine)


def _check_pair(masks, rest, part, mm, defective_path):
    """Raises UserError unless two masks, and their shares, may be a skull and its implant."""
    bone = [np.count_nonzero(mask.data) for mask in masks]
    if bone[1] > bone[0]:
        raise UserError(f"larger than {defective_path}: are the two swapped?")
    both = np.count_nonzero(masks[0].data & masks[1].data)
    if (rest + part).max() > 1 + 1e-5 or both > OVERLAP * bone[1]:
        raise UserError(f"overlaps {defective_path}: they are no pair")
    # On the model's grid, any bone counts: thin bone touches there, too.
    reach = max(1, round(GAP_MM / mm))
    sides = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in grids.box(part))
    near = ndimage.binary_dilation(part[sides] > 0, np.ones((3, 3, 3)), iterations=reach)
    if not (near & (rest[sides] > 0)).any():
        raise UserError(f"does not touch {defective_path}: they are no pair")


# --- Complete skulls, files or phantoms, cut by defects.py -------------------------------------


def _plan_skulls(size, config):
    root = _folder(config.root, "a folder of complete skulls (.nrrd, .nii.gz)")
    scans, lines = folders.scans(config.root)
    (files, notes), names = _files(scans, config), folders.names(dict.fromkeys(scans, root))
    lines = [*lines, *notes, *_shared(scans, root)]
    if not scans:
        what = f"{root}: holds no skull ({', '.join(headers.SUFFIXES)}, DICOM series)"
        raise UserError("; ".join([what, *lines]))
    for name, number in Counter(s.with_name(folders.name_of(s)) for s in scans).items():
        if number > 1:
            raise UserError(f"{root}: two files are called {name.relative_to(root)}: rename one")
    if pairs := [s for s in scans if {*s.relative_to(root).parts[:-1]} & {*triplets.SIDES[:2]}]:
        cure = "data.source=skullbreak reads pairs; else name complete_skull alone as data.root"
        raise UserError(f"{root}: {pairs[0].relative_to(root)} is no complete skull: {cure}")
    skulls = [Skull(names[scan], _file, scan, config.reframe) for scan in scans]
    plan = _cut_plan(skulls, size, config)
    return plan._replace(sources=_sums(root, files), problems=lines)


def _shared(scans, root):
    """A line where folders hold several skulls, which may be one patient's."""
    inside = Counter(scan.parent for scan in scans if scan.parent != root)
    several = [scan for scan in scans if inside[scan.parent] > 1]
    what = "several skulls in one folder: if they are one patient's, name them all in data.test or"
    return [f"{folders.first(several, root)}: {what} none"] if several else []


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
    skull = _read(path, config)
    _require_head(*skull)
    return skull


def _read(path, config):
    return volumes.in_ras(volumes.read(path, **volumes.options(config)))


def _require_head(skull, affine):
    """UserError unless this is a human head whose vault is there, whatever is empty around it."""
    bone = skull[grids.box(skull)]
    heads.check(bone, affine, heads.WHOLE)
    if what := heads.cut(bone, affine):
        raise UserError(what)


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
        cure = "resample it, or set config.data.reframe"
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
    # A Mac's files have ä in two characters, a command line in one.
    own = {unicodedata.normalize("NFC", name): name for name in names}
    texts = (unicodedata.normalize("NFC", text) for text in (config.validation, config.test))
    lists = [[own.get(name, name) for name in plugins.listed(text, own.get)] for text in texts]
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


PLANS = {
    **{"phantom": _plan_phantom, "skulls": _plan_skulls},
    **{"skullbreak": _plan_skullbreak, "triplets": _plan_triplets},
}


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """A UserError within names the file that it is about."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith(str(path)) else UserError(f"{path}: {error}") from None


def _folder(root, what):
    if not root:
        raise UserError(f"data.root is empty: give {what} by --config.data.root=FOLDER")
    if not folders.is_there(root) or not folders.base(root).is_dir():
        raise UserError(f"{root}: no such folder; --config.data.root must be {what}")
    return folders.base(root)


def seed(*parts: Any) -> int:
    """A seed from numbers and names, which may hold bytes that are no text."""
    return zlib.crc32(" ".join(map(str, parts)).encode("utf-8", "surrogateescape"))


def _files(scans, config):
    """Scans and the files of their voxels, and lines about those that programs differ on.

    What is wrong with a file its worker tells.
    """
    files, notes = list(scans), {}
    for scan in list(files):
        with contextlib.suppress(UserError):
            source = headers.describe(scan, config.form, config.space)
            files += source.files
            for note in source.notes:
                notes.setdefault(re.sub(r"[\d.]+ mm", "some mm", note), []).append(scan)
    top = folders.base(config.root)
    return files, [f"{folders.first(some, top)}: {note}" for note, some in notes.items()]


def _sums(root, paths):
    """File -> SHA-256; of one that cannot be read, which its worker says, "unreadable"."""
    names = {(p.relative_to(root) if p.is_relative_to(root) else p).as_posix(): p for p in paths}
    sums = dict.fromkeys(names, "unreadable")
    for name, path in names.items():
        with contextlib.suppress(OSError):
            if path.is_file():  # no pipe
                with open(path, "rb") as file:
                    sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
