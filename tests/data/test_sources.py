"""Sources are planned: SkullBreak's layout, folders of skulls, splits; pairs that are none."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments import common
from skullgen.core.errors import UserError
from skullgen.data import defects, phantom, sources, triplets, volumes


def config_of(**fields):
    """`config.data`, cut to phantoms; fields are set."""
    config = common.defaults("smoke").data
    config.update(fields)
    return config


def shell(size, centre, radius=0.42, thickness=0.12):
    """A hollow ball: bool [size, size, size]."""
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm((grid - centre) / size, axis=-1)
    return (distance < radius) & (distance > radius - thickness)


def write_skullbreak(root, mm=6.4):
    """A folder in SkullBreak's layout: 2 training skulls and 1 test skull at 32^3."""
    affine = np.diag([mm, mm, mm, 1.0])
    for part, number in (("train", "000"), ("train", "001"), ("test", "000")):
        complete = shell(32, [15.5, 16 + int(number), 15 + (part == "test")])
        volumes.write(root / part / "complete_skull" / f"{number}.nrrd", complete, affine)
        for shift, kind in enumerate(defects.KINDS):
            hole = np.zeros_like(complete)
            hole[8 + shift : 18 + shift, :, 20:] = True
            sides = {"defective_skull": complete & ~hole, "implant": complete & hole}
            for folder, mask in sides.items():
                volumes.write(root / part / folder / kind / f"{number}.nrrd", mask, affine)
    return root


def plan(source, size=16, **fields):
    return sources.PLANS[source](size, config_of(source=source, **fields))


def test_skullbreaks_pairs_and_what_has_none_are_told(tmp_path):
    root = write_skullbreak(tmp_path)
    (root / "train" / "implant" / "bilateral" / "001.nrrd").unlink()
    (root / "train" / "notes.txt").write_bytes(b"hello")
    (root / "test" / "complete_skull" / "000.nrrd").unlink()
    planned = plan("skullbreak", root=str(root))
    assert planned.problems == [
        "14 pairs of 3 skulls",
        "train/defective_skull/bilateral/001.nrrd: no implant, so no pairs of them",
        f"train/notes.txt: not used (not in {', '.join(triplets.SIDES)}, or there twice)",
    ]
    assert planned.names == ["train_000", "train_001", "test_000"]
    assert planned.split == {"train_000": 0, "train_001": 0, "test_000": 2}
    assert [case.skull for case in planned.cases] == [0] * 5 + [1] * 4 + [2] * 5
    assert len(planned.sources) == 28 and planned.field_mm == pytest.approx(204.8)


def test_files_that_cannot_be_read_do_not_end_the_planning(tmp_path):
    root = write_skullbreak(tmp_path / "skullbreak")
    first = root / "train" / "defective_skull" / defects.KINDS[0] / "000.nrrd"
    first.write_bytes(b"")
    planned = plan("skullbreak", root=str(root))
    assert planned.field_mm == pytest.approx(204.8) and len(planned.cases) == 15
    with pytest.raises(UserError, match=r"000.nrrd: "):
        planned.cases[0].make(*planned.cases[0].arguments)
    root = tmp_path / "skulls"
    volumes.write(root / "a.nrrd", phantom.skull(0, 48), phantom.affine(48))
    (root / "b.nhdr").write_bytes(b"NRRD0004\n")
    (root / "c.nii").symlink_to("nowhere")
    planned = plan("skulls", root=str(root))
    assert planned.names == ["a", "b", "c"] and planned.sources["c.nii"] == "unreadable"


def test_detached_voxels_are_part_of_their_header(tmp_path):
    import nrrd

    for name in "abc":
        header = {"space": "RAS", "space directions": np.eye(3) * 204.8 / 48}
        mask = phantom.skull(ord(name), 48).astype(np.uint8)
        nrrd.write(str(tmp_path / f"{name}.nhdr"), mask, header, detached_header=True)
    (tmp_path / "folder.nrrd").mkdir()
    planned = plan("skulls", root=str(tmp_path))
    assert sorted(planned.sources) == sorted(p.name for p in tmp_path.iterdir() if p.is_file())
    assert len(planned.sources) == 6
    assert [line.split(":")[0] for line in planned.problems] == ["folder.nrrd"]


def _pair(root, skull, implant, size, mm=6.4):
    paths = [root / name / "bilateral" / "000.nrrd" for name in ("defective_skull", "implant")]
    for path, mask in zip(paths, (skull, implant), strict=True):
        volumes.write(path, mask, np.diag([mm, mm, mm, 1.0]))
    return sources._cut_pair(*paths, size, False, config_of(threshold=0.001))


@pytest.mark.parametrize("mm", [4.0, 6.4])
@pytest.mark.parametrize("thickness", [0.04, 0.12])
def test_a_thin_implant_against_its_skull_is_a_pair_on_any_grid(tmp_path, thickness, mm):
    complete = shell(32, [15.5, 15.5, 15.5], thickness=thickness)
    hole = np.zeros_like(complete)
    hole[8:16, :, 20:] = True
    for size in (4, 8, 32):
        assert len(_pair(tmp_path, complete & ~hole, complete & hole, size, mm)) == 1


