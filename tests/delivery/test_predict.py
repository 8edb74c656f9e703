"""Implants for files: prepared as training is, in the same millimetres however they are stored."""

import json

import jax
import ml_collections
import nibabel
import nrrd
import numpy as np
import pytest

from experiments import common
from skullgen.core.errors import UserError
from skullgen.data import defects, grids, phantom, sources, store, volumes
from skullgen.data.grids import turned
from skullgen.delivery import implants, predict, vault
from skullgen.evaluation import judges, verdict
from skullgen.report import figures
from skullgen.training import loop

SIDE, SIZE = 96, 32


def _settings(**fields):
    base = dict(net="vnet", weights="", bone_hu=0.0, threshold=0.5, dust_mm3=2000.0, pieces=0)
    base["label"] = 0
    return ml_collections.ConfigDict(base | dict(file=(), suffixes=(), folder="") | fields)


def _mirror(size=SIZE):
    """The mirror image of a skull minus the skull: a net that needs no training."""
    about = {"name": "mirror", "voxel_mm": 6.4, "pairs_of": "phantoms"}
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


def _stored(mask, affine, turn):
    """The same skull with its voxels in another order: `turn` is stored voxel -> this one's."""
    turn = np.array(turn, float)
    back = np.linalg.inv(turn)
    return turned(mask, turn), affine @ turn, back


TURNS = {
    "LPS": lambda n: [[-1, 0, 0, n[0] - 1], [0, -1, 0, n[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]],
    "permuted": lambda n: [[0, 0, -1, n[0] - 1], [1, 0, 0, 0], [0, -1, 0, n[2] - 1], [0, 0, 0, 1]],
}


# --- Preparation -------------------------------------------------------------------------------


def _brought(path, threshold, reframe):
    """The skull that a net of 16^3 voxels gets of a file, and the frame of it."""
    seen = []

    def net(bits):
        seen.append(store.unpack(bits[0], 16)[..., 0])
        return np.ones((1, 16, 16, 16), np.float32)

    designer = predict.Designer(net, 16, threshold, reframe, {})
    implant = predict.predict(designer, path, _settings(dust_mm3=0.0))
    return seen[0], implant.frame


@pytest.mark.parametrize("turn", TURNS)
def test_a_skull_is_ingested_and_prepared_to_the_same_bits(tmp_path, turn, monkeypatch):
    monkeypatch.setattr(implants, "measure", lambda *arguments: {})
    complete, affine = phantom.skull(2, 64), phantom.affine(64)
    mask, stored, _ = _stored(complete, affine, TURNS[turn](complete.shape))
    volumes.write(tmp_path / "a.nrrd", mask, stored)
    config = common.defaults("smoke").data
    config.threshold = 0.3
    ingested = sources._cut_file(tmp_path / "a.nrrd", "a", 16, config)
    skull, frame = _brought(tmp_path / "a.nrrd", 0.3, True)
    assert len(ingested) == 5
    for pair in ingested:
        np.testing.assert_array_equal(store.unpack(pair.bits, 16).any(-1), skull)
        np.testing.assert_array_equal(pair.affine, frame)


def test_a_file_of_skullbreak_keeps_its_own_cube_for_a_net_that_learnt_so(tmp_path, monkeypatch):
    monkeypatch.setattr(implants, "measure", lambda *arguments: {})
    complete = np.roll(phantom.skull(2, 64), 5, 0)  # not where the frame would place it
    volumes.write(tmp_path / "a.nrrd", complete, phantom.affine(64))
    share = complete.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5))
    skull, frame = _brought(tmp_path / "a.nrrd", 0.5, False)
    np.testing.assert_array_equal(skull, share >= 0.5)
    np.testing.assert_allclose(frame, phantom.affine(16))


