"""Exports: other programs read the same pairs, in the same millimetres, and stopped ones go on."""

import csv
import json

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import trimesh

from experiments import common
from skullgen.core import files, jobs
from skullgen.core.errors import UserError
from skullgen.data import defects, ingest, store, volumes
from skullgen.delivery import export

SIZE, MM = 16, 4.0


def _affine(turn=0.0):
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3] *= MM
    affine[:3, 3] = -20, 35, 7
    return affine


def _pairs(count):
    """Shells, thicker from the sixth on, each with a cap cut off elsewhere."""
    grid = np.mgrid[:SIZE, :SIZE, :SIZE] - (SIZE - 1) / 2
    far = np.sqrt((grid**2).sum(0))
    shells = [(far < 7) & (far > (4.5 if number < 5 else 4)) for number in range(count)]
    towards = np.random.default_rng(0).normal(size=(count, 3))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    caps = [np.tensordot(t, grid, 1) > 0.6 * far for t in towards]
    pairs = zip(shells, caps, strict=True)
    return np.stack([np.stack([shell & ~cap, shell & cap], -1) for shell, cap in pairs])


def _store(path, count, turn=0.0, pairs=None, **columns):
    attributes = {"voxel_mm": MM, "kinds": list(defects.KINDS), "names": list("abcdefg")}
    attributes["licence"] = "CC BY-NC-SA 4.0"
    made = store.create(path, store.Shape(count, SIZE, 8), attributes, {"seed": 1})
    pairs, columns["affine"] = _pairs(count) if pairs is None else pairs, [_affine(turn)] * count
    for start in range(0, count, 8):
        part = {name: np.array(column[start : start + 8]) for name, column in columns.items()}
        made.write(start, store.pack(pairs[start : start + 8]), part)
    return pairs


@pytest.fixture
def real(tmp_path):
    """Skull a, cut twice into two kinds, for training; b to validate; c to test."""
    columns = {"split": [0, 0, 0, 0, 1, 2, 2], "kind": [0, 2, 0, 2, 1, 0, 4]}
    _store(tmp_path / "real.zarr", 7, skull=[0, 0, 0, 0, 1, 2, 2], **columns)
    return tmp_path / "real.zarr"


@pytest.fixture
def made(tmp_path):
    """Generated pairs: the third has no implant."""
    pairs = _pairs(6)
    pairs[2, ..., 1] = False
    _store(tmp_path / "generated.zarr", 6, turn=0.3, pairs=pairs)
    return tmp_path / "generated.zarr"


def _settings(**fields):
    settings = common.defaults("demo").export
    settings.update(fields)
    return settings


def _run(path, name, workers=1, **fields):
    folder = path.parent / "out"
    export.write(path, folder, name, _settings(**fields), workers)
    return folder


def _check(workdir, stages, **fields):
    config = common.defaults("smoke")
    config.export = _settings(**fields)
    export.check(config, stages, workdir)


def _table(folder):
    return list(csv.DictReader((folder / "pairs.csv").open(encoding="utf-8")))


def _rows(folder):
    return [int(line["index"]) for line in _table(folder)]


