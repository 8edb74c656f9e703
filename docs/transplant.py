"""Draws docs/transplant.png: one defect of one phantom on six others. python docs/transplant.py"""

from pathlib import Path

import numpy as np

from skullgen.data import defects, grids, phantom, transplant
from skullgen.report import figures

SIZE, AFFINE = 32, phantom.affine(128)


def _draw():
    skulls = [phantom.skull(seed, 128) for seed in range(7)]
    frames = [grids.frame(skull, AFFINE, SIZE) for skull in skulls]
    _, piece = defects.cut(skulls[0], "frontoorbital", 0, voxel_mm=1.6)
    donor = transplant.donor(np.argwhere(piece), AFFINE, frames[0], SIZE)
    pairs = []
    for skull, frame in zip(skulls[1:], frames[1:], strict=True):
        vault = transplant.vault(skull, AFFINE, frame)
        piece = transplant.transplant(vault, donor, seed=1)
        pairs.append(np.stack([skull & ~piece, piece], -1))
    path = Path(__file__).with_name("transplant.png")
    figures.pair_sheet(path, np.stack(pairs), "One defect on six skulls")


_draw()