def test_a_hole_at_the_vertex_or_in_the_side_hardly_moves_the_frame():
    complete, affine = phantom.skull(3, SIDE), phantom.affine(SIDE)
    true = grids.frame(complete, affine, SIZE)
    places = np.argwhere(complete)
    assert vault.closed(complete, affine) is complete
    for axis in (2, 0):
        far = places[places[:, axis] == places[:, axis].max()].mean(0)
        away = np.linalg.norm((np.moveaxis(np.indices(complete.shape), 0, -1) - far), axis=-1)
        hole = complete & (away * affine[0, 0] > 35)
        naive, closed = (
            np.abs(grids.frame(whole, affine, SIZE) - true).max()
            for whole in (hole, vault.closed(hole, affine))
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
    ("rim", "covered", "warning"),
    [
        (0.9, 1.0, "over 100% of the opening as seen from within"),
        (0.88, 0.766, "over 77% .* (warning: part of it stays open)"),
        (0.5, 1.0, "(warning: it does not fill the hole; is the face"),
        (0.9, None, "was found; is there a hole?)"),
    ],
)
def test_an_implant_in_words_says_what_stays_open(rim, covered, warning):
    numbers = {"pieces": [{}], "volume_ml": 8.5, "extent_mm": 49.1}
    numbers |= {"rim_contact": rim, "opening_covered": covered}
    words = predict.describe(numbers)
    assert words.startswith(f"implant of 8.5 ml, 49 mm across, on bone along {rim:.0%} of the")
    assert all(part in words for part in warning.split(" .* "))
    assert ("warning" in words) == (covered != 1 or rim < 0.6)
    assert predict.describe(numbers | {"pieces": [{}, {}]}).startswith("2 implants of 8.5 ml")


# --- The fit and its measure -------------------------------------------------------------------


def _plate(hole):
    """A plate of bone 2 voxels thick, 30 voxels a side, with a square hole; voxels 1, 2, 3 mm."""
    bone = np.zeros((34, 34, 20), bool)
    bone[2:32, 2:32, 9:11] = True
    piece = np.zeros_like(bone)
    piece[12 : 12 + hole, 12 : 12 + hole, 9:11] = True
    return bone & ~piece, piece, np.diag([1.0, 2.0, 3.0, 1.0])


def test_what_a_piece_measures():
    bone, piece, affine = _plate(8)
    found = implants.measure(piece, bone, affine, np.array([16.0, 32.0, -60.0]))
    assert found["volume_ml"] == pytest.approx(8 * 8 * 2 * 6 / 1000, abs=1e-3)
    assert found["extent_mm"] == pytest.approx(np.sqrt(8**2 + 16**2 + 6**2), abs=1e-3)
    assert found["box_mm"] == [[11.5, 23.0, 25.5], [19.5, 39.0, 31.5]]
    assert found["contact_mm2"] == pytest.approx(2 * 8 * 2 * (2 * 3) + 2 * 8 * 2 * (1 * 3))
    assert found["rim_contact"] == 1 and found["overlap_voxels"] == 0
    piece[11, 12:20, 9:11] = True
    found = implants.measure(piece, bone, affine, np.array([16.0, 32.0, -60.0]))
    assert found["overlap_voxels"] == 16


def test_how_much_of_the_rim_touches_bone():
    piece = np.zeros((60, 60, 6), bool)
    piece[10:50, 10:50, 2:4] = True
    for sides, share in (((), 0), ((0,), 1 / 4), ((0, 1), 1 / 2)):
        bone = np.zeros_like(piece)
        for side in sides:
            np.moveaxis(bone, side, 0)[9, 10:50, 2:4] = True
        found = implants.measure(piece, bone, np.eye(4), np.array([30.0, 30.0, -60.0]))
        assert found["contact_mm2"] == 40 * 2 * len(sides)
        assert found["rim_contact"] == pytest.approx(share, abs=0.05)
        assert found["rim_mm"] == pytest.approx(160, rel=0.1)


