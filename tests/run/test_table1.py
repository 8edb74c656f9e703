"""Table 1: which runs it is made of, what is reused, and its numbers by hand."""

import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from experiments import common
from experiments import table1 as experiment
from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import sources
from skullgen.evaluation import metrics
from skullgen.report import tables
from skullgen.run import config as command
from skullgen.run import sweep, table1
from tests import toy_config


def _config(**fields):
    """A table of the toy model: every run in a second."""
    config = experiment.get_config("smoke")
    config.table.models = ("toy",)
    config.table.counts = (4, 8)
    config.table.fresh = 15
    config.generators = ml_collections.ConfigDict({"toy": toy_config.get_config()})
    config.model.resolution = 8
    config.data.threshold = 0.1
    config.data.skulls = 4
    config.data.validation_fraction = config.data.test_fraction = 0.25
    config.workers = 1
    config.segment.model_name = "tests.toy_net"
    config.segment.model = ml_collections.ConfigDict({"learning_rate": 0.1, "augment": False})
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


NAMED = command.Named(Path(experiment.__file__), "smoke", {})


def test_the_plan_has_every_row_once_and_needs_come_first(tmp_path):
    config = _config()
    config.table.seeds, config.table.folds, config.table.refit = 2, 2, True
    config.table.counts = (8, 4, 4)
    jobs = table1.plan(config, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
        assert all(need in names[:number] for need in job.needs)
    # Two folds of: data, two generators, and for two seeds four controls and 2 + 1 + 1 rows.
    assert len(jobs) == 2 * (1 + 2 + 2 * (4 + 4))
    rows = dict.fromkeys(job.row for job in jobs if job.row)
    assert [(title, pairs) for title, pairs, fold in rows if fold == 1] == [
        *(("real", "all"), ("real + augmentation", "all"), ("fresh defects", "15")),
        *(("fresh defects + augmentation", "15"), ("toy", "4"), ("toy", "8")),
        *(("real + toy", "8"), ("best control + toy", "8")),
    ]
    configs = {job.name: job.make() for job in jobs if "best" not in job.name}
    net = configs["fold1/toy-4-s1"]
    assert net.segment.stores.endswith("fold1/toy-s1/generated.zarr:all:4")
    assert net.segment.seed == 1 and not net.segment.reference and "table" not in net
    data = configs["fold1/data"]
    assert (data.data.fold, data.data.folds, data.segment.fresh) == (1, 2, 15)
    nets = [configs[job.name].segment for job in jobs if job.row and job.name in configs]
    assert {(segment.updates, segment.batch_size) for segment in nets} == {(4, 4)}


def _done(config, folder, capsys):
    """The names of the runs that `list` says are done."""
    capsys.readouterr()
    sweep.sweep(config, folder, "list", NAMED)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[2] for words in lines if words[-1] == "done"}


def test_a_table_is_run_listed_and_what_was_made_again_makes_its_nets_undone(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sources, "NATIVE_SIDE", 48)
    config = _config(**{"table.counts": (4,)})
    with pytest.raises(UserError, match="job 2 needs 0"):
        sweep.sweep(config, tmp_path, "2", NAMED)
    sweep.sweep(config, tmp_path, "0", NAMED)  # as a cluster's array would
    assert _done(config, tmp_path, capsys) == {"data"}
    sweep.sweep(config, tmp_path, "all", NAMED)
    out = capsys.readouterr().out
    assert "9 of 9 runs are done" in out and "mean training skull" in out
    titles = [row[:2] for row in files.read_json(tmp_path / "table1.json")["rows"]]
    assert titles[:3] == [["mean training skull", "-"], ["mirror image", "-"], ["real", "all"]]
    assert ["best control + toy", "4"] in titles
    assert (tmp_path / "maps.json").exists()
    assert (tmp_path / "figures" / "segmentation.png").exists()
    config.workers = 2  # determines nothing
    every = _done(config, tmp_path, capsys)
    config.generators.toy.generate.threshold = 0.4
    shutil.rmtree(tmp_path / "toy-s0" / "generated.zarr")
    sweep.sweep(config, tmp_path, "1", NAMED)
    assert len(every) == 9
    nets = {"toy-4-s0", "real+toy-4-s0", "best_control+toy-4-s0"}
    assert _done(config, tmp_path, capsys) == every - nets


def test_sweeps_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs a config with `table`"):
        named = command.Named(Path(common.__file__), "smoke", {})
        sweep.sweep(common.defaults("smoke"), tmp_path, "all", named)
    for which in ("12", "-1", "some"):
        with pytest.raises(UserError, match="list, all, or a number below 10"):
            sweep.sweep(_config(), tmp_path, which, NAMED)
    with pytest.raises(UserError, match="no comma may be in its name"):
        table1.plan(_config(), tmp_path / "a,b")


def _metrics(folder, dice, selection=0.5, net="vnet"):
    """metrics.json of a V-Net: test skulls' Dice by name, each in two cases around it."""
    cases = [
        {"net": net, "column": column, "store": "real.zarr", "pair": 0, "skull": skull}
        | {"dice": value + shift, "dice_512": value + shift, "dice_native": None}
        | {"ceiling_native": None}
        for column, values in (("test", dice), ("selection", {"v": selection}))
        for skull, value in values.items()
        for shift in (-0.05, 0.05)
    ]
    folder.mkdir(parents=True)
    files.write_json(folder / "metrics.json", {"verdict": {"cases": cases}})


