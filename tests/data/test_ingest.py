"""Sources become stores: exact pairs, resuming, cases left out, fresh defects."""

import shutil

import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import controls, defects, grids, ingest, phantom, sources, store, volumes
from skullgen.evaluation import metrics
from tests.data.test_sources import config_of, write_skullbreak
from tests.data.test_store import content, truth_of

ONE = ingest.Options(workers=1)


@pytest.fixture(scope="module")
def skullbreak(tmp_path_factory):
    return write_skullbreak(tmp_path_factory.mktemp("skullbreak"))


@pytest.fixture(scope="module")
def skulls(tmp_path_factory):
    """Phantoms as files of several formats, spacings and sizes."""
    root = tmp_path_factory.mktemp("skulls")
    for number, name in enumerate(("a.nrrd", "b.nii.gz", "c.nii.gz", "d.nrrd")):
        affine = phantom.affine(64)
        affine[:3, 3] += affine[:3, 1] * 2
        volumes.write(root / name, phantom.skull(number, 64)[:, 2 : 64 - number, :], affine)
    return root


def _draw(skull, size):
    """Five pairs of noise, with native truths."""
    pairs = np.random.default_rng(skull).random((5, size, size, size, 2)) < 0.3
    truth = truth_of(skull)[1]
    return [sources.Pair(bits, np.eye(4), truth) for bits in store.pack(pairs)]


def _plan(size, config):
    names = [f"noise_{number}" for number in range(config.skulls)]
    cases = [sources.Case(_draw, (n, size), tuple(range(5)), n) for n in range(config.skulls)]
    return sources.Plan(cases, names, sources.assign(names, config), {}, [])


@pytest.fixture
def noise(monkeypatch):
    """A source of its own that takes no time."""
    monkeypatch.setitem(sources.PLANS, "noise", _plan)
    return lambda **fields: config_of(source="noise", **fields)


def run(path, config, options=ONE, size=16):
    ingest.run(path, size, config, options)
    return store.Store(path)


def test_skullbreaks_pairs_are_their_files_block_means(skullbreak, tmp_path):
    config = config_of(source="skullbreak", root=str(skullbreak), threshold=0.5)
    real = run(tmp_path / "real.zarr", config)
    assert real.column("split").tolist() == [0] * 10 + [2] * 5
    assert real.column("kind").tolist() == list(range(5)) * 3
    assert real.column("skull").tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert real.attrs["names"] == ["train_000", "train_001", "test_000"]
    assert real.attrs["voxel_mm"] == pytest.approx(12.8)
    assert len(real.recipe["sources"]) == 30
    pair = store.unpack(real.load([7]), 16)[0]
    for channel, folder in enumerate(("defective_skull", "implant")):
        file = volumes.read(skullbreak / "train" / folder / defects.KINDS[2] / "001.nrrd")
        mask, affine = volumes.in_ras(file)
        expected = mask.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5)) >= 0.5
        np.testing.assert_array_equal(pair[..., channel], expected)
    np.testing.assert_array_equal(real.native(7).mask(), mask)
    np.testing.assert_allclose(real.native(7).affine, affine)
    # The model's voxel centres lie between their two native ones.
    np.testing.assert_allclose(real.column("affine")[7] @ [0, 0, 0, 1], affine @ [0.5, 0.5, 0.5, 1])


def test_a_low_threshold_gives_each_bone_voxel_to_the_larger_share(skullbreak, tmp_path):
    config = config_of(source="skullbreak", root=str(skullbreak), threshold=0.2)
    real = run(tmp_path / "real.zarr", config)
    pair = store.unpack(real.load([0]), 16)[0]
    assert not pair.all(axis=-1).any()
    complete = volumes.in_ras(volumes.read(skullbreak / "train/complete_skull/000.nrrd")).data
    share = complete.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    np.testing.assert_array_equal(pair.any(axis=-1), share >= 0.2)


