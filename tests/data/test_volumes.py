"""Files in and out: orientation, geometry, streaming, and every refusal that speaks to people."""

import errno
import gzip
import itertools
import pathlib
import subprocess
import sys

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skullgen.core.errors import UserError
from skullgen.data import volumes

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
SPACING = np.array([0.5, 0.75, 1.25])
TURNS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def _mask(shape=(6, 5, 4), seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask[1, 2, 3] = True
    return mask


def _affine():
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-20.5, 7.25, 3.0)
    return affine


def _turn(mask, affine, order, signs):
    """An independent way: voxel k of the turned array is looked up through world positions."""
    flips = tuple(slice(None, None, sign) for sign in signs)
    turned = mask.transpose(order)[flips]
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for k, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[axis, k] = sign
        matrix[axis, 3] = 0 if sign > 0 else mask.shape[axis] - 1
    return np.ascontiguousarray(turned), affine @ matrix


def _write_nrrd(path, data, affine, space="left-posterior-superior", **fields):
    signs = {"l": -1, "p": -1}
    flip = np.array([signs.get(word[0].lower(), 1) for word in space.split("-")])
    if len(space) == 3:
        flip = np.array([signs.get(letter.lower(), 1) for letter in space])
    header = {
        "space": space,
        "space directions": (flip[:, None] * affine[:3, :3]).T,
        "space origin": flip * affine[:3, 3],
        **fields,
    }
    nrrd.write(str(path), data, {k: v for k, v in header.items() if v is not None})
    return path


def _text_nrrd(path, *lines, data=b""):
    path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + data)
    return path


PLAIN = ("type: uint8", "dimension: 3", "sizes: 2 2 2", "encoding: raw")


def _nifti(path, data, affine, code=1, units="mm", slope=None, inter=None):
    image = nibabel.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, code)
    image.header.set_xyzt_units(units)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(TURNS), st.sampled_from(["nrrd", "nii.gz", "nii"]), st.integers(0, 99))
def test_every_orientation_brings_back_the_same_mask(tmp_path_factory, turn, suffix, seed):
    mask, affine = _mask((6, 6, 6), seed), _affine()
    data, turned = _turn(mask, affine, *turn)
    path = tmp_path_factory.mktemp("turn") / f"a.{suffix}"
    if suffix == "nrrd":
        _write_nrrd(path, data.astype(np.uint8), turned)
    else:
        _nifti(path, data.astype(np.uint8), turned)
    got = volumes.read(path)
    np.testing.assert_array_equal(got.data, mask)
    np.testing.assert_allclose(got.affine, affine, atol=1e-5)
    reduced = volumes.read_reduced(path, 6, keep_native=True)
    np.testing.assert_array_equal(reduced.counts, mask)
    np.testing.assert_allclose(reduced.native_affine, affine, atol=1e-5)
    assert reduced.shape == mask.shape
    _same_crop(reduced.crop, mask)


def _same_crop(crop, mask):
    whole = np.zeros(mask.shape, bool)
    whole[tuple(slice(o, o + n) for o, n in zip(crop.origin, crop.shape, strict=True))] = (
        volumes.unpack(crop)
    )
    np.testing.assert_array_equal(whole, mask)
    box = volumes.unpack(crop)
    assert all(box.any(axis=tuple({0, 1, 2} - {k})).all() or k for k in range(3))
    assert box[0].any() and box[-1].any() and box[:, :, 0].any() and box[:, :, -1].any()


