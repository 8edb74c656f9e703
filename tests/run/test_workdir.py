"""Work directories: what goes on, what is refused, what is recorded."""

import shutil
import sys
from pathlib import Path

import pytest

from skullgen.core import files, provenance
from skullgen.core.errors import UserError
from skullgen.data import sources, store
from skullgen.delivery import release
from skullgen.report import page
from skullgen.run import config as command
from skullgen.run import workdir
from skullgen.training import checkpoint
from tests import toy, toy_config
from tests.faults import faults


def _toy(*names, **fields):
    config = toy_config.get_config()
    config.workers, config.stages = 1, names
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("work")
    workdir.run(_toy("ingest", "train", "generate", **{"generate.count": 70}), path)
    return path


@pytest.fixture
def copy(work, tmp_path):
    return shutil.copytree(work, tmp_path / "copy")


@pytest.mark.parametrize(
    ("stage", "field", "value", "words"),
    [
        ("train", "seed", 1, "tests.toy: made with seed 0, now 1"),
        ("train", "batch_size", 2, "made with batch_size 4, now 2"),
        ("train", "model.learning_rate", 1.0, r"made with model\.learning_rate 0\.1, now 1\.0"),
        ("train", "model_name", "tests.twin", "made with model_name 'tests.toy', now 'tests.twin'"),
        ("ingest", "data.threshold", 0.4, r"made with data\.threshold 0\.1, now 0\.4"),
        ("ingest", "model.resolution", 16, r"made with model\.resolution 8, now 16"),
        ("generate", "generate.seed", 9, r"generated\.zarr: made with generate\.seed 0, now 9"),
        ("generate", "model.learning_rate", 1.0, r"tests\.toy: made with model\.learning_rate"),
        ("generate", "seed", 9, r"generated\.zarr: made with generate\.seed 0, now 9"),
    ],
)
def test_settings_of_work_done_are_refused_by_name(work, stage, field, value, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "tests.twin", toy)
    before = faults.content(work)
    with pytest.raises(UserError, match=f"{words}.*: set it back, or choose another --workdir"):
        workdir.run(_toy(stage, **{field: value}), work)
    after = faults.content(work)
    assert {path for path in after if before.get(path) != after[path]} <= {Path(".lock")}


def test_phases_that_are_done_stay_and_the_last_may_grow(copy):
    def phases(number, stage="train", **fields):
        config = _toy(stage)
        config.phases[number].update(fields)
        return config

    for number, change in ((0, {"updates": 31}), (0, {"step": "more"}), (1, {"batches": 1})):
        with pytest.raises(UserError, match=rf"made with phases\.{number}"):
            workdir.run(phases(number, **change), copy)
    with pytest.raises(UserError, match=r"made with phases\.1"):
        workdir.run(phases(1, updates=39), copy)
    workdir.run(phases(1, updates=50), copy)
    assert checkpoint.newest(copy / "checkpoints" / "tests.toy") == 80
    with pytest.raises(UserError, match="made with step 70, now 80; weights '"):
        workdir.run(phases(1, "generate", updates=50), copy)


def test_counts_grow_and_never_shrink_and_what_determines_nothing_is_free(copy, capsys):
    before = store.Store(copy / "generated.zarr").load(list(range(70)))
    free = {"log_every": 7, "budget_mb": 3, "evaluate.pairs": 3, "data.root": "elsewhere"}
    workdir.run(_toy("train", "generate", **{"generate.count": 75, **free}), copy)
    workdir.run(_toy("generate", **{"generate.count": 5}), copy)
    out = capsys.readouterr().out
    assert "all 75 pairs are there" in out
    assert "75 pairs (generate.count is 5; none is thrown away)" in out
    generated = store.Store(copy / "generated.zarr")
    assert (generated.load(list(range(70))) == before).all() and len(generated.rows()) == 75


def test_the_settings_of_a_stage_are_those_by_which_it_ran_last(copy):
    def kept(*names, **fields):
        workdir.run(_toy(*names, **fields), copy)
        return files.read_json(copy / "config.json")

    assert kept("train", log_every=3)["generate"]["count"] == 70  # as it was made
    assert kept("generate", log_every=4)["generate"]["count"] == 300
    after = kept("evaluate", log_every=4, **{"generate.count": 9})
    assert (after["generate"]["count"], after["log_every"]) == (300, 3)  # which is of `train`
    assert after["stages"] == ["ingest", "train", "generate", "evaluate"]
    assert kept("export", **{"export.voxel_mm": 6.4, "export.rows": "0:2"}) == after