def test_skulls_are_cut_into_each_kind_and_split_by_skull(skulls, tmp_path):
    kinds = "bilateral", "random_2"
    config = config_of(source="skulls", root=str(skulls), test="b", validation="d", kinds=kinds)
    real = run(tmp_path / "real.zarr", config)
    assert real.column("split").tolist() == [0] * 2 + [2] * 2 + [0] * 2 + [1] * 2
    pairs = store.unpack(real.load(real.rows()), 16)
    assert not pairs.all(axis=-1).any() and pairs.any(axis=(1, 2, 3)).all()
    complete = pairs.any(axis=-1)
    np.testing.assert_array_equal(complete[::2], complete[1::2])
    mask = volumes.in_ras(volumes.read(skulls / "c.nii.gz"))
    model = grids.frame(mask.data, mask.affine, 16)
    np.testing.assert_allclose(real.column("affine")[5], model)
    share = grids.reduce(mask.data, mask.affine, model, 16)
    np.testing.assert_array_equal(complete[5], share >= 0.2)
    truth, affine = real.native(5).mask(), real.native(5).affine
    assert truth.shape == mask.data.shape and np.all(mask.data[truth])
    part = grids.reduce(truth, affine, model, 16)
    expected = grids.split_share(share, part, 0.2)[1]
    np.testing.assert_array_equal(pairs[5, ..., 1], expected)


def test_one_label_of_segmentations_is_what_a_mask_of_it_is(skulls, tmp_path):
    for name in ("b.nii.gz", "c.nii.gz"):
        bone, affine = volumes.read(skulls / name)
        brain = np.zeros(bone.shape, np.uint8)
        brain[20:44, 20:44, 20:44] = 1
        volumes.write(tmp_path / "masks" / name, bone, affine)
        volumes.write(tmp_path / "maps" / name, np.where(bone, np.uint8(2), brain), affine)
    fields = dict(source="skulls", strict=True, test_fraction=0.5, kinds=("bilateral",))
    maps, masks = str(tmp_path / "maps"), str(tmp_path / "masks")
    with pytest.raises(UserError, match=r"b\.nii\.gz: .*it holds 1, 2: set label \(data\.label"):
        run(tmp_path / "a.zarr", config_of(root=maps, **fields))
    a = run(tmp_path / "a.zarr", config_of(root=maps, label="2", **fields))
    b = run(tmp_path / "b.zarr", config_of(root=masks, **fields))
    np.testing.assert_array_equal(a.load(a.every()), b.load(b.every()))
    with pytest.raises(UserError, match=r"a.zarr: made with data.label .2., now .1."):
        run(tmp_path / "a.zarr", config_of(root=maps, label="1", **fields))


UNDECODED = b"\xff".decode("utf-8", "surrogateescape")
NAMES = ("a b", "it's", 'say "a"', "new\nline", "Schädel 頭蓋骨", UNDECODED)


def test_names_and_links_of_any_kind_go_through_a_whole_ingest(tmp_path):
    root, annex = tmp_path / "skulls", tmp_path / "annex"
    root.mkdir()
    for number, name in enumerate(NAMES):
        volumes.write(annex / f"{number}.nii.gz", phantom.skull(number, 48), phantom.affine(48))
        (root / f"{name}.nii.gz").symlink_to(annex / f"{number}.nii.gz")
    fields = dict(source="skulls", root=str(root), test="it's", kinds=("bilateral",), strict=True)
    real = run(tmp_path / "real.zarr", config_of(**fields))
    assert sorted(real.attrs["names"]) == sorted(NAMES)
    assert all(len(digest) == 64 for digest in real.recipe["sources"].values())
    names = real.names(real.column("skull"))
    assert set(np.array(names)[real.rows("test")]) == {"it's"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(test_fraction=0.0), "note: no skull of split test: nothing is judged on it; data.te"),
        ({}, None),
    ],
)
def test_a_split_that_no_skull_came_into_is_noted(fields, words, tmp_path, capsys, noise):
    fields = dict(skulls=3, test_fraction=0.34, validation_fraction=0.34) | fields
    run(tmp_path / "a.zarr", noise(**fields))
    out = capsys.readouterr().out
    assert words in out if words else "note:" not in out


