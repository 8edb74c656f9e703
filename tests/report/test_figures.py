"""Pictures: slices in the convention, whole and readable sheets."""

import numpy as np
from PIL import Image

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
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] < 2000 and picture.shape[0] > 60
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return picture


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
    view = render.look(render.direction(PAIR))
    expected = render.render(PAIR[..., 0], PAIR[..., 1], view)
    np.testing.assert_array_equal(without, expected[0])
    np.testing.assert_array_equal(with_it, expected[1])


def test_a_strip_is_seen_from_one_side(tmp_path):
    right, left = (np.stack(holed_shell((x, 0.3, 0.4), 16), -1) for x in (0.87, -0.87))
    ways = {"linear": np.stack([right, ODD["empty"], right]), "a": np.stack([right, left, right])}
    figures.strip(tmp_path / "strip.png", ways, title="ways")
    side = 256
    upper, lower = tiles(valid(tmp_path / "strip.png"), 2 * side, side)
    for tile in (upper[2], lower[0], lower[2]):
        np.testing.assert_array_equal(tile, upper[0])
    assert (upper[1] == 255).all()
    assert blue(upper[0][side:]).sum() > 500 and not blue(upper[0][:side]).any()
    assert blue(lower[1]).sum() < blue(upper[0]).sum() / 3  # a defect behind