def _bytes(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _mask(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_skullbreaks_layout_is_read_back_as_the_same_pairs(real, tmp_path, monkeypatch):
    monkeypatch.setattr("skullgen.data.heads.check", lambda *_: None)  # shells of 56 mm
    folder = _run(real, "skullbreak")
    (folder / "LICENCE.txt").write_text("Apache-2.0\n", encoding="utf-8")
    config = common.defaults("smoke").data
    config.update(source="skullbreak", root=str(folder), threshold=0.5, strict=True)
    ingest.run(tmp_path / "back.zarr", SIZE, config, ingest.Options(workers=1))

    def content(path):
        opened = store.Store(path)
        bits, split = opened.load(list(range(7))), np.where(opened.column("split") == 2, 2, 0)
        rows = zip(split.tolist(), opened.column("kind").tolist(), bits, strict=True)
        return sorted((*row[:2], row[2].tobytes()) for row in rows)

    assert content(tmp_path / "back.zarr") == content(real)
    back = store.Store(tmp_path / "back.zarr")
    np.testing.assert_allclose(back.column("affine")[3], _affine())
    assert back.attrs["licence"] == "Apache-2.0"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*.nrrd")}
    assert "train/defective_skull/bilateral/001.nrrd" in names  # the second cut of skull a
    assert "test/implant/random_2/000.nrrd" in names
    complete = {name for name in names if "complete_skull" in name}
    assert complete == {f"train/complete_skull/00{n}.nrrd" for n in range(3)} | {
        "test/complete_skull/000.nrrd"
    }
    assert len(names) == 2 * 7 + 4
    blind = nrrd.read(str(folder / "train" / "implant" / "bilateral" / "001.nrrd"))[0]
    np.testing.assert_array_equal(blind, _pairs(7)[2][::-1, ..., 1])  # LAS, as SkullBreak's own
    whole = volumes.in_ras(volumes.read(folder / "train" / "complete_skull" / "000.nrrd")).data
    np.testing.assert_array_equal(whole, _pairs(7)[0].any(-1))


def test_nnunets_dataset_holds_coded_skulls_and_implants(real):
    folder = _run(real, "nnunet") / "Dataset501_Skullgen"
    about = files.read_json(folder / "dataset.json")
    assert about["numTraining"] == 5 and about["labels"] == {"background": 0, "implant": 1}
    assert about["channel_names"] == {"0": "noNorm"} and about["file_ending"] == ".nii.gz"
    for tag, rows in (("Tr", range(5)), ("Ts", (5, 6))):
        images = sorted(p.name for p in (folder / f"images{tag}").iterdir())
        labels = sorted(p.name for p in (folder / f"labels{tag}").iterdir())
        assert images == [f"skullgen_{row:06d}_0000.nii.gz" for row in rows]
        assert labels == [name.replace("_0000.nii", ".nii") for name in images]
        for row, image, label in zip(rows, images, labels, strict=True):
            skull, implant = np.moveaxis(_pairs(7)[row], -1, 0)
            np.testing.assert_array_equal(_mask(folder / f"images{tag}" / image), 1 + skull)
            np.testing.assert_array_equal(_mask(folder / f"labels{tag}" / label), implant)


def _folds(folder):
    """`splits_final.json`: of each fold the rows to validate on; the rest is trained on."""
    folder = folder / "Dataset501_Skullgen"
    splits = json.loads((folder / "splits_final.json").read_bytes())
    cases = {p.name[:-7] for p in (folder / "labelsTr").iterdir()}
    for split in splits:
        assert split.keys() == {"train", "val"} and len(split["train"]) == len(set(split["train"]))
        assert {*split["train"], *split["val"]} == cases
        assert not {*split["train"]} & {*split["val"]}
    assert sum(len(split["val"]) for split in splits) == len(cases)
    return [[int(name.removeprefix("skullgen_")) for name in split["val"]] for split in splits]


def test_no_fold_of_nnunet_has_a_skull_on_both_sides(real, made, tmp_path):
    (tmp_path / "many").mkdir()
    skulls, split = [4, 4, 0, 0, 1, 1, 2, 3, 5, 6], [0] * 9 + [2]
    _store(tmp_path / "many" / "real.zarr", 10, skull=skulls, split=split, kind=[0] * 10)
    export.write(made, tmp_path / "own", "nnunet", _settings(), 1)
    assert _folds(tmp_path / "own") == [[0], [1], [3], [4], [5]]  # 2 has no implant
    # Skulls in their order: 4, 0, 1, 2, 3, 5; the sixth is in the first's fold.
    folder = _run(tmp_path / "many" / "real.zarr", "nnunet")
    assert _folds(folder) == [[0, 1, 8], [2, 3], [4, 5], [6], [7]]
    assert _folds(_run(real, "nnunet")) == [[0, 1, 2, 3], [4]]  # two skulls are not for the test
    export.write(real, real.parent / "one", "nnunet", _settings(rows="0:4"), 1)
    assert not list((real.parent / "one").rglob("splits_final.json"))


def test_itk_nibabel_and_the_meshes_see_the_same_millimetres(made):
    config = common.defaults("demo")
    config.export.update(store=str(made), format=("nifti", "skullbreak,stl"), rows="1:2")
    config.workers = 1
    export.run(config, made.parent)
    folder = made.parent / "export"
    inside = np.argwhere(_pairs(2)[1, ..., 1])
    lps = (_affine(0.3) @ [*inside.mean(0), 1])[:3] * [-1, -1, 1]
    nifti = "nifti/implant/000001.nii.gz"
    for file in (nifti, "skullbreak/train/implant/random_1/001.nrrd"):
        image = sitk.ReadImage(str(folder / file))
        assert sitk.GetArrayFromImage(image).sum() == len(inside)
        places = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].astype(float)
        found = image.TransformContinuousIndexToPhysicalPoint(places.mean(0).tolist())
        np.testing.assert_allclose(found, lps, atol=1e-3)
        np.testing.assert_allclose(image.GetSpacing(), MM, atol=1e-6)
    image = nibabel.load(folder / nifti)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, _affine(0.3), atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), _affine(0.3), atol=1e-4)
    solid = trimesh.load(folder / "stl" / "implant" / "000001.stl")
    assert solid.is_watertight
    assert solid.volume == pytest.approx(len(inside) * MM**3, rel=0.01)
    np.testing.assert_allclose(solid.centroid, lps, atol=0.1 * MM)
    line = _table(folder / "stl")[0]
    assert line["implant_file"] == "implant/000001.stl"
    assert float(line["implant_ml"]) == pytest.approx(len(inside) * MM**3 / 1000, abs=1e-4)