def test_an_implant_fits(monkeypatch):
    monkeypatch.setattr(implants, "GAP", 1.0)
    bone = np.zeros((34, 34, 20), bool)
    bone[2:32, 2:32, 8:10] = True
    piece = np.zeros_like(bone)
    piece[12:20, 12:19, 8:10] = True
    bone &= ~piece
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = 0.5
    share = np.zeros((17, 17, 17), np.float32)
    share[5:11, 6:9, 4] = 1.0  # two voxels into the bone, and a gap of one at y = 18
    share[6:10, 6:10, 8] = 1.0  # far from all bone
    share[13:15, 13:15, 5] = 1.0  # on bone, and small
    fit = [
        implants.fit(share, grid, bone, np.eye(4), _settings(**fields))
        for fields in (dict(dust_mm3=60.0), dict(dust_mm3=0.0, pieces=1), dict(dust_mm3=0.0))
    ]
    np.testing.assert_array_equal(fit[0], piece)
    np.testing.assert_array_equal(fit[1], piece)
    assert fit[2][26:30, 26:30].any() and not fit[2][:, :, 15:].any()
    assert not any((one & bone).any() for one in fit)


def test_the_implant_is_where_the_hole_is(skull):
    mask, affine, cut = skull
    found = predict.design(_mirror(), mask, affine, _settings(dust_mm3=500.0))
    assert not (found.mask & mask).any() and found.mask.shape == mask.shape
    both = 2 * (found.mask & cut).sum() / (found.mask.sum() + cut.sum())
    assert both > 0.5 and found.numbers["rim_contact"] > 0.7
    assert found.numbers["opening_covered"] > 0.7


# --- Files -------------------------------------------------------------------------------------


def _read(path):
    """Voxels and grid, by other readers than ours."""
    if path.suffix == ".nrrd":
        data, head = nrrd.read(str(path))
        return data, np.vstack([head["space directions"], head["space origin"]])
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def test_however_a_file_is_stored_the_implant_is_in_the_same_millimetres(skull, tmp_path):
    mask, affine, _ = skull
    options = _mirror(), _settings(dust_mm3=500.0)
    volumes.write(tmp_path / "RAS.nii.gz", mask, affine)
    plain = predict.predict(options[0], tmp_path / "RAS.nii.gz", options[1])
    places = np.argwhere(plain.mask) @ affine[:3, :3].T + affine[:3, 3]
    for name, suffix in (("LPS", ".nrrd"), ("permuted", ".nii.gz")):
        file = tmp_path / f"{name}{suffix}"
        stored, its, _ = _stored(mask, affine, TURNS[name](mask.shape))
        volumes.write(file, stored, its)
        found = predict.predict(options[0], file, options[1])
        assert found.numbers == plain.numbers
        made = tmp_path / f"implant{suffix}"
        volumes.write(made, found.mask, found.affine)  # as `predict.save` does
        data, grid = _read(made)
        np.testing.assert_array_equal(grid, _read(file)[1])
        assert data.shape == stored.shape and not (data & stored).any()
        here = np.argwhere(data) @ its[:3, :3].T + its[:3, 3]
        for points in (places, here):
            points[:] = points[np.lexsort(points.round(3).T)]
        np.testing.assert_allclose(here, places, atol=1e-3)


def test_a_scan_in_hounsfield_units_is_its_mask(skull, tmp_path):
    mask, affine, _ = skull
    image = nibabel.Nifti1Image(np.where(mask, 700, -1000).astype(np.int16), affine)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    volumes.write(tmp_path / "mask.nii.gz", mask, affine)
    ct, plain = (
        predict.predict(_mirror(), tmp_path / name, _settings(dust_mm3=500.0, bone_hu=hu))
        for name, hu in (("ct.nii.gz", 300.0), ("mask.nii.gz", 0.0))
    )
    np.testing.assert_array_equal(ct.mask, plain.mask)
    labels = nibabel.Nifti1Image(np.where(mask, 91, 0).astype(np.uint8), affine)
    labels.dataobj[0, 0, :2] = 1, 2
    nibabel.save(labels, tmp_path / "labels.nii.gz")
    settings = _settings(dust_mm3=500.0, label=91)
    one = predict.predict(_mirror(), tmp_path / "labels.nii.gz", settings)
    np.testing.assert_array_equal(one.mask, plain.mask)
    with pytest.raises(UserError, match=r"it holds 1, 2, 91: set label .*predict\.label"):
        predict.predict(_mirror(), tmp_path / "labels.nii.gz", _settings())


