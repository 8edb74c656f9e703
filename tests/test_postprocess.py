"""Equation 6 on all four pairs of bits; dust by hand and against scipy."""

import hypothesis
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from skullgen import postprocess


def test_equation_6_on_all_pairs_of_bits():
    skull, defect = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], bool)
    expected = np.array([0, 1, 0, 0], bool)
    np.testing.assert_array_equal(postprocess.separate(skull, defect), expected)


@hypothesis.given(hnp.arrays(bool, (3, 4, 2)))
def test_equation_6_is_defect_without_skull(pair):
    clean = postprocess.separate(pair[..., 0], pair[..., 1])
    np.testing.assert_array_equal(clean, pair[..., 1] & ~pair[..., 0])


def test_dust_goes_and_the_rest_stays():
    mask = np.zeros((9, 9, 9), bool)
    mask[1:4, 1:4, 1:4] = True  # 27 voxels
    mask[4, 4, 4] = True  # touches it by a corner only
    mask[7, 7, 6:8] = True  # 2 voxels
    six = postprocess.remove_dust(mask, 3, 6)
    assert six.sum() == 27 and not six[4, 4, 4]
    assert postprocess.remove_dust(mask, 3, 26).sum() == 28
    assert postprocess.remove_dust(mask, 2, 6).sum() == 29
    assert postprocess.remove_dust(mask, 1, 6).sum() == 30
    assert postprocess.remove_dust(mask, 30, 26).sum() == 0
    assert not postprocess.remove_dust(np.zeros((3, 3, 3), bool), 2).any()


@pytest.mark.parametrize("connectivity", [6, 26])
@hypothesis.given(hnp.arrays(bool, (5, 4, 6), elements=hypothesis.strategies.booleans()))
def test_dust_equals_scipys_labels(connectivity, mask):
    structure = ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    labels, count = ndimage.label(mask, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= 4
    keep[0] = False
    np.testing.assert_array_equal(postprocess.remove_dust(mask, 4, connectivity), keep[labels])
