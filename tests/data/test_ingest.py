"""Sources become stores: exact pairs, seeded splits, SkullBreak's layout, resuming."""

import pathlib
import shutil

import hypothesis
import ml_collections
import nibabel
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments import common
from skullgen.core.errors import UserError
from skullgen.data import defects, grids, ingest, mixture, phantom, sources, store, volumes

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def _config(**fields):
    config = common.defaults("smoke").data
    config.update(fields)
    return config


def _bytes(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _shell(size, centre, radius=0.42, thickness=0.12):
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm((grid - centre) / size, axis=-1)
    return (distance < radius) & (distance > radius - thickness)


@pytest.fixture(scope="module")
def skullbreak(tmp_path_factory):
    """A folder in SkullBreak's layout: 2 training skulls and 1 test skull at 32^3, LAS order."""
    root = tmp_path_factory.mktemp("skullbreak")
    affine = np.diag([6.4, 6.4, 6.4, 1.0])
    for part, number in (("train", "000"), ("train", "001"), ("test", "000")):
        complete = _shell(32, [15.5, 16 + int(number), 15])
        volumes.write(root / part / "complete_skull" / f"{number}.nrrd", complete, affine)
        for shift, kind in enumerate(defects.KINDS):
            hole = np.zeros_like(complete)
            hole[8 + shift : 18 + shift, :, 20:] = True
            sides = {"defective_skull": complete & ~hole, "implant": complete & hole}
            for folder, mask in sides.items():
                volumes.write(root / part / folder / kind / f"{number}.nrrd", mask, affine)
    return root


def test_skullbreaks_pairs_are_their_files_block_means(skullbreak, tmp_path):
    path = tmp_path / "real.zarr"
    config = _config(source="skullbreak", root=str(skullbreak), threshold=0.5)
    ingest.run(path, 16, config, workers=1)
    group = store.Store(path)
    assert group.column("split").tolist() == [0] * 10 + [2] * 5
    assert group.column("kind").tolist() == list(range(5)) * 3
    assert group.column("skull").tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert group.attrs["names"] == ["train_000", "train_001", "test_000"]
    assert len(group.recipe["sources"]) == 30
    pair = store.unpack(store.Store(path).load([7]), 16)[0]
    for channel, folder in enumerate(("defective_skull", "implant")):
        mask = volumes.read(skullbreak / "train" / folder / defects.KINDS[2] / "001.nrrd").data
        expected = mask.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5)) >= 0.5
        np.testing.assert_array_equal(pair[..., channel], expected)
    implant = volumes.read(skullbreak / "train" / "implant" / defects.KINDS[2] / "001.nrrd")
    truth, affine = store.Store(path).native(7)
    np.testing.assert_array_equal(truth, implant.data)
    np.testing.assert_allclose(affine, implant.affine)
    # The model's voxel centres lie between their two native ones.
    np.testing.assert_allclose(
        group.column("affine")[7] @ [0, 0, 0, 1], affine @ [0.5, 0.5, 0.5, 1]
    )


def test_a_low_threshold_gives_each_bone_voxel_to_the_larger_share(skullbreak, tmp_path):
    config = _config(source="skullbreak", root=str(skullbreak), threshold=0.2)
    ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    pair = store.unpack(store.Store(tmp_path / "real.zarr").load([0]), 16)[0]
    assert not pair.all(axis=-1).any()
    complete = volumes.read(skullbreak / "train" / "complete_skull" / "000.nrrd").data
    share = complete.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    np.testing.assert_array_equal(pair.any(axis=-1), share >= 0.2)


def test_missing_and_surplus_files_are_named(skullbreak, tmp_path, capsys):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(skullbreak, root)
    (root / "train" / "implant" / "bilateral" / "001.nrrd").unlink()
    (root / "train" / "notes.txt").write_text("hello")
    (root / "test" / "complete_skull" / "000.nrrd").unlink()
    config = _config(source="skullbreak", root=str(root), threshold=0.5)
    ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    printed = capsys.readouterr().out
    for line in (
        "train/implant/bilateral/001.nrrd is missing",
        "train/notes.txt is not SkullBreak's",
        "test/complete_skull/000.nrrd is missing",
    ):
        assert f"note: {line}" in printed
    assert store.Store(tmp_path / "real.zarr").count == 14