def test_of_several_files_a_bad_one_is_listed_and_the_others_go_on(
    skull, tmp_path, capsys, monkeypatch
):
    mask, affine, _ = skull
    scans = tmp_path / "scans"
    volumes.write(scans / "good.nrrd", mask, affine)
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    complete = phantom.skull(1, SIDE) | phantom.skull(1, SIDE)[::-1]
    volumes.write(tmp_path / "complete.nii.gz", complete, phantom.affine(SIDE))
    monkeypatch.setattr(predict, "PICTURE", 32)
    monkeypatch.setattr(predict, "designer", lambda *_: _mirror())
    names = f"{scans}, {tmp_path / 'complete.nii.gz'}"
    config = ml_collections.ConfigDict({"data": {"max_voxels": 2**29}})
    config.predict = _settings(file=(names,), dust_mm3=500.0, suffixes=(".nii.gz", ".nrrd"))
    predict.run(config, tmp_path, figures.implant_sheet)
    out = capsys.readouterr()
    assert "mirror: voxels of 6.4 mm, pairs of phantoms: look at each picture" in out.out
    assert " of the opening" in out.out
    assert "left out, 2 of 3 files" in out.out and "not a medical device" in out.out.lower()
    assert "complete.nii.gz: no implant: the net found no hole" in out.out
    made = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    endings = (".json", ".nii.gz", ".nrrd", ".png", ".stl")
    assert made == [f"good_implant{ending}" for ending in endings]
    told = json.loads((tmp_path / "predictions" / "good_implant.json").read_text())
    assert told["notice"] == predict.NOTICE and told["overlap_voxels"] == 0
    assert told["made_of"]["file"] == "good.nrrd"
    before = (tmp_path / "predictions" / "good_implant.stl").stat().st_mtime_ns
    predict.run(config, tmp_path, figures.implant_sheet)
    assert "good: is made already" in capsys.readouterr().out
    assert (tmp_path / "predictions" / "good_implant.stl").stat().st_mtime_ns == before
    config.predict.file = (str(tmp_path / "complete.nii.gz"),)
    with pytest.raises(UserError, match=r"is this skull complete\?"):
        predict.run(config, tmp_path, figures.implant_sheet)


def test_nothing_is_written_over(skull, tmp_path, monkeypatch):
    mask, affine, _ = skull
    volumes.write(tmp_path / "a.nrrd", mask, affine)
    monkeypatch.setattr(predict, "designer", lambda *_: _mirror())
    config = ml_collections.ConfigDict({"data": {"max_voxels": 2**29}})
    config.predict = _settings(file=(str(tmp_path / "a.nrrd"),), dust_mm3=500.0)
    drawn = []

    def draw(path, *shares, title, note):
        drawn.append(note)
        path.write_bytes(b"picture")

    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "a_implant.nrrd").write_bytes(b"a surgeon's")
    with pytest.raises(UserError, match=r"a_implant\.nrrd: is there, and not ours"):
        predict.run(config, tmp_path, draw)
    (folder / "a_implant.nrrd").rename(tmp_path / "his.nrrd")
    predict.run(config, tmp_path, draw)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "a_implant.stl").unlink()  # as of a kill: it goes on
    predict.run(config, tmp_path, draw)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    config.predict.dust_mm3 = 600.0
    with pytest.raises(UserError, match=r"a_implant\.json: made with .*dust_mm3 500\.0, now 600"):
        predict.run(config, tmp_path, draw)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert len(drawn) == 2 and drawn[0] == drawn[1]


def test_what_is_named_wrong_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no skull")

    def refused(words, **fields):
        with pytest.raises(UserError, match=words):
            predict.check(ml_collections.ConfigDict({"predict": _settings(**fields)}), [], tmp_path)

    for file, words in (
        ("", "predict.file is empty"),
        ("nowhere.nrrd", "nowhere.nrrd: no such file or folder"),
        (str(tmp_path / "empty"), "empty: holds no skull"),
        (str(tmp_path / "notes.txt"), r"notes\.txt: holds no skull"),
    ):
        refused(words, file=(file,))
    refused(r"predict\.net is 'unet'", net="unet")
    refused(r"predict\.suffixes is '\.stl'", suffixes=(".stl",))


