"""Implants for files: prepared as training is, in the same millimetres however they are stored."""

import json
import re
import unittest.mock

import jax
import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from experiments import common
from skullgen.core.errors import UserError
from skullgen.data import defects, grids, headers, phantom, sources, store, volumes
from skullgen.data.grids import turned
from skullgen.delivery import api, implants, predict, vault
from skullgen.evaluation import verdict
from skullgen.report import figures
from tests.conftest import SHARED
from tests.data.test_volumes import _dicom, _save

SIDE, SIZE = 96, 32


def _settings(**fields):
    settings = common.defaults("smoke").predict
    settings.update(fields)
    return settings


def _mirror(size=SIZE):
    """The mirror image of a skull minus the skull: a net that needs no training."""
    about = {"name": "mirror", "voxel_mm": 6.4, "source": "phantom"}
    return predict.Designer(verdict.mirror(size), size, 0.3, True, about)


@pytest.fixture(scope="module")
def skull():
    """A phantom with a hole in its side, whose voxels are not cubes: mask, affine, what was cut."""
    complete, affine = phantom.skull(1, SIDE), phantom.affine(SIDE)
    defective, implant = defects.cut(complete, "parietotemporal", 3, voxel_mm=affine[0, 0])
    thin = affine @ np.diag([1, 1, 2, 1])
    thin[:3, 3] = (affine @ [0, 0, 0.5, 1])[:3]
    pooled = defective[:, :, ::2] | defective[:, :, 1::2]
    return pooled, thin, implant[:, :, ::2] & ~pooled


def _stored(mask, affine, name):
    """The same skull with its voxels in another order."""
    turn = np.array(TURNS[name](mask.shape), float)  # stored voxel -> this one's
    return turned(mask, turn), affine @ turn


TURNS = {
    "RAS": lambda n: np.eye(4),
    "LPS": lambda n: [[-1, 0, 0, n[0] - 1], [0, -1, 0, n[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]],
    "permuted": lambda n: [[0, 0, -1, n[0] - 1], [1, 0, 0, 0], [0, -1, 0, n[2] - 1], [0, 0, 0, 1]],
}


# --- Preparation -------------------------------------------------------------------------------


def _brought(path, threshold, reframe, **fields):
    """The skull that a net of 16^3 voxels gets of a file, and an implant everywhere beside it."""
    seen = []

    def net(bits):
        seen.append(store.unpack(bits[0], 16)[..., 0])
        return np.ones((1, 16, 16, 16), np.float32)

    designer = predict.Designer(net, 16, threshold, reframe, {})
    with unittest.mock.patch.object(implants, "measure", lambda *_: {}):
        implant = predict.predict(designer, path, _settings(dust_mm3=0.0, **fields))
    return seen[0], implant


@pytest.mark.parametrize("turn", ["LPS", "permuted"])
def test_a_skull_is_ingested_and_prepared_to_the_same_bits(tmp_path, turn):
    volumes.write(tmp_path / "a.nrrd", *_stored(phantom.skull(2, 64), phantom.affine(64), turn))
    config = common.defaults("smoke").data
    config.threshold = 0.3
    whole = sources.Skull("a", sources._file, tmp_path / "a.nrrd")
    ingested = sources.cut_skull(whole, range(1), 16, config)
    skull, implant = _brought(tmp_path / "a.nrrd", 0.3, True)
    assert len(ingested) == 5
    for pair in ingested:
        np.testing.assert_array_equal(store.unpack(pair.bits, 16).any(-1), skull)
        np.testing.assert_array_equal(pair.affine, implant.frame)


def test_a_file_of_skullbreak_keeps_its_own_cube_for_a_net_that_learnt_so(tmp_path):
    complete = np.roll(phantom.skull(2, 64), 5, 0)  # not where the frame would place it
    volumes.write(tmp_path / "a.nrrd", complete, phantom.affine(64))
    share = complete.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5))
    skull, implant = _brought(tmp_path / "a.nrrd", 0.5, False)
    np.testing.assert_array_equal(skull, share >= 0.5)
    np.testing.assert_allclose(implant.frame, phantom.affine(16))