def test_a_finer_grid_covers_the_same_cube_and_leaves_no_crack(made):
    folder = _run(made, "nifti", voxel_mm=1.5, rows="0:1")
    image = nibabel.load(folder / "skull" / "000000.nii.gz")
    skull, implant = (_mask(folder / side / "000000.nii.gz") for side in ("skull", "implant"))
    assert skull.shape == (43, 43, 43)  # 64 mm
    corners = [a @ [-0.5, -0.5, -0.5, 1] for a in (image.affine, _affine(0.3))]
    np.testing.assert_allclose(*corners, atol=1e-4)
    assert not (skull & implant).any()
    pair = _pairs(1)[0]
    for mask, own in ((skull, pair[..., 0]), (implant, pair[..., 1])):
        assert mask.sum() * 1.5**3 == pytest.approx(own.sum() * MM**3, rel=0.1)
    alone = export.finer(pair.any(-1), np.zeros((SIZE,) * 3, bool), _affine(), 1.5)[0]
    np.testing.assert_array_equal(skull | implant, alone)
    line = _table(folder)[0]
    assert (int(line["skull_voxels"]), int(line["implant_voxels"])) == (skull.sum(), implant.sum())
    assert line["voxel_mm"] == "1.5 1.5 1.5"


def test_a_stopped_export_goes_on_and_ends_as_one_that_was_not(made, monkeypatch):
    folder, calls, write = made.parent / "out", [], export.write_pair
    _run(made, "nifti")
    whole = _bytes(folder.rename(made.parent / "whole"))

    def stops(*task):
        calls.append(task)
        if len(calls) == 4:
            raise jobs.Stopped(15)
        return write(*task)

    monkeypatch.setattr(export, "write_pair", stops)
    with pytest.raises(jobs.Stopped):
        _run(made, "nifti")
    (folder / "skull" / "000001.nii.gz").unlink()
    (folder / "skull" / f"000004.nii.gz.partial-{'0' * 32}").write_bytes(b"half")  # of a kill
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    monkeypatch.setattr(export, "write_pair", write)
    _run(made, "nifti", workers=2)
    assert _bytes(folder) == whole
    assert len(times) == 5 and all(p.stat().st_mtime_ns == time for p, time in times.items())


def test_pairs_of_another_export_and_files_of_others_are_never_mixed(made, capsys):
    (made / "README.md").write_text("a card", encoding="utf-8")
    (made / "leave_out.txt").write_text("1\n", encoding="utf-8")
    folder = _run(made, "nifti", rows="0:5")
    assert "1 pairs without an implant or a skull are not exported" in capsys.readouterr().out
    assert _rows(folder) == [0, 3, 4]
    assert (folder / "LICENCE.txt").read_bytes() == b"CC BY-NC-SA 4.0\n"
    assert (folder / "README.md").read_bytes() == b"a card\n\nThis folder holds 3 of the 6 pairs.\n"
    whole = _bytes(folder)
    assert not any(str(made.parent).encode() in content for content in whole.values())
    with pytest.raises(UserError, match=r"format 'nifti', now 'stl'; .* voxel_mm 0\.0, now 2\.0"):
        _run(made, "stl", rows="0:6", voxel_mm=2.0)
    (made / "leave_out.txt").write_text("4\n", encoding="utf-8")  # later, what is there already
    with pytest.raises(UserError, match="rows '0:1,3:5', now '0:2,3:4'"):
        _run(made, "nifti", rows="0:5")
    assert _bytes(folder) == whole
    (folder / "recipe.json").unlink()
    with pytest.raises(UserError, match="out: holds files that no export wrote"):
        _run(made, "nifti")


def test_a_split_is_chosen(real):
    folder = _run(real, "nifti", split="train")
    assert _rows(folder) == [0, 1, 2, 3]
    lines = {(line["split"], line["kind"], line["skull"]) for line in _table(folder)}
    assert lines == {("train", defects.KINDS[kind], "a") for kind in (0, 2)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "train"}, "no pair to export: check export.rows, export.split"),
        ({"split": "trian"}, r"export\.split is 'trian': choose one of train"),
        ({"rows": "0:7"}, "export.rows is '0:7': write FIRST:STOP, .* pairs 0 to 5"),
        ({"rows": "2:3"}, "no pair to export: of 1, none has a skull and an implant"),
        ({"voxel_mm": 0.07}, "export.voxel_mm is 0.07: write 0.079 to 4"),
        ({"voxel_mm": 5.0}, r"export.voxel_mm is 5: .* \(the store's own is 4\)"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(made, fields, message):
    with pytest.raises(UserError, match=message):
        _run(made, "nifti", **fields)
    assert not (made.parent / "out").exists()


def test_the_format_is_named_before_the_pairs_are_made_and_all_else_where_they_are(made):
    with pytest.raises(UserError, match=r"export\.format is 'obj': choose one of skullbreak"):
        _check(made.parent, ["generate", "export"], format=("nifti,obj",))
    _check(made.parent, ["generate", "export"], rows="0:7")
    for words, fields in (
        ("the store has pairs 0 to 5", {"rows": "0:7"}),
        ("no store of pairs here", {"store": "elsewhere/a.zarr"}),
    ):
        with pytest.raises(UserError, match=words):
            _check(made.parent, ["export"], **fields)


def test_a_strangers_kind_does_not_lead_out_of_the_folder(real):
    place = real / "zarr.json"
    about = files.read_json(place)
    about["attributes"]["kinds"][0] = "../../x"
    files.write_json(place, about)
    with pytest.raises(UserError, match="is no name of a folder"):
        _run(real, "skullbreak")
