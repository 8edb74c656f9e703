"""Files of a run that are cut, flipped, deleted: named, and never a silent wrong result."""

import contextlib
import json
import pathlib
import re
import shutil
import uuid

import numpy as np
import pytest
import zarr

from skullgen.core import files
from skullgen.core.errors import Diverged, UserError
from skullgen.data import store
from skullgen.run import workdir
from skullgen.training import checkpoint
from tests import toy_config
from tests.faults import faults


def _config(stages="ingest,train,generate,segment,evaluate", **fields):
    config = toy_config.get_config()
    config.update_from_flattened_dict({"workers": 1, "stages": stages, **fields})
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("whole") / "run"
    workdir.run(_config(), work)
    return work


@pytest.fixture
def work(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def _cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def _remove(path):
    path.unlink()


def _same(work, whole):
    """What differs of the stores, logs and checkpoints of two runs."""
    names = faults.differences(work, whole)
    return [name for name in names if name not in ("config.json", "metrics.json")]


def _largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, p))


@pytest.mark.parametrize("damage", [_cut, _flip, _remove])
@pytest.mark.parametrize("file", ["default/_METADATA", "default/manifest.ocdbt", "largest"])
@pytest.mark.parametrize("net", ["tests.toy", "vnet"])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    net, file, damage, work, whole, capsys
):
    folder = work / "checkpoints" / net
    newest = checkpoint.newest(folder)
    step = folder / str(newest)
    damage(_largest(step / "default" / "d") if file == "largest" else step / file)
    stages = "train" if net == "tests.toy" else "segment"
    workdir.run(_config(stages), work)
    err = capsys.readouterr().err
    if damage is _flip and f"{step}: damaged" not in err:  # a bit that no number depends on
        assert checkpoint.newest(folder) == newest and not _same(work, whole)
        return
    assert f"warning: {step}: damaged" in err and f"it is now {newest}-damaged-0" in err
    assert (folder / f"{newest}-damaged-0").is_dir()
    shutil.rmtree(folder / f"{newest}-damaged-0")
    assert not _same(work, whole)


def test_a_damaged_checkpoint_is_not_generated_from(work):
    step = work / "checkpoints" / "tests.toy" / "70"
    _flip(_largest(step / "default" / "d"))
    before = faults.left(work / "generated.zarr")
    with pytest.raises(UserError, match=r"toy/70: damaged .*the stage that trains it goes on from"):
        workdir.run(_config("generate"), work)
    assert faults.left(work / "generated.zarr") == before


def test_a_deleted_checkpoint_is_made_again(work, whole, capsys):
    shutil.rmtree(work / "checkpoints" / "tests.toy" / "70")
    workdir.run(_config("generate"), work)
    assert "of update 68, before the end of training, 70" in capsys.readouterr().err
    shutil.rmtree(work / "generated.zarr")
    shutil.move(work / "generated-step70-0.zarr", work / "generated.zarr")
    workdir.run(_config("train"), work)
    assert not _same(work, whole)


@pytest.mark.parametrize("damage", [_cut, _flip, _remove])
@pytest.mark.parametrize("column", ["pairs", "voxels", "split", "affine"])
@pytest.mark.parametrize("name", ["real.zarr", "generated.zarr"])
def test_a_damaged_shard_is_named_and_made_again(name, column, damage, work, whole, capsys):
    path = work / name
    files = store._files(path, 0)
    file = next(p for p in files if p.relative_to(path).parts[0] == column)
    damage(file)
    again = {"real.zarr": "ingest", "generated.zarr": "generate"}[name]
    if damage is _remove:
        with pytest.raises(UserError, match=rf"{name}: \d+ pairs are not made yet: run the stage"):
            store.Store(path).require_whole(again)
    else:
        with pytest.raises(
            UserError, match=f"{name}.*damaged|{name}.*not what was written"
        ) as told:
            store.Store(path).load(store.Store(path).rows())
            [store.Store(path)[name][:] for name in store.COLUMNS]
        named = re.search(r"^(\S+): damaged: delete it|delete (\S+) and run", str(told.value))
        pathlib.Path(named[1] or named[2]).unlink()
    workdir.run(_config(again), work)
    assert not _same(work, whole)