def test_ingest_goes_on_and_ends_equal_with_any_number_of_workers(tmp_path, monkeypatch, noise):
    monkeypatch.setattr(ingest, "SHARD", 7)  # shards that cut through skulls
    config = noise(skulls=4)
    begun = run(tmp_path / "a.zarr", config)
    whole = content(begun.path)
    for row, name in ((0, "voxels"), (7, "kind")):
        begun._file(name, row).unlink()
    assert len(begun.missing()) == 2
    assert content(run(begun.path, config, ingest.Options(workers=2)).path) == whole
    for share in ((1, 2), (0, 2)):  # processes that share the work
        assert not store.exists(tmp_path / "c.zarr") or store.Store(tmp_path / "c.zarr").missing()
        shared = run(tmp_path / "c.zarr", config, ONE._replace(share=share))
    assert content(shared.path) == whole


def test_a_source_may_give_no_native_implants(tmp_path, noise, monkeypatch):
    """As that of docs/extending.md: its pairs are scored on the model's grid alone."""
    draw = _draw
    monkeypatch.setattr(f"{__name__}._draw", lambda *n: [p._replace(native=None) for p in draw(*n)])
    real = run(tmp_path / "a.zarr", noise(skulls=3))
    assert real.attrs["native"] and real.native(0) is None


def test_other_data_are_refused(tmp_path, noise):
    first = content(run(tmp_path / "a.zarr", noise(skulls=3)).path)
    with pytest.raises(UserError, match=r"made with data.seed 0, now 1: set it back"):
        run(tmp_path / "a.zarr", noise(skulls=3, seed=1))
    again = run(tmp_path / "a.zarr", noise(skulls=3))
    assert content(again.path) == first


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", 0.0), ("skulls", 0), ("cuts", 0), ("test_fraction", -0.1)]
)
def test_bounds_are_checked_before_any_work(field, value):
    with pytest.raises(UserError, match=rf"^config\.data\.{field} is {value}: it must be"):
        ingest.check(config_of(**{field: value}))


def _names_and_skulls(opened, rows):
    """The names of some pairs' skulls, each with the complete one."""
    pairs = store.unpack(opened.load(rows), opened.size)
    names = opened.names(opened.column("skull")[rows])
    return {n: p.any(axis=-1).tobytes() for n, p in zip(names, pairs, strict=True)}


@pytest.mark.parametrize("name", ["fresh", "transplants", "ceiling"])
def test_controls_are_other_defects_on_the_same_skulls(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "NATIVE_SIDE", 64)
    kinds = ("bilateral", "random_1", "random_2")
    config = config_of(skulls=4, test_fraction=0.25, kinds=kinds)
    source = ingest.run(tmp_path / "real.zarr", 16, config, ONE)
    real = store.Store(tmp_path / "real.zarr")
    ingest.control(tmp_path / f"{name}.zarr", source, 11, config, ONE)
    pairs = store.Store(tmp_path / f"{name}.zarr")
    skulls = 4 if name == "ceiling" else 3
    many = 4 * skulls if name == "transplants" else 3 * skulls * (2 if name == "fresh" else 1)
    assert len(pairs.rows()) == many and pairs.native(0) is None
    assert len(pairs.rows("train")) == many * 3 // skulls
    whole = _names_and_skulls(real, real.rows() if name == "ceiling" else real.rows("train"))
    assert _names_and_skulls(pairs, pairs.rows()) == whole
    own, others = (store.unpack(one.load(one.rows()), 16) for one in (pairs, real))
    assert not (own[..., 0] & own[..., 1]).any() and own[..., 1].any((1, 2, 3)).all()
    # At 16^3 two different cuts may reduce to one defect; most do not.
    keys, of_real = ({pair.tobytes() for pair in part} for part in (own, others))
    assert len(keys & of_real) <= 1 and len(keys) >= many - 2
    before = content(pairs.path)
    ingest.control(pairs.path, source, 11, config, ONE)  # is there
    assert content(pairs.path) == before
    with pytest.raises(UserError, match=r"made with control\.pairs 11, now 40"):
        ingest.control(pairs.path, source, 40, config, ONE)


