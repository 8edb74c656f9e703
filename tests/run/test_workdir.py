"""Work directories: what goes on, what is refused, what is recorded."""

import json
import shutil
import sys

import pytest

from experiments import common
from skullgen.core.errors import UserError
from skullgen.data import sources, store
from skullgen.report import page
from skullgen.run import config as command
from skullgen.run import workdir
from tests import toy, toy_config

EMPTY = {"zero": 0, "no": False, "text": "", "row": (), "none": None}  # fields that the toy ignores


def _toy(*names, **fields):
    config = toy_config.get_config()
    config.workers, config.stages = 1, names
    config.model.update(EMPTY)
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Phantoms that grow in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "NATIVE_SIDE", 64)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("work")
    workdir.run(_toy("ingest", "train", "generate", **{"generate.count": 70}), path)
    return path


@pytest.fixture
def copy(work, tmp_path):
    return shutil.copytree(work, tmp_path / "copy")


def _content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("stage", "field", "value", "words"),
    [
        ("train", "seed", 1, "tests.toy: made with seed 0, now 1"),
        ("train", "batch_size", 2, "made with batch_size 4, now 2"),
        ("train", "model.learning_rate", 1.0, r"made with model\.learning_rate 0\.1, now 1\.0"),
        ("train", "model_name", "tests.twin", "made with model_name 'tests.toy', now 'tests.twin'"),
        ("ingest", "data.threshold", 0.4, r"made with config\.threshold 0\.1, now 0\.4"),
        ("ingest", "model.resolution", 16, "made with size 8, now 16"),
        ("generate", "generate.seed", 9, r"generated\.zarr: made with generate\.seed 0, now 9"),
        ("generate", "seed", 9, r"generated\.zarr: made with generate\.seed 0, now 9"),
    ],
)
def test_settings_of_work_done_are_refused_by_name(work, stage, field, value, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "tests.twin", toy)
    before = _content(work)
    with pytest.raises(UserError, match=f"{words}: set it back, or choose another --workdir"):
        workdir.run(_toy(stage, **{field: value}), work)
    after = _content(work)
    versions = work / "versions.json", work / ".lock"
    assert {path for path in after if before.get(path) != after[path]} <= {*versions}


@pytest.mark.parametrize("value", [*EMPTY.values(), "missing"], ids=repr)
@pytest.mark.parametrize("field", EMPTY)
def test_what_is_empty_is_not_taken_for_something_else_that_is(work, field, value):
    """Fault 4: nothing equals another that is also false; `()` is JSON's `[]`."""
    config, old = _toy("train"), EMPTY[field]
    with config.ignore_type():
        config.model[field] = value
    if value == "missing":
        del config.model[field]
    config.model.breaks_at = 7  # differs anyhow: nothing is trained
    names = rf"model\.{field}" if value is not old else r"model\.breaks_at -1"
    with pytest.raises(UserError, match=rf"made with (model\.breaks_at -1, now 7; )?{names}") as e:
        workdir.run(config, work)
    assert (f"model.{field} " in str(e.value)) == (value is not old)


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
    assert (copy / "checkpoints" / "tests.toy" / "80").is_dir()
    with pytest.raises(UserError, match="made with step 70, now 80; weights '"):
        workdir.run(phases(1, "generate", updates=50), copy)


def test_counts_grow_and_never_shrink_and_what_determines_nothing_is_free(copy, capsys):
    before = store.Store(copy / "generated.zarr").load(list(range(70)))
    free = {"log_every": 7, "keep": 3, "evaluate.pairs": 3, "data.root": "elsewhere"}
    workdir.run(_toy("train", "generate", **{"generate.count": 75, **free}), copy)
    workdir.run(_toy("generate", **{"generate.count": 5}), copy)
    assert "75 pairs (generate.count is 5; none is thrown away)" in capsys.readouterr().out
    made = store.Store(copy / "generated.zarr")
    assert (made.load(list(range(70))) == before).all() and len(made.rows()) == 75


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("ingest,trian", "stages is 'ingest, trian': name some of ingest, train, generate"),
        ("", "stages is ''"),
        ("train", "real.zarr: no store of pairs here; run the stage that makes it"),
        ("generate", "no checkpoint; run the stage `train` first"),
        ("evaluate", r"real\.zarr: no store of pairs here"),
        ("train,ingest", "real.zarr: no store of pairs here"),
    ],
)
def test_stages_out_of_order_are_named(names, words, tmp_path):
    with pytest.raises(UserError, match=words):
        workdir.run(_toy(names), tmp_path / "new")


def test_the_settings_of_a_stage_are_those_by_which_it_ran_last(copy):
    def kept(*names, **fields):
        workdir.run(_toy(*names, **fields), copy)
        return json.loads((copy / "config.json").read_text())

    assert kept("train", log_every=3)["generate"]["count"] == 70  # as it was made
    assert kept("generate", log_every=4)["generate"]["count"] == 300
    after = kept("evaluate", log_every=4, **{"generate.count": 9})
    assert (after["generate"]["count"], after["log_every"]) == (300, 3)  # which is of `train`
    assert after["stages"] == ["ingest", "train", "generate", "evaluate"]
    assert kept("export", **{"export.voxel_mm": 6.4, "export.rows": "0:2"}) == after


