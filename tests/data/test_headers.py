"""Which way a file faces, by two witnesses; outputs lie on their input."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from skullgen.core.errors import UserError
from skullgen.data import headers, volumes
from tests.data.test_volumes import PLAIN, _affine, _dicom, _itk_image, _mask, _text_nrrd


def _forms(path, sform, qform, codes=(1, 1), kind=nibabel.Nifti1Image, order="<"):
    """A NIfTI with these forms, None for none, and texts that name a patient."""
    image = kind(_mask().astype("u1"), None, kind.header_class(endianness=order))
    for form, place, code in zip(("sform", "qform"), (sform, qform), codes, strict=True):
        if place is not None:
            getattr(image, f"set_{form}")(place, code)
        else:
            image.header[f"{form}_code"] = 0
    if qform is None and sform is not None:
        image.header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    image.header["descrip"] = image.header["aux_file"] = b"Anna"
    nibabel.save(image, path)
    return path


def _itk_affine(path):
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1, 1, 1]) @ affine


def _mirrored():
    affine = _affine()
    affine[0] = -affine[0]
    return affine


def _moved(mm):
    affine = _affine()
    affine[1, 3] += mm
    return affine


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("own", "qform", "apart"), [(_affine(), _mirrored(), 41.0), (_affine(), _moved(0.06), 0.1)]
)
def test_forms_that_differ_are_asked_for_and_both_stay_in_what_is_written(
    tmp_path, kind, own, qform, apart
):
    path = _forms(tmp_path / "a.nii", own, qform, (2, 1), kind)
    with pytest.raises(
        UserError, match=rf"sform and qform place it {apart} mm apart: .*predict.form"
    ):
        volumes.read(path)
    for form, place in (("sform", own), ("qform", qform)):
        source = headers.describe(path, form)
        np.testing.assert_allclose(source.affine, place, atol=1e-5)
        assert "nibabel and FSL go by the sform, ITK" in source.notes[0]
        written = tmp_path / f"{form}.nii"
        volumes.write(written, _mask(), source.affine, source)
        _same_place(path, written)
    if kind is nibabel.Nifti1Image:
        np.testing.assert_allclose(_itk_affine(path), qform, atol=1e-5)  # what the note says
    np.testing.assert_allclose(nibabel.load(path).affine, own, atol=1e-5)


def _same_place(one, other):
    """Two files lie on each other in nibabel (and FSL) and in SimpleITK (and 3D Slicer)."""
    a, b = (nibabel.load(path).header for path in (one, other))
    for field in ("sform_code", "qform_code", "xyzt_units", "sizeof_hdr", "srow_x", "qoffset_y"):
        np.testing.assert_array_equal(a[field], b[field])
    np.testing.assert_array_equal(a["pixdim"][:4], b["pixdim"][:4])
    np.testing.assert_array_equal(nibabel.load(one).affine, nibabel.load(other).affine)
    if a["sizeof_hdr"] == 348:  # SimpleITK reads no NIfTI-2
        np.testing.assert_array_equal(_itk_affine(one), _itk_affine(other))
    assert b"Anna" not in other.read_bytes()


def test_forms_that_agree_or_one_alone_need_no_word(tmp_path):
    turned = _affine() @ np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    cases = [(_affine(), _moved(0.04)), (_affine(), None), (None, _mirrored()), (turned, turned)]
    for number, (sform, qform) in enumerate(cases):
        for order, kind in ("<", nibabel.Nifti1Image), (">", nibabel.Nifti2Image):
            path = _forms(tmp_path / f"{number}.nii", sform, qform, (4, 2), kind, order)
            for form in ("", "sform", "qform", "none"):
                source = headers.describe(path, form)
                own = qform if sform is None else sform
                np.testing.assert_allclose(source.affine, own, atol=1e-5)
                assert not source.notes
            volumes.write(tmp_path / "b.nii", _mask(), source.affine, source)
            _same_place(path, tmp_path / "b.nii")


def test_a_qform_of_older_programs_or_one_that_is_none(tmp_path):
    """qfac 0 is 1; a quaternion that is no rotation differs from any sform."""
    path = _forms(tmp_path / "a.nii", _affine(), _affine())
    raw = bytearray(path.read_bytes())
    raw[76:80] = np.float32(0).tobytes()
    path.write_bytes(raw)
    np.testing.assert_allclose(headers.describe(path).affine, _affine(), atol=1e-5)
    raw[256:268] = np.float32([1, 1, 1]).tobytes()
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"nan mm apart: .* set form to sform"):
        headers.describe(path)
    np.testing.assert_allclose(headers.describe(path, "sform").affine, _affine(), atol=1e-5)
    with pytest.raises(UserError, match="not finite"):
        headers.describe(path, "qform")


def test_an_sform_that_pixdim_contradicts_is_asked_about(tmp_path):
    """As nibabel writes it where only set_sform is called; ITK goes by pixdim."""
    path = _forms(tmp_path / "a.nii", _affine(), None)
    image = nibabel.load(path)
    image.header["pixdim"][1:4] = 1
    nibabel.save(nibabel.Nifti1Image(_mask().astype("u1"), None, image.header), path)
    assert np.abs(_itk_affine(path) - nibabel.load(path).affine).max() > 0.2
    with pytest.raises(UserError, match=r"voxels of 0\.5 x 0\.75 x 1\.25 mm, its pixdim 1 x 1 x 1"):
        headers.describe(path)
    source = headers.describe(path, "sform")
    np.testing.assert_allclose(source.affine, _affine())
    assert "which ITK goes by" in source.notes[0]


def test_a_segment_of_a_layer_that_is_not_there_is_refused(tmp_path):
    flat = np.zeros((4, 5, 6), "u1")
    flat[1:3, 1, 1] = 1
    for layers, layer in ((flat, 1), (flat, -1), (np.stack([flat, flat], -1), 2)):
        path = _seg(tmp_path / "a.seg.nrrd", layers, ("Skull", layer, 1))
        with pytest.raises(UserError, match=f"its segment is in layer {layer}, of"):
            volumes.read(path, label="Skull")


def test_files_of_a_series_that_are_no_slices_are_refused(tmp_path):
    folder = _dicom(tmp_path / "a", _mask().astype("i2") * 500, _affine())
    (folder / "z.dcm").touch()
    with pytest.raises(UserError, match=r"z\.dcm \(1 in all\) are no slices of its series"):
        headers.describe(folder)


def test_a_nifti_without_forms_is_read_by_name_only(tmp_path):
    path = _forms(tmp_path / "a.nii", None, None)
    plain = nibabel.load(path).affine
    for form in ("", "sform", "qform"):
        with pytest.raises(UserError, match=r"does not say which way it faces .*set form to none"):
            volumes.read(path, form=form)
    source = headers.describe(path, "none")
    np.testing.assert_array_equal(source.affine, plain)
    assert "not known" in source.notes[0]
    volumes.write(tmp_path / "b.nii", _mask(), source.affine, source)
    _same_place(path, tmp_path / "b.nii")


def test_a_file_in_metres_stays_one_and_says_who_reads_it_otherwise(tmp_path):
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ _affine()
    path = _forms(tmp_path / "a.nii", metres, metres)
    image = nibabel.load(path)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, path)
    source = headers.describe(path)
    np.testing.assert_allclose(source.affine, _affine(), rtol=1e-6)
    assert source.notes == ("its unit is 1000 mm, which nibabel and FSL read as 1 mm",)
    volumes.write(tmp_path / "b.nii", _mask(), source.affine, source)
    _same_place(path, tmp_path / "b.nii")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".nhdr", "dicom"])
def test_what_is_written_on_a_larger_grid_lies_on_the_file_too(tmp_path, suffix):
    """Voxel [1, 2, 3] of the file is voxel [4, 4, 4] of a grid with (3, 2, 1) more before it."""
    angle = np.deg2rad(20)
    affine = _affine()
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if suffix == "dicom":
        path = _dicom(tmp_path / "series", _mask().astype("i2") * 500, affine)
    elif suffix == ".nii.gz":
        path = _forms(tmp_path / f"a{suffix}", affine, affine)
    else:
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(_itk_image(_mask().astype("u1"), affine), str(path))
    source, more = headers.describe(path), np.eye(4)
    more[:3, 3] = -3, -2, -1
    written = tmp_path / ("b.nii.gz" if suffix == ".nii.gz" else "b.nrrd")
    volumes.write(written, np.pad(_mask(), 4), source.affine @ more, source)
    np.testing.assert_allclose(
        _itk_affine(written) @ [4, 4, 4, 1], affine @ [1, 2, 3, 1], atol=1e-4
    )
    if suffix == ".nii.gz":
        image = nibabel.load(written)
        for form in image.get_sform(), image.get_qform():
            np.testing.assert_allclose(form @ [4, 4, 4, 1], affine @ [1, 2, 3, 1], atol=1e-4)


@pytest.mark.parametrize("space", ["LPS", "RAS", "left-anterior-superior"])
def test_an_nrrd_keeps_its_own_space(tmp_path, space):
    lines = f"space: {space}", "space directions: (1,0,0) (0,0.8,-0.6) (0,1.2,1.6)"
    path = _text_nrrd(
        tmp_path / "a.nrrd", *PLAIN, *lines, "space origin: (5,6,7)", data=b"\1" + bytes(7)
    )
    source = headers.describe(path)
    volumes.write(tmp_path / "b.nrrd", np.ones((2, 2, 2), bool), source.affine, source)
    text = (tmp_path / "b.nrrd").read_bytes().split(b"\n\n")[0].decode()
    long = headers.SPACES.get(space, ("", "", space))[2]
    assert f"space: {long}\n" in text and "space origin: (5.0,6.0,7.0)" in text
    np.testing.assert_allclose(_itk_affine(path), _itk_affine(tmp_path / "b.nrrd"), atol=1e-12)


@pytest.mark.parametrize("space", headers.SPACES)
def test_a_metaimage_without_directions_is_asked_for_its_space(tmp_path, space):
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 2 2 2", "ElementType = MET_UCHAR"]
    lines += ["ElementSpacing = 1 1 2", "Offset = 5 6 7", "ElementDataFile = LOCAL\n"]
    path = tmp_path / "a.mha"
    path.write_bytes("\n".join(lines).encode() + b"\1" + bytes(7))
    with pytest.raises(UserError, match=r"which way it faces \(no TransformMatrix\)"):
        volumes.read(path)
    source, signs = headers.describe(path, space=space), np.array([*headers.SPACES[space][:2], 1])
    np.testing.assert_array_equal(source.affine[:3, 3], signs * (5, 6, 7))
    assert f"another than {space}" in source.notes[0]
    volumes.write(tmp_path / "b.nrrd", np.ones((2, 2, 2), bool), source.affine, source)
    np.testing.assert_array_equal(_itk_affine(path), _itk_affine(tmp_path / "b.nrrd"))


# --- Segmentations of 3D Slicer ------------------------------------------------------------------


def _seg(path, layers, *segments):
    """A seg.nrrd: `layers` [X, Y, Z, L] or one [X, Y, Z]; segments: name, layer, value."""
    several = layers.ndim == 4
    lines = ["type: uint8", f"dimension: {3 + several}", "space: left-posterior-superior"]
    lines += ["kinds: list domain domain domain"] * several
    shape = layers.shape[3:] + layers.shape[:3]
    lines += [f"sizes: {' '.join(map(str, shape))}", "encoding: raw"]
    lines += [
        f"space directions: {'none ' * several}(-1,0,0) (0,-1,0) (0,0,2)",
        "space origin: (1,2,3)",
    ]
    for number, (name, layer, value) in enumerate(segments):
        fields = {"Name": name, "Layer": layer, "LabelValue": value, "Color": "1 0 0"}
        lines += [f"Segment{number}_{key}:={text}" for key, text in fields.items()]
    data = np.moveaxis(layers, 3, 0) if several else layers
    return _text_nrrd(path, *lines, data=data.tobytes("F"))


def test_segments_are_chosen_by_name_or_value(tmp_path):
    layers = np.zeros((4, 5, 6, 2), "u1")
    layers[1:3, 1, 1, 0], layers[1, 2:4, 1, 0], layers[1:4, 1, 2, 1] = 1, 2, 1
    all_ = ("Skull", 0, 1), ("Implant", 0, 2), ("Schädel, ganz", 1, 1)
    path = _seg(tmp_path / "a.seg.nrrd", layers, *all_)
    for name, layer, value in all_:
        got = volumes.read(path, label=name)
        np.testing.assert_array_equal(got.data, layers[..., layer] == value)
        np.testing.assert_array_equal(got.affine[:3, 3], (-1, -2, 3))
    np.testing.assert_array_equal(volumes.read(path, label=2).data, layers[..., 0] == 2)
    for label in ("", "1", "Bone"):
        with pytest.raises(
            UserError, match=r"segments 'Skull' \(1\), .*predict\.label\) to the name"
        ):
            volumes.read(path, label=label)
    flat = _seg(tmp_path / "b.seg.nrrd", layers[..., 0], *all_[:2])
    np.testing.assert_array_equal(volumes.read(flat, label="Implant").data, layers[..., 0] == 2)
    one = _seg(tmp_path / "c.seg.nrrd", layers[..., 1], ("Skull", 0, 1))
    np.testing.assert_array_equal(volumes.read(one).data, layers[..., 1] == 1)
    with pytest.raises(UserError, match="names no segments: label is 'Skull'"):
        plain = _text_nrrd(
            tmp_path / "d.nrrd",
            *PLAIN,
            "space: LPS",
            "space directions: (1,0,0) (0,1,0) (0,0,1)",
            data=bytes(8),
        )
        volumes.read(plain, label="Skull")


@pytest.mark.parametrize("kind", ["u1", "i2"])
def test_labels_that_were_scaled_are_whole_again(tmp_path, kind):
    """As nibabel and SPM write floats: 2 becomes 254 x .00784 = 1.992, or 1 128 x .00784."""
    labels = np.zeros((4, 5, 6))
    labels[1, 1:4, 1:5], labels[2, 1:4, 1:5] = 1, 2
    most = np.iinfo(kind).max
    for slope in (2 / most, 2.0085 / most):
        stored = np.rint(labels / slope).clip(0, most).astype(kind)
        image = nibabel.Nifti1Image(stored, _affine(), dtype=kind)
        image.header.set_slope_inter(slope, 0)
        nibabel.save(image, tmp_path / "a.nii.gz")
        for label in (1, 2):
            mask = volumes.read(tmp_path / "a.nii.gz", label=label).data
            np.testing.assert_array_equal(mask, labels == label)
    image.header.set_slope_inter(0.25, 0)  # values of their own: not rounded
    nibabel.save(image, tmp_path / "a.nii.gz")
    if kind == "u1":
        with pytest.raises(UserError, match="values between its labels"):
            volumes.read(tmp_path / "a.nii.gz", label=1)


# --- DICOM ---------------------------------------------------------------------------------------


def test_a_series_that_is_no_even_grid_names_its_files(tmp_path):
    values = _mask((6, 5, 8)).astype("i2") * 500
    good = _dicom(tmp_path / "good", values, _affine())
    assert headers.describe(good).shape == (6, 5, 8)
    for number in (2, 5):
        with pytest.raises(
            UserError,
            match=r"1\.2\.3_\d+\.dcm and 1\.2\.3_\d+\.dcm are 2\.50 mm apart, the others 1\.25",
        ):
            volumes.read(_dicom(tmp_path / f"gap{number}", values, _affine(), skip=[number]))
    tilted = _affine()
    tilted[1, 2] = np.tan(np.deg2rad(15)) * tilted[2, 2]
    with pytest.raises(UserError, match=r"gantry was tilted by 15\.0 degrees"):
        volumes.read(_dicom(tmp_path / "tilted", values, tilted))
    with pytest.raises(UserError, match="holds one slice"):
        volumes.read(_dicom(tmp_path / "one", values, _affine(), skip=range(1, 8)))
    (good / "DICOMDIR").write_bytes(b"notes")  # what is no slice is passed over
    (good / "notes.txt").write_bytes(b"Anna")
    assert headers.describe(good).shape == (6, 5, 8)