def test_a_damaged_config_is_taken_from_its_copy(work, whole, capsys):
    _cut(work / "config.json")
    workdir.run(_config("train"), work)
    assert "config.json is damaged: its copy in versions.json is used" in capsys.readouterr().err
    assert not _same(work, whole)
    (work / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.model\.learning_rate was 0\.1 and is now 0\.2"):
        workdir.run(_config("train", **{"model.learning_rate": 0.2}), work)
    (work / "versions.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: missing, and nothing else tells"):
        workdir.run(_config("train"), work)


@pytest.mark.parametrize(
    ("file", "stage"), [("metrics.json", "report"), ("checkpoints/vnet/net.json", "segment")]
)
def test_damaged_json_files_stop_the_stage_that_reads_them(file, stage, work):
    _flip(work / file, 0.3)
    with pytest.raises(UserError, match=f"{file}: damaged, or changed by hand: put a copy back"):
        workdir.run(_config(stage), work)


def test_a_net_whose_description_was_deleted_is_set_aside(work, whole, capsys):
    (work / "checkpoints" / "vnet" / "net.json").unlink()
    workdir.run(_config("segment"), work)
    assert "vnet-0" in capsys.readouterr().out
    shutil.rmtree(work / "checkpoints" / "vnet-0")
    assert not _same(work, whole)


def test_the_batch_of_a_loss_that_is_not_finite_can_be_replayed(tmp_path):
    fields = {"model.breaks_at": 13, "save_every": 5}
    for _ in range(2):  # the second call begins at the checkpoint
        with pytest.raises(
            Diverged, match=r"loss is inf at update 14 .*train-diverged\.json"
        ) as told:
            workdir.run(_config("ingest,train", **fields), tmp_path / "run")
        assert "replays it from update 10, the last good checkpoint" in str(told.value)
        found = files.read_json(tmp_path / "run" / "train-diverged.json")
        assert found["record"]["step"] == 14 and found["checkpoint"] == 10
        ((path, rows),) = {
            (path, tuple(r for _, r in found["batches"][0])) for path, _ in found["batches"][0]
        }
        real = tmp_path / "run" / "real.zarr"
        pairs = len(store.Store(real).rows("train"))
        expected = store.batch_rows([pairs], 4, seed=0, phase=0, update=13, batches=1)
        assert path == str(real)
        np.testing.assert_array_equal(rows, store.Store(real).rows("train")[expected[0]])
        assert checkpoint.newest(tmp_path / "run" / "checkpoints" / "tests.toy") == 10


def test_json_of_a_checkpoint_is_its_own(work):
    about = json.loads((work / "checkpoints/tests.toy/70/_CHECKPOINT_METADATA").read_text())
    assert about["custom_metadata"].keys() == {"crc32", "tree", "both"}


def test_a_net_that_lost_its_last_checkpoint_is_not_judged(work, whole):
    """Not by the one before it, and no verdict that is there is lost."""
    _cut(work / "checkpoints" / "vnet" / "60" / "_CHECKPOINT_METADATA")
    with pytest.raises(UserError, match=r"vnet/60: damaged"):
        workdir.run(_config("evaluate"), work)
    assert (work / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    shutil.rmtree(work / "checkpoints" / "vnet" / "60")
    workdir.run(_config("evaluate"), work)
    assert "verdict" in files.read_json(work / "metrics-0.json")
    assert "no verdict: " in files.read_json(work / "metrics.json")["warnings"][0]


def test_damaged_and_lost_native_truths_are_named_and_made_again(work, whole):
    row = int(store.Store(work / "real.zarr").rows("test")[0])
    place = work / "real.zarr" / "native" / f"{row:06d}"
    about = json.loads((place / "zarr.json").read_text())
    about["attributes"]["origin"][0] += 1
    (place / "zarr.json").write_text(json.dumps(about))
    for words in ("crc32 is", r"zarr\.json: missing"):
        words = rf"native/{row:06d}/.*{words}.*delete \S+ and run"
        with pytest.raises(UserError, match=words) as told:
            workdir.run(_config("evaluate"), work)
        shutil.rmtree(place, ignore_errors=True)
    pathlib.Path(re.search(r"delete (\S+) and run", str(told.value))[1]).unlink()
    workdir.run(_config("ingest"), work)
    assert not _same(work, whole)


@pytest.mark.parametrize("done", range(1, 7))
def test_a_store_whose_growth_was_killed_grows_again(done, work):
    path = work / "generated.zarr"
    group = zarr.open_group(path, mode="r+")
    for name in (*store.COLUMNS, "pairs")[:done]:
        group[name].resize((400, *group[name].shape[1:]))
    assert len(store.Store(path).rows()) == 300 and len(store.Store(path).load([299])) == 1
    assert store.Store(path).column("split").shape == (300,)
    workdir.run(_config("generate", **{"generate.count": 400}), work)
    assert store.Store(path).missing() == [] and len(store.Store(path).rows()) == 400
    workdir.run(_config("ingest,train,generate", **{"generate.count": 400}), work / "other")
    assert faults.left(work / "other" / "generated.zarr") == faults.left(path)


def test_too_large_a_count_changes_nothing(work, whole):
    with pytest.raises(UserError, match=r"62500 files of pairs, more than 50000"):
        workdir.run(_config("generate", **{"generate.count": 4_000_000}), work)
    assert not faults.differences(work, whole) or _same(work, whole) == []
    assert (work / "config.json").read_bytes() == (whole / "config.json").read_bytes()


def test_what_is_left_of_a_store_is_set_aside(work, whole, capsys):
    (work / "real.zarr" / "zarr.json").unlink()
    workdir.run(_config("ingest"), work)
    assert "real.zarr was no whole store: it is now" in capsys.readouterr().out
    shutil.rmtree(work / "real-0.zarr")
    assert not _same(work, whole)


def test_a_flipped_digit_of_what_a_checkpoint_says_is_damage(work, whole, capsys):
    file = work / "checkpoints" / "tests.toy" / "70" / "_CHECKPOINT_METADATA"
    tree = json.loads(file.read_text())["custom_metadata"]["tree"]
    file.write_text(file.read_text().replace(f'"tree": {tree}', f'"tree": {tree ^ 1}'))
    workdir.run(_config("train"), work)
    assert "toy/70: damaged" in capsys.readouterr().err
    shutil.rmtree(work / "checkpoints" / "tests.toy" / "70-damaged-0")
    assert not _same(work, whole)


def test_only_our_own_half_made_files_are_cleared(work):
    mine = [work / "patient.partial.nrrd", work / "study.partials" / "a", work / "x.partial"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    half = work / f"metrics.json.partial-{uuid.uuid4().hex}"
    zarrs = work / "real.zarr" / "split" / "c" / f"0.{uuid.uuid4().hex}.partial"
    for path in (half, zarrs):
        path.write_text("half")
    workdir.run(_config("train"), work)
    assert all(path.exists() for path in mine) and not half.exists() and not zarrs.exists()


def test_a_refused_call_leaves_the_files_of_the_last_one(work):
    before = faults.left(work) | {"versions": (work / "versions.json").read_bytes()}
    fields = {"segment.stores": "generated.zarr:all:20000", "log_every": 7}
    with pytest.raises(UserError, match="300 pairs of split all, not 20000"):
        workdir.run(_config("segment", **fields), work)
    assert faults.left(work) | {"versions": (work / "versions.json").read_bytes()} == before
    with pytest.raises(UserError):
        workdir.run(_config("segment"), work / "a" / "b" / "c")
    assert not (work / "a").exists()


HOSTILE = {
    "config.json": [{"model_name": 5}, {"model_name": "vae", "data": [], "model": 3, "phases": 1}],
    "versions.json": [{"seconds": 5}, {"seconds": {"train": "x"}}, {}],
    "metrics.json": [{"verdict": 5}, {"verdict": {"summary": [1]}}, {"quality": "x"}],
    "maps.json": [{"maps": [{"title": "a", "points": 5}]}],
    "table1.json": [{"rows": 5, "columns": 3}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HOSTILE.items() for value in values]
)
def test_files_of_strangers_with_valid_sums_are_read_or_refused_in_one_line(name, value, work):
    files.write_json(work / name, value)
    for stages in ("train", "report"):
        with contextlib.suppress(UserError):  # any other exception fails
            workdir.run(_config(stages), work)