def test_an_implant_in_thin_bone_overlaps_on_any_grid(tmp_path):
    """Where blocks are larger than the bone is thick, none of them is too full."""
    complete = shell(32, [15.5, 15.5, 15.5], thickness=0.04)
    hole = np.zeros_like(complete)
    hole[8:16, :, 20:] = True
    for size in (2, 4, 32):
        with pytest.raises(UserError, match="overlaps"):
            _pair(tmp_path, complete, complete & hole, size)
    # A border that resampling gave to both is no mistake.
    border = complete & hole & ~np.roll(hole, 1, axis=0)
    skull = (complete & ~hole) | border & (np.indices(complete.shape).sum(axis=0) % 3 == 0)
    assert _pair(tmp_path, skull, complete & hole, 4)


def test_a_files_own_cube_is_the_frame_where_asked():
    """Fresh cuts of SkullBreak's complete skulls lie where its own pairs have them."""
    complete, affine = shell(32, [15.5, 16, 15]), np.diag([6.4, 6.4, 6.4, 1.0])
    model, share = sources.prepare(complete, affine, 16, reframe=False)
    expected = complete.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    np.testing.assert_allclose(share, expected, atol=1e-6)
    np.testing.assert_allclose(model @ [0, 0, 0, 1], affine @ [0.5, 0.5, 0.5, 1])


FRACTIONS = dict(test_fraction=0.2, validation_fraction=0.1)


def _splits(names, **fields):
    return sources.assign(names, config_of(**(FRACTIONS | fields)))


@hypothesis.given(st.integers(1, 60), st.integers(0, 5))
def test_fractions_split_by_skull_whatever_the_order(count, seed):
    names = [f"s{number}" for number in range(count)]
    split = _splits(names, seed=seed)
    assert split == _splits(names[::-1], seed=seed)
    places = list(split.values())
    assert places.count(2) == round(0.2 * count)
    assert places.count(1) == round(0.1 * count)


@hypothesis.given(st.integers(4, 30), st.integers(2, 4))
def test_folds_test_every_skull_once(count, folds):
    names = [f"s{number}" for number in range(count)]
    splits = [_splits(names, folds=folds, fold=fold) for fold in range(folds)]
    tested = [name for split in splits for name in names if split[name] == 2]
    assert sorted(tested) == sorted(names)
    for split in splits:
        assert list(split.values()).count(1) == round(0.1 * count)
        assert abs(list(split.values()).count(2) - count / folds) < 1


def test_splits_by_name():
    assert _splits(["a", "b", "c"], test="c, b") == {"a": 0, "b": 2, "c": 2}


def test_splits_by_names_with_commas_and_umlauts():
    names = ["a,b", "a", "M\u00fcller", "Scha\u0308del"]  # the last as a Mac writes it
    assert _splits(names, test="a,b, Mu\u0308ller", validation="Sch\u00e4del") == dict(
        zip(names, (2, 0, 2, 1), strict=True)
    )
    with pytest.raises(UserError, match=r"names 'b': no such skull"):
        _splits(names[1:], test="a,b")


def test_a_folder_of_patients_is_read_and_pairs_are_no_complete_skulls(tmp_path):
    for number, name in enumerate(("A0001/A0001_clear", "A0002/A0002_clear", "B, C/x/deep")):
        path = tmp_path / f"{name}.nrrd"
        volumes.write(path, phantom.skull(number, 48), phantom.affine(48))
    for name in ("A0001/A0001.stl", "A0001/._A0001_clear.nrrd", ".DS_Store", "A0002/README.txt"):
        (tmp_path / name).write_bytes(b"")
    planned = plan("skulls", root=str(tmp_path), test="A0002")
    assert planned.split == {"A0001": 0, "A0002": 2}
    assert sorted(planned.sources) == ["A0001/A0001_clear.nrrd", "A0002/A0002_clear.nrrd"]
    assert [line.split(": ")[0] for line in planned.problems] == [
        *("A0001/A0001.stl", "A0002/README.txt", "B, C/x")
    ]
    deep = plan("skulls", root=f"{tmp_path}/**", test="B, C")
    assert deep.split == {"A0001": 0, "A0002": 0, "B, C": 2}
    pairs = str(write_skullbreak(tmp_path / "data"))
    with pytest.raises(UserError, match=r"is no complete skull: data\.source=skullbreak reads"):
        plan("skulls", root=f"{pairs}/**")
    assert plan("skulls", root=f"{pairs}/train/complete_skull").names == ["000", "001"]


def test_fields_that_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match=r"data\.folds and data\.test both say"):
        _splits(["a", "b"], folds=2, test="a")
    with pytest.raises(UserError, match=r"data\.test is not for data\.source=skullbreak"):
        plan("skullbreak", root=str(write_skullbreak(tmp_path)), test="000")


def test_skullbreaks_cubes_of_any_size_keep_their_millimetres(tmp_path):
    assert plan("skullbreak", root=str(write_skullbreak(tmp_path, 1.0))).field_mm == 32


def test_a_vault_that_a_scan_cut_open_is_no_complete_skull_whatever_was_padded():
    whole, affine = phantom.skull(1, 128), phantom.affine(128)
    top = np.flatnonzero(whole.any(axis=(0, 1)))[-1]
    sources._require_head(whole, affine)
    sources._require_head(whole[:, :, : top + 1], affine)
    for mask in (whole[:, :, : top - 9], whole & (np.arange(128) < top - 9)):  # 16 mm
        with pytest.raises(UserError, match=r"cuts the top of the vault, .* \(\d+ mm\^2\)"):
            sources._require_head(mask, affine)
