"""Skull files, folders and pairs that cannot be used, each with its one line.

`a` is the bad file and comes first; `z.nrrd` beside it is good. Whatever a case does not change is
as in the good files that `GOOD` writes.
"""

import functools
import gzip
import os
import struct

import nibabel
import numpy as np

from skullgen.data import phantom, volumes
from tests.faults.cases import Case

SIDE = 48
AFFINE = phantom.affine(SIDE)
MM = 204.8 / SIDE
FIELDS = {
    "type": "uint8",
    "dimension": "3",
    "space": "RAS",
    "sizes": f"{SIDE} {SIDE} {SIDE}",
    "space directions": f"({MM},0,0) (0,{MM},0) (0,0,{MM})",
    "encoding": "gzip",
    "space origin": "(0,0,0)",
}
# Where fields lie in a NIfTI-1 header, and how they are packed.
PLACES = {"size": (0, "<i"), "dim": (40, "<8h"), "datatype": (70, "<2h"), "pixdim": (76, "<8f")}
PLACES |= {"offset": (108, "<f"), "slope": (112, "<2f"), "units": (123, "<b")}
PLACES |= {"codes": (252, "<2h"), "rows": (280, "<12f"), "magic": (344, "4s")}
THREE = "(4,0,0) (0,4,0) (0,0,4)"
PLAIN_ROWS = (MM, 0, 0, 0, 0, MM, 0, 0, 0, 0, MM, 0)


@functools.cache
def _skull():
    return phantom.skull(0, SIDE)


def _voxels(dtype="u1"):
    return _skull().astype(dtype).tobytes("F")


