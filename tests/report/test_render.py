"""Shaded pictures: known silhouettes, occlusion, orientation; thin bone and odd volumes."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from skullgen.report import render
from tests.shapes import ODD, ball, blue, holed_shell, nothing

MIDDLE = (15.5, 15.5, 15.5)


def picture_of(skull, defect, view=render.THREE_QUARTER, pixels=256):
    return render.render(skull, defect, view, pixels)[1]


def bone(picture):
    picture = picture.astype(int)
    return (picture[..., 0] > picture[..., 2] + 8) & (picture.min(-1) < 250)


def centre(mask):
    return np.argwhere(mask).mean(0)


def test_a_ball_is_a_disc_of_its_size_in_the_middle():
    picture = picture_of(ball(MIDDLE, 10), nothing(), (20, 10), pixels=144)
    disc = (picture < 250).any(-1)
    assert picture.shape == (144, 144, 3) and picture.dtype == np.uint8
    np.testing.assert_allclose(centre(disc), 71.5, atol=1)
    pixel = 0.9 * 32 / 144  # voxels; the level lies up to half a voxel outside the binary surface
    radius = np.sqrt(disc.sum() / np.pi) * pixel
    assert 9.9 < radius < 10.7
    rows, columns = np.nonzero(disc)
    across = np.hypot(rows - 71.5, columns - 71.5) * pixel
    assert across.max() - radius < 0.5
    assert bone(picture)[disc].mean() > 0.97 and not blue(picture).any()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "where", "row", "column"),
    [
        (0, 0, (26, 16, 16), 0, -1),  # frontal: the patient's right on the picture's left
        (0, 0, (16, 16, 26), -1, 0),  # superior is on top
        (180, 0, (26, 16, 16), 0, 1),  # from behind: right on the right
        (90, 0, (16, 26, 16), 0, 1),  # from the patient's right, the face looks to the right
        (-90, 0, (16, 26, 16), 0, -1),  # from the left, to the left
        (0, 90, (16, 26, 16), 1, 0),  # from above, standing before the face: it is below
        (0, 90, (26, 16, 16), 0, -1),
    ],
)
def test_ras_directions_appear_where_a_viewer_expects_them(azimuth, elevation, where, row, column):
    skull, defect = ball((16, 16, 16), 12), ball(where, 4)
    other = ball(2 * np.array((16, 16, 16)) - where, 4)  # keeps the picture centred
    picture = picture_of(skull | other, defect, (azimuth, elevation), pixels=96)
    offset = centre(blue(picture)) - 47.5
    expected = 4 * np.array([row, column])
    assert (np.sign(np.rint(offset / 8)) == np.sign(expected)).all(), offset


def test_the_nearer_of_skull_and_defect_is_seen():
    front, back = ball((16, 24, 16), 6), ball((16, 8, 16), 3)
    assert not blue(picture_of(front, back, (0, 0), pixels=96)).any()
    assert blue(picture_of(front, back, (180, 0), pixels=96)).any()
    ahead = picture_of(back, front, (0, 0), pixels=96)
    assert blue(ahead).any() and not bone(ahead).any()


def test_a_plate_of_one_voxel_stays_whole():
    plate = nothing()
    plate[4:28, 16, 4:28] = True
    drawn = (picture_of(plate, nothing(), (0, 0), pixels=32) < 250).any(-1)
    assert drawn[5:27, 5:27].all() and drawn.sum() < 29**2


def _view_of(skull, defect):
    return render.look(render.direction(skull, defect))


@settings(max_examples=3, deadline=None)
@given(
    st.tuples(*[st.floats(-1, 1)] * 2, st.floats(-0.2, 1)).filter(lambda v: np.hypot(*v[:2]) > 0.4)
)
def test_the_chosen_view_shows_hole_and_defect(direction):
    direction = np.array(direction) / np.linalg.norm(direction)
    skull, defect = holed_shell(direction)
    view = _view_of(skull, defect)
    towards = render._camera(*view)[2]
    assert 10 < np.degrees(np.arccos(towards @ direction)) < 50
    picture = picture_of(skull, defect, view, pixels=96)
    assert blue(picture).sum() > 80


def test_a_bilateral_defect_is_seen_on_its_larger_side():
    skull = ball(MIDDLE, 13) & ~ball(MIDDLE, 11)
    right, left = skull & ball((28, 16, 18), 6), skull & ball((3, 16, 18), 4)
    azimuth, _ = _view_of(skull & ~right & ~left, right | left)
    assert 40 < azimuth < 90


@pytest.mark.parametrize("name", ODD)
def test_render_survives(name):
    picture = picture_of(ODD[name][..., 0], ODD[name][..., 1], pixels=64)
    drawn = (picture < 250).any(-1)
    assert drawn.any() == (name != "empty")
    if name == "full":
        assert drawn.mean() > 0.4 and not drawn[0].any() and not drawn[:, 0].any()


@pytest.mark.parametrize("side", [16, 17, 100, 161])
def test_any_side_gives_the_same_ball(side):
    middle = (side - 1) / 2
    skull = ball((middle,) * 3, 0.3 * side, side)
    disc = (picture_of(skull, nothing(side), pixels=100) < 250).any(-1)
    assert np.sqrt(disc.sum() / np.pi) / 100 * 0.9 == pytest.approx(0.3, abs=0.04)