def test_home_is_no_folder_called_tilde(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (copy / "real.zarr").rename(tmp_path / "real.zarr")
    own = {"export.store": "~/real.zarr", "export.folder": "~/out/../it", "export.voxel_mm": 6.4}
    workdir.run(_toy("export", **own), copy)
    assert (tmp_path / "it" / "nifti" / "pairs.csv").exists()
    config = _toy("segment", **{"segment.stores": "a~/b.zarr:all:2, ~/c.zarr:all:3"})
    assert command.at_home(config).segment.stores == f"a~/b.zarr:all:2, {tmp_path}/c.zarr:all:3"


def test_a_work_directory_is_one_runs(copy):
    with files.alone(copy / ".lock"), pytest.raises(UserError, match="another run"):
        workdir.run(_toy("train"), copy)


def test_half_made_stores_are_not_taken_for_whole(copy):
    for name, stage, next_ in (("generated", "generate", "evaluate"), ("real", "ingest", "train")):
        (copy / f"{name}.zarr" / "voxels" / "c" / "0" / "0").unlink()
        with pytest.raises(UserError, match=f"pairs are not made yet: run the stage `{stage}`"):
            workdir.run(_toy(next_), copy)


def test_a_store_taken_away_is_made_again_and_weights_of_other_data_are_refused(copy):
    before = store.Store(copy / "real.zarr").load(list(range(4)))
    shutil.rmtree(copy / "real.zarr")
    workdir.run(_toy("ingest", "train"), copy)
    assert (store.Store(copy / "real.zarr").load(list(range(4))) == before).all()
    recipe = files.read_json(copy / "real.zarr" / "recipe.json")
    recipe["data"]["seed"] = 1
    files.write_json(copy / "real.zarr" / "recipe.json", recipe)
    with pytest.raises(UserError, match=r"tests\.toy: made with stores\.0\.recipe"):
        workdir.run(_toy("train"), copy)


def test_a_bug_in_plotting_keeps_its_traceback(copy, monkeypatch):
    """Fault 2: of ours or of a user, it is no damaged file."""

    def broken(*_):
        return {}["colour"]

    monkeypatch.setattr(page, "write", broken)
    with pytest.raises(KeyError, match="colour") as error:
        workdir.run(_toy("report"), copy)
    assert command.report(error.value) is None  # launch.py raises it


def test_another_runs_store_can_be_the_data(work, tmp_path):
    def linked(root, *names):
        fields = {"data.source": "store", "data.root": str(root)}
        workdir.run(_toy("ingest", *names, **fields), tmp_path / "new")

    real = work / "real.zarr"
    linked(real, "train")
    assert (tmp_path / "new" / "real.zarr").samefile(real)
    assert checkpoint.newest(tmp_path / "new" / "checkpoints" / "tests.toy") == 70
    shutil.copytree(real, tmp_path / "other.zarr")
    with pytest.raises(UserError, match=r"is not .*other\.zarr: choose another"):
        linked(tmp_path / "other.zarr")


def test_controls_are_made_where_a_net_learns_from_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "NATIVE_SIDE", 48)
    fields = {"data.source": "phantom", "segment.control_pairs": 10}
    stores = {"segment.stores": "fresh.zarr:all:4", "segment.controls": ("real",)}
    workdir.run(_toy("ingest", **fields, **stores), tmp_path)
    assert {path.name for path in tmp_path.glob("*.zarr")} == {"real.zarr", "fresh.zarr"}
    assert len(store.Store(tmp_path / "fresh.zarr").rows()) == 15  # 3 skulls, 5 kinds
    assert not (tmp_path / "fresh.zarr" / "native").exists()
    with pytest.raises(UserError, match=r"fresh\.zarr: made with control\.pairs 10, now 16"):
        workdir.run(_toy("ingest", **{**fields, **stores, "segment.control_pairs": 16}), tmp_path)