def test_transplants_keep_the_kinds_of_their_donors(tmp_path, monkeypatch):
    """With two donors for every skull, each carries both."""
    monkeypatch.setattr(sources, "NATIVE_SIDE", 64)
    config = config_of(skulls=3, test_fraction=0.34, validation_fraction=0.34)
    source = ingest.run(tmp_path / "real.zarr", 16, config, ONE)
    ingest.control(tmp_path / "transplants.zarr", source, 10, config, ONE)
    pairs = store.Store(tmp_path / "transplants.zarr")
    assert pairs.attrs["kinds"] == list(defects.KINDS)
    assert sorted(pairs.column("kind").tolist()) == sorted([0, 1, 2, 3, 4] * 2)


def test_controls_of_skullbreak_are_of_its_own_cubes(skullbreak, tmp_path):
    """Its complete skulls are the unions of its pairs, and the frame is their own."""
    config = config_of(source="skullbreak", root=str(skullbreak), threshold=0.3)
    source = ingest.run(tmp_path / "real.zarr", 16, config, ONE)
    host, real = source.skulls[0], store.Store(tmp_path / "real.zarr")
    with sources.host(host, 16, config) as own:
        first = store.unpack(real.load([0]), 16)[0].any(-1)
        assert metrics.dice(own.share >= 0.3, first) > 0.9
        np.testing.assert_allclose(own.frame, real.column("affine")[0])


def test_a_source_without_whole_skulls_has_no_controls(tmp_path, noise):
    source = ingest.run(tmp_path / "real.zarr", 16, noise(skulls=3), ONE)
    with pytest.raises(controls.Impossible, match=r"no fresh: .* gives no whole skulls to cut"):
        plan = source._replace(skulls=())
        ingest.control(tmp_path / "fresh.zarr", plan, 5, noise(skulls=3), ONE)


def test_a_bad_case_among_good_ones_is_left_out_and_listed(skullbreak, tmp_path, capsys):
    root = shutil.copytree(skullbreak, tmp_path / "data")
    config = config_of(source="skullbreak", root=str(root), threshold=0.3)
    good = run(tmp_path / "good.zarr", config)
    bad = root / "train" / "implant" / defects.KINDS[2] / "001.nrrd"
    bad.write_bytes(bad.read_bytes()[:-40])
    path = tmp_path / "a.zarr"
    for _ in range(2):  # the second has nothing left to make
        capsys.readouterr()
        real = run(path, config, ingest.Options(workers=2))
        out = capsys.readouterr().out
        assert "left out, 1 of 15 cases (data.strict makes it an error):" in out
        assert f"  train/implant/{defects.KINDS[2]}/001.nrrd: " in out
    assert real.missing() == [] and len(real.left_out()) == 1
    rows = real.rows()
    assert rows.tolist() == [row for row in range(15) if row != 7]
    np.testing.assert_array_equal(real.load(rows), good.load(rows))
    assert not real.load([7]).any()
    config.strict = True
    with pytest.raises(UserError, match="1 of 15 cases cannot be used, the first: train/implant"):
        run(path, config)
    with pytest.raises(UserError, match=r"001.nrrd: "):
        run(tmp_path / "b.zarr", config)


def test_no_good_case_at_all_is_an_error_and_leaves_no_store(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for number in range(5):
        (root / f"{number}.nrrd").write_bytes(b"NRRD0004\n")
    config = config_of(source="skulls", root=str(root))
    with pytest.raises(UserError, match=r"5 of 5 cases cannot be used, the first: \d\.nrrd: "):
        run(tmp_path / "a.zarr", config)
    assert not (tmp_path / "a.zarr").exists()


def test_a_researchers_own_source_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.PLANS, "mine", lambda size, config: None)
    with pytest.raises(UserError, match=r"mine\.plan returned NoneType: not a sources.Plan"):
        run(tmp_path / "a.zarr", config_of(source="mine"))
    case = sources.Case(lambda: np.jupm, (), (0,), 0)
    plan = sources.Plan([case], ["a"], {"a": 0}, {}, [])
    monkeypatch.setitem(sources.PLANS, "mine", lambda size, config: plan)
    with pytest.raises(AttributeError, match="jupm"):
        run(tmp_path / "a.zarr", config_of(source="mine"))
    plan.cases[0] = case._replace(make=lambda: [])
    with pytest.raises(UserError, match="made 0 pairs of a case with 1 kinds"):
        run(tmp_path / "a.zarr", config_of(source="mine"))