@pytest.mark.parametrize("turn", TURNS[::5])
@pytest.mark.parametrize("factor", [2, 3, 8])
def test_block_counts_equal_a_plain_sum_in_every_order(tmp_path, turn, factor):
    mask = _mask((3 * factor,) * 3)
    mask[:factor] = True
    mask[:, :, -factor:] = mask[:, :factor] = False
    data, turned = _turn(mask, _affine(), *turn)
    path = _write_nrrd(tmp_path / "a.nrrd", data.astype(np.uint8), turned)
    got = volumes.read_reduced(path, 3, keep_native=True)
    assert got.factor == factor
    expected = mask.reshape(3, factor, 3, factor, 3, factor).sum((1, 3, 5))
    np.testing.assert_array_equal(got.counts, expected)
    assert got.counts.dtype == (np.uint8 if factor < 7 else np.uint16)
    first = got.affine @ [0, 0, 0, 1]
    block = np.indices((factor,) * 3).reshape(3, -1)
    centre = (_affine() @ [*block.mean(axis=1), 1])[:3]
    np.testing.assert_allclose(first[:3], centre, atol=1e-6)
    np.testing.assert_allclose(got.affine[:3, :3], factor * np.diag(SPACING), atol=1e-6)
    _same_crop(got.crop, mask)


def test_full_blocks_of_the_largest_factor_do_not_overflow(tmp_path):
    path = tmp_path / "a.nrrd"
    volumes.write(path, np.ones((80, 80, 80), bool), np.eye(4))
    np.testing.assert_array_equal(volumes.read_reduced(path, 2).counts, 64000)


@pytest.mark.parametrize(
    "dtype",
    ["u1", "i1", *(end + kind for end in "<>" for kind in "u2 i2 u4 i4 u8 i8 f4 f8".split())],
)
def test_every_dtype_and_endianness_is_read(tmp_path, dtype):
    mask = _mask((6, 6, 6))
    data = (mask * 3).astype(dtype)
    for path in (
        _write_nrrd(tmp_path / "a.nrrd", data, _affine()),
        _nifti(tmp_path / "a.nii.gz", data, _affine()),
    ):
        np.testing.assert_array_equal(volumes.read(path).data, mask)
        np.testing.assert_array_equal(volumes.read_reduced(path, 6).counts, mask)


@pytest.mark.parametrize("values", [(0, 255), (0, 2), (0, 0.5), (0, 0.1, 0.5, 1)])
def test_one_value_and_soft_ones_are_bone(tmp_path, values):
    data = np.random.default_rng(0).choice(values, (6, 6, 6)).astype(np.float32)
    path = _nifti(tmp_path / "a.nii", data, _affine())
    np.testing.assert_array_equal(volumes.read(path).data, data != 0)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_of_several_labels_one_is_chosen(tmp_path, dtype, monkeypatch):
    """Slice by slice, so that no piece of the file holds more than one label."""
    monkeypatch.setattr(volumes, "SLAB_BYTES", 36 * np.dtype(dtype).itemsize)
    data = np.zeros((6, 6, 6), dtype)
    data[1:5, 1:5, [1, 2, 4]] = (1, 2, 3)
    path = _nifti(tmp_path / "a.nii.gz", data, _affine())
    words = r"no mask of one label, it holds 1, 2, 3: set label \(data\.label, predict\.label\) to"
    _refused(path, words)
    with pytest.raises(UserError, match=words):
        volumes.read_reduced(path, 6)
    for label in (1, 2, 3):
        np.testing.assert_array_equal(volumes.read(path, label=label).data, data == label)
    _refused(path, "has no voxel of label 7, only 1, 2, 3: set label", label=7)
    _refused(path, r"bone_hu is for a CT, label \(2\) for a segmentation", label=2, bone_hu=300)
    mask = _nifti(tmp_path / "mask.nii.gz", (data == 2).astype("u1") * 255, _affine())
    _refused(mask, "has no voxel of label 2, only 255", label=2)
    np.testing.assert_array_equal(volumes.read(mask, label=255).data, data == 2)


def test_a_label_of_more_than_a_mask_holds(tmp_path):
    data = np.arange(216, dtype="u2").reshape(6, 6, 6)
    path = _nifti(tmp_path / "a.nii.gz", data, _affine())
    _refused(path, "is a scan, not a mask .*if of labels, set label")
    np.testing.assert_array_equal(volumes.read(path, label=91).data, data == 91)
    _refused(path, r"no voxel of label 300, only 1, 2, .*, 8, \.\.\.", label=300)
    scan = _nifti(tmp_path / "scan.nii.gz", data.astype("i2") - 9, _affine())
    _refused(scan, "is a scan, not a mask", label=91)
    blurred = _nifti(tmp_path / "blurred.nii.gz", data.astype("f4") / 2, _affine())
    _refused(blurred, "holds values between its labels: resample it by the nearest", label=91)
    share = _nifti(tmp_path / "share.nii.gz", data.astype("f4") / 215, _affine())
    _refused(share, r"is a scan, not a mask \(negative or many values; threshold it\)")