def test_pairs_that_do_not_match_are_refused(skullbreak, tmp_path):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(skullbreak, root)
    implant = root / "train" / "implant" / "bilateral" / "000.nrrd"
    shutil.copy(root / "train" / "defective_skull" / "bilateral" / "000.nrrd", implant)
    config = _config(source="skullbreak", root=str(root), threshold=0.5, strict=True)
    with pytest.raises(UserError, match=r"implant/bilateral/000.nrrd: overlaps .* no pair"):
        ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    volumes.write(implant, np.ones((32, 32, 32), bool), np.diag([5.0, 5, 5, 1]))
    with pytest.raises(UserError, match=r"bilateral/000.nrrd: its grid is not that of"):
        ingest.run(tmp_path / "real.zarr", 16, config, workers=1)


def _pair_files(root, skull, implant, mm=6.4):
    paths = [root / name / "bilateral" / "000.nrrd" for name in ("defective_skull", "implant")]
    for path, mask in zip(paths, (skull, implant), strict=True):
        volumes.write(path, mask, np.diag([mm, mm, mm, 1.0]))
    return [str(path) for path in paths]


@pytest.mark.parametrize("mm", [1.0, 6.4])
@pytest.mark.parametrize("thickness", [0.04, 0.12])
def test_a_thin_implant_against_its_skull_is_a_pair_on_any_grid(tmp_path, thickness, mm):
    complete = _shell(32, [15.5, 15.5, 15.5], thickness=thickness)
    hole = np.zeros_like(complete)
    hole[8:16, :, 20:] = True
    paths = _pair_files(tmp_path, complete & ~hole, complete & hole, mm)
    for size in (4, 8, 32):
        assert len(sources._skullbreak_pair(*paths, size, 0.001, 2**20)) == 1
    cube = np.zeros_like(complete)
    cube[14:18, 14:18, 14:18] = True
    paths = _pair_files(tmp_path, complete & ~hole, cube, mm)
    with pytest.raises(UserError, match="does not touch"):
        sources._skullbreak_pair(*paths, 32, 0.001, 2**20)


def test_an_implant_in_thin_bone_overlaps_on_any_grid(tmp_path):
    """Where blocks are larger than the bone is thick, none of them is too full."""
    complete = _shell(32, [15.5, 15.5, 15.5], thickness=0.04)
    hole = np.zeros_like(complete)
    hole[8:16, :, 20:] = True
    for size in (2, 4, 32):
        with pytest.raises(UserError, match="overlaps"):
            paths = _pair_files(tmp_path, complete, complete & hole)
            sources._skullbreak_pair(*paths, size, 0.001, 2**20)
    # A border that resampling gave to both is no mistake.
    border = complete & hole & ~np.roll(hole, 1, axis=0)
    skull = (complete & ~hole) | border & (np.indices(complete.shape).sum(axis=0) % 3 == 0)
    assert sources._skullbreak_pair(*_pair_files(tmp_path, skull, complete & hole), 4, 0.001, 2**20)


NAMES = (
    "a b",
    "it's",
    'say "a"',
    "new\nline",
    "Schädel 頭蓋骨",
    b"\xff\xfe".decode("utf-8", "surrogateescape"),
)


def test_names_and_links_of_any_kind_go_through_a_whole_ingest(tmp_path):
    root, annex = tmp_path / "skulls", tmp_path / "annex"
    root.mkdir()
    for number, name in enumerate(NAMES):
        volumes.write(annex / f"{number}.nii.gz", phantom.skull(number, 48), phantom.affine(48))
        (root / f"{name}.nii.gz").symlink_to(annex / f"{number}.nii.gz")
    config = _config(source="skulls", root=str(root), test="it's", strict=True)
    ingest.run(tmp_path / "real.zarr", 16, config, versions={}, workers=1)
    group = store.Store(tmp_path / "real.zarr")
    assert sorted(group.attrs["names"]) == sorted(NAMES)
    assert all(len(digest) == 64 for digest in group.recipe["sources"].values())
    names = store.Store(tmp_path / "real.zarr").names(group.column("skull"))
    assert {name for name, split in zip(names, group.column("split"), strict=True) if split} == {
        "it's"
    }


