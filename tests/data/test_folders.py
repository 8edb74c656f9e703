"""What a path names, what is passed over, and what skulls are called."""

import pytest

from skullgen.data import folders

SLICE = bytes(128) + b"DICM"


def _write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(SLICE if name.lower().endswith(("dcm", "dicomdir")) else b"")


def _names(place):
    scans, _ = folders.scans(place)
    names = folders.names(dict.fromkeys(scans, folders.base(place)))
    return {str(path.relative_to(folders.base(place))): name for path, name in names.items()}


def test_hidden_files_are_not_there(tmp_path):
    hidden = "._a.nrrd .DS_Store Thumbs.db THUMBS.DB desktop.ini .b.nii.gz __MACOSX/._a.nrrd"
    _write(tmp_path, "a.nrrd", ".git/a.nrrd", "P1/._scan.nrrd", "P1/scan.nrrd", *hidden.split())
    for place in (tmp_path, tmp_path / "**"):
        assert folders.entries(place) == [tmp_path / "P1" / "scan.nrrd", tmp_path / "a.nrrd"]
    assert folders.entries(tmp_path / "*") == folders.entries(tmp_path)
    _write(tmp_path / ".cache", "a.nrrd")  # a hidden root was named
    assert folders.entries(tmp_path / ".cache") == [tmp_path / ".cache" / "a.nrrd"]


def test_a_folder_for_each_patient_is_one_skull_of_its_name(tmp_path):
    _write(tmp_path, "P1/scan.nii.gz", "P2/scan.nii.gz", "P2/notes.txt", "P3/CT.NRRD")
    _write(tmp_path, "P4/a.nrrd", "P4/b.nrrd", "series.v2/1.dcm", "series.v2/2.dcm", "top.mha")
    names = {
        **{"P1/scan.nii.gz": "P1", "P2/scan.nii.gz": "P2", "P3/CT.NRRD": "P3"},
        **{"P4/a.nrrd": "P4_a", "P4/b.nrrd": "P4_b", "series.v2": "series.v2", "top.mha": "top"},
    }
    assert _names(tmp_path) == names
    assert _names(tmp_path / "**") == names


def test_deeper_folders_are_joined_as_far_as_they_must_be(tmp_path):
    _write(tmp_path, "P1/S1/1.dcm", "P2/S1/1.dcm", "P2/S2/1.dcm", "P3/x/y/a.nrrd", "P3/DICOMDIR")
    names = {"P1/S1": "P1", "P2/S1": "P2_S1", "P2/S2": "P2_S2", "P3/x/y/a.nrrd": "P3"}
    assert _names(tmp_path / "**") == names
    assert _names(tmp_path) == {name: names[name] for name in ("P1/S1", "P2/S1", "P2/S2")}
    told = folders.scans(tmp_path)[1]
    assert any(line.startswith("P3/x: holds no skull itself (FOLDER/**") for line in told)


def test_a_series_of_one_folder_is_itself(tmp_path):
    _write(tmp_path, "a b/1.dcm", "a b/2.dcm")
    for place in (tmp_path / "a b", tmp_path / "a b" / "**"):
        assert folders.entries(place) == [tmp_path / "a b"]
    assert list(folders.names({tmp_path / "a b": tmp_path / "a b"}.copy()).values()) == ["a b"]


def test_links_are_followed_and_those_without_end_are_not(tmp_path):
    _write(tmp_path / "far", "scan.nrrd")
    _write(tmp_path / "root", "a/x.nrrd", "b/y.nrrd")
    for link, to in (("P1", "far"), ("a/l", "root/b"), ("b/l", "root/a"), ("a/up", "root")):
        (tmp_path / "root" / link).symlink_to(tmp_path / to)
    found = _names(tmp_path / "root" / "**")
    assert found["P1/scan.nrrd"] == "P1" and set(found) >= {"a/x.nrrd", "a/l/y.nrrd"}
    assert len(set(found.values())) == len(found) == 5


def test_names_that_several_have_get_the_folders_above(tmp_path):
    _write(tmp_path, "a/skull.nrrd", "b/skull.nrrd", "c/other.nrrd", "d/x/P1/s.nii", "e/x/P1/s.nii")
    _write(tmp_path, "c/skull.nii.gz", "c/skull.nrrd")
    files = [tmp_path / name for name in ("a/skull.nrrd", "b/skull.nrrd", "c/other.nrrd")]
    assert list(folders.names({path: path for path in files}).values()) == [
        *("a_skull", "b_skull", "other")
    ]
    assert list(folders.names({files[0]: files[0]}).values()) == ["skull"]
    scans = {tmp_path / s / "x/P1/s.nii": tmp_path / s / "x" for s in "de"}
    assert list(folders.names(scans).values()) == ["d_x_P1", "e_x_P1"]
    twins = [tmp_path / "c/skull.nii.gz", tmp_path / "c/skull.nrrd"]
    names = folders.names({path: path for path in twins})
    assert list(names.values()) == ["skull.nii.gz", "skull.nrrd"]


@pytest.mark.parametrize("name", ["a,b", "it's", 'say "a"', "Schädel", "[1] *", "a: b", "ROOT/x"])
def test_globs_and_names_of_any_characters(name, tmp_path):
    root = tmp_path / name
    _write(root, "P1/scan.nrrd", "P2/scan.nrrd", "P2/mask.nrrd", "P3/x/scan.nrrd")
    assert _names(root / "*" / "scan.nrrd") == {"P1/scan.nrrd": "P1", "P2/scan.nrrd": "P2"}
    assert len(_names(root / "**" / "scan.nrrd")) == 3 and len(_names(root / "**")) == 4
    for place in ("", "P1", "*", "*/mask.nrrd", "**", "P1/scan.nrrd"):
        assert folders.is_there(str(root / place)), place
    for place in ("P4", "*/mask.nii", "P4/**"):
        assert not folders.is_there(str(root / place)) and folders.entries(root / place) == []


def test_what_is_no_skull_is_a_line_a_sort(tmp_path):
    _write(tmp_path, *(f"{n}.txt" for n in range(30)), "a.STL", "b.ply", "c.vtp")
    scans, lines = folders.scans(tmp_path)
    assert scans == []
    assert len(lines) == 2 and lines[0].startswith("0.txt and 29 more: holds no skull (.nrrd, ")
    assert lines[1].startswith("a.STL and 2 more: a surface, no mask: voxelise it in 3D Slicer")