@pytest.mark.parametrize("sizes", [(1,), (7, 100, 13), (119, 1)])
def test_several_gzip_members_are_one_stream(tmp_path, sizes):
    """RFC 1952: as pigz, bgzip and `cat` make them."""
    mask, places = _mask(), np.cumsum([0, *sizes])
    volumes.write(tmp_path / "a.nii", mask, _affine())
    whole = (tmp_path / "a.nii").read_bytes()
    voxels, ends = whole[352:], [*places[1:], 120]
    members = [voxels[i:j] for i, j in zip(places, ends, strict=True)]
    lines = ("type: uint8", "dimension: 3", "sizes: 6 5 4", "encoding: gzip", "spacings: 1 1 1")
    data = b"".join(map(gzip.compress, members))
    (tmp_path / "a.nii.gz").write_bytes(
        gzip.compress(whole[:99]) + gzip.compress(whole[99:352]) + data
    )
    paths = [_text_nrrd(tmp_path / "a.nrrd", *lines, data=data), tmp_path / "a.nii.gz"]
    for path in paths:
        np.testing.assert_array_equal(volumes.read(path).data, mask)
        path.write_bytes(path.read_bytes()[:-3])
        _refused(path, "cut short")


def test_more_voxels_than_the_bound_are_read_where_it_is_raised(tmp_path):
    path = tmp_path / "a.nrrd"
    volumes.write(path, _mask((6, 6, 6)), _affine())
    for read in (volumes.read, lambda path, **bound: volumes.read_reduced(path, 6, **bound)):
        assert read(path, max_voxels=216)
        with pytest.raises(UserError, match=r"216 voxels are more than data.max_voxels \(215\)"):
            read(path, max_voxels=215)


def test_slices_larger_than_a_piece_are_read_in_pieces(tmp_path, monkeypatch):
    mask = _mask((6, 6, 6))
    data = (mask * 3).astype(">i4")
    path = _nifti(tmp_path / "a.nii.gz", data, _affine())
    monkeypatch.setattr(volumes, "SLAB_BYTES", 4 * 5)
    np.testing.assert_array_equal(volumes.read(path).data, mask)
    np.testing.assert_array_equal(volumes.read_reduced(path, 2).counts, _blocks(mask, 3))


