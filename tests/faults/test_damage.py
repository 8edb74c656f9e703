"""Files of a run that are cut, flipped, deleted: named, and never a silent wrong result."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from skullgen import checkpoint, logs, run, store
from skullgen.errors import Diverged, UserError
from tests import toy_config
from tests.faults import faults


def _config(stages="ingest,train,generate,segment,evaluate", **fields):
    config = toy_config.get_config()
    config.update_from_flattened_dict({"workers": 1, "stages": stages, **fields})
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("whole") / "run"
    run.run(_config(), work)
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
    run.run(_config(stages), work)
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
        run.run(_config("generate"), work)
    assert faults.left(work / "generated.zarr") == before


def test_a_deleted_checkpoint_is_made_again(work, whole, capsys):
    shutil.rmtree(work / "checkpoints" / "tests.toy" / "70")
    run.run(_config("generate"), work)
    assert "of update 68, before the end of training, 70" in capsys.readouterr().err
    shutil.rmtree(work / "generated.zarr")
    shutil.move(work / "generated-step70-0.zarr", work / "generated.zarr")
    run.run(_config("train"), work)
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
            store.require_whole(path, again)
    else:
        with pytest.raises(
            UserError, match=f"{name}.*damaged|{name}.*not what was written"
        ) as told:
            store.load(path, store.rows(path))
            [store.open_store(path)[name][:] for name in store.COLUMNS]
        named = re.search(r"^(\S+): damaged: delete it|delete (\S+) and run", str(told.value))
        pathlib.Path(named[1] or named[2]).unlink()
    run.run(_config(again), work)
    assert not _same(work, whole)


def test_a_damaged_config_is_taken_from_its_copy(work, whole, capsys):
    _cut(work / "config.json")
    run.run(_config("train"), work)
    assert "config.json is damaged: its copy in versions.json is used" in capsys.readouterr().err
    assert not _same(work, whole)
    (work / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.model\.learning_rate was 0\.1 and is now 0\.2"):
        run.run(_config("train", **{"model.learning_rate": 0.2}), work)
    (work / "versions.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: missing, and nothing else tells"):
        run.run(_config("train"), work)


@pytest.mark.parametrize(
    ("file", "stage"), [("metrics.json", "report"), ("checkpoints/vnet/net.json", "segment")]
)
def test_damaged_json_files_stop_the_stage_that_reads_them(file, stage, work):
    _flip(work / file, 0.3)
    with pytest.raises(UserError, match=f"{file}: damaged, or changed by hand: put a copy back"):
        run.run(_config(stage), work)


def test_a_net_whose_description_was_deleted_is_set_aside(work, whole, capsys):
    (work / "checkpoints" / "vnet" / "net.json").unlink()
    run.run(_config("segment"), work)
    assert "vnet-0" in capsys.readouterr().out
    shutil.rmtree(work / "checkpoints" / "vnet-0")
    assert not _same(work, whole)


def test_the_batch_of_a_loss_that_is_not_finite_can_be_replayed(tmp_path):
    fields = {"model.breaks_at": 13, "save_every": 5}
    for _ in range(2):  # the second call begins at the checkpoint
        with pytest.raises(
            Diverged, match=r"loss is inf at update 14 .*train-diverged\.json"
        ) as told:
            run.run(_config("ingest,train", **fields), tmp_path / "run")
        assert "replays it from update 10, the last good checkpoint" in str(told.value)
        found = logs.read_json(tmp_path / "run" / "train-diverged.json")
        assert found["record"]["step"] == 14 and found["checkpoint"] == 10
        ((path, rows),) = {
            (path, tuple(r for _, r in found["batches"][0])) for path, _ in found["batches"][0]
        }
        real = tmp_path / "run" / "real.zarr"
        pairs = len(store.rows(real, "train"))
        expected = store.batch_rows([pairs], 4, seed=0, phase=0, update=13, batches=1)
        assert path == str(real)
        np.testing.assert_array_equal(rows, store.rows(real, "train")[expected[0]])
        assert checkpoint.newest(tmp_path / "run" / "checkpoints" / "tests.toy") == 10


def test_json_of_a_checkpoint_is_its_own(work):
    about = json.loads((work / "checkpoints/tests.toy/70/_CHECKPOINT_METADATA").read_text())
    assert about["custom_metadata"].keys() == {"crc32", "tree"}