def _gather(config, folder):
    """The table of the V-Nets that have a `metrics.json`, and its entries."""
    jobs = table1.plan(config, folder)
    done = [job.name for job in jobs if (folder / job.name).exists()]
    table = table1.gather(config, folder, jobs, done)
    return table, files.read_json(folder / "table1.json")["entries"]


def test_rows_by_hand(tmp_path):
    """Two seeds, three skulls: intervals are over skulls, the spread is over seeds."""
    config = _config()
    config.table.seeds = 2
    real = {0: {"x": 0.5, "y": 0.6, "z": 0.7}, 1: {"x": 0.7, "y": 0.6, "z": 0.5}}
    for seed, values in real.items():
        _metrics(tmp_path / f"real-all-s{seed}", values, selection=0.9)
        better = {skull: value + 0.1 for skull, value in values.items()}
        _metrics(tmp_path / f"fresh_defects-15-s{seed}", better, selection=0.6)
        _metrics(tmp_path / f"toy-4-s{seed}", {"x": 0.3, "y": 0.3, "z": 0.6})
    table, entries = _gather(config, tmp_path)
    entries = {entry["title"]: entry for entry in entries}
    assert list(entries) == ["real", "fresh defects", "toy"]
    assert entries["real"]["mean"] == pytest.approx(0.6)
    assert entries["real"]["seed_sd"] == pytest.approx(0)
    assert entries["real"]["skulls"] == pytest.approx({"0 x": 0.6, "0 y": 0.6, "0 z": 0.6})
    minus = entries["fresh defects"]["minus_real"]
    assert (minus["mean"], minus["low"]) == pytest.approx((0.1, 0.1))
    # The best control is the one with the best Dice on the split that judges nothing.
    assert entries["toy"]["minus_best"]["than"] == "real"
    differences = [0.3 - 0.6, 0.3 - 0.6, 0.6 - 0.6]
    mean, low, high, _ = metrics.interval(differences)
    minus = entries["toy"]["minus_best"]
    assert (minus["mean"], minus["low"], minus["high"]) == pytest.approx((mean, low, high))
    assert entries["real"]["minus_best"] is None
    text = "\n".join(tables.text(table))
    assert "-0.200 [-0.630, +0.230]" in text and "6 of 18 runs are done" in text


def test_the_best_control_is_chosen_on_validation(tmp_path):
    controls = {}
    for title, value in (("real", 0.4), ("fresh defects", 0.7), ("real + augmentation", 0.5)):
        controls[title] = [f"{title}-{seed}" for seed in (0, 1)]
        for name in controls[title]:
            _metrics(tmp_path / name, {"x": 1 - value}, selection=value)
    assert table1.best_control(tmp_path, controls) == "fresh defects"
    (tmp_path / "none").mkdir()
    files.write_json(tmp_path / "none" / "metrics.json", {"verdict": {"cases": []}})
    without = {title: ["none"] for title in table1.CONTROLS}  # SkullBreak has no such split
    assert table1.best_control(tmp_path, without) == "fresh defects + augmentation"


def test_seeds_with_training_pairs_of_their_own_are_averaged(tmp_path):
    config = _config(**{"table.seeds": 2})
    for seed, dice in ((0, 0.5), (1, 0.7)):
        _metrics(tmp_path / f"toy-4-s{seed}", {"x": dice})
        path = tmp_path / f"toy-4-s{seed}" / "metrics.json"
        result = files.read_json(path)
        own = {"net": "vnet", "column": "train", "store": "g", "skull": "", "pair": seed}
        result["verdict"]["cases"].append({**own, "dice": dice + 0.2, "dice_512": dice + 0.2})
        files.write_json(path, result)
    _, (entry,) = _gather(config, tmp_path)
    assert entry["train"] == pytest.approx(0.8) and entry["mean"] == pytest.approx(0.6)
    assert entry["seed_sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))


def test_folds_stand_side_by_side(tmp_path):
    config = _config(**{"table.folds": 2})
    _metrics(tmp_path / "fold0" / "real-all-s0", {"x": 0.4, "y": 0.6})
    _metrics(tmp_path / "fold1" / "real-all-s0", {"z": 0.8})
    _, (entry,) = _gather(config, tmp_path)
    assert entry["skulls"] == pytest.approx({"0 x": 0.4, "0 y": 0.6, "1 z": 0.8})
    assert entry["mean"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("table.models", ("gan",), r"table\.models is 'gan': choose one of toy"),
        ("table.counts", ("a", "b"), r"table\.counts is 'a': it must be 1 or more"),
        ("table.counts", (), r"table\.counts is None: it must be 1 or more"),
        ("table.seeds", 0, r"table\.seeds is 0: it must be 1 or more"),
        ("data.folds", 2, r"data\.folds is 2: it must be 0 to 0"),
        ("table.metric", "foo", r"table\.metric is 'foo': choose one of dice"),
    ],
)
def test_wrong_fields_of_the_table_are_named(tmp_path, field, value, words):
    with pytest.raises(UserError, match=words):
        table1.plan(_config(**{field: value}), tmp_path)