def test_a_net_that_is_not_there_is_named_before_the_run_with_those_that_are(tmp_path):
    volumes.write(tmp_path / "a.nrrd", phantom.skull(1, 32), phantom.affine(32))
    config = ml_collections.ConfigDict({"generate": {"weights": ""}})

    def check(*names, **fields):
        config.predict = _settings(file=(str(tmp_path / "a.nrrd"),), **fields)
        predict.check(config, list(names), tmp_path)

    def refused(words, **fields):
        with pytest.raises(UserError, match=words):
            check(**fields)

    refused(r"vnet: no checkpoint; run the stage `segment` first$", net="")
    check("segment", "predict", net="")  # which makes it
    check(weights="demo", net="")
    check(weights="demo", net="vnet_real")
    refused("vnet: no checkpoint; here is vnet_real: name that$", weights="demo", net="vnet")
    for name in ("vnet_real", "vnet"):
        (tmp_path / "checkpoints" / name / "5").mkdir(parents=True)
        assert judges.choose(tmp_path) == name
    assert judges.choose(tmp_path, "vnet_real") == "vnet_real"


def test_the_packaged_net_designs_and_says_which_it_is(skull, tmp_path, capsys):
    mask, affine, _ = skull
    volumes.write(tmp_path / "a.nrrd", mask, affine)
    config = common.defaults("smoke")
    config.predict.update(file=str(tmp_path / "a.nrrd"), weights="demo", dust_mm3=500.0)
    with jax.default_prng_impl("threefry2x32"):  # as it was trained
        predict.run(config, tmp_path, figures.implant_sheet)
    assert "vnet_real: voxels of 6.4 mm, pairs of phantoms" in capsys.readouterr().out
    told = json.loads((tmp_path / "predictions" / "a_implant.json").read_text())
    assert told["net"]["name"] == "vnet_real" and told["volume_ml"] > 1


def test_the_net_of_a_run(tmp_path):
    pairs = np.zeros((4, 8, 8, 8, 2), bool)
    pairs[:, 2:6, 2:6, 2:6, 0] = pairs[:, 6:, 6:, 6:, 1] = True
    recipe = {"config": {"source": "phantom", "threshold": 0.2, "reframe": True}}
    shape, attributes = store.Shape(4, 8, 64), {"voxel_mm": 25.6}
    real = store.create(tmp_path / "real.zarr", shape, attributes, recipe)
    columns = {"split": np.zeros(4, int), "removed": np.zeros((4, 3))}
    real.write(0, store.pack(pairs), columns)
    base = dict(model_name="tests.toy_net", stores="real.zarr:train:all", reference=False, seed=0)
    base |= dict(updates=5, batch_size=4, save_every=5, model=dict(learning_rate=0.1))
    base["model"]["augment"] = False
    config = ml_collections.ConfigDict({"segment": base, "model": {"resolution": 8}})
    config.data = dict(source="store", threshold=0.5, reframe=True, max_voxels=2**29)
    config.predict = _settings()
    with pytest.raises(UserError, match="vnet: no checkpoint; run the stage `segment` first"):
        predict.designer(config, tmp_path)
    judges.train(config.segment, 8, tmp_path, loop.Options(0, 4, 5, 5, 2, 16, None))
    made = predict.designer(config, tmp_path)
    assert (made.size, made.threshold, made.reframe) == (8, 0.2, True)  # as the pairs were made
    probability = made.net(store.pack(pairs)[:1])[0]
    assert probability[7, 7, 7] > probability[0, 0, 0] and made.about["updates"] == 5
    assert (made.about["pairs_of"], made.about["voxel_mm"]) == ("phantoms", 25.6)
    config.segment.model.learning_rate = 0.2
    with pytest.raises(UserError, match=r"made with model\.learning_rate 0\.1, now 0\.2"):
        predict.designer(config, tmp_path)