def _blocks(mask, factor):
    sides = [size for side in mask.shape for size in (side // factor, factor)]
    return mask.reshape(sides).sum((1, 3, 5))


def test_links_to_files_are_followed_but_not_out_of_a_headers_folder(tmp_path):
    mask, inner = _mask(), tmp_path / "inner"
    inner.mkdir()
    _write_nrrd(tmp_path / "b.nrrd", mask.astype("u1"), _affine())
    (inner / "a.nrrd").symlink_to("../b.nrrd")
    np.testing.assert_array_equal(volumes.read(inner / "a.nrrd").data, mask)
    _write_nrrd(inner / "c.nhdr", mask.astype("u1"), _affine(), encoding="raw")
    (inner / "c.raw").rename(inner / "d.raw")
    (inner / "c.raw").symlink_to("d.raw")
    np.testing.assert_array_equal(volumes.read(inner / "c.nhdr").data, mask)
    (inner / "d.raw").rename(tmp_path / "d.raw")
    (inner / "c.raw").unlink()
    (inner / "c.raw").symlink_to("../d.raw")
    _refused(inner / "c.nhdr", "outside of the header's folder")


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr"])
def test_every_encoding_and_a_detached_header_is_read(tmp_path, encoding, suffix):
    mask = _mask()
    path = tmp_path / f"a.{suffix}"
    _write_nrrd(path, mask.astype(np.int16), _affine(), encoding=encoding)
    got = volumes.read(path)
    np.testing.assert_array_equal(got.data, mask)
    np.testing.assert_allclose(got.affine, _affine())


@pytest.mark.parametrize("space", ["LPS", "RAS", "las", "left-anterior-superior"])
def test_spaces_are_honoured_by_long_and_short_name(tmp_path, space):
    mask = _mask()
    path = _write_nrrd(tmp_path / "a.nrrd", mask.astype(np.uint8), _affine(), space=space)
    got = volumes.read(path)
    np.testing.assert_array_equal(got.data, mask)
    np.testing.assert_allclose(got.affine, _affine())


def test_byte_skip_finds_the_voxels(tmp_path):
    bits = bytes([1, 0, 0, 0, 0, 0, 0, 1])
    (tmp_path / "a.raw").write_bytes(b"xyz" + bits)
    lines = (*PLAIN, "spacings: 1 1 1", "data file: a.raw")
    expected = np.frombuffer(bits, bool).reshape((2, 2, 2), order="F")
    for skip in (3, -1):
        path = _text_nrrd(tmp_path / "a.nhdr", *lines, f"byte skip: {skip}")
        np.testing.assert_array_equal(volumes.read(path).data, expected)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("unsigned int", 4),
        ("signed char", 1),
        ("unsigned char", 1),
        ("signed short int", 2),
        ("unsigned short int", 2),
        ("int", 4),
        ("signed long long int", 8),
        ("unsigned long long int", 8),
        ("uint64_t", 8),
    ],
)
def test_long_names_of_types_are_known(tmp_path, name, size):
    lines = (f"type: {name}", *PLAIN[1:], "endian: little", "spacings: 1 1 1")
    data = b"".join(int(k == 3).to_bytes(size, "little") for k in range(8))
    path = _text_nrrd(tmp_path / "a.nrrd", *lines, data=data)
    assert np.argwhere(volumes.read(path).data).tolist() == [[1, 1, 0]]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 350), st.integers(0, 255), st.sampled_from(["nrrd", "nii"]))
def test_a_damaged_header_is_read_or_refused_never_a_crash(tmp_path_factory, place, byte, suffix):
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    if suffix == "nrrd":
        _write_nrrd(path, _mask().astype(np.uint8), _affine(), encoding="raw")
    else:
        volumes.write(path, _mask(), _affine())
    data = bytearray(path.read_bytes())
    data[place] = byte
    path.write_bytes(data)
    try:
        assert volumes.read(path).data.dtype == bool
    except UserError as error:
        assert "\n" not in str(error)


def test_spacings_alone_are_ras(tmp_path):
    path = _text_nrrd(tmp_path / "a.nrrd", *PLAIN, "spacings: 1 2 3", data=b"\1" + bytes(7))
    got = volumes.read(path)
    assert got.data[0, 0, 0] and got.data.sum() == 1
    np.testing.assert_array_equal(got.affine, np.diag([1.0, 2, 3, 1]))


def test_axes_of_length_one_are_dropped(tmp_path):
    mask = _mask()
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8)[..., None, None], _affine()), path)
    np.testing.assert_array_equal(volumes.read(path).data, mask)
    lines = ("type: uint8", "dimension: 4", "sizes: 1 2 2 2", "encoding: raw", "space: RAS")
    lines = (*lines, "space directions: none (1,0,0) (0,1,0) (0,0,2)")
    path = _text_nrrd(tmp_path / "a.nrrd", *lines, data=b"\0\1" + bytes(6))
    assert volumes.read(path).data[1, 0, 0]


def test_units_come_to_millimetres(tmp_path):
    mask, affine = _mask(), _affine()
    metres, microns = affine.copy(), affine.copy()
    metres[:3] /= 1000
    microns[:3] *= 1000
    paths = [
        _nifti(tmp_path / "m.nii.gz", mask.astype(np.uint8), metres, units="meter"),
        _nifti(tmp_path / "u.nii.gz", mask.astype(np.uint8), microns, units="micron"),
        _nifti(tmp_path / "x.nii.gz", mask.astype(np.uint8), affine, units="unknown"),
        _write_nrrd(
            tmp_path / "m.nrrd", mask.astype(np.uint8), affine, **{"space units": ["mm"] * 3}
        ),
    ]
    for path in paths:
        np.testing.assert_allclose(volumes.read(path).affine, affine, rtol=1e-5)


