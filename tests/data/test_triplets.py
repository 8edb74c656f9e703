"""Pairs that come as files: SkullBreak's layouts, SkullFix's, any globs; which go together."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import (
    controls,
    defects,
    grids,
    ingest,
    phantom,
    sources,
    store,
    triplets,
    volumes,
)
from tests.data.test_sources import config_of, plan, shell, write_skullbreak

ONE = ingest.Options(workers=1)


@pytest.fixture(scope="module")
def skullbreak(tmp_path_factory):
    return write_skullbreak(tmp_path_factory.mktemp("skullbreak"))


def _parts(planned):
    """Pairs as (name, kind), and what is said."""
    return [(planned.names[case.skull], planned.kinds[case.kinds[0]]) for case in planned.cases]


@pytest.mark.parametrize(
    ("to", "prefix"),
    [
        ("", ""),
        ("nrrd", ""),
        ("train/nrrd", "train_"),
        ("x/SkullBreak_training", "x_SkullBreak_training_"),
    ],
)
def test_one_part_of_skullbreak_is_split_by_skull_wherever_it_lies(
    to, prefix, skullbreak, tmp_path
):
    shutil.copytree(skullbreak / "train", tmp_path / to, dirs_exist_ok=True)
    (tmp_path / to / "implant" / "random_2" / "._001.nrrd").write_bytes(b"")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    planned = plan("skullbreak", root=str(tmp_path))
    names = [f"{prefix}000", f"{prefix}001"]
    assert _parts(planned) == [(name, kind) for name in names for kind in defects.KINDS]
    assert planned.problems == ["10 pairs of 2 skulls"]
    planned = plan("skullbreak", root=str(tmp_path), test=names[1])
    assert planned.split == {names[0]: 0, names[1]: 2}
    planned = plan("skullbreak", root=str(tmp_path), folds=2)
    assert sorted(planned.split.values()) == [0, 2]


def test_two_archives_side_by_side_are_two_splits(skullbreak, tmp_path):
    for part, name in (("train", "SkullBreak_training"), ("test", "SkullBreak_evaluation")):
        shutil.copytree(skullbreak / part, tmp_path / "both" / name / "nrrd")
    planned = plan("skullbreak", root=str(tmp_path / "both"))
    names = ["SkullBreak_training_000", "SkullBreak_training_001", "SkullBreak_evaluation_000"]
    assert planned.split == dict(zip(names, (0, 0, 2), strict=True))
    with pytest.raises(UserError, match=r"data\.folds is not for .* cut and split already"):
        plan("skullbreak", root=str(tmp_path / "both"), folds=2)
    shutil.rmtree(tmp_path / "both" / "SkullBreak_evaluation" / "nrrd" / "implant")
    planned = plan("skullbreak", root=str(tmp_path / "both"), test=names[0])
    assert planned.split == {names[0]: 2, names[1]: 0}
    file = "SkullBreak_evaluation/nrrd/defective_skull/bilateral/000.nrrd"
    assert f"{file} and 4 more: no implant, so no pairs of them" in planned.problems
    with pytest.raises(UserError, match=r"data\.kinds is not for .* are cut already: leave it"):
        plan("skullbreak", root=str(tmp_path / "both"), kinds=("bilateral",))


def test_pairs_are_the_same_bits_in_every_layout(skullbreak, tmp_path):
    fields = dict(source="skullbreak", threshold=0.3)
    ingest.run(tmp_path / "a.zarr", 16, config_of(root=str(skullbreak), **fields), ONE)
    for part, name in (("train", "a_training"), ("test", "b_evaluation")):
        shutil.copytree(skullbreak / part, tmp_path / "data" / name / "nrrd")
    ingest.run(tmp_path / "b.zarr", 16, config_of(root=str(tmp_path / "data"), **fields), ONE)
    globs = {"skull": "**/defective_skull/*/*.nrrd", "implant": "**/implant/*/*.nrrd"}
    config = config_of(root=str(skullbreak), source="triplets", threshold=0.3)
    config.triplets.update(globs)
    ingest.run(tmp_path / "c.zarr", 16, config, ONE)
    a, b, c = (store.Store(tmp_path / f"{name}.zarr") for name in "abc")
    np.testing.assert_array_equal(a.load(a.every()), b.load(b.every()))
    np.testing.assert_array_equal(a.column("split"), b.column("split"))
    assert {x.tobytes() for x in c.load(c.every())} == {x.tobytes() for x in a.load(a.every())}
    # Its skulls have five names each: equal unions are in one split.
    assert c.attrs["voxel_mm"] == pytest.approx(a.attrs["voxel_mm"])
    assert c.attrs["kinds"] == [triplets.KIND]


def test_without_a_pair_what_was_looked_for_and_found_is_said(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(b"")
    words = r"no pair of defective_skull/KIND/NNN\.nrrd .*a\.txt and 2 more: not used.*triplets"
    with pytest.raises(UserError, match=words):
        plan("skullbreak", root=str(tmp_path))
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        plan("skullbreak", root=str(tmp_path))


def _skullfix(root, suffix=".nrrd", pad=3):
    """Four triplets as SkullFix has them: no cube, a field of their own."""
    affine, (skull, _) = phantom.affine(64), (phantom.skull(0, 64), None)
    for number in range(4):
        skull = phantom.skull(number, 64)[:, 2 : 63 - number]
        rest, piece = defects.cut(skull, "random_1", number, voxel_mm=3.2)
        for side, mask in zip(triplets.SIDES, (rest, piece, skull), strict=True):
            digits = f"{number:0{3 if side == 'complete_skull' else pad}d}"
            volumes.write(root / side / f"{digits}{suffix}", mask, affine)
    return root


@pytest.mark.parametrize(("suffix", "pad"), [(".nrrd", 3), (".nii.gz", 1)])
def test_skullfix_is_placed_in_the_frame_of_its_unions(suffix, pad, tmp_path):
    root = _skullfix(tmp_path / "SkullFix", suffix, pad)
    fields = dict(root=str(root), threshold=0.3, strict=True, test_fraction=0.25)
    config = config_of(source="skullbreak", **fields)
    source = ingest.run(tmp_path / "real.zarr", 16, config, ONE)
    real = store.Store(tmp_path / "real.zarr")
    assert len(real.rows()) == 4 and sorted(real.column("split").tolist()) == [0, 0, 0, 2]
    assert real.attrs["voxel_mm"] == pytest.approx(12.8)
    mask, affine = volumes.in_ras(volumes.read(root / "complete_skull" / f"002{suffix}"))
    np.testing.assert_allclose(real.column("affine")[2], grids.frame(mask, affine, 16))
    pairs = store.unpack(real.load([2]), 16)[0]
    share = grids.reduce(mask, affine, real.column("affine")[2], 16)
    np.testing.assert_array_equal(pairs.any(-1), share >= 0.3)
    _, about = controls.plan("fresh", source, real, 10, config)
    ingest.control(tmp_path / "fresh.zarr", source, 15, config, ONE)
    fresh = store.Store(tmp_path / "fresh.zarr")
    assert about["pairs"] == 10 and fresh.attrs["kinds"] == list(defects.KINDS)
    config = config_of(source="triplets", **fields)
    config.triplets.update(skull="defective_skull", implant="implant", complete="complete_skull")
    ingest.run(tmp_path / "b.zarr", 16, config, ONE)
    other = store.Store(tmp_path / "b.zarr")
    np.testing.assert_array_equal(other.load(other.rows()), real.load(real.rows()))
    assert other.recipe["data"]["triplets"]["implant"] == "implant"
    assert "triplets" not in real.recipe["data"]
    with pytest.raises(UserError, match="is no cube"):
        ingest.run(
            tmp_path / "c.zarr", 16, config_of(source="skullbreak", reframe=False, **fields), ONE
        )


MATCHES = [
    (["defective_001", "defective_010"], ["implant_1", "implant_010"]),
    (["d/001", "d/002"], ["i/001", "i/002"]),
    (["P1/defective", "P2/defective"], ["P1/implant", "P2/implant"]),
    (["P1/scan/skull", "P2/scan/skull"], ["P1/plate/mask", "P2/plate/mask"]),
    (["defective_101", "defective_102"], ["implant_101", "implant_102"]),
    (["S01_bone", "S02_bone"], ["S01_bone_implant", "S02_bone_implant"]),
    (["case-7 defective.seg"], ["case-7 implant"]),
    (["001-defective_seg", "002-defective_seg"], ["Implant 001", "Implant 002"]),
    (["a_müller"], ["b_MÜLLER"]),
]


@pytest.mark.parametrize(("ones", "others"), MATCHES)
def test_files_go_together_whose_names_differ_in_their_role(ones, others):
    ones, others = ([Path(f"{name}.nii.gz") for name in names] for names in (ones, others))
    assert triplets.matches(ones, others) == dict(zip(ones, others, strict=True))
    assert triplets.matches(others, ones) == dict(zip(others, ones, strict=True))


@pytest.mark.parametrize(
    ("ones", "others"),
    [
        (["defective_001"], ["implant_002"]),
        (["P1/a"], ["P2/b"]),
        (["001", "1"], ["001"]),  # two of one number: which is meant?
        ([], ["a"]),
    ],
)
def test_files_that_are_no_pair_do_not_go_together(ones, others):
    paths = [[Path(f"{name}.nrrd") for name in names] for names in (ones, others)]
    assert triplets.matches(*paths) == {}


def test_triplets_of_any_globs_and_what_is_left(tmp_path):
    root = tmp_path / "ärzte, 'x'"
    complete, hole = shell(32, [15.5, 15.5, 15.5]), np.zeros((32,) * 3, bool)
    hole[8:18, :, 20:] = True
    affine = np.diag([6.4, 6.4, 6.4, 1.0])
    for number in range(3):
        complete = shell(32, [15.5, 15.5 + number / 2, 15.5])
        for name, mask in (("defekt", complete & ~hole), ("platte", complete & hole)):
            volumes.write(root / f"P{number}" / f"{name}.nii.gz", mask, affine)
    volumes.write(root / "P3" / "defekt.nii.gz", complete & ~hole, affine)
    (root / "P0" / "._defekt.nii.gz").write_bytes(b"")
    config = config_of(source="triplets", root=str(root), threshold=0.3, test="P1", strict=True)
    config.triplets.update(skull="*/defekt.nii.gz", implant="*/platte.nii.gz")
    planned = ingest.run(tmp_path / "a.zarr", 16, config, ONE)
    assert planned.names == ["P0", "P1", "P2"] and planned.split == {"P0": 0, "P1": 2, "P2": 0}
    assert planned.problems == [
        "3 pairs of 3 skulls",
        "P3/defekt.nii.gz: no implant, so no pairs of them",
    ]
    # A wide glob does not take what a narrower one names; folders and lists of them are read.
    config.root = ""
    every = ", ".join(str(root / f"P{number}") for number in range(4))
    config.triplets.update(skull=every, implant=str(root / "*" / "platte*"))
    assert sources.PLANS["triplets"](16, config).names == ["P0", "P1", "P2"]
    config.triplets.implant = "nowhere"
    with pytest.raises(
        UserError, match=r"data\.triplets\.implant is 'nowhere': no file of a skull"
    ):
        sources.PLANS["triplets"](16, config)
    config.triplets.implant = ""
    with pytest.raises(UserError, match=r"data\.triplets\.implant is ''"):
        sources.PLANS["triplets"](16, config)


def test_a_cubic_triplet_that_is_skullbreaks_is_not_moved(tmp_path):
    write_skullbreak(tmp_path)
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "other.nii.gz")
    assert sources._side(tmp_path / "other.nii.gz", config_of()) == pytest.approx(4)
    case = plan("skullbreak", root=str(tmp_path)).cases[0]
    assert case.arguments[3] is False