def test_a_hole_at_the_vertex_or_in_the_side_hardly_moves_the_frame():
    complete, affine = phantom.skull(3, SIDE), phantom.affine(SIDE)
    true = grids.frame(complete, affine, SIZE)
    places = np.argwhere(complete)
    assert not vault.caps(complete, affine)[0].any()
    for axis in (2, 0):
        far = places[places[:, axis] == places[:, axis].max()].mean(0)
        away = np.linalg.norm((np.moveaxis(np.indices(complete.shape), 0, -1) - far), axis=-1)
        hole = complete & (away * affine[0, 0] > 35)
        naive, closed = (
            np.abs(grids.frame(whole, affine, SIZE) - true).max()
            for whole in (hole, hole | grids.enlarge(*vault.caps(hole, affine), affine, hole.shape))
        )
        assert naive > 3 and closed <= 2.2  # mm


def test_how_much_of_the_opening_an_implant_covers(skull):
    mask, affine, cut = skull
    assert vault.covered(mask, affine, cut) > 0.99
    assert vault.covered(mask, affine, np.zeros_like(cut)) == 0
    places = np.argwhere(cut)
    front = np.indices(cut.shape)[1] >= np.median(places[:, 1])
    shares = [vault.covered(mask, affine, cut & half) for half in (front, ~front)]
    assert min(shares) > 0.35 and 0.99 < sum(shares) < 1.15  # a ray on the cut meets both
    whole = phantom.skull(3, SIDE)
    assert vault.covered(whole, phantom.affine(SIDE), np.zeros_like(whole)) is None
    far = np.linalg.norm(np.argwhere(whole) - np.argwhere(whole)[-1], axis=1) * 204.8 / SIDE
    whole[tuple(np.argwhere(whole)[far < 4].T)] = False  # a pinhole at the vertex is no opening
    assert vault.covered(whole, phantom.affine(SIDE), np.zeros_like(whole)) is None


@pytest.mark.parametrize(
    ("rim", "covered", "words"),
    [
        (0.9, 1.0, r"over 100% of the opening as seen from within"),
        (0.88, 0.766, r"over 77% .* within \(warning: part of it stays open\)"),
        (0.5, 1.0, r"\(warning: it does not fill the hole; is the face .*\?\)"),
        (0.9, None, r"\(warning: no opening .* was found; is there a hole\?\)"),
    ],
)
def test_an_implant_in_words_says_what_stays_open(rim, covered, words):
    numbers = {"pieces": [{}], "volume_ml": 8.5, "extent_mm": 49.1}
    numbers |= {"rim_contact": rim, "opening_covered": covered}
    says = predict.describe(numbers)
    assert says.startswith(f"implant of 8.5 ml, 49 mm across, on bone along {rim:.0%} of the")
    assert re.search(f"{words}$", says)
    assert predict.describe(numbers | {"pieces": [{}, {}]}).startswith("2 implants of 8.5 ml")


# --- The fit and its measure -------------------------------------------------------------------


def test_what_a_piece_measures():
    bone = np.zeros((34, 34, 20), bool)  # a plate 2 voxels thick with a square hole
    piece, affine = bone.copy(), np.diag([1.0, 2.0, 3.0, 1.0])
    bone[2:32, 2:32, 9:11] = piece[12:20, 12:20, 9:11] = True
    bone &= ~piece
    found = implants.measure(piece, bone, affine, np.array([16.0, 32.0, -60.0]))
    assert found["volume_ml"] == pytest.approx(8 * 8 * 2 * 6 / 1000, abs=1e-3)
    assert found["extent_mm"] == pytest.approx(np.sqrt(8**2 + 16**2 + 6**2), abs=1e-3)
    assert found["rim_contact"] == 1 and len(found["pieces"]) == 1


def test_how_much_of_the_rim_touches_bone():
    piece = np.zeros((60, 60, 6), bool)
    piece[10:50, 10:50, 2:4] = True
    for sides, share in (((), 0), ((0,), 1 / 4), ((0, 1), 1 / 2)):
        bone = np.zeros_like(piece)
        for side in sides:
            np.moveaxis(bone, side, 0)[9, 10:50, 2:4] = True
        found = implants.measure(piece, bone, np.eye(4), np.array([30.0, 30.0, -60.0]))
        assert found["rim_contact"] == pytest.approx(share, abs=0.05)
        assert found["pieces"][0]["rim_mm"] == pytest.approx(160, rel=0.1)


