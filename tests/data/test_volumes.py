"""Files in and out: orientation and geometry by two witnesses, what is bone, and refusals.

Most refusals are proved on whole runs, by tests/faults/bad_files.py.
"""

import errno
import itertools
import locale

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from skullgen.core.errors import UserError
from skullgen.data import folders, headers, volumes
from tests.conftest import SHARED

TURNS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
PLAIN = ("type: uint8", "dimension: 3", "sizes: 2 2 2", "encoding: raw")
AXES = "space directions: (1,0,0) (0,1,0) (0,0,2)"


def _mask(shape=(6, 5, 4), seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask[1, 2, 3] = True
    return mask


def _affine():
    affine = np.diag([0.5, 0.75, 1.25, 1.0])
    affine[:3, 3] = (-20.5, 7.25, 3.0)
    return affine


def _turn(mask, affine, order, signs):
    """An independent way: voxel k of the turned array is looked up through world positions."""
    flips = tuple(slice(None, None, sign) for sign in signs)
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for k, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[axis, k] = sign
        matrix[axis, 3] = 0 if sign > 0 else mask.shape[axis] - 1
    return np.ascontiguousarray(mask.transpose(order)[flips]), affine @ matrix


def _itk_image(data, affine):
    """An image of SimpleITK, whose mm are LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _nifti(path, data, affine, units="mm", slope=None, inter=None, kind=nibabel.Nifti1Image):
    image = kind(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units(units)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return path


def _save(path, data, affine):
    if ".nii" in path.name:
        return _nifti(path, data, affine)
    sitk.WriteImage(_itk_image(data, affine), str(path), path.suffix in (".nrrd", ".mha"))
    return path


def _dicom(folder, data, affine, series="1.2.3", skip=()):
    """A series as a scanner writes it, a file a slice, its values stored + 1000."""
    folder.mkdir(exist_ok=True)
    own = locale.setlocale(locale.LC_ALL)  # which SimpleITK's writing of DICOM sets to "C"
    image, writer = _itk_image(data, affine), sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    axes = np.reshape(image.GetDirection(), (3, 3))
    for k in set(range(data.shape[2])) - set(skip):
        part = image[:, :, k]
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0018": f"{series}.{k + 1}",
            "0020|000d": "1.2",
            "0020|000e": series,
            "0020|0013": str(k),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place),
            "0020|0037": "\\".join(f"{v:.6f}" for v in (*axes[:, 0], *axes[:, 1])),
            "0028|1052": "-1000",
            "0028|1053": "1",
        }.items():
            part.SetMetaData(tag, value)
        # Names that say nothing of the order.
        writer.SetFileName(str(folder / f"{series}_{(k * 7) % 10}{k}.dcm"))
        writer.Execute(part)
    locale.setlocale(locale.LC_ALL, own)
    return folder


def _text_nrrd(path, *lines, data=b""):
    path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + data)
    return path


def _ras(path, **options):
    return volumes.in_ras(volumes.read(path, **options))


def _refused(path, match, **options):
    with pytest.raises(UserError, match=match) as error:
        volumes.read(path, **options)
    assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("suffix", [*headers.SUFFIXES, "dicom"])
def test_every_orientation_brings_back_the_same_mask(tmp_path, suffix):
    mask = _mask((6, 6, 6))
    for turn in TURNS[:: 1 if suffix in (".nrrd", ".nii.gz") else 7]:
        data, turned = _turn(mask, _affine(), *turn)
        if suffix == "dicom" and np.linalg.det(turned[:3, :3]) < 0:
            continue  # its slices are read in the order of a right-handed grid
        path = tmp_path / f"a{suffix}"
        if suffix == "dicom":
            path = _dicom(tmp_path / str(TURNS.index(turn)), data.astype(np.int16) * 500, turned)
        else:
            _save(path, data.astype(np.uint8), turned)
        own, got = volumes.read(path), _ras(path)
        np.testing.assert_array_equal(own.data, data)
        np.testing.assert_allclose(own.affine, turned, atol=1e-5)
        np.testing.assert_array_equal(got.data, mask)
        np.testing.assert_allclose(got.affine, _affine(), atol=1e-5)
        source = headers.describe(path)
        assert source.shape == data.shape and np.array_equal(source.affine, own.affine)
        several = {"dicom": 6, ".nhdr": 2, ".mhd": 2}.get(suffix, 1)
        assert len(source.files) == several and all(file.is_file() for file in source.files)


def test_a_ct_of_a_scanner_is_read_in_hounsfield_units(tmp_path):
    noise = np.random.default_rng(0).integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
    folder = _dicom(tmp_path / "scan.v2", noise, _affine())
    np.testing.assert_array_equal(volumes.read(folder, bone_hu=300.0).data, noise >= 300)
    assert folders.entries(tmp_path) == folders.entries(folder) == [folder]
    assert folders.is_scan(folder) and folders.name_of(folder) == "scan.v2"
    gap = _dicom(tmp_path / "gap", noise, _affine(), skip=[1])
    _refused(gap, "a slice is missing", bone_hu=300.0)
    tilted = _affine()
    tilted[1, 2] = 0.2
    _refused(_dicom(tmp_path / "tilted", noise, tilted), "gantry was tilted by 9", bone_hu=300.0)
    _dicom(folder, noise, _affine(), "1.2.4")
    _refused(
        folder,
        r"holds 2 DICOM series \(4 files, 1\.2\.[34].* first; 4 files, .*give a folder of one",
    )
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "holds 0 DICOM series")
    assert folders.entries(tmp_path / "empty") == []


def test_nifti_2_of_both_endiannesses_is_read(tmp_path):
    mask = _mask()
    for kind in ("<i2", ">f8"):
        values = (mask * 3).astype(kind)
        path = _nifti(tmp_path / "a.nii", values, _affine(), kind=nibabel.Nifti2Image)
        np.testing.assert_array_equal(_ras(path).data, mask)


RAMP = np.arange(216, dtype="u2").reshape(6, 6, 6).T
THREE, NOISE = RAMP % 4, np.random.default_rng(0).normal(0, 300, (6, 6, 6))
CHOOSE = r": set label \(data\.label, predict\.label\) to"


@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        (THREE, {}, "no mask of one label, it holds 1, 2, 3" + CHOOSE),
        (THREE, dict(label=7), "has no voxel of label 7, only 1, 2, 3" + CHOOSE),
        (THREE, dict(label=2, bone_hu=300.0), "bone_hu is for a CT, label for a segmentation"),
        (RAMP, {}, "is a scan, not a mask .*of labels set label"),
        (RAMP, dict(label=300), r"no voxel of label 300, only 1, 2, .*, 8: set"),
        (RAMP.astype("i2") - 9, dict(label=91), "is a scan, not a mask"),
        (RAMP.astype("f4") / 2, dict(label=91), "values between its labels: resample it by the"),
        (RAMP.astype("f4") / 215, {}, r"is a scan, not a mask .*else threshold it"),
        (NOISE.astype("i2"), {}, "bone_hu"),
        ((THREE == 2).astype("u1") * 255, dict(label=2), "has no voxel of label 2, only 255"),
        (NOISE.astype("i2"), dict(bone_hu=1e5), "no bone"),
    ],
)
def test_what_is_no_mask_is_refused_by_its_values(tmp_path, data, options, match):
    for suffix in (".nii.gz", ".nrrd"):
        _refused(_save(tmp_path / f"a{suffix}", data, _affine()), match, **options)


SOFT = np.random.default_rng(0).choice((0, 0.1, 0.5, 1), (6, 6, 6)).astype("f4")
LABELS = np.zeros((6, 6, 6), "u1")
LABELS[1:5, 1:5, [1, 2, 4]] = (1, 2, 3)  # no slice holds more than one


@pytest.mark.parametrize(
    ("data", "options", "bone"),
    [
        ((SOFT > 0) * np.uint8(255), {}, SOFT > 0),
        (SOFT, {}, SOFT > 0),
        *((LABELS.astype(kind), dict(label=2), LABELS == 2) for kind in ("u1", "i2", "f4")),
        (RAMP, dict(label=91), RAMP == 91),  # of more labels than a mask holds
        (NOISE.astype("i2"), dict(bone_hu=100.0), NOISE.astype("i2") >= 100),
    ],
)
def test_what_is_bone(tmp_path, data, options, bone):
    for suffix in (".nii.gz", ".nrrd"):
        path = _save(tmp_path / f"a{suffix}", data, _affine())
        np.testing.assert_array_equal(volumes.read(path, **options).data, bone)


def test_nifti_scaling_comes_before_the_threshold(tmp_path):
    data = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    path = _nifti(tmp_path / "ct.nii.gz", data, _affine(), slope=10.0, inter=-1000.0)
    np.testing.assert_array_equal(volumes.read(path, bone_hu=100.0).data, data * 10 - 1000 >= 100)


def test_links_to_files_are_followed(tmp_path):
    mask, inner = _mask(), tmp_path / "inner"
    inner.mkdir()
    _save(tmp_path / "b.nrrd", mask.astype("u1"), _affine())
    (inner / "a.nrrd").symlink_to("../b.nrrd")
    np.testing.assert_array_equal(_ras(inner / "a.nrrd").data, mask)
    for suffix in (".nhdr", ".mhd"):
        header = _save(inner / f"{suffix[1:]}{suffix}", mask.astype("u1"), _affine())
        raw = headers.describe(header).files[1]
        raw.rename(inner / "d.raw")
        raw.symlink_to("d.raw")
        np.testing.assert_array_equal(_ras(header).data, mask)


SPACES = {"LPS": (-1, -1), "RAS": (1, 1), "left-anterior-superior": (-1, 1), "": (1, 1)}


def test_spaces_are_honoured_and_one_that_is_missing_is_asked_for(tmp_path):
    path, data = tmp_path / "a.nrrd", b"\1" + bytes(7)
    for space, signs in SPACES.items():
        place = f"space: {space}" if space else "space dimension: 3"
        _text_nrrd(path, *PLAIN, place, AXES, "space origin: (5,6,7)", data=data)
        if not space:
            _refused(path, r"which way it faces \(no space\).*set space \(data\.space, predict")
        got = volumes.read(path, space="" if space else "RAS")
        expected = np.array([[1.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])
        expected[:2] *= np.array(signs)[:, None]
        np.testing.assert_array_equal(got.affine, expected)
        assert got.data[0, 0, 0] and got.data.sum() == 1
    _text_nrrd(path, *PLAIN, "spacings: 1 2 3", data=data)
    for space, signs in (("RAS", (1, 1)), ("LPS", (-1, -1)), ("LAS", (-1, 1))):
        affine = volumes.read(path, space=space).affine
        np.testing.assert_array_equal(affine, np.diag([*np.multiply(signs, (1.0, 2)), 3, 1]))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 350), st.integers(0, 255), st.sampled_from(["nrrd", "nii", "mha"]))
def test_a_damaged_header_is_read_or_refused_never_a_crash(tmp_path_factory, place, byte, suffix):
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    _save(path, _mask().astype(np.uint8), _affine())
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        assert volumes.read(path).data.dtype == bool
    except UserError as error:
        assert "\n" not in str(error)


def test_units_come_to_millimetres_and_axes_of_length_one_are_dropped(tmp_path):
    mask = _mask().astype(np.uint8)
    for units, factor in {"meter": 1e-3, "micron": 1e3, "unknown": 1.0}.items():
        affine = np.diag([factor, factor, factor, 1]) @ _affine()
        path = _nifti(tmp_path / f"{units}.nii.gz", mask[..., None, None], affine, units=units)
        got = volumes.read(path)
        np.testing.assert_allclose(got.affine, _affine(), rtol=1e-5)
        np.testing.assert_array_equal(got.data, mask)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz"])
def test_a_rotated_grid_is_turned_and_written_where_two_witnesses_see_it(tmp_path, suffix):
    angle = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    mask, affine = _mask((9, 8, 7)), rotation @ _affine()
    data, turned = _turn(mask, affine, (2, 0, 1), (-1, 1, -1))
    paths = [tmp_path / "new" / "folder" / f"{name}{suffix}" for name in ("a", "b")]
    for path in paths:
        volumes.write(path, data, turned)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [p.name for p in paths]
    got = _ras(paths[0])
    np.testing.assert_array_equal(got.data, mask)
    np.testing.assert_allclose(got.affine, affine, atol=1e-5)
    image = sitk.ReadImage(str(paths[0]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, data)
    for corner in ((0, 0, 0), (6, 3, 2)):
        lps = image.TransformIndexToPhysicalPoint(corner)
        expected = turned @ [*corner, 1]
        np.testing.assert_allclose(lps, expected[:3] * (-1, -1, 1), atol=1e-4)
    if ".nii" in suffix:
        image = nibabel.load(paths[0])
        np.testing.assert_array_equal(np.asarray(image.dataobj), data)
        for form in (image.get_sform(), image.get_qform()):
            np.testing.assert_allclose(form, turned, atol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm" and image.header["sform_code"] == 2


def test_colours_and_sheared_grids_are_refused(tmp_path):
    sheared, path = _affine(), tmp_path / "a.mha"
    sheared[0, 1] = 0.1
    _refused(_save(path, _mask().astype("u1"), sheared), "sheared or singular")
    with pytest.raises(UserError, match="sheared or singular"):
        volumes.write(tmp_path / "b.nrrd", _mask(), sheared)
    colour = sitk.GetImageFromArray(np.ones((2, 2, 2, 3), "u1"), isVector=True)
    sitk.WriteImage(colour, str(path))
    _refused(path, "3-D")


def test_detached_headers_say_what_they_need(tmp_path):
    _refused(_text_nrrd(tmp_path / "a.nhdr", *PLAIN, "spacings: 1 1 1"), "data file")
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 2 2 2", "ElementType = MET_UCHAR"]
    (tmp_path / "a.mhd").write_text("\n".join([*lines, "ElementDataFile = a.raw"]), "utf-8")
    _refused(tmp_path / "a.mhd", "voxel size")
    lines += ["ElementSpacing = 1 1 1"]
    for name in ("a.raw", "LIST", "../b.raw", "a%d.raw 1 2 1"):
        (tmp_path / "a.mhd").write_text("\n".join([*lines, f"ElementDataFile = {name}"]), "utf-8")
        _refused(tmp_path / "a.mhd", "data file")


def test_missing_foreign_and_broken_files_are_refused(tmp_path):
    _refused(tmp_path / "none.mha", "no such file")
    (tmp_path / "a.stl").write_bytes(b"solid")
    _refused(tmp_path / "a.stl", "is a surface, not voxels: .*3D Slicer")
    (tmp_path / "a.txt").write_bytes(b"solid")
    _refused(tmp_path / "a.txt", "unknown kind")
    path = _save(tmp_path / "a.mha", _mask((20, 20, 20)).astype("u1"), np.eye(4))
    whole = path.read_bytes()
    for length in (0, 3, 30, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        _refused(path, "cut short|header")


def test_places_that_cannot_be_written_are_refused_and_the_old_file_stays(tmp_path, monkeypatch):
    mask, path = _mask(), tmp_path / "a.nrrd"
    for name in ("a.nhdr", "a.mha"):
        with pytest.raises(UserError, match="only read"):
            volumes.write(tmp_path / name, mask, np.eye(4))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        volumes.write(tmp_path / "file" / "a.nrrd", mask, np.eye(4))
    volumes.write(path, mask, _affine())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"a\.nrrd"):
        volumes.write(path, ~mask, _affine())
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nrrd", "file"]


def test_an_error_of_the_machine_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    """Else a file that is whole would be left out of a store, for good."""
    path = tmp_path / "a.nii"
    volumes.write(path, _mask(), _affine())

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("nibabel.volumeutils.array_from_file", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        volumes.read(path)
    assert error.value.filename == str(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
@pytest.mark.parametrize(
    "name",
    [
        "skulls/brainweb_04.nii.gz",
        "native/brainweb_45_half_mm.nii.gz",
        "ct/cranium_real_defect_hu.nii.gz",
        "skullbreak/parietotemporal_001_defective_512.nii.gz",
    ],
)
def test_real_files_lie_where_nibabel_puts_them(name):
    bone_hu = 300.0 if "defect_hu" in name else 0.0
    got, image = _ras(SHARED / name, bone_hu=bone_hu, form="none"), nibabel.load(SHARED / name)
    assert nibabel.aff2axcodes(got.affine) == ("R", "A", "S")
    values = np.asanyarray(image.dataobj)
    values = values >= bone_hu if bone_hu else values != 0
    assert np.count_nonzero(got.data) == np.count_nonzero(values)
    centres = [
        affine[:3, :3] @ [where.mean() for where in np.nonzero(mask)] + affine[:3, 3]
        for mask, affine in (got, (values, image.affine))
    ]
    np.testing.assert_allclose(*centres, atol=1e-4)