def _spoiled(dtype, value):
    values = _skull().astype(dtype)
    values[SIDE // 2, 0, 0] = value
    return values.tobytes("F")


def _scan(dtype="<i2"):
    """A CT: air, noise and bone."""
    noise = np.random.default_rng(0).integers(-1000, 100, _skull().shape)
    return np.where(_skull(), 1500, noise).astype(dtype).tobytes("F")


def _nrrd(data=None, magic="NRRD0004", packed=True, **changed):
    """The bytes of a NRRD file; a field that is None is left out."""
    fields = FIELDS | {name.replace("_", " "): value for name, value in changed.items()}
    lines = [magic, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    data = _voxels() if data is None else data
    return "\n".join([*lines, "", ""]).encode() + (gzip.compress(data, 1) if packed else data)


def _spaced(spacings):
    changed = {"space": None, "space directions": None, "space origin": None}
    return _nrrd(**changed, spacings=spacings)


def _nifti(data=None, **changed):
    """The bytes of a NIfTI-1 file, with fields of `PLACES` set."""
    image = nibabel.Nifti1Image(_skull().astype(np.uint8), AFFINE)
    image.set_sform(AFFINE, 2)
    image.header.set_xyzt_units("mm")
    header = bytearray(image.to_bytes()[:352])
    for name, value in changed.items():
        struct.pack_into(PLACES[name][1], header, PLACES[name][0], *value)
    return bytes(header) + (_voxels() if data is None else data)


def _zip(data):
    return gzip.compress(data, 1)


def _flipped(data):
    """A gzip file with another checksum."""
    return data[:-8] + bytes([data[-8] ^ 0xFF]) + data[-7:]


@functools.cache
def _bomb():
    """A gzip file of 1 GB of zeros in a MB or so."""
    return _zip(bytes(2**26)) * 16


def _skulls(name="z.nrrd", content=None, write=None, **fields):
    """`make` of a folder: a good file, one more of that holds `content`, and what `write`s."""

    def make(folder, config):
        root = folder / "skulls"
        root.mkdir()
        volumes.write(root / "z.nrrd", _skull(), AFFINE)
        if content is not None:
            (root / name).write_bytes(content)
        if write:
            write(root)
        config.data.update(source="skulls", root=str(root), strict=True, **fields)

    return make


def _alone(write):
    """`make` of a folder without the good file."""

    def alone(root):
        (root / "z.nrrd").unlink()
        write(root)

    return _skulls(write=alone)


def _detached(name, *lines, write=None):
    """`make` of a detached header whose data file is `name`, with `lines` after it."""

    def header(root):
        (root.parent / "secret.raw").write_bytes(_voxels())
        text = _nrrd(b"", packed=False, encoding="raw").decode().strip()
        (root / "a.nhdr").write_text("\n".join([text, f"data file: {name}", *lines, ""]))
        if write:
            write(root)

    return _skulls(write=header)


def _long_line(root):
    with open(root / "a.nrrd", "wb") as file:
        file.write(b"NRRD0004\ncontent: ")
        file.truncate(100_000_000)


def _named(name):
    return lambda root: (root / name).write_bytes(b"")


def _link(name, to):
    return lambda root: (root / name).symlink_to(to)


def _closed(root):
    (root / "a.nrrd").write_bytes(_nrrd())
    (root / "a.nrrd").chmod(0)


def _nested(root):
    (root / "inner" / "most").mkdir(parents=True)
    (root / "inner" / "most" / "a.nrrd").write_bytes(_nrrd())


DISTANCE = np.linalg.norm(np.indices((32,) * 3) - 15.5, axis=0) / 32
SHELL, HOLE = (DISTANCE < 0.42) & (DISTANCE > 0.3), np.zeros((32,) * 3, bool)
HOLE[8:16, :, 20:] = True
REST, PIECE = SHELL & ~HOLE, SHELL & HOLE


def _pair(skull=REST, implant=PIECE, steps=(6.4, 6.4), **fields):
    """`make` of SkullBreak's layout with one pair; implant: a mask or bytes; steps: in mm."""

    def make(folder, config):
        contents = {"defective_skull": skull, "implant": implant}
        for (side, content), step in zip(contents.items(), steps, strict=True):
            path = folder / "data" / "train" / side / "bilateral" / "000.nrrd"
            path.parent.mkdir(parents=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                volumes.write(path, content, np.diag([*np.broadcast_to(step, 3), 1.0]))
        config.data.update(source="skullbreak", root=str(folder / "data"), strict=True, **fields)

    return make


def _cube(low, high):
    mask = np.zeros_like(SHELL)
    mask[low:high, low:high, low:high] = True
    return mask


GOOD = [
    _skulls("a.nrrd", _nrrd()),
    _skulls("a.nrrd", _nrrd(packed=False, encoding="raw")),
    _skulls("a.nii", _nifti()),
    _skulls("a.nii.gz", _zip(_nifti())),
    _skulls("a.nii", _nifti(codes=(0, 1), rows=PLAIN_ROWS)),
    _detached("a.raw", write=lambda root: (root / "a.raw").write_bytes(_voxels())),
    _pair(),
]


def _with(value):
    return _nrrd(_spoiled(">f4", value), type="float", endian="big")


CUT = "its bytes cannot be read .*: it is corrupt or cut short; copy or export it again"
MORE = "holds more bytes than the header's sizes and type account for: .*"
HEAD = "no header of one 3-D volume with its voxel size can be read: .*"
AXES = "its axes are sheared or singular: resample to a plain grid"
MILLIMETRES = "voxels of .* mm, not 0.05 to 10.0; are they metres or microns\\? Write mm"
NOT_FINITE = "has NaN or infinite voxels: set them to 0 .*"
SCAN = "is a scan, not a mask .*: set bone_hu, 150 to 300 Hounsfield units, .*"
DATA = "a.nhdr: data file .*missing, outside of the header's folder or several files: put one .*"
VOXELS = "sizes .*: not 1 to \\d+ voxels: crop it or mend the header"
SINGLE = "sizeof_hdr, magic or vox_offset: not those of a single NIfTI file: .*"

NRRD = {
    "empty": (b"", HEAD),
    "cut-in-header": (_nrrd()[:70], HEAD),
    "cut-between-lines": (_nrrd()[:21], HEAD),
    "cut-in-data": (_nrrd()[:-2000], CUT),
    "raw-cut": (_nrrd(packed=False, encoding="raw")[:-1], CUT),
    "magic": (_nrrd(magic="PNG"), CUT),
    "version": (_nrrd(magic="NRRD0009"), CUT),
    "no-field": (b"NRRD0004\nhello\n\n", HEAD),
    "long-field": (_nrrd(content="a" * 5000), HEAD),  # which crashes SimpleITK
    "twice": (_nrrd(space_origin="(0,0,0)\ntype: int"), CUT),
    "encoding-unknown": (_nrrd(encoding="zebra"), CUT),
    "encoding-bzip2": (_nrrd(encoding="bzip2"), CUT),
    "spacing-negative": (_spaced("1 -1 1"), "spacings: not positive: .* in mm"),
    "spacing-zero": (_spaced("1 0 1"), CUT),
    "spacing-nan": (_spaced("1 nan 1"), HEAD),
    "spacings-many": (_spaced("1 " * 200_000), HEAD),
    "singular": (_nrrd(space_directions="(4,0,0) (0,4,0) (0,4,0)"), AXES),
    "sheared": (_nrrd(space_directions="(4,0,0) (1,4,0) (0,0,4)"), AXES),
    "metres": (_nrrd(space_directions=THREE.replace("4", "4e-3")), MILLIMETRES),
    "microns": (_nrrd(space_directions=THREE.replace("4", "4e3")), MILLIMETRES),
    "units": (_nrrd(space_units='"cm" "cm" "cm"'), "units .* are read in mm only"),
    "space": (_nrrd(space="scanner-xyz"), "space 'scanner-xyz' is not known: write LPS, .*"),
    "no-directions": (_nrrd(space_directions="none none none"), HEAD),
    "2d": (_nrrd(dimension=2, sizes="48 48", space_directions="(4,0,0) (0,4,0)"), HEAD),
    "4d": (_nrrd(dimension=4, sizes="2 48 48 24", space_directions=f"none {THREE}"), HEAD),
    "dimension-huge": (_nrrd(dimension=10**9), CUT),
    "sizes-larger": (_nrrd(sizes="48 48 49"), CUT),
    "sizes-negative": (_nrrd(sizes="48 -48 48"), CUT),
    "sizes-infinite": (_nrrd(sizes="48 inf 48"), CUT),
    "terabytes": (_nrrd(sizes="9999999 9999999 9999999"), CUT),
    "too-many-voxels": (_nrrd(sizes="4096 4096 4096"), VOXELS),
    "all-zero": (_nrrd(bytes(SIDE**3)), "holds no bone .*"),
    "all-one": (_nrrd(b"\1" * SIDE**3), "is bone everywhere: give a mask .*"),
    "nan": (_with(np.nan), NOT_FINITE),
    "infinite": (_with(np.inf), NOT_FINITE),
    "no-endian": (_nrrd(_voxels("<u2"), type="uint16"), CUT),
    "type": (_nrrd(type="block"), CUT),
    "checksum": (_flipped(_nrrd()), CUT),
    "ct": (_nrrd(_scan(), type="int16", endian="little"), SCAN),
}
NIFTI = {
    "empty": (b"", CUT),
    "cut-in-header": (_nifti()[:200], CUT),
    "cut-in-data": (_nifti()[:-1], CUT),
    "magic": (_nifti(magic=(b"abc",)), SINGLE),
    "pair-of-files": (_nifti(magic=(b"ni1",)), SINGLE),
    "analyze": (_nifti(magic=(bytes(4),)), SINGLE),
    "nifti-2": (bytes(nibabel.Nifti2Header().binaryblock) + _voxels(), "dim .*"),
    "complex": (_nifti(datatype=(32, 64)), "datatype complex64 holds no mask: save it as uint8"),
    "rgb": (_nifti(datatype=(128, 24)), "datatype .*'R'.* holds no mask: save it as uint8"),
    "type": (_nifti(datatype=(999, 8)), CUT),
    "2d": (_nifti(dim=(2, 48, 48, 1, 1, 1, 1, 1)), "dim .* is not one 3-D volume: .*"),
    "4d": (_nifti(dim=(4, 48, 48, 24, 2, 1, 1, 1)), "dim .* is not one 3-D volume: .*"),
    "sizes-larger": (_nifti(dim=(3, 48, 48, 49, 1, 1, 1, 1)), CUT),
    "sizes-smaller": (_nifti(dim=(3, 48, 48, 47, 1, 1, 1, 1)), MORE),
    "sizes-negative": (_nifti(dim=(3, 48, -48, 48, 1, 1, 1, 1)), VOXELS),
    "terabytes": (_nifti(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)), VOXELS),
    "too-many-voxels": (_nifti(dim=(3, 4096, 4096, 4096, 1, 1, 1, 1)), VOXELS),
    "spacing-zero": (_nifti(codes=(1, 0), pixdim=(0,) * 8), MILLIMETRES),
    "rows-nan": (_nifti(rows=(np.nan, *PLAIN_ROWS[1:])), "its affine is not finite: .*"),
    "singular": (_nifti(rows=(MM, MM, 0, 0, *PLAIN_ROWS[:2], 0, 0, 0, 0, MM, 0)), AXES),
    "sheared": (_nifti(rows=(MM, 1, 0, 0, 0, *PLAIN_ROWS[5:])), AXES),
    "metres": (_nifti(units=(1,)), MILLIMETRES),
    "microns": (_nifti(units=(3,)), MILLIMETRES),
    "trailing": (_nifti() + b"\0", MORE),
    "all-zero": (_nifti(bytes(SIDE**3)), "holds no bone .*"),
    "nan": (_nifti(_spoiled("<f4", np.nan), datatype=(16, 32)), NOT_FINITE),
    "scaled-to-infinity": (
        _nifti(_spoiled("<f8", 1e300), datatype=(64, 64), slope=(1e30, 0)),
        NOT_FINITE,
    ),
    "ct": (_nifti(_scan(), datatype=(4, 16)), SCAN),
    "offset": (_nifti(offset=(1e12,)), SINGLE),
}
ZIPPED = {
    "empty": (b"", CUT),
    "cut": (_zip(_nifti())[:-100], CUT),
    "no-gzip": (_nifti(), CUT),
    "checksum": (_flipped(_zip(_nifti())), CUT),
    "bomb": (_zip(_nifti()) + _bomb(), MORE),
    "bomb-skipped": (_zip(_nifti(b"", offset=(2**30,))) + _bomb(), SINGLE),
}
FOLDERS = {
    "mask-with-hu": (
        _skulls("a.nrrd", _nrrd(), bone_hu=300.0),
        "a.nrrd: is a mask .*, not a CT: .*",
    ),
    "data-file-absolute": (_detached("/etc/passwd"), DATA),
    "data-file-climbs": (_detached("../secret.raw"), DATA),
    "data-file-links-out": (_detached("a.raw", write=_link("a.raw", "../secret.raw")), DATA),
    "data-file-missing": (_detached("a.raw"), DATA),
    "data-file-long": (_detached("a" * 5000), f"a.nhdr: (?:{HEAD}|cannot be opened .*)"),
    "data-file-list": (_detached("LIST", "a.raw", "b.raw"), DATA),
    "data-file-pattern": (_detached("a%04d.raw 1 1000 1"), DATA),
    "long-line": (_skulls(write=_long_line), f"a.nrrd: {HEAD}"),
    "dangling-link": (_skulls(write=_link("a.nrrd", "annex/x")), "a.nrrd: there is no .*"),
    "link-to-itself": (_skulls(write=_link("a.nrrd", "a.nrrd")), "a.nrrd: there is no .*"),
    "unreadable": (_skulls(write=_link("a.nrrd", "/proc/self/mem")), "a.nrrd: cannot be .*"),
    "pipe": (_skulls(write=lambda root: os.mkfifo(root / "a.nrrd")), "a.nrrd: there is .*"),
    "escapes": (
        _skulls(write=_named("a\n\x1b[3m<b>.nrrd")),
        r"a\\n\\x1b\[3m<b>.nrrd: no header .*",
    ),
    "bytes": (_skulls(write=_named(os.fsdecode(b"a\xff.nrrd"))), r"a\\udcff.nrrd: no header .*"),
    "two-of-a-name": (_skulls("z.nii", _nifti()), " two files are called z: rename one"),
    "empty-folder": (_alone(lambda root: None), " holds no skull .*"),
    "folder-of-folders": (_alone(_nested), " holds no skull .*"),
    "folder-called-nrrd": (_alone(lambda root: (root / "a.nrrd").mkdir()), " holds no .*"),
    "folder-of-stl": (_alone(_named("a.stl")), " holds no skull .*"),
}
SKULL = ".*/data/train/defective_skull/bilateral/000.nrrd"
GRID = f"its grid is not that of {SKULL}"
PAIRS = {
    "shape": (_pair(implant=np.pad(PIECE, 8)), GRID),
    "geometry": (_pair(steps=(6.4, 3.2)), GRID),
    "inside": (_pair(skull=SHELL), f"overlaps {SKULL}: they are no pair"),
    "same": (_pair(implant=REST), f"overlaps {SKULL}: .*"),
    "apart": (_pair(implant=_cube(14, 18)), f"does not touch {SKULL}: they are no pair"),
    "swapped": (_pair(PIECE, REST), f"larger than {SKULL}: are the two swapped\\?"),
    "full": (_pair(implant=_cube(0, 32)), "is bone everywhere: give a mask .*"),
    "empty": (_pair(implant=_cube(0, 0)), "holds no bone .*"),
    "no-cube": (
        _pair(steps=((6.4, 6.4, 3.2),) * 2, reframe=False),
        ".* mm is no cube, as SkullBreak's are: .*",
    ),
    "cut": (_pair(implant=_nrrd()[:-500]), CUT),
}
CASES = [
    *(
        Case(f"{kind}-{name}", _skulls(f"a.{suffix}", content), f".*/skulls/a.{suffix}: {line}")
        for kind, suffix, table in (
            ("nrrd", "nrrd", NRRD),
            ("nifti", "nii", NIFTI),
            ("nifti-gz", "nii.gz", ZIPPED),
        )
        for name, (content, line) in table.items()
    ),
    *(Case(f"skulls-{name}", make, f".*/skulls.{line}") for name, (make, line) in FOLDERS.items()),
    *(Case(f"pair-{name}", make, f".*/000.nrrd: {line}") for name, (make, line) in PAIRS.items()),
]
if os.geteuid():  # to root nothing is closed
    CASES.append(Case("skulls-closed", _skulls(write=_closed), "skulls/a.nrrd: cannot be opened.*"))
