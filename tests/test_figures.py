"""Pictures: known silhouettes, occlusion and orientation; files whole, readable and robust."""

import json
import pathlib
import subprocess
import sys
import time

import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.image import imread

from skullgen import figures
from skullgen.errors import UserError

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
MIDDLE = (15.5, 15.5, 15.5)


def ball(centre, radius, side=32):
    grid = np.indices((side,) * 3).T - np.asarray(centre)
    return ((grid**2).sum(-1) < radius**2).T


def nothing(side=32):
    return np.zeros((side,) * 3, bool)


def holed_shell(direction, side=32, radius=0.4):
    """A sphere's shell, two voxels thick, and its cap about `direction`: (skull, defect)."""
    middle = np.full(3, (side - 1) / 2)
    shell = ball(middle, radius * side, side) & ~ball(middle, radius * side - 2, side)
    defect = shell & ball(middle + radius * side * np.asarray(direction), 0.2 * side, side)
    return shell & ~defect, defect


def blue(picture):
    picture = picture.astype(int)
    return picture[..., 2] > picture[..., 0] + 20


def bone(picture):
    picture = picture.astype(int)
    return (picture[..., 0] > picture[..., 2] + 8) & (picture.min(-1) < 250)


def centre(mask):
    return np.argwhere(mask).mean(0)


def test_a_ball_is_a_disc_of_its_size_in_the_middle():
    picture = figures.render(ball(MIDDLE, 10), nothing(), pixels=144, azimuth=20, elevation=10)
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
    picture = figures.render(skull | other, defect, azimuth=azimuth, elevation=elevation, pixels=96)
    offset = centre(blue(picture)) - 47.5
    expected = 4 * np.array([row, column])
    assert (np.sign(np.rint(offset / 8)) == np.sign(expected)).all(), offset


def test_the_nearer_of_skull_and_defect_is_seen():
    front, back = ball((16, 24, 16), 6), ball((16, 8, 16), 3)
    assert not blue(figures.render(front, back, azimuth=0, elevation=0)).any()
    assert blue(figures.render(front, back, azimuth=180, elevation=0)).any()
    ahead = figures.render(back, front, azimuth=0, elevation=0)
    assert blue(ahead).any() and not bone(ahead).any()


def test_the_frontmost_of_two_surfaces_lies_where_the_cube_ends():
    cube = np.zeros((32, 32, 32), np.float32)
    cube[8:24, 8:24, 8:24] = 1
    grid = np.linspace(-12, 12, 49)
    pivot = np.array(MIDDLE)
    nearness, normals = figures._march(cube, figures._camera(0, 0), pivot, grid)
    inside = np.abs(grid) < 6
    face = nearness[np.ix_(inside, inside)]
    assert np.ptp(face) < 0.05 and abs(face.mean() - 8.25) < 0.3
    np.testing.assert_allclose(normals[24, 24], (0, 0, 1), atol=0.02)
    outside = np.abs(grid) > 9.5
    assert np.isneginf(nearness[outside]).all() and np.isneginf(nearness[:, outside]).all()


def test_a_plate_of_one_voxel_stays_whole_and_its_one_voxel_hole_open():
    plate = np.zeros((32, 32, 32), np.float32)
    plate[4:28, 16, 4:28] = 1
    plate[16, 16, 16] = 0
    grid = np.arange(32) - 15.5
    nearness, _ = figures._march(plate, figures._camera(0, 0), np.array(MIDDLE), grid)
    seen = nearness > -np.inf
    # Picture rows run down z, columns down x: voxel 16 is row and column 15.
    assert not seen[15, 15]
    assert seen[5:27, 5:27].sum() == 22 * 22 - 1


def test_thin_oblique_bone_does_not_vanish():
    x, y, z = np.indices((32, 32, 32))
    plate = (np.abs(x + 2 * y + 3 * z - 93) < 1.9) & ball(MIDDLE, 12)
    view = np.array([1, 2, 3]) / np.sqrt(14)
    camera = figures._camera(*np.degrees([np.arctan2(view[0], view[1]), np.arcsin(view[2])]))
    np.testing.assert_allclose(camera[2], view, atol=1e-9)
    grid = np.linspace(-8, 8, 65)
    seen = figures._march(plate.astype(np.float32), camera, np.array(MIDDLE), grid)[0] > -np.inf
    disc = np.hypot(*np.meshgrid(grid, grid)) < 8
    assert seen[disc].all()


