"""Shaded pictures: known silhouettes, occlusion, orientation; thin bone and odd volumes."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("side", [16, 17, 100, 161])
def test_a_ball_is_a_disc_of_its_size_in_the_middle(side):
    skull = ball(((side - 1) / 2,) * 3, 0.3 * side, side)
    picture = picture_of(skull, nothing(side), (20, 10), pixels=144)
    disc = (picture < 250).any(-1)
    assert picture.shape == (144, 144, 3) and picture.dtype == np.uint8
    np.testing.assert_allclose(centre(disc), 71.5, atol=1)
    radius = np.sqrt(disc.sum() / np.pi)  # the whole picture is 1 / 0.9 of the frame
    assert radius / 144 * 0.9 == pytest.approx(0.3, abs=0.04)
    assert np.hypot(*(np.argwhere(disc) - 71.5).T).max() - radius < 2.5
    assert bone(picture)[disc].mean() > 0.97 and not blue(picture).any()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "where", "row", "column"),
    [
        (0, 0, (26, 16, 16), 0, -1),  # frontal: the patient's right on the picture's left
        (0, 0, (16, 16, 26), -1, 0),  # superior is on top
        (180, 0, (26, 16, 16), 0, 1),  # from behind: right on the right
        (90, 0, (16, 26, 16), 0, 1),  # from the patient's right, the face looks to the right
        (0, 90, (16, 26, 16), 1, 0),  # from above, standing before the face: it is below
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


@pytest.mark.parametrize("way", [(0.8, 0.6, 0), (-0.6, -0.5, 0.62), (0.3, -0.9, -0.2)])
def test_the_chosen_view_shows_hole_and_defect(way):
    way = np.array(way) / np.linalg.norm(way)
    skull, defect = holed_shell(way)
    view = render.look(render.direction(np.stack([skull, defect], -1)))
    assert 10 < np.degrees(np.arccos(render._camera(*view)[2] @ way)) < 50
    assert blue(picture_of(skull, defect, view, pixels=96)).sum() > 80


def test_a_bilateral_defect_is_seen_on_its_larger_side():
    skull = ball(MIDDLE, 13) & ~ball(MIDDLE, 11)
    right, left = skull & ball((28, 16, 18), 6), skull & ball((3, 16, 18), 4)
    pair = np.stack([skull & ~right & ~left, right | left], -1)
    azimuth, _ = render.look(render.direction(pair))
    assert 40 < azimuth < 90


@pytest.mark.parametrize("name", ODD)
def test_render_survives(name):
    picture = picture_of(ODD[name][..., 0], ODD[name][..., 1], pixels=64)
    drawn = (picture < 250).any(-1)
    assert drawn.any() == (name != "empty")
    if name == "full":
        assert drawn.mean() > 0.4 and not drawn[0].any() and not drawn[:, 0].any()