def test_an_implant_fits():
    bone = np.zeros((34, 34, 20), bool)
    bone[2:32, 2:32, 8:10] = True
    piece = np.zeros_like(bone)
    piece[12:20, 12:18, 8:10] = True
    bone[12:20, 12:19, 8:10] = False
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = 0.5
    share = np.zeros((17, 17, 17), np.float32)
    share[5:11, 6:9, 4] = 1.0  # two voxels into the bone, one short of it at y = 18
    share[6:10, 6:10, 8] = 1.0  # far from all bone
    share[13:15, 13:15, 5] = 1.0  # on bone, and small
    fit = [
        implants.fit(share, grid, bone, np.eye(4), _settings(**fields))
        for fields in (dict(dust_mm3=60.0), dict(dust_mm3=0.0))
    ]
    np.testing.assert_array_equal(fit[0], piece)
    assert fit[1][26:30, 26:30].any() and not fit[1][:, :, 15:].any()
    assert not any((one & bone).any() for one in fit)


# --- Files -------------------------------------------------------------------------------------


def _read(path):
    """Voxels and grid, by other readers than ours."""
    if path.suffix == ".nrrd":
        data, head = nrrd.read(str(path))
        return data, np.vstack([head["space directions"], head["space origin"]])
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def test_however_a_file_is_stored_the_implant_is_in_the_same_millimetres(skull, tmp_path):
    answers = []
    for name, suffix in (("RAS", ".nii.gz"), ("LPS", ".nrrd"), ("permuted", ".nii.gz")):
        file, made = tmp_path / f"{name}{suffix}", tmp_path / f"{name}_implant{suffix}"
        stored, affine = _stored(*skull[:2], name)
        volumes.write(file, stored, affine)
        implant = predict.predict(_mirror(), file, _settings(dust_mm3=500.0))
        volumes.write(made, implant.mask, implant.affine, headers.describe(file))
        data, grid = _read(made)
        np.testing.assert_array_equal(grid, _read(file)[1])
        assert data.shape == stored.shape and not (data & stored).any()
        if name == "RAS":  # it is where the hole is
            assert 2 * (data & skull[2]).sum() > 0.5 * (data.sum() + skull[2].sum())
            assert min(implant.numbers[x] for x in ("rim_contact", "opening_covered")) > 0.7
        points = np.argwhere(data) @ affine[:3, :3].T + affine[:3, 3]
        answers.append((implant.numbers, points[np.lexsort(points.round(3).T)]))
        assert answers[-1][0] == answers[0][0]
        np.testing.assert_allclose(answers[-1][1], answers[0][1], atol=1e-3)


def test_a_scan_and_labels_are_cut_as_the_settings_say(skull, tmp_path):
    mask, affine, _ = skull
    labels = np.where(mask, 91, 0).astype(np.int16)
    labels[0, 0, :2] = 1, 2
    for values, fields in (
        (np.where(mask, 700, -1000).astype(np.int16), dict(bone_hu=300.0)),
        (labels, dict(label="91")),
    ):
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
        implant = _brought(tmp_path / "a.nii.gz", 0.3, True, **fields)[1]
        np.testing.assert_array_equal(implant.skull, mask)
    with pytest.raises(UserError, match=r"it holds 1, 2, 91: set label .*predict\.label"):
        predict.predict(_mirror(), tmp_path / "a.nii.gz", _settings())


@pytest.fixture
def run(skull, tmp_path, monkeypatch):
    """`run(*files)` designs with the mirror image into `predictions/` of the folder."""
    volumes.write(tmp_path / "scans" / "good.nrrd", *skull[:2])
    monkeypatch.setattr(predict, "PICTURE", 32)
    monkeypatch.setattr(predict, "designer", lambda *_: _mirror())
    config = common.defaults("smoke")

    def run(*places, **fields):
        names = ",".join(str(tmp_path / place) for place in places)
        config.predict.update({"file": names, "dust_mm3": 500.0, **fields})
        predict.run(config, tmp_path, figures.implant_sheet)
        files = sorted((tmp_path / "predictions").iterdir())
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return run