def test_separate_mm_moves_the_defect_outwards_by_that_much():
    skull, defect = holed_shell((1, 0, 0), radius=0.3)
    pictures = [
        figures.render(skull, defect, azimuth=0, elevation=0, pixels=144, separate_mm=mm)
        for mm in (0, 12.8)
    ]
    reach = [np.argwhere(bone(p))[:, 1].max() - np.argwhere(blue(p))[:, 1].min() for p in pictures]
    voxels = 0.9 * 32 / 144  # a pixel; 12.8 mm are two voxels at 32^3
    assert (reach[1] - reach[0]) * voxels == pytest.approx(2.0, abs=0.3)


@given(azimuth=st.floats(-720, 720, allow_nan=False), elevation=st.floats(-90, 90, allow_nan=False))
def test_the_camera_is_a_rotation_with_the_vertical_upright(azimuth, elevation):
    camera = figures._camera(azimuth, elevation)
    np.testing.assert_allclose(camera @ camera.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(camera) == pytest.approx(1)
    assert abs(camera[0, 2]) < 1e-9 and camera[1, 2] >= -1e-9


@settings(max_examples=6, deadline=None)
@given(
    st.tuples(*[st.floats(-1, 1)] * 2, st.floats(-0.2, 1)).filter(lambda v: np.hypot(*v[:2]) > 0.4)
)
def test_the_chosen_view_shows_hole_and_defect(direction):
    direction = np.array(direction) / np.linalg.norm(direction)
    skull, defect = holed_shell(direction)
    azimuth, elevation = figures.view_of(skull, defect)
    towards = figures._camera(azimuth, elevation)[2]
    assert 10 < np.degrees(np.arccos(towards @ direction)) < 50
    picture = figures.render(skull, defect, azimuth=azimuth, elevation=elevation, pixels=96)
    assert blue(picture).sum() > 80


def test_a_bilateral_defect_is_seen_on_its_larger_side():
    skull = ball(MIDDLE, 13) & ~ball(MIDDLE, 11)
    right, left = skull & ball((28, 16, 18), 6), skull & ball((3, 16, 18), 4)
    azimuth, _ = figures.view_of(skull & ~right & ~left, right | left)
    assert 40 < azimuth < 90


def test_slices_follow_the_radiological_convention():
    assert figures.ORIENTATION == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    skull = nothing(16)
    skull[15, 8, 8] = skull[8, 15, 8] = skull[8, 8, 15] = True  # right, anterior, superior
    defect = nothing(16)
    defect[8, 8, 8] = True
    pictures, middle = figures.slices(skull, defect)
    assert middle == (8, 8, 8)
    grey = {name: (p == p[..., :1]).all(-1) & (p[..., 0] > 0) for name, p in pictures.items()}
    right, anterior, superior = (7, 0), (0, 7), (0, 7)
    assert {tuple(a) for a in np.argwhere(grey["axial"])} == {right, anterior}
    assert {tuple(a) for a in np.argwhere(grey["coronal"])} == {right, superior}
    assert {tuple(a) for a in np.argwhere(grey["sagittal"])} == {(7, 0), superior}
    for picture in pictures.values():
        assert blue(picture)[7, 7] and blue(picture).sum() == 1


def test_slices_mark_overlap_and_pass_through_the_largest_part():
    skull, defect = nothing(20), nothing(20)
    defect[3:8, 4:7, 10:13] = True
    defect[15, 15, 15] = True
    skull[5, 5, 11] = True
    pictures, middle = figures.slices(skull, defect)
    assert middle == (5, 5, 11)
    overlap = tuple(np.rint(np.float32(figures.OVERLAP) * 255).astype(int))
    for picture in pictures.values():
        assert (picture == overlap).all(-1).sum() == 1
    assert blue(pictures["axial"]).sum() == 5 * 3 - 1


def test_slices_find_the_defect_in_volumes_that_are_averaged_first():
    defect = nothing(330)
    defect[300:311, 20:31, 150:161] = True
    pictures, middle = figures.slices(nothing(330), defect)
    assert np.abs(np.array(middle) - (305, 25, 155)).max() <= 2
    assert pictures["axial"].shape == (330, 330, 3)


PAIR = np.stack(holed_shell((0.6, 0.5, 0.62)), -1)
ODD = {
    "empty": np.zeros_like(PAIR),
    "full": np.ones_like(PAIR),
    "no defect": PAIR & [True, False],
    "no skull": PAIR & [False, True],
    "a voxel": np.stack([nothing(), ball((0, 31, 0), 1)], -1),
}


def valid(path):
    picture = imread(path)
    assert picture.shape[1] < 2000 and picture.shape[0] > 60
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return (np.rint(picture[..., :3] * 255)).astype(np.uint8)


def test_pair_sheet_shows_each_skull_without_and_with_its_defect(tmp_path):
    path = tmp_path / "new" / "pairs.png"
    figures.pair_sheet(path, PAIR[None], title="$a_ price", captions=["100 % \\frac{"], columns=2)
    picture = valid(path)
    # The one tile begins 12 pixels from the left, 52 from the top, and holds two of 256.
    without, with_it = picture[52:308, 12:268], picture[52:308, 268:524]
    assert not blue(without).any() and blue(with_it).sum() > 1000
    view = figures.view_of(PAIR[..., 0], PAIR[..., 1])
    expected = figures.render(PAIR[..., 0], PAIR[..., 1], azimuth=view[0], elevation=view[1])
    np.testing.assert_array_equal(with_it, expected)


@pytest.mark.parametrize("kind", ["pairs", "slices", "comparison"])
def test_sheets_of_odd_pairs_are_written(kind, tmp_path):
    pairs, path = np.stack(list(ODD.values())), tmp_path / "sheet.png"
    if kind == "pairs":
        figures.pair_sheet(path, pairs, title="odd", columns=5)
    elif kind == "slices":
        figures.slice_sheet(path, pairs, title="odd")
    else:
        figures.comparison_sheet(path, pairs[:3], pairs[2:], title="odd")
    assert len(np.unique(valid(path).reshape(-1, 3), axis=0)) > 20


def test_sheets_without_pairs_are_written(tmp_path):
    none = np.zeros((0, 32, 32, 32, 2), bool)
    figures.pair_sheet(tmp_path / "a" / "a.png", none, title="none")
    figures.slice_sheet(tmp_path / "b" / "b.png", none, title="none")
    figures.comparison_sheet(tmp_path / "c" / "c.png", none, PAIR[None], title="none")
    for name in "abc":
        assert valid(tmp_path / name / f"{name}.png").min() < 128


def test_comparison_draws_generated_pairs_under_the_real_ones_view(tmp_path):
    right, left = (np.stack(holed_shell((x, 0.3, 0.4)), -1) for x in (0.87, -0.87))
    path = tmp_path / "comparison.png"
    figures.comparison_sheet(path, [right, left], [left, right], title="swapped")
    picture = valid(path)
    side, top, row = figures._WIDTH // 8, 52, figures._WIDTH // 8 + 26
    for column in (12, 12 + 2 * side + 12):
        above, below = (picture[y : y + side, column : column + 2 * side] for y in (top, top + row))
        np.testing.assert_array_equal(above, below)
        assert blue(above).sum() > 500


@pytest.mark.parametrize("name", ODD)
def test_render_survives(name):
    picture = figures.render(ODD[name][..., 0], ODD[name][..., 1], pixels=64)
    drawn = (picture < 250).any(-1)
    assert drawn.any() == (name != "empty")
    if name == "full":
        assert drawn.mean() > 0.4 and not drawn[0].any() and not drawn[:, 0].any()


def test_shares_and_values_that_are_not_finite():
    share = ball(MIDDLE, 10).astype(np.float32)
    expected = figures.render(share, nothing(), pixels=64)
    share[0, 0, 0], share[16, 16, 16], share[15, 15, 15] = np.nan, np.inf, 7
    np.testing.assert_array_equal(figures.render(share, nothing(), pixels=64), expected)


@pytest.mark.parametrize("side", [16, 17, 100, 161])
def test_any_side_gives_the_same_ball(side):
    middle = (side - 1) / 2
    skull = ball((middle,) * 3, 0.3 * side, side)
    disc = (figures.render(skull, nothing(side), pixels=100) < 250).any(-1)
    assert np.sqrt(disc.sum() / np.pi) / 100 * 0.9 == pytest.approx(0.3, abs=0.04)


def test_wrong_shapes_are_the_users_mistakes(tmp_path):
    with pytest.raises(UserError, match="differ"):
        figures.render(nothing(32), nothing(16))
    with pytest.raises(UserError, match=r"\[4, 5, 6\]"):
        figures.view_of(np.zeros((4, 5, 6)), np.zeros((4, 5, 6)))
    with pytest.raises(UserError, match="N, D, D, D, 2"):
        figures.pair_sheet(tmp_path / "x.png", PAIR[None, ..., 0], title="one channel")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "old.png"
    path.write_bytes(b"old")

    class Broken:
        dpi = 100

        def savefig(self, partial, **_):
            pathlib.Path(partial).write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        figures._save(path, Broken())
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"] and path.read_bytes() == b"old"


def test_runs_keep_every_spike_and_the_mean():
    y = np.zeros(250_001)
    y[[7, 123_456]] = 100, -50
    x, mean, low, high = figures._runs(np.arange(250_001.0), y)
    assert len(x) <= 1000 and high.max() == 100 and low.min() == -50
    assert (np.diff(x) > 0).all() and mean.max() < 1
    x, mean, low, high = figures._runs(np.arange(3.0), np.array([5.0, 4, 3]))
    assert mean.tolist() == low.tolist() == high.tolist() == [5, 4, 3]


def axes_of(records, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda path, figure: kept.append(figure))
    figures.loss_curves(tmp_path / "loss.png", records, title="t")
    return {axes.get_title(): axes for axes in kept[0].axes}


def test_loss_curves_have_a_panel_a_metric_and_log_scale_where_fit(tmp_path, monkeypatch):
    records = [{"phase": "vae", "step": i, "falls": 10.0 ** (-i / 10)} for i in range(60)]
    records += [
        {"phase": "wgan", "step": i, "critic": i - 80.0, "flat": 5.0} for i in range(60, 90)
    ]
    records[70]["flat"] = float("nan")
    panels = axes_of(records[::-1], tmp_path, monkeypatch)
    assert list(panels) == ["falls", "critic", "flat (1 not finite)"]
    assert [a.get_yscale() for a in panels.values()] == ["log", "linear", "linear"]
    for axes in panels.values():
        assert [t.get_text().strip() for t in axes.texts] == ["vae", "wgan"]
        assert axes.get_xlim()[0] <= 0 and axes.get_xlim()[1] >= 89
    raw = panels["falls"].lines[0]
    np.testing.assert_allclose(raw.get_ydata(), 10.0 ** (-np.arange(60) / 10))
    assert panels["critic"].lines[0].get_xdata().tolist() == list(range(60, 90))


def test_loss_curves_survive_odd_logs(tmp_path):
    odd = [
        {"phase": "vae", "step": 0, "a$b_": float("inf"), "big": 1e308, "text": "x", "none": None},
        {"step": 1, "zero": 0.0, "big": -1e308, "list": [1, 2]},
        {"phase": None, "step": float("nan"), "zero": 1.0},
        {"phase": "no step", "zero": 3.0},
        {},
    ]
    for number, records in enumerate(([], odd, odd[:1], [{"phase": "p", "step": 3, "m": 1}])):
        path = tmp_path / str(number) / "loss.png"
        figures.loss_curves(path, records, title="$odd_ log")
        assert valid(path).min() < 128


def test_long_logs_are_drawn_in_seconds(tmp_path):
    records = [{"phase": "vae", "step": i, "a": 1.0 + i % 7, "b": -0.5} for i in range(200_000)]
    start = time.process_time()
    figures.loss_curves(tmp_path / "loss.png", records, title="long")
    assert time.process_time() - start < 8
    valid(tmp_path / "loss.png")


def test_neither_jax_nor_pyplot_is_imported(tmp_path):
    code = (
        "import json, sys, numpy as np; from skullgen import figures;"
        "before = 'matplotlib' in sys.modules;"
        "figures.pair_sheet(sys.argv[1], np.zeros((1, 16, 16, 16, 2), bool), title='t');"
        "print(json.dumps([before, 'jax' in sys.modules, 'matplotlib.pyplot' in sys.modules]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "t.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False, False]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
@pytest.mark.parametrize("side", [32, 128])
def test_a_real_skull_shows_its_hole_and_its_implant_fills_it(side):
    whole = np.asarray(nib.load(SHARED / "skulls" / "brainweb_46.nii.gz").dataobj) > 0
    block = len(whole) // side
    share = whole.reshape(side, block, side, block, side, block).mean((1, 3, 5))
    skull = share >= {32: 0.3, 128: 0.5}[side]
    inside = np.argwhere(skull)
    middle = (inside.min(0) + inside.max(0)) / 2
    away = np.array([0.8, 0.3, 0.52])
    along = (inside - middle) @ away
    beside = np.linalg.norm(inside - middle - along[:, None] * away, axis=1) < 0.02 * side + 0.5
    hole = skull & ball(middle + away * along[beside].max(), 28 / 204.8 * side, side)
    view = figures.view_of(skull & ~hole, hole)
    start = time.process_time()
    picture = figures.render(skull & ~hole, hole, azimuth=view[0], elevation=view[1])
    assert time.process_time() - start < 4  # 0.4 to 0.7 s here, and threads add up
    light = np.asarray(
        figures.render(skull & ~hole, nothing(side), azimuth=view[0], elevation=view[1])
    )
    implant = blue(picture)
    assert implant.sum() > 2500
    # Where the implant is seen there was shadow, or the white of a far opening, and no near bone.
    through = light[implant].mean(-1)
    lit = light[bone(picture) & ~implant].mean()
    assert ((through < 0.75 * lit) | (through > 250)).mean() > 0.8
