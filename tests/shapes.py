"""Shapes that the tests of pictures draw, and the colours that they look for."""

import numpy as np


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


PAIR = np.stack(holed_shell((0.6, 0.5, 0.62), 16), -1)
ODD = {
    "empty": np.zeros_like(PAIR),
    "full": np.ones_like(PAIR),
    "no defect": PAIR & [True, False],
    "no skull": PAIR & [False, True],
    "a voxel": np.stack([nothing(16), ball((0, 15, 0), 1, 16)], -1),
}
