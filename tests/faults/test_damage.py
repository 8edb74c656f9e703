"""Files of a run that are cut, flipped, deleted: named, and never a silent wrong result."""

import pathlib
import re
import shutil

import pytest
import zarr

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.run import workdir
from skullgen.training import checkpoint
from tests import toy_config
from tests.faults import faults


def _config(stages="ingest,train,generate,segment,evaluate", **fields):
    config = toy_config.get_config()
    config.update_from_flattened_dict({"workers": 1, "stages": (stages,), **fields})
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


@pytest.mark.parametrize(
    ("net", "stage"), [("tests.toy", "train"), ("tests.toy", "generate"), ("vnet", "segment")]
)
def test_a_damaged_checkpoint_is_named_and_without_it_the_run_ends_as_it_was(
    net, stage, work, whole
):
    step = work / "checkpoints" / net / str(checkpoint.newest(work / "checkpoints" / net))
    _flip(_largest(step / "default" / "d"))
    before = faults.left(work)
    with pytest.raises(UserError, match=rf"{step}: damaged .*delete it: training goes on from"):
        workdir.run(_config(stage), work)
    assert faults.left(work) == before
    shutil.rmtree(step)
    if stage == "generate":  # of the checkpoint before: other pairs than those that are here
        with pytest.raises(UserError, match=r"generated\.zarr: made with step 70, now 60"):
            workdir.run(_config(stage), work)
    workdir.run(_config("train,segment"), work)
    assert not _same(work, whole)


@pytest.mark.parametrize(
    ("column", "damage"),
    [("pairs", _flip), ("pairs", _cut), ("voxels", _remove), ("split", _flip), ("affine", _cut)],
)
@pytest.mark.parametrize("name", ["real.zarr", "generated.zarr"])
def test_a_damaged_shard_is_named_and_made_again(name, column, damage, work, whole, capsys):
    path = work / name
    real = store.Store(path)
    file = real._file(column, 0)
    damage(file)
    again = {"real.zarr": "ingest", "generated.zarr": "generate"}[name]
    if damage is _remove:
        with pytest.raises(UserError, match=rf"{name}: \d+ pairs are not made yet: run the stage"):
            real.require_whole(again)
    else:
        with pytest.raises(
            UserError, match=f"{name}.*damaged|{name}.*not what was written"
        ) as error:
            real.load(real.rows())
            [real.column(name) for name in store.COLUMNS]
        pathlib.Path(str(error.value).partition(": ")[0]).unlink()
    workdir.run(_config(again), work)
    assert not _same(work, whole)


def test_checkpoints_without_their_recipe_are_not_gone_on_with(work):
    (work / "checkpoints" / "vnet" / "recipe.json").unlink()
    with pytest.raises(UserError, match=r"vnet: made with .*batch_size missing, now 4"):
        workdir.run(_config("segment"), work)


def test_a_net_that_lost_its_last_checkpoint_is_not_judged(work, whole):
    """Not by the one before it."""
    shutil.rmtree(work / "checkpoints" / "vnet" / "60")
    workdir.run(_config("evaluate"), work)
    assert "no verdict: " in files.read_json(work / "metrics.json")["warnings"][0]


def test_damaged_and_lost_native_truths_are_named_and_made_again(work, whole):
    row = int(store.Store(work / "real.zarr").rows("test")[0])
    place = work / "real.zarr" / "native" / f"{row:06d}"
    _flip(place / "c" / "0")
    for words in (f"the native truth of pair {row} is damaged", rf"{row:06d}/zarr\.json: missing"):
        with pytest.raises(UserError, match=rf"{words}.*delete it and run the stage") as error:
            workdir.run(_config("evaluate"), work)
        shutil.rmtree(place, ignore_errors=True)
    pathlib.Path(re.search(r"(\S+/pairs/c/\S+): delete it", str(error.value))[1]).unlink()
    workdir.run(_config("ingest"), work)
    assert not _same(work, whole)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    work = tmp_path_factory.mktemp("grown") / "run"
    workdir.run(_config("ingest,train,generate", **{"generate.count": 400}), work)
    return faults.left(work / "generated.zarr")


@pytest.mark.parametrize("done", [1, 4, 6])
def test_a_store_whose_growth_was_killed_grows_again(done, work, grown):
    path = work / "generated.zarr"
    group = zarr.open_group(path, mode="r+")
    for name in (*store.COLUMNS, "pairs")[:done]:
        group[name].resize((400, *group[name].shape[1:]))
    assert len(store.Store(path).rows()) == 300 and len(store.Store(path).load([299])) == 1
    assert store.Store(path).column("split").shape == (300,)
    workdir.run(_config("generate", **{"generate.count": 400}), work)
    assert store.Store(path).missing() == [] and len(store.Store(path).rows()) == 400
    assert faults.left(path) == grown


def test_too_large_a_count_changes_nothing(work, whole):
    with pytest.raises(UserError, match=r"4000000 pairs, 64 a file: more than 50000 files"):
        workdir.run(_config("generate", **{"generate.count": 4_000_000}), work)
    assert _same(work, whole) == []
    assert (work / "config.json").read_bytes() == (whole / "config.json").read_bytes()
