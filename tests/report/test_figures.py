"""Pictures: slices in the convention, whole and readable sheets."""

import numpy as np
import pytest
from matplotlib.image import imread

from skullgen.report import figures, render
from tests.shapes import ODD, PAIR, blue, holed_shell, nothing


def test_slices_follow_the_radiological_convention_through_the_largest_part(monkeypatch):
    monkeypatch.setattr(figures, "_write", lambda *_: None)  # no letters
    assert figures.ORIENTATION == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    skull, defect = nothing(16), nothing(16)
    skull[15, 8, 8] = skull[8, 15, 8] = skull[8, 8, 15] = True  # right, anterior, superior
    defect[7:10, 7:10, 7:10] = True
    skull[8, 8, 8] = defect[2, 2, 2] = True  # in both, and a smaller part
    right, ahead = (7, 0), (0, 7)
    for name, picture in figures.slices(skull, defect, len(skull)).items():
        grey = (picture == picture[..., :1]).all(-1) & (picture[..., 0] > 0)
        assert set(map(tuple, np.argwhere(grey).tolist())) == {right, ahead}, name
        assert blue(picture).sum() == 9 - 1
        assert np.argwhere((picture == figures.KINDS[3]).all(-1)).tolist() == [[7, 7]]


def valid(path):
    picture = imread(path)
    assert picture.shape[1] < 2000 and picture.shape[0] > 60
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return (np.rint(picture[..., :3] * 255)).astype(np.uint8)


def tiles(picture, high, wide):
    """The tiles of a sheet by row and column: the first begins at 52 pixels down, 12 across."""
    rows = range(52, picture.shape[0] - high, high + 26)
    columns = range(12, picture.shape[1] - wide, wide + 12)
    return [[picture[y : y + high, x : x + wide] for x in columns] for y in rows]


def test_pair_sheet_shows_each_skull_without_and_with_its_defect(tmp_path):
    path = tmp_path / "new" / "pairs.png"
    figures.pair_sheet(path, PAIR[None], title="$a_ price", captions=["100 % \\frac{"])
    without, with_it = np.split(tiles(valid(path), 256, 512)[0][0], 2, axis=1)
    assert not blue(without).any() and blue(with_it).sum() > 1000
    skull, defect = PAIR[..., 0], PAIR[..., 1]
    expected = render.render(skull, defect, render.look(render.direction(skull, defect)))
    np.testing.assert_array_equal(without, expected[0])
    np.testing.assert_array_equal(with_it, expected[1])


@pytest.mark.parametrize("kind", ["pairs", "strip"])
def test_sheets_of_odd_pairs_are_written(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "WIDTH", 640)
    pairs, path = np.stack(list(ODD.values())), tmp_path / "sheet.png"
    if kind == "pairs":
        figures.pair_sheet(path, pairs, title="odd")
    else:  # of many steps, and yet narrow
        figures.strip(path, {"": np.concatenate([pairs, pairs[:1]])}, title="odd")
    assert len(np.unique(valid(path).reshape(-1, 3), axis=0)) > 20


def test_an_implants_sheet_takes_shares(tmp_path):
    shares = np.float32(PAIR) / 2
    figures.implant_sheet(tmp_path / "i.png", shares[..., 0], shares[..., 1], "title", "note " * 99)
    assert blue(valid(tmp_path / "i.png")).sum() > 1000


def test_strip_shows_the_real_ends_and_each_row_from_one_side(tmp_path):
    right, left = (np.stack(holed_shell((x, 0.3, 0.4), 16), -1) for x in (0.87, -0.87))
    path = tmp_path / "strip.png"
    ways = {"linear": np.stack([right, ODD["empty"], right]), "a": np.stack([left, right])}
    figures.strip(path, ways, title="ways", ends=np.stack([right, right]))
    side = 256
    upper, lower = tiles(valid(path), 2 * side, side)
    for tile in (upper[1], upper[3], upper[4]):
        np.testing.assert_array_equal(tile, upper[0])
    assert (upper[2] == 255).all()
    assert blue(upper[0][side:]).sum() > 500 and not blue(upper[0][:side]).any()
    np.testing.assert_array_equal(lower[0], upper[0])
    np.testing.assert_array_equal(lower[3], upper[0])
    assert blue(lower[1]).sum() < blue(upper[0]).sum() / 3  # a defect behind
    assert (lower[4] == 255).all()  # no fifth pair


def test_segmentation_sheet_colours_each_nets_voxels_and_tells_its_dice(tmp_path, monkeypatch):
    texts, write = [], figures._write
    monkeypatch.setattr(figures, "_write", lambda *x: (texts.append(x[2]), write(*x)))
    skull, truth = holed_shell((0.6, 0.5, 0.62), 16)
    planes = figures._planes(truth)
    plane = max(planes.values(), key=lambda plane: truth[plane].sum())
    shifted = np.roll(truth, 1, 0)
    nets = {"$good_": truth, "shifted": shifted, "empty": truth & False}
    path = tmp_path / "seg.png"
    figures.segmentation_sheet(path, skull, truth, nets, title="a case")
    cells = tiles(valid(path), 640, 320)

    def voxels(row, column):
        plane = cells[row][column][320:][10::20, 10::20]
        return [int((plane == colour).all(-1).sum()) for colour in figures.KINDS[2:]]

    whole, hit = int(truth[plane].sum()), int((truth & shifted)[plane].sum())
    assert 0 < hit < whole
    assert voxels(0, 0) == [0, 0, 0]  # the defective skull
    assert voxels(0, 1) == voxels(0, 2) == [whole, 0, 0]
    assert voxels(0, 3) == [hit, int((shifted & ~truth)[plane].sum()), whole - hit]
    assert voxels(1, 0) == [0, 0, whole]
    views = [cell[:320] for cell in cells[0]]
    assert not blue(views[0]).any() and blue(views[1]).sum() > 1000
    np.testing.assert_array_equal(views[1], views[2])
    of_shifted = 2 * (truth & shifted).sum() / (truth.sum() + shifted.sum())
    dices = {"$good_": 1, "shifted": of_shifted, "empty": 0}
    assert {f"{name}: Dice {dice:.3f}" for name, dice in dices.items()} < set(texts)


def a_map(title, counts):
    rng = np.random.default_rng(0)
    points = [
        {"x": x, "y": y, "group": group, "case": "c"}
        for group, count in counts.items()
        for x, y in rng.normal(size=(count, 2)).tolist()
    ]
    return {"title": title, "points": points}


@pytest.mark.parametrize("counts", [{"one": 1}, {**dict.fromkeys("abcdefghij", 2), "_$m_": 900}])
def test_maps_of_any_size_are_written(counts, tmp_path):
    figures.map_sheet(tmp_path / "m.png", [a_map(title, counts) for title in ("$t_", *"uvw")])
    assert valid(tmp_path / "m.png").shape[1] > 1500