def test_nifti_scaling_comes_before_the_threshold(tmp_path):
    data = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    path = _nifti(tmp_path / "ct.nii.gz", data, _affine(), slope=10.0, inter=-1000.0)
    got = volumes.read(path, bone_hu=100)
    np.testing.assert_array_equal(got.data, data * 10 - 1000 >= 100)


def test_a_rotated_grid_is_turned_not_resampled(tmp_path):
    angle = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    mask, affine = _mask(), rotation @ _affine()
    data, turned = _turn(mask, affine, (2, 0, 1), (-1, 1, -1))
    got = volumes.read(_nifti(tmp_path / "a.nii.gz", data.astype(np.uint8), turned))
    np.testing.assert_array_equal(got.data, mask)
    np.testing.assert_allclose(got.affine, affine, atol=1e-5)


@pytest.mark.parametrize("suffix", ["nrrd", "nii", "nii.gz"])
def test_write_then_read_and_equal_bytes(tmp_path, suffix):
    mask = _mask((9, 8, 7))
    affine = _turn(mask, _affine(), (1, 2, 0), (1, -1, -1))[1]
    data = _turn(mask, _affine(), (1, 2, 0), (1, -1, -1))[0]
    paths = [tmp_path / "new" / "folder" / f"{name}.{suffix}" for name in ("a", "b")]
    for path in paths:
        volumes.write(path, data, affine)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [p.name for p in paths]
    got = volumes.read(paths[0])
    np.testing.assert_array_equal(got.data, mask)
    np.testing.assert_allclose(got.affine, _affine(), atol=1e-5)
    if suffix == "nrrd":
        values, header = nrrd.read(str(paths[0]))
        np.testing.assert_array_equal(values, data)
        np.testing.assert_array_equal(header["space directions"].T, affine[:3, :3])
    else:
        image = nibabel.load(paths[0])
        np.testing.assert_array_equal(np.asarray(image.dataobj), data)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.3))
def test_pack_and_unpack_are_inverse(seed, share):
    mask = np.random.default_rng(seed).random((5, 6, 7)) < share
    crop = volumes.pack(mask)
    whole = np.zeros(mask.shape, bool)
    whole[tuple(slice(o, o + n) for o, n in zip(crop.origin, crop.shape, strict=True))] = (
        volumes.unpack(crop)
    )
    np.testing.assert_array_equal(whole, mask)
    assert crop.bits.dtype == np.uint8 and crop.bits.ndim == 1


def test_packing_in_parts_is_packing_at_once():
    mask = np.random.default_rng(0).random((200, 3, 5)) < 0.5
    mask[0], mask[-1], mask[:, 0], mask[:, -1], mask[..., 0], mask[..., -1] = (True,) * 6
    for view in (mask, np.asfortranarray(mask)[::-1]):
        np.testing.assert_array_equal(volumes.pack(view).bits, np.packbits(view))
    assert volumes.pack(mask[:0]).bits.shape == (0,)


def _refused(path, match, **arguments):
    with pytest.raises(UserError, match=match) as error:
        volumes.read(path, **arguments)
    assert "\n" not in str(error.value) and path.name in str(error.value)


def test_scans_and_masks_are_not_confused(tmp_path):
    noise = np.random.default_rng(0).normal(0, 300, (6, 6, 6))
    ct = _nifti(tmp_path / "ct.nii.gz", noise.astype(np.int16), _affine())
    soft = _write_nrrd(tmp_path / "soft.nrrd", np.abs(noise).astype(np.float32), _affine())
    mask = _nifti(tmp_path / "mask.nii.gz", _mask().astype(np.uint8) * 255, _affine())
    _refused(ct, "bone_hu")
    _refused(soft, "bone_hu")
    _refused(mask, "bone_hu", bone_hu=300)
    _refused(ct, "no bone", bone_hu=1e5)
    _refused(ct, "not a number", bone_hu=float("nan"))
    with pytest.raises(UserError, match="bone_hu"):
        volumes.read_reduced(ct, 6)
    np.testing.assert_array_equal(volumes.read(ct, bone_hu=100).data, noise.astype(np.int16) >= 100)