def test_files_that_cannot_be_read_do_not_end_the_planning(skullbreak, tmp_path):
    import shutil

    shutil.copytree(skullbreak, tmp_path / "copy")
    first = tmp_path / "copy" / "train" / "defective_skull" / defects.KINDS[0] / "000.nrrd"
    first.write_bytes(b"")
    config = _config(source="skullbreak", root=str(tmp_path / "copy"))
    plan = sources.PLANS["skullbreak"](16, config)
    assert plan.field_mm == pytest.approx(204.8) and len(plan.cases) == 15
    with pytest.raises(UserError, match=r"000.nrrd: no NRRD header"):
        plan.cases[0].make(*plan.cases[0].arguments)
    root = tmp_path / "skulls"
    volumes.write(root / "a.nrrd", phantom.skull(0, 48), phantom.affine(48))
    (root / "b.nhdr").write_bytes(b"NRRD0004\n")
    (root / "c.nii").symlink_to("nowhere")
    with open(root / "d.nrrd", "wb") as file:
        file.truncate(2**40)  # which takes no room, and hours to read
    plan = sources.PLANS["skulls"](16, _config(source="skulls", root=str(root)))
    assert plan.names == ["a", "b", "c", "d"]
    assert plan.sources["c.nii"] == plan.sources["d.nrrd"] == "unreadable"


@pytest.fixture(scope="module")
def skulls(tmp_path_factory):
    """Phantoms as files of several formats, spacings and sizes."""
    root = tmp_path_factory.mktemp("skulls")
    for number, name in enumerate(("a.nrrd", "b.nii.gz", "c.nii.gz", "d.nrrd")):
        mask = phantom.skull(number, 64)[:, 2 : 64 - number, :]
        affine = phantom.affine(64) @ np.array(
            [[1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
        volumes.write(root / name, mask, affine)
    return root


def test_skulls_are_cut_into_five_kinds_and_split_by_skull(skulls, tmp_path):
    path = tmp_path / "real.zarr"
    config = _config(source="skulls", root=str(skulls), test="b", validation="d")
    ingest.run(path, 16, config, workers=1)
    group = store.Store(path)
    assert group.column("split").tolist() == [0] * 5 + [2] * 5 + [0] * 5 + [1] * 5
    pairs = store.unpack(store.Store(path).load(range(20)), 16)
    assert not pairs.all(axis=-1).any()
    assert pairs.any(axis=(1, 2, 3)).all()
    for skull in range(4):
        complete = pairs[5 * skull : 5 * skull + 5].any(axis=-1)
        assert (complete == complete[0]).all()
    mask = volumes.read(skulls / "c.nii.gz")
    model = grids.frame(mask.data, mask.affine, 16)
    np.testing.assert_allclose(group.column("affine")[12], model)
    share = grids.reduce(mask.data, mask.affine, model, 16)
    np.testing.assert_array_equal(pairs[12].any(axis=-1), share >= 0.2)
    truth, affine = store.Store(path).native(12)
    assert truth.shape == mask.data.shape
    assert np.all(mask.data[truth])
    part = grids.reduce(truth, affine, model, 16)
    expected = grids.split_share(share, part, 0.2)[1]
    np.testing.assert_array_equal(pairs[12, ..., 1], expected)


def test_one_label_of_segmentations_is_what_a_mask_of_it_is(skulls, tmp_path):
    masks, maps = tmp_path / "masks", tmp_path / "maps"
    for folder in (masks, maps):
        folder.mkdir()
    for name in ("b", "c"):
        image = nibabel.load(skulls / f"{name}.nii.gz")
        bone, brain = np.asanyarray(image.dataobj), np.zeros(image.shape, np.uint8)
        brain[20:44, 20:44, 20:44] = 1
        labels = np.where(bone, 2, brain).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(bone, image.affine), masks / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), maps / f"{name}.nii.gz")
    config = _config(source="skulls", root=str(maps), strict=True, test_fraction=0.5)
    with pytest.raises(UserError, match=r"b\.nii\.gz: .*it holds 1, 2: set label \(data\.label"):
        ingest.run(tmp_path / "a.zarr", 16, config, workers=1)
    config.label = 2
    ingest.run(tmp_path / "a.zarr", 16, config, workers=1)
    config.root, config.label = str(masks), 0
    ingest.run(tmp_path / "b.zarr", 16, config, workers=1)
    a, b = tmp_path / "a.zarr", tmp_path / "b.zarr"
    np.testing.assert_array_equal(store.Store(a).load(range(10)), store.Store(b).load(range(10)))
    assert store.Store(a).recipe["config"]["label"] == 2
    assert "label" not in store.Store(b).recipe["config"]  # as in stores older than the field
    config.root, config.label = str(maps), 1
    with pytest.raises(UserError, match="its fields changed"):
        ingest.run(a, 16, config, workers=1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(test_fraction=0.0), "note: no skull of split test: nothing is judged on it; data.te"),
        (
            dict(test_fraction=0.0, validation_fraction=0.0),
            "note: no skull of split validation, te",
        ),
        (dict(test_fraction=0.0, splits="train"), None),
        ({}, None),
    ],
)
def test_a_split_that_no_skull_came_into_is_told(fields, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "NATIVE_SIDE", 48)
    fields = dict(skulls=3, test_fraction=0.34, validation_fraction=0.34) | fields
    ingest.run(tmp_path / "a.zarr", 16, _config(**fields), workers=1)
    out = capsys.readouterr().out
    assert words in out if words else "note:" not in out