def test_of_several_files_a_bad_one_is_listed_and_the_others_go_on(run, tmp_path, capsys):
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    complete = phantom.skull(1, SIDE) | phantom.skull(1, SIDE)[::-1]
    volumes.write(tmp_path / "complete.nii.gz", complete, phantom.affine(SIDE))
    whole = run("scans", "complete.nii.gz")
    out = capsys.readouterr().out
    assert "mirror: voxels of 6.4 mm, data.source=phantom: look at each picture" in out
    assert " of the opening" in out
    assert "left out, 2 of 3 files" in out and "Not a medical device" in out
    assert "complete.nii.gz: no implant: the net found no hole" in out
    assert list(whole) == [f"good_implant{ending}" for ending in (".json", ".nrrd", ".png", ".stl")]
    about = json.loads(whole["good_implant.json"][0])
    assert about["notice"] == predict.NOTICE
    assert about["made_of"]["file"] == "good.nrrd"
    assert run("scans", "complete.nii.gz") == whole
    assert "good: is made already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is this skull complete\?"):
        run("complete.nii.gz")


def _files(*names):
    """The names and lines of `predict.file`, with paths of any files."""
    names, lines = predict.skull_files(",".join(map(str, names)))
    return list(names.values()), lines


def test_what_predict_file_names(tmp_path):
    for name in (
        "a/skull.nrrd",
        "b/skull.nrrd",
        "c, d/über 'x'.nii.gz",
        "c, d/._x.nrrd",
        "e/f/g.mha",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "plate.STL"):
        (tmp_path / name).touch()
    a, b = tmp_path / "a" / "skull.nrrd", tmp_path / "b" / "skull.nrrd"
    assert _files(a) == (["skull"], [])
    assert _files(a, b) == (["a_skull", "b_skull"], [])
    names, lines = _files(tmp_path)
    assert names == ["a", "b", "c, d"]
    assert [line.split(":")[0] for line in lines] == ["e/f", "notes.txt", "plate.STL"]
    assert "voxelise it in 3D Slicer" in lines[2]
    assert _files(tmp_path / "**")[0] == ["a", "b", "c, d", "e"]
    assert _files(tmp_path / "c, d" / "über 'x'.nii.gz", tmp_path / "*" / "skull.nrrd")[0] == [
        *("über 'x'", "a", "b")
    ]
    names, lines = _files(tmp_path / "notes.txt", a)
    assert names == ["skull"] and len(lines) == 1 and "notes.txt: holds no skull" in lines[0]
    with pytest.raises(
        UserError, match=r"plate\.STL: a surface, no mask: voxelise it in 3D Slicer"
    ):
        _files(tmp_path / "plate.STL")
    with pytest.raises(UserError, match="x: no such file or folder"):
        _files(a, tmp_path / "x")


def test_files_of_one_name_are_designed_apart_and_others_told(run, skull, tmp_path, capsys):
    for place in ("scans/P1", "scans/P2"):
        volumes.write(tmp_path / place / "skull.nrrd", *skull[:2])
    (tmp_path / "scans" / "good.nrrd").unlink()
    (tmp_path / "scans" / "notes, of.txt").touch()
    made = run("scans/P1/skull.nrrd", "scans/P2/skull.nrrd", "scans/notes, of.txt")
    assert sorted(made)[::4] == ["P1_skull_implant.json", "P2_skull_implant.json"]
    assert "notes, of.txt: holds no skull" in capsys.readouterr().out
    assert "P2_implant.nrrd" in run("scans/**")


def test_nothing_is_written_over(run, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "good_implant.nrrd").write_bytes(b"a surgeon's")
    with pytest.raises(UserError, match=r"good_implant\.nrrd: is there, and not ours"):
        run("scans")
    (folder / "good_implant.nrrd").unlink()
    whole = run("scans")
    (folder / "good_implant.stl").unlink()  # as of a kill: it goes on
    again = run("scans")
    assert {name: again[name][0] for name in again} == {name: whole[name][0] for name in whole}
    with pytest.raises(UserError, match=r"implant\.json: made with .*dust_mm3 500\.0, now 600"):
        run("scans", dust_mm3=600.0)
    assert run("scans") == again