def test_bad_voxels_are_refused(tmp_path):
    data = _mask().astype(np.float32)
    data[0, 0, 0] = np.nan
    _refused(_nifti(tmp_path / "nan.nii.gz", data, _affine()), "NaN")
    _refused(_nifti(tmp_path / "empty.nii.gz", data[:1] * 0, _affine()), "NaN|no bone")
    _refused(_write_nrrd(tmp_path / "e.nrrd", np.zeros((2, 2, 2), "u1"), _affine()), "no bone")
    four = nibabel.Nifti1Image(np.ones((3, 3, 3, 2), np.uint8), _affine())
    nibabel.save(four, tmp_path / "four.nii.gz")
    _refused(tmp_path / "four.nii.gz", "3-D")
    colour = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, _affine()), tmp_path / "rgb.nii")
    _refused(tmp_path / "rgb.nii", "datatype")


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_absurd_voxels_are_refused(tmp_path, scale):
    affine = _affine()
    affine[:3] *= scale
    data = _mask().astype(np.uint8)
    _refused(_nifti(tmp_path / "a.nii.gz", data, affine), "metres")
    _refused(_write_nrrd(tmp_path / "a.nrrd", data, affine), "space directions.*metres")


def test_sheared_and_singular_grids_are_refused(tmp_path):
    data = _mask().astype(np.uint8)
    sheared = _affine()
    sheared[0, 1] = 0.1
    flat = _affine()
    flat[:, 2] = flat[:, 1]
    for name, affine in (("sheared", sheared), ("flat", flat)):
        _refused(_write_nrrd(tmp_path / f"{name}.nrrd", data, affine), "sheared or singular")
        with pytest.raises(UserError, match="sheared or singular"):
            volumes.write(tmp_path / "b.nrrd", data, affine)
    _refused(_nifti(tmp_path / "s.nii.gz", data, sheared), "sheared or singular")
    unset = nibabel.Nifti1Image(data, None)
    unset.header["pixdim"][1:4] = 0
    nibabel.save(unset, tmp_path / "zero.nii")
    raw = bytearray((tmp_path / "zero.nii").read_bytes())
    raw[80:92] = bytes(12)
    (tmp_path / "zero.nii").write_bytes(raw)
    _refused(tmp_path / "zero.nii", "0 x 0 x 0 mm")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (PLAIN, "spacings"),
        ((*PLAIN, "spacings: 1 -1 1"), "spacings: not positive"),
        ((*PLAIN, "spacings: 1 nan 1"), "spacings"),
        ((*PLAIN, "spacings: 1 1"), "spacings"),
        ((*PLAIN, "spacings: 1 1 x"), "header"),
        (PLAIN[1:], "type"),
        (("type: block", *PLAIN[1:], "spacings: 1 1 1"), "block"),
        (("type: uint16", *PLAIN[1:], "spacings: 1 1 1"), "endian"),
        ((*PLAIN[:3], "encoding: hex", "spacings: 1 1 1"), "hex"),
        ((*PLAIN[:3], "encoding: bzip2", "spacings: 1 1 1"), "bzip2"),
        ((*PLAIN, "spacings: 1 1 1", "line skip: 1"), "line skip"),
        ((*PLAIN[:3], "encoding: ascii", "spacings: 1 1 1"), "ascii"),
        ((*PLAIN[:2], "sizes: 2 2", *PLAIN[3:], "spacings: 1 1 1"), "sizes"),
        ((*PLAIN[:2], "sizes: 4096 4096 4096", PLAIN[3], "spacings: 1 1 1"), "4096"),
        ((*PLAIN[:2], "sizes: 0 2 2", PLAIN[3], "spacings: 1 1 1"), "sizes"),
        ((*PLAIN, "spacings: 1 1 1"), "cut short"),
        ((*PLAIN, "spacings: 1 1 1", 'units: "parsec" "mm" "mm"'), "parsec"),
        ((*PLAIN, "space: scanner-xyz", "space directions: (1,0,0) (0,1,0) (0,0,1)"), "space"),
        ((*PLAIN, "space: RAS", "space directions: (1,0,0) (0,1,0) none"), "3-D"),
        ((*PLAIN, "space: RAS", "space directions: (1,0,0) (0,1,0)"), "space directions"),
        ((*PLAIN, "spacings: 1 1 1", "data file: ../a.raw"), "outside"),
        ((*PLAIN, "spacings: 1 1 1", "data file: /etc/hostname"), "outside"),
        ((*PLAIN, "spacings: 1 1 1", "data file: x/../../a.raw"), "outside"),
        ((*PLAIN, "spacings: 1 1 1", "data file: missing.raw"), "missing"),
        ((*PLAIN, "spacings: 1 1 1", "data file: a%02d.raw 1 2 1"), "several"),
        (("no colon",), "header"),
    ],
)
def test_nrrd_headers_are_refused_by_field(tmp_path, lines, match):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "a.raw").write_bytes(b"\1" * 8)
    _refused(_text_nrrd(folder / "a.nrrd", *lines), match)