def test_home_is_no_folder_called_tilde(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    (copy / "real.zarr").rename(tmp_path / "me" / "real.zarr")
    own = {"export.store": "~/real.zarr", "export.folder": "~/out/../it", "export.voxel_mm": 6.4}
    workdir.run(_toy("export", **own), copy)
    assert (tmp_path / "me" / "it" / "pairs.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "me"]
    assert {path.name for path in (tmp_path / "me").iterdir()} >= {"it", "real.zarr"}
    config = _toy("segment", **{"segment.stores": "a~/b.zarr:all:2, ~/c.zarr:all:3"})
    assert command.at_home(config).segment.stores == f"a~/b.zarr:all:2, {tmp_path}/me/c.zarr:all:3"


def test_every_size_has_the_same_fields():
    def fields(config):
        return {k: fields(v) if hasattr(v, "keys") else None for k, v in config.items()}

    small, *others = (fields(common.defaults(size)) for size in common.SIZES)
    assert others == [small, small]


def test_half_made_stores_are_not_taken_for_whole(copy):
    for name, stage, next_ in (("generated", "generate", "evaluate"), ("real", "ingest", "train")):
        (copy / f"{name}.zarr" / "voxels" / "c" / "0" / "0").unlink()
        with pytest.raises(UserError, match=f"pairs are not made yet: run the stage `{stage}`"):
            workdir.run(_toy(next_), copy)


def test_a_store_taken_away_is_made_again_and_weights_of_other_data_are_refused(copy):
    before = store.Store(copy / "real.zarr").load(list(range(4)))
    shutil.rmtree(copy / "real.zarr")
    workdir.run(_toy("ingest", **{"data.seed": 1}), copy)
    with pytest.raises(UserError, match=r"tests\.toy: made with stores\.0\.recipe"):
        workdir.run(_toy("train"), copy)
    shutil.rmtree(copy / "real.zarr")
    workdir.run(_toy("ingest", "train"), copy)
    assert (store.Store(copy / "real.zarr").load(list(range(4))) == before).all()


def test_a_bug_in_plotting_keeps_its_traceback(copy, monkeypatch):
    """Fault 2: of ours or of a user, it is no damaged file."""

    def broken(*_):
        return {}["colour"]

    monkeypatch.setattr(page, "write", broken)
    with pytest.raises(KeyError, match="colour") as error:
        workdir.run(_toy("report"), copy)
    assert command.report(error.value) is None  # launch.py raises it


def test_another_runs_store_can_be_the_data(work, tmp_path):
    def linked(root, folder, *names, **more):
        fields = {"data.source": "store", "data.root": str(root), **more}
        workdir.run(_toy("ingest", *names, **fields), tmp_path / folder)

    real = work / "real.zarr"
    linked(real, "new", "train")
    assert (tmp_path / "new" / "real.zarr").samefile(real)
    assert (tmp_path / "new" / "checkpoints" / "tests.toy" / "70").is_dir()
    shutil.copytree(real, tmp_path / "other.zarr")
    with pytest.raises(UserError, match=r"is not .*other\.zarr: choose another"):
        linked(tmp_path / "other.zarr", "new")
    with pytest.raises(UserError, match="no pair of split train"):
        linked(work / "generated.zarr", "third")
    with pytest.raises(UserError, match="no store of pairs here"):
        linked(tmp_path / "none.zarr", "third")
    with pytest.raises(UserError, match=r"not of config\.model\.resolution 16"):
        linked(real, "fourth", **{"model.resolution": 16})


def test_fresh_pairs_are_made_and_refused_for_other_cuts(work, tmp_path):
    shutil.copytree(work / "real.zarr", tmp_path / "real.zarr")
    workdir.run(_toy("ingest", **{"segment.fresh": 10}), tmp_path)
    assert len(store.Store(tmp_path / "fresh.zarr").rows()) == 15  # 3 skulls, 5 kinds
    assert not (tmp_path / "fresh.zarr" / "native").exists()
    with pytest.raises(UserError, match=r"fresh\.zarr: made with config\.cuts 1, now 2"):
        workdir.run(_toy("ingest", **{"segment.fresh": 16}), tmp_path)


def test_pairs_that_grew_are_described_though_no_net_judged_them(copy, capsys):
    fields = {"segment.updates": 2, "segment.reference": False}
    workdir.run(_toy("segment", **fields, **{"generate.count": 70}), copy)
    workdir.run(_toy("generate", "evaluate", **fields, **{"generate.count": 80}), copy)
    assert "no verdict: " in (out := capsys.readouterr().out)
    assert "run the stage `segment` first" in out
    found = json.loads((copy / "metrics.json").read_text())
    assert "verdict" not in found and found["quality"]["compared"] == 80
