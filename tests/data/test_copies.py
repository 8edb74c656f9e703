"""The same skull under several names, in whatever file, is in one split."""

import shutil

import nibabel
import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import copies, ingest, phantom, sources, store, volumes
from tests.data.test_sources import config_of, plan, write_skullbreak

ONE = ingest.Options(workers=1)


@pytest.fixture
def root(tmp_path):
    """Six skulls, of which a is also z: another container, orientation, type and value."""
    root, affine = tmp_path / "skulls", phantom.affine(48)
    for number, name in enumerate("abcdef"):
        volumes.write(root / f"{name}.nrrd", phantom.skull(number, 48), affine)
    turn = np.diag([-1.0, -1, 1, 1])
    turn[:2, 3] = 47
    values = phantom.skull(0, 48)[::-1, ::-1].astype(np.float32) * 255
    nibabel.save(nibabel.Nifti1Image(values, affine @ turn), root / "z.nii.gz")
    return root


def _config(root, **fields):
    return config_of(source="skulls", root=str(root), kinds=("bilateral",), **fields)


def test_a_digest_is_of_the_voxels_alone(root):
    skulls = plan("skulls", root=str(root)).skulls
    sums = {skull.name: copies.digest(skull, _config(root)) for skull in skulls}
    assert sums["a"] == sums["z"] and len(set(sums.values())) == 6


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_in_one_split_of_any_seed_and_are_told(root, seed):
    config = _config(root, seed=seed, test_fraction=0.3, validation_fraction=0.3)
    before = sources.PLANS["skulls"](16, config)
    after = copies.together(before, config, 1)
    assert after.split["a"] == after.split["z"] == before.split["a"]
    assert {n: s for n, s in after.split.items() if n != "z"} == {
        n: s for n, s in before.split.items() if n != "z"
    }
    assert after.problems == ["one skull of several names (equal voxels): a, z"]


def test_copies_that_the_user_put_apart_are_an_error_before_any_work(root, tmp_path):
    for fields in (dict(test="z"), dict(test="a", validation="z")):
        with pytest.raises(
            UserError, match="are the same skull, voxel by voxel: remove one, or put both"
        ):
            ingest.run(tmp_path / "a.zarr", 16, _config(root, **fields), ONE)
        assert not store.exists(tmp_path / "a.zarr")
    planned = copies.together(plan("skulls", root=str(root)), _config(root, test="a,z"), 1)
    assert planned.problems


def test_a_store_keeps_its_split_and_is_not_compared_again(root, tmp_path, monkeypatch, capsys):
    config = _config(root, seed=1)
    first = ingest.run(tmp_path / "a.zarr", 16, config, ONE)
    real = store.Store(tmp_path / "a.zarr")
    names = real.names(real.column("skull"))
    assert dict(zip(names, real.column("split").tolist(), strict=True)) == first.split
    assert "note: one skull of several names" in capsys.readouterr().out
    monkeypatch.setattr(copies, "digest", lambda *_: pytest.fail("read"))
    again = ingest.run(tmp_path / "a.zarr", 16, config, ONE)
    assert again.split == first.split and again.problems == first.problems


def test_files_of_other_shapes_are_not_read(root, monkeypatch):
    for number, path in enumerate(sorted(root.glob("*"))):
        path.unlink()
        volumes.write(root / f"{number}.nrrd", phantom.skull(0, 30 + number), phantom.affine(48))
    monkeypatch.setattr(copies, "digest", lambda *_: pytest.fail("read"))
    planned = sources.PLANS["skulls"](16, _config(root))
    assert copies.together(planned, _config(root), 1) == planned
    planned = sources.PLANS["phantom"](16, config_of())
    assert copies.together(planned, config_of(), 1) == planned


def test_between_the_folders_of_a_split_it_is_an_error(tmp_path):
    root = write_skullbreak(tmp_path)
    config = config_of(source="skullbreak", root=str(root))
    planned = sources.PLANS["skullbreak"](16, config)
    assert copies.together(planned, config, 1) == planned
    for file in (root / "train").rglob("001.nrrd"):
        other = root / "test" / file.relative_to(root / "train").with_name("000.nrrd")
        shutil.copy(file, other)
    with pytest.raises(UserError, match="are the same skull, voxel by voxel: remove one"):
        copies.together(sources.PLANS["skullbreak"](16, config), config, 1)