def test_a_detached_header_names_its_data(tmp_path):
    _refused(_text_nrrd(tmp_path / "a.nhdr", *PLAIN, "spacings: 1 1 1"), "data file")


def test_missing_foreign_and_broken_files_are_refused(tmp_path):
    mask = _mask((20, 20, 20))
    _refused(tmp_path / "none.nrrd", "no such file")
    (tmp_path / "folder.nrrd").mkdir()
    _refused(tmp_path / "folder.nrrd", "no such file")
    (tmp_path / "a.stl").write_bytes(b"solid")
    _refused(tmp_path / "a.stl", "unknown kind")
    with pytest.raises(UserError, match="only read"):
        volumes.write(tmp_path / "a.nhdr", mask, np.eye(4))
    with pytest.raises(UserError, match="unknown kind"):
        volumes.write(tmp_path / "a.mha", mask, np.eye(4))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        volumes.write(tmp_path / "file" / "a.nrrd", mask, np.eye(4))
    for suffix in ("nrrd", "nii", "nii.gz"):
        good = tmp_path / f"good.{suffix}"
        volumes.write(good, mask, np.eye(4))
        whole = good.read_bytes()
        for length in (0, 3, 30, len(whole) // 2, len(whole) - 1):
            path = tmp_path / f"cut{length}.{suffix}"
            path.write_bytes(whole[:length])
            _refused(path, "cut short|header")
            with pytest.raises(UserError):
                volumes.read_reduced(path, 10)
    for suffix in ("nrrd", "nii.gz"):
        whole = bytearray((tmp_path / f"good.{suffix}").read_bytes())
        whole[-len(whole) // 4] ^= 0x55
        path = tmp_path / f"flipped.{suffix}"
        path.write_bytes(whole)
        _refused(path, "corrupt")
        path.write_bytes(b"\x93NUMPY" * 100)
        _refused(path, "corrupt|header")
    (tmp_path / "long.nrrd").write_bytes((tmp_path / "good.nrrd").read_bytes())
    payload = gzip.compress(bytes([1] * 9))
    lines = (*PLAIN[:3], "encoding: gzip", "spacings: 1 1 1")
    _refused(_text_nrrd(tmp_path / "long.nrrd", *lines, data=payload), "more bytes")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nrrd"
    volumes.write(path, _mask(), _affine())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volumes.os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        volumes.write(path, ~_mask(), _affine())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_every_side_must_be_the_size_times_one_factor(tmp_path):
    for shape, sizes in {(8, 8, 8): (3, 16, 0, -8), (8, 8, 4): (4, 8), (82,) * 3: (2,)}.items():
        path = tmp_path / f"{shape[2]}.nrrd"
        volumes.write(path, np.ones(shape, bool), np.eye(4))
        for size in sizes:
            with pytest.raises(UserError, match="choose another size"):
                volumes.read_reduced(path, size)


def test_imports_stay_light():
    code = (
        "import sys, skullgen.data.volumes; print([m for m in ('jax', 'nibabel', 'nrrd', 'scipy') "
    )
    code += "if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def _centre_and_ml(mask, affine):
    centre = np.array([where.mean() for where in np.nonzero(mask)])
    return affine[:3, :3] @ centre + affine[:3, 3], mask.sum() * abs(
        np.linalg.det(affine[:3, :3])
    ) / 1000


@real
@pytest.mark.parametrize(
    "name",
    [
        "skulls/brainweb_04.nii.gz",
        "native/brainweb_45_half_mm.nii.gz",
        "ct/visible_human_male.nii.gz",
        "ct/cranium_real_defect_hu.nii.gz",
        "skullbreak/parietotemporal_001_defective_512.nii.gz",
    ],
)
def test_real_files_lie_where_nibabel_puts_them(name):
    bone_hu = 300 if "defect_hu" in name else None
    got = volumes.read(SHARED / name, bone_hu=bone_hu)
    image = nibabel.load(SHARED / name)
    values = np.asanyarray(image.dataobj)
    mask = values >= bone_hu if bone_hu else values != 0
    centre, ml = _centre_and_ml(got.data, got.affine)
    expected, expected_ml = _centre_and_ml(mask, image.affine)
    np.testing.assert_allclose(centre, expected, atol=1e-4)
    assert ml == pytest.approx(expected_ml, rel=1e-6)
    assert nibabel.aff2axcodes(got.affine) == ("R", "A", "S")


@real
def test_a_real_skull_as_nrrd_lies_where_pynrrd_puts_it(tmp_path):
    got = volumes.read(SHARED / "skulls" / "brainweb_41.nii.gz")
    volumes.write(tmp_path / "a.nrrd", got.data, got.affine)
    data, header = nrrd.read(str(tmp_path / "a.nrrd"))
    affine = np.eye(4)
    affine[:3] = np.column_stack([header["space directions"].T, header["space origin"]])
    centre, ml = _centre_and_ml(got.data, got.affine)
    expected, expected_ml = _centre_and_ml(data != 0, affine)
    np.testing.assert_allclose(centre, expected, atol=1e-6)
    assert ml == pytest.approx(expected_ml)


@real
def test_streaming_equals_the_area_mean_of_a_real_skull(tmp_path):
    source = SHARED / "skulls" / "brainweb_05.nii.gz"
    mask = np.asanyarray(nibabel.load(source).dataobj) != 0
    mean = mask.reshape(64, 4, 64, 4, 64, 4).mean((1, 3, 5), dtype=np.float32)
    got = volumes.read_reduced(source, 64, keep_native=True)
    np.testing.assert_array_equal(got.counts / np.float32(64), mean)
    _same_crop(got.crop, mask)


@pytest.mark.slow
def test_streaming_512_needs_no_more_memory_than_a_few_slices(tmp_path):
    path = tmp_path / "a.nrrd"
    mask = np.zeros((512, 512, 512), bool)
    mask[100:400, 100:400, 200:210] = True
    volumes.write(path, mask, np.diag([0.4, 0.4, 0.4, 1]))
    code = (
        "import resource, sys, nrrd, isal.igzip, skullgen.data.volumes as volume\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); volumes.read_reduced(sys.argv[1], 128, keep_native=True)\n"
        "print((peak() - before) // 1024)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 60  # MiB; the volume itself is 128


def test_an_error_of_the_machine_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    """Else a file that is whole would be left out of a store, for good."""
    path = tmp_path / "a.nrrd"
    volumes.write(path, _mask(), _affine())

    def broken(stream, source, count):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(volumes, "_values", broken)
    with pytest.raises(OSError, match="Input/output error") as told:
        volumes.read(path)
    assert told.value.filename == str(path)