def _inputs(skull, folder):
    """The same skull as files in this field are: name -> file."""
    mask, affine, _ = skull
    data, tilt = mask.astype("u1"), np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    oblique, sides = tilt @ affine, grids.box(mask)
    turned_data, permuted = _stored(data, affine, "permuted")
    mirrored, flip = np.ascontiguousarray(data[::-1]), affine @ np.diag([-1.0, 1, 1, 1])
    flip[:3, 3] += affine[:3, 0] * (len(data) - 1)
    big = nibabel.Nifti1Header(endianness=">")
    metres = nibabel.Nifti1Image(data, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine)
    metres.header.set_xyzt_units("meter")
    images = {
        "oblique.nii.gz": nibabel.Nifti1Image(data, oblique),
        "permuted.nii": nibabel.Nifti1Image(turned_data, permuted),
        "big.nii": nibabel.Nifti1Image(data, affine, big),
        "qfac.nii": nibabel.Nifti1Image(mirrored, flip),
        "metres.nii": metres,
    }
    for name, image in images.items():
        image.set_qform(image.affine, 1)
        nibabel.save(image, folder / name)
    assert images["qfac.nii"].header["pixdim"][0] == -1
    files = {name: folder / name for name in images}
    place = affine.copy()
    place[:3, 3] = (affine @ [*(side.start for side in sides), 1])[:3]
    for name, part, own in (
        ("cropped.seg.nrrd", data[sides], place),
        ("oblique.mha", data, oblique),
        ("permuted.nhdr", turned_data, permuted),
    ):
        image = sitk.GetImageFromArray(np.ascontiguousarray(part.T))
        lps = np.diag([-1.0, -1, 1, 1]) @ own
        image.SetSpacing(np.linalg.norm(lps[:3, :3], axis=0).tolist())
        image.SetDirection((lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        files[name] = folder / name
        sitk.WriteImage(image, str(files[name]))
    return files


def _corners(path, shape):
    """Where SimpleITK, and nibabel where it can, put the corners of a grid: RAS mm of the file."""
    image, corners = sitk.ReadImage(str(path)), np.indices((2, 2, 2)).reshape(3, -1).T
    corners = (corners * (np.array(shape) - 1)).tolist()
    yield np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners])
    if ".nii" in path.name:
        own = nibabel.load(path).affine
        yield np.array(corners) @ own[:3, :3].T + own[:3, 3]


def test_a_prediction_lies_on_its_input_in_every_program(skull, tmp_path):
    config = common.defaults("smoke")
    config.predict.dust_mm3 = 500.0
    volumes_ml = set()
    for name, file in _inputs(skull, tmp_path).items():
        place = tmp_path / "out" / f"{name} implant"
        predict._design_file(_mirror(), file, place, config, lambda *_, **__: None)
        (made,) = place.parent.glob(f"{place.name}.n*")
        about = json.loads(place.with_name(f"{place.name}.json").read_bytes())
        shape, larger = headers.describe(file).shape, "cropped" in name
        assert (headers.describe(made).shape != shape) == larger, name
        for one, other in zip(_corners(file, shape), _corners(made, shape), strict=False):
            way = (other - one) @ np.linalg.inv(one[[4, 2, 1]] - one[0]) * (np.array(shape) - 1)
            np.testing.assert_allclose(way, way[:1].round() + 0 * way, atol=1e-3, err_msg=name)
            assert larger or abs(way).max() < 1e-3
        assert len(about["notes"]) == ("metres" in name or larger)
        volumes_ml.add(about["volume_ml"])
    assert max(volumes_ml) < 1.05 * min(volumes_ml)  # as an oblique grid rounds


def test_an_implant_may_reach_beyond_a_file_that_is_cropped_to_its_bone(tmp_path):
    """A hole at the vertex: the file ends at its rim."""
    whole, affine = phantom.skull(3, 128), phantom.affine(128)
    places = np.argwhere(whole)
    top = places[places[:, 2] == places[:, 2].max()].mean(0)
    away = np.linalg.norm(np.moveaxis(np.indices(whole.shape), 0, -1) - top, axis=-1)
    skull = whole & (away * affine[0, 0] > 40)
    sides = grids.box(skull)
    crop = affine.copy()
    crop[:3, 3] = (affine @ [*(side.start for side in sides), 1])[:3]
    implants_ = []
    with jax.default_prng_impl("threefry2x32"):
        for number, (mask, own) in enumerate(((skull, affine), (skull[sides], crop))):
            volumes.write(tmp_path / f"{number}.nrrd", mask, own)
            implants_.append(api.load("demo").predict(tmp_path / f"{number}.nrrd"))
    points = [np.argwhere(x.mask) @ x.affine[:3, :3].T + x.affine[:3, 3] for x in implants_]
    np.testing.assert_allclose(*points, atol=1e-6)
    assert implants_[0].mask.shape == skull.shape and implants_[0].numbers["notes"] == []
    assert implants_[1].mask.shape[2] > sides[2].stop - sides[2].start + 3
    assert implants_[1].mask.shape[:2] == skull[sides].shape[:2]
    assert (
        "it reaches beyond the file's voxels and is written on" in implants_[1].numbers["notes"][0]
    )
    assert not (implants_[1].mask & implants_[1].skull).any()