def test_ingest_goes_on_and_ends_equal_with_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "SHARD", 7)  # shards that cut through skulls
    monkeypatch.setattr(sources, "NATIVE_SIDE", 48)
    config = _config(skulls=4)
    ingest.run(tmp_path / "a.zarr", 16, config, workers=1)
    ingest.run(tmp_path / "b.zarr", 16, config, workers=1)
    for shard in (0, 1):
        (tmp_path / "b.zarr" / "voxels" / "c" / str(shard) / "0").unlink()
    assert len(store.Store(tmp_path / "b.zarr").missing()) == 2
    ingest.run(tmp_path / "b.zarr", 16, config, workers=2)
    assert _bytes(tmp_path / "a.zarr") == _bytes(tmp_path / "b.zarr")


def test_other_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "NATIVE_SIDE", 48)
    ingest.run(tmp_path / "a.zarr", 16, _config(skulls=3), workers=1)
    with pytest.raises(UserError, match="its fields changed"):
        ingest.run(tmp_path / "a.zarr", 16, _config(skulls=3, seed=1), workers=1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(source="mri"), "data.source is 'mri': choose one of phantom, skullbreak, skulls"),
        (dict(source="skulls"), "data.root is empty"),
        (dict(source="skulls", root="/no/where"), "no such folder"),
    ],
)
def test_mistakes_are_named(fields, words, tmp_path):
    with pytest.raises(UserError, match=words):
        ingest.run(tmp_path / "a.zarr", 16, _config(**fields), workers=1)


def test_folders_without_a_skull_and_doubled_names(tmp_path):
    (tmp_path / "notes.txt").write_text("no skull")
    with pytest.raises(UserError, match="holds no skull"):
        ingest.run(tmp_path / "a", 16, _config(source="skulls", root=str(tmp_path)), workers=1)
    for name in ("x.nrrd", "x.nii"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="two files are called x"):
        ingest.run(tmp_path / "a", 16, _config(source="skulls", root=str(tmp_path)), workers=1)


def _split_config(**fields):
    base = dict(seed=0, test="", validation="", test_fraction=0.2, validation_fraction=0.1)
    base |= dict(folds=0, fold=0)
    return ml_collections.ConfigDict({**base, **fields})


@hypothesis.given(st.integers(1, 60), st.integers(0, 5))
def test_fractions_split_by_skull_whatever_the_order(count, seed):
    names = [f"s{number}" for number in range(count)]
    config = _split_config(seed=seed)
    split = sources.assign(names, config)
    assert split == sources.assign(names[::-1], config)
    places = list(split.values())
    assert places.count(2) == round(0.2 * count)
    assert places.count(1) == round(0.1 * count)


