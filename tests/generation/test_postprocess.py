"""Equation 6 on all four pairs of bits; dust by hand and against scipy; whole shards."""

import hypothesis
import numpy as np
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from skullgen.data import measures, store
from skullgen.generation import postprocess


def test_equation_6_on_all_pairs_of_bits():
    skull, defect = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], bool)
    expected = np.array([0, 1, 0, 0], bool)
    np.testing.assert_array_equal(postprocess.separate(skull, defect), expected)


def test_dust_goes_and_the_rest_stays():
    mask = np.zeros((9, 9, 9), bool)
    mask[1:4, 1:4, 1:4] = True  # 27 voxels
    mask[4, 4, 4] = True  # touches it by a corner only
    mask[7, 7, 6:8] = True  # 2 voxels
    six = postprocess.remove_dust(mask, 3)
    assert six.sum() == 27 and not six[4, 4, 4]
    assert postprocess.remove_dust(mask, 2).sum() == 29
    assert postprocess.remove_dust(mask, 1).sum() == 30
    assert postprocess.remove_dust(mask, 30).sum() == 0
    assert not postprocess.remove_dust(np.zeros((3, 3, 3), bool), 2).any()


def _scipys(mask, voxels):
    labels, count = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= voxels
    keep[0] = False
    return keep[labels]


@hypothesis.given(
    hnp.arrays(np.uint16, (5, 4, 6), elements=hypothesis.strategies.sampled_from([0, 1, 256]))
)
def test_each_value_of_an_image_has_components_of_its_own(image):
    expected = sum(value * _scipys(image == value, 3) for value in (1, 256))
    got = postprocess.remove_dust(image, 3)
    np.testing.assert_array_equal(got, expected)


def test_a_shard_is_cleaned_channel_by_channel_and_what_went_is_counted(tmp_path):
    size, share = 8, np.array([0.3, 0.02, 0, 1])[:, None, None, None, None]
    pairs = np.random.default_rng(0).random((4, size, size, size, 2)) < share
    pairs[..., 1] &= ~pairs[..., 0]
    pairs[3, :, :, 4:] = [False, True]  # half skull, half defect: they touch
    opened = store.create(tmp_path / "s.zarr", store.Shape(4, size, 4), {"voxel_mm": 2}, {})
    overlap, rules = np.arange(4), postprocess.Rules("independent", 0.5, 5)
    source = postprocess.Source(opened, rules, None, {})
    parts = store.pack(pairs), overlap, np.zeros((4, 0), np.float32)
    assert postprocess.finish(source, 0, range(7, 11), *parts) == 4
    expected = np.stack([[_scipys(x, 5) for x in np.moveaxis(pair, -1, 0)] for pair in pairs])
    expected = np.moveaxis(expected, 1, -1)
    assert expected[0].any((0, 1, 2)).all() and expected[3].all(-1).sum() == 0
    np.testing.assert_array_equal(store.unpack(opened.load(np.arange(4)), size), expected)
    gone = (pairs & ~expected).sum((1, 2, 3))
    np.testing.assert_array_equal(opened.column("voxels"), expected.sum((1, 2, 3)))
    np.testing.assert_array_equal(opened.column("removed"), np.column_stack([overlap, gone]))
    assert opened.column("sample").tolist() == [7, 8, 9, 10]
    values = np.stack([measures.measure(pair, 2.0) for pair in expected])
    np.testing.assert_array_equal(opened.column("measures"), values)
    assert gone[0].all() and not gone[2:].any()
    affine = [[2, 0, 0, -7], [0, 2, 0, -7], [0, 0, 2, -7], [0, 0, 0, 1]]
    np.testing.assert_array_equal(opened.column("affine")[0], affine)