def test_another_file_of_the_same_name_replaces_nothing(run, tmp_path):
    before = run("scans")
    (tmp_path / "other").mkdir()
    mask = volumes.read(tmp_path / "scans" / "good.nrrd")
    volumes.write(tmp_path / "other" / "good.nrrd", mask.data[::-1], mask.affine)
    match = (
        r"good_implant\.json: is the implant of another file \(good\.nrrd\) than .*predict\.folder"
    )
    with pytest.raises(UserError, match=match):
        run("other")
    assert run("scans") == before


REAL = SHARED / "ct" / "cranium_real_defect_hu.nii.gz"


@pytest.mark.skipif(not REAL.is_file(), reason="real skulls (../shared/data) are not here")
def test_a_ct_gives_the_same_implant_from_every_kind_of_file(tmp_path):
    image = nibabel.load(REAL)
    values = np.asanyarray(image.dataobj).astype(np.int16)
    for suffix in (".nrrd", ".mha"):
        _save(tmp_path / f"a{suffix}", values, image.affine)
    _dicom(tmp_path / "series", values, image.affine)
    with jax.default_prng_impl("threefry2x32"):
        run = api.load("demo")
        answers = [
            run.predict(path, bone_hu=300.0)
            for path in (REAL, tmp_path / "a.nrrd", tmp_path / "a.mha", tmp_path / "series")
        ]
    for answer in answers[1:]:
        turn = grids.to_ras(answer.affine, answer.mask.shape)
        first = grids.to_ras(answers[0].affine, answers[0].mask.shape)
        np.testing.assert_array_equal(turned(answer.mask, turn), turned(answers[0].mask, first))
        np.testing.assert_allclose(answer.affine @ turn, answers[0].affine @ first, atol=1e-3)
        assert answer.numbers["volume_ml"] == pytest.approx(answers[0].numbers["volume_ml"], 1e-4)


def test_what_is_named_wrong_is_one_line_before_the_run(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "a.nrrd").touch()

    def check(*stages, **fields):
        config = common.defaults("smoke")
        config.predict.update({"file": str(tmp_path / "a.nrrd"), **fields})
        predict.check(config, list(stages), tmp_path)

    for words, fields in (
        ("predict.file is empty", dict(file="")),
        ("nowhere.nrrd: no such file or folder", dict(file="nowhere.nrrd")),
        (r"notes\.txt: holds no skull", dict(file=str(tmp_path / "notes.txt"))),
        (r"predict\.net is 'unet'", dict(net="unet")),
        (r"vnet: no checkpoint; run the stage `segment` first$", {}),
        ("vnet: no checkpoint; here is vnet_real: name that$", dict(weights="demo", net="vnet")),
    ):
        with pytest.raises(UserError, match=words):
            check(**fields)
    check("segment", "predict")  # which makes it
    check(weights="demo")


def test_the_packaged_net_designs_and_says_which_it_is(skull, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "PICTURE", 32)
    volumes.write(tmp_path / "a.nrrd", *skull[:2])
    config = common.defaults("smoke")
    config.predict.update(file=str(tmp_path / "a.nrrd"), weights="demo", dust_mm3=500.0)
    with jax.default_prng_impl("threefry2x32"):  # as it was trained
        predict.run(config, tmp_path, figures.implant_sheet)
    assert "vnet_real: voxels of 6.4 mm, data.source=phantom" in capsys.readouterr().out
    about = json.loads((tmp_path / "predictions" / "a_implant.json").read_bytes())
    assert about["net"]["name"] == "vnet_real" and about["volume_ml"] > 1