def test_splits_by_name_and_their_mistakes():
    split = sources.assign(["a", "b", "c"], _split_config(test="c, b"))
    assert split == {"a": 0, "b": 2, "c": 2}
    with pytest.raises(UserError, match="names 'z': no such skull"):
        sources.assign(["a"], _split_config(test="z"))
    with pytest.raises(UserError, match="none is left to train on"):
        sources.assign(["a"], _split_config(test="a"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
def test_a_real_skull_there_and_back(tmp_path):
    """Through the store's grid at 128^3 and back to its own: as well as performance.md says."""
    skull = volumes.read(SHARED / "skulls" / "brainweb_04.nii.gz")
    model = grids.frame(skull.data, skull.affine, 128)
    share = grids.reduce(skull.data, skull.affine, model, 128)
    back = grids.enlarge(share, model, skull.affine, skull.data.shape)
    dice = 2 * np.sum(back & skull.data) / (back.sum() + skull.data.sum())
    assert dice > 0.95


def test_skullbreaks_cubes_of_any_size_keep_their_millimetres(skullbreak, tmp_path):
    root = tmp_path / "small"
    for path in skullbreak.rglob("*.nrrd"):
        mask = volumes.read(path)
        volumes.write(root / path.relative_to(skullbreak), mask.data, np.diag([1.0, 1, 1, 1]))
    config = _config(source="skullbreak", root=str(root), threshold=0.5)
    ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    assert store.Store(tmp_path / "real.zarr").attrs["voxel_mm"] == pytest.approx(2)
    for path in root.rglob("*.nrrd"):
        volumes.write(path, volumes.read(path).data, np.diag([1.0, 1, 2, 1]))
    with pytest.raises(UserError, match="is no cube"):
        ingest.run(tmp_path / "other.zarr", 16, config, workers=1)


def test_skullbreaks_split_is_its_own(skullbreak, tmp_path):
    config = _config(source="skullbreak", root=str(skullbreak), test="000")
    with pytest.raises(UserError, match=r"data.test.* not for data.source=skullbreak"):
        ingest.run(tmp_path / "real.zarr", 16, config, workers=1)


def test_detached_voxels_are_part_of_their_header(tmp_path, capsys):
    import nrrd

    root = tmp_path / "skulls"
    root.mkdir()
    for name in "abc":
        header = {"space": "RAS", "space directions": np.eye(3) * 204.8 / 48}
        mask = phantom.skull(ord(name), 48).astype(np.uint8)
        nrrd.write(str(root / f"{name}.nhdr"), mask, header, detached_header=True)
    (root / "folder.nrrd").mkdir()
    config = _config(source="skulls", root=str(root))
    ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    sources = store.Store(tmp_path / "real.zarr").recipe["sources"]
    assert sorted(sources) == sorted(p.name for p in root.iterdir() if p.is_file())
    assert len(sources) == 6
    assert "note: folder.nrrd is no" in capsys.readouterr().out


@hypothesis.given(st.integers(4, 30), st.integers(2, 4))
def test_folds_test_every_skull_once(count, folds):
    names = [f"s{number}" for number in range(count)]
    splits = [sources.assign(names, _split_config(folds=folds, fold=f)) for f in range(folds)]
    tested = [name for split in splits for name in names if split[name] == 2]
    assert sorted(tested) == sorted(names)
    for split in splits:
        assert list(split.values()).count(1) == round(0.1 * count)
        assert abs(list(split.values()).count(2) - count / folds) < 1


def test_mistakes_of_folds():
    with pytest.raises(UserError, match=r"data\.fold is 2: the folds are 0 to 1"):
        sources.assign(["a", "b"], _split_config(folds=2, fold=2))
    with pytest.raises(UserError, match=r"data\.folds and data\.test"):
        sources.assign(["a", "b"], _split_config(folds=2, test="a"))


def test_fresh_defects_are_others_on_the_same_training_skulls(tmp_path):
    config = _config(skulls=5, test_fraction=0.4)
    ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    ingest.fresh(tmp_path / "fresh.zarr", 16, config, cuts=2, workers=1)
    assert config.cuts == 1 and config.splits == ""  # the caller's is as it was
    pairs, complete, names = {}, {}, {}
    for name in ("real", "fresh"):
        path = tmp_path / f"{name}.zarr"
        group = store.Store(path)
        rows = store.Store(path).rows("train")
        names[name] = store.Store(path).names(group.column("skull")[rows])
        pairs[name] = store.unpack(store.Store(path).load(rows), 16)
        complete[name] = dict(zip(names[name], pairs[name].any(axis=-1), strict=True))
    assert len(store.Store(tmp_path / "fresh.zarr").rows()) == len(pairs["fresh"]) == 3 * 5 * 2
    assert set(names["fresh"]) == set(names["real"])
    for name, skull in complete["real"].items():
        np.testing.assert_array_equal(complete["fresh"][name], skull)
    keys = {kind: {pair.tobytes() for pair in part} for kind, part in pairs.items()}
    # At 16^3 two different cuts may reduce to one defect; most do not.
    assert len(keys["fresh"] & keys["real"]) <= 3 and len(keys["fresh"]) >= 25


def test_a_files_own_cube_is_the_frame_where_asked(skullbreak):
    """Fresh cuts of SkullBreak's complete skulls lie where its own pairs have them."""
    complete = volumes.read(skullbreak / "train" / "complete_skull" / "000.nrrd")
    model = sources._cube(complete.data, complete.affine, 16)
    share = grids.reduce(complete.data, complete.affine, model, 16)
    expected = complete.data.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    np.testing.assert_allclose(share, expected, atol=1e-6)


def test_a_split_without_a_skull_is_named(tmp_path):
    config = _config(skulls=3, test_fraction=0.0, validation_fraction=0.0, splits="test")
    with pytest.raises(UserError, match=r"data\.splits is 'test': no skull is in it"):
        ingest.run(tmp_path / "real.zarr", 16, config, workers=1)
    config.splits = "tests"
    with pytest.raises(UserError, match=r"data\.splits is 'tests': choose one of"):
        ingest.run(tmp_path / "real.zarr", 16, config, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_case_among_good_ones_is_left_out_and_listed(skullbreak, workers, tmp_path, capsys):
    root = shutil.copytree(skullbreak, tmp_path / "data")
    config = _config(source="skullbreak", root=str(root), threshold=0.3)
    ingest.run(tmp_path / "good.zarr", 16, config, workers=1)
    bad = root / "train" / "implant" / defects.KINDS[2] / "001.nrrd"
    bad.write_bytes(bad.read_bytes()[:-40])
    path = tmp_path / "a.zarr"
    for _ in range(2):  # told again by a run that has nothing left to make
        capsys.readouterr()
        ingest.run(path, 16, config, workers=workers)
        out = capsys.readouterr().out
        assert "left out, 1 of 15 cases (data.strict makes it an error):" in out
        assert f"  train/implant/{defects.KINDS[2]}/001.nrrd: its bytes cannot be read" in out
    assert store.Store(path).missing() == [] and len(store.Store(path).left_out()) == 1
    rows = store.Store(path).rows()
    assert rows.tolist() == [row for row in range(15) if row != 7]
    np.testing.assert_array_equal(
        store.Store(path).load(rows), store.Store(tmp_path / "good.zarr").load(rows)
    )
    assert not store.Store(path).load([7]).any()
    assert 7 not in np.concatenate([store.Store(path).rows(split) for split in store.SPLITS])
    parts = mixture.parts(f"{path}:all:all", tmp_path, 0)
    assert parts[0].rows.tolist() == rows.tolist()
    config.strict = True
    with pytest.raises(UserError, match="1 of 15 cases cannot be used, the first: train/implant"):
        ingest.run(path, 16, config, workers=1)
    with pytest.raises(UserError, match="its bytes cannot be read"):
        ingest.run(tmp_path / "b.zarr", 16, config, workers=1)
    assert not (tmp_path / "b.zarr").exists()


def test_no_good_case_at_all_is_an_error_and_leaves_no_store(skulls, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for number in range(5):
        (root / f"{number}.nrrd").write_bytes(b"NRRD0004\n")
    config = _config(source="skulls", root=str(root))
    with pytest.raises(UserError, match=r"5 of 5 cases cannot be used, the first: \d\.nrrd: "):
        ingest.run(tmp_path / "a.zarr", 16, config, workers=1)
    assert not (tmp_path / "a.zarr").exists()