def test_controls_that_a_source_cannot_give_are_done_without(tmp_path, work, capsys):
    fields = {"segment.controls": ("real", "transplants"), "segment.updates": 2}
    workdir.run(_toy("ingest", "train", "generate", "segment", **fields), tmp_path / "new")
    said = capsys.readouterr().out
    assert "note: no transplants: data.source=tests.toy_source gives no whole skulls" in said
    assert "note: no V-Net of transplants: ingest makes its pairs, or says why not" in said
    nets = {path.name for path in (tmp_path / "new" / "checkpoints").iterdir()}
    assert nets == {"tests.toy", "vnet", "vnet_real"}


def test_controls_beside_another_runs_store_are_taken_with_it(work, tmp_path):
    for name in ("real", "transplants"):
        shutil.copytree(work / "real.zarr", tmp_path / f"{name}.zarr")
    fields = {"data.source": "store", "data.root": str(tmp_path / "real.zarr")}
    fields["segment.controls"] = ("real", "transplants", "ceiling")
    workdir.run(_toy("ingest", **fields), tmp_path / "new")
    assert (tmp_path / "new" / "transplants.zarr").samefile(tmp_path / "transplants.zarr")
    assert not (tmp_path / "new" / "ceiling.zarr").exists()


def test_a_generator_learns_from_what_stores_names(work, tmp_path):
    shutil.copytree(work / "real.zarr", tmp_path / "more.zarr")
    stores = f"{tmp_path / 'more.zarr'}:all:5"
    workdir.run(_toy("ingest", "train", "generate", stores=stores), tmp_path / "new")
    learnt = provenance.read(tmp_path / "new" / "checkpoints" / "tests.toy")["stores"]["0"]
    assert sum(stop - start for start, stop in learnt["rows"]) == 5
    with pytest.raises(UserError, match=r"stores: 'more\.zarr' names no pairs"):
        workdir.run(_toy("train", stores="more.zarr"), tmp_path / "other")


def test_pairs_that_grew_are_described_though_no_net_judged_them(copy, capsys):
    fields = {"segment.updates": 2, "segment.controls": ()}
    workdir.run(_toy("segment", **fields, **{"generate.count": 70}), copy)
    workdir.run(_toy("generate", "evaluate", **fields, **{"generate.count": 80}), copy)
    assert "no verdict: " in (out := capsys.readouterr().out)
    assert "vnet: trained with another stores.0." in out
    result = files.read_json(copy / "metrics.json")
    assert "verdict" not in result and result["quality"]["compared"] == 80


def test_more_skulls_a_new_run_that_starts_from_the_old_one(work, tmp_path, capsys):
    old, new = store.Store(work / "real.zarr"), tmp_path / "new"
    (test,) = set(old.names(old.column("skull")[old.rows("test")]))
    fields = {"init_from": str(work), "data.skulls": 6, "data.test": test}
    for wrong, words in (
        ({"init_from": "nowhere"}, "^init_from=nowhere: nowhere: no such folder"),
        ({"init_from": "demo"}, "^init_from=demo: 0 of 1 arrays are taken, 1 begin"),
        ({"segment.init_from": str(work)}, r"^segment\.init_from=.*vnet: no checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            workdir.run(_toy("ingest", "train", "segment", **{**fields, **wrong}), new)
        assert not (new / "real.zarr").exists()  # before any work
    workdir.run(_toy("ingest", "train", **fields), new)
    out = capsys.readouterr().out
    assert f"init_from={work}: 1 of 1 arrays are taken" in out and "warning" not in out
    assert provenance.read(new / "checkpoints" / "tests.toy")["init_from"]
    assert "and that of the weights that it started" in release.about(new, "tests.toy")["licence"]


def test_test_skulls_that_the_old_run_has_learnt_from_are_told(work, tmp_path, capsys):
    """As drawn anew where a skull is added, or named."""
    old = store.Store(work / "real.zarr")
    seen, (test,) = (set(old.names(old.column("skull")[old.rows(s)])) for s in ("train", "test"))
    fields = {"init_from": str(work), "data.test": min(seen)}
    workdir.run(_toy("ingest", "train", "generate", "evaluate", **fields), tmp_path / "new")
    words = f"{work} has learnt from 1 of the test skulls, as {min(seen)}: no score on them "
    words += f"is a test; that run's own are data.test={test}"
    assert f"warning: {words}" in capsys.readouterr().out
    warnings = files.read_json(tmp_path / "new" / "metrics.json")["warnings"]
    assert words in warnings
