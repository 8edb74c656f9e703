"""Tables: which runs it is made of, what is reused, and its numbers by hand."""

import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from experiments import common
from experiments import table1 as experiment
from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import mixture, sources, store
from skullgen.evaluation import intervals
from skullgen.report import tables
from skullgen.run import config as command
from skullgen.run import sweep, table, workdir
from tests import toy_config

ROWS = ("real plain", "real", "fresh", "toy:4", "toy:8", "real + toy:8", "best + toy:8")


def _config(**fields):
    """A table of the toy model: every run in a second."""
    config = experiment.get_config("smoke")
    config.table.rows = ", ".join(ROWS)
    config.table.pairs = 15
    config.generators = ml_collections.ConfigDict({"toy": toy_config.get_config()})
    config.model.resolution = 8
    config.data.threshold = 0.1
    config.data.skulls = 4
    config.data.validation_fraction = config.data.test_fraction = 0.25
    config.workers = 1
    config.segment.model_name = "tests.toy_net"
    config.segment.model.learning_rate = 0.1
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


NAMED = command.Named(Path(experiment.__file__), "smoke", {})


def test_the_plan_has_every_row_once_and_needs_come_first(tmp_path):
    config = _config()
    config.table.seeds, config.table.folds, config.table.refit = 2, 2, True
    config.table.rows = ", ".join((ROWS[-1], *ROWS, "toy:4", "fresh@2:9", "ceiling"))
    jobs = table.plan(config, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
        assert all(need in names[:number] for need in job.needs)
    # Two folds of: data, two generators, and for two seeds nine rows.
    assert len(jobs) == 2 * (1 + 2 + 2 * 9)
    rows = dict.fromkeys(job.row for job in jobs if job.row)
    texts = [row.text for row, fold in rows if fold == 1]
    assert texts == [*ROWS[:-1], "fresh@2:9", "ceiling", ROWS[-1]]  # the best of all others last
    controls = [row.text for row, fold in rows if fold == 1 and row.control]
    assert controls == ["real plain", "real", "fresh"]
    configs = {job.name: job.make() for job in jobs if "best" not in job.name}
    net = configs["fold1/toy-4-s1"]
    assert net.segment.stores.endswith("fold1/toy-s1/generated.zarr:all:4")
    assert net.segment.seed == 1 and not net.segment.controls and "table" not in net
    assert configs["fold0/fresh@2-9-s0"].segment.stores.endswith("data/fresh.zarr:all:9:2")
    augment = {
        name: configs[f"fold0/{name}-s0"].segment.model.augment for name in ("real", "toy-4")
    }
    assert augment == {"real": True, "toy-4": True}
    assert not configs["fold0/real-plain-s0"].segment.model.augment
    assert configs["fold0/real+toy-8-s0"].segment.stores.count(",") == 1
    data = configs["fold1/data"]
    assert (data.data.fold, data.data.folds, data.segment.control_pairs) == (1, 2, 15)
    assert data.segment.controls == ("real", "fresh", "ceiling")
    nets = [configs[job.name].segment for job in jobs if job.row and job.name in configs]
    assert {(segment.updates, segment.batch_size) for segment in nets} == {(4, 4)}


def test_only_the_ceiling_learns_from_test_skulls(tmp_path):
    """By the names of the skulls in the stores that the plan's data job makes."""
    config = _config(**{"table.rows": ("real", "fresh", "transplants", "ceiling")})
    config.data.kinds = ("bilateral", "random_1")
    job = table.plan(config, tmp_path)[0]
    workdir.run(job.make(), tmp_path / "data")
    real = store.Store(tmp_path / "data" / "real.zarr")
    test = set(real.names(real.column("skull")[real.rows("test")]))
    names = {}
    for path in (tmp_path / "data").glob("*.zarr"):
        pairs = store.Store(path)
        names[path.stem] = set(pairs.names(pairs.column("skull")[pairs.rows()]))
    train = set(real.names(real.column("skull")[real.rows("train")]))
    assert names["fresh"] == names["transplants"] == train and not train & test
    assert names["ceiling"] == train | test
    # The ceiling's defects are others than the test's.
    ceiling = store.Store(tmp_path / "data" / "ceiling.zarr")
    pairs = {bytes(bits) for bits in real.load(real.rows("test"))}
    assert not pairs & {bytes(bits) for bits in ceiling.load(ceiling.rows())}


def _done(config, folder, capsys):
    """The names of the runs that `list` says are done."""
    capsys.readouterr()
    sweep.sweep(config, folder, "list", NAMED)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[2] for words in lines if words[-1] == "done"}


def test_a_table_is_run_listed_and_what_was_made_again_makes_its_nets_undone(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sources, "NATIVE_SIDE", 64)
    config = _config(**{"table.rows": tuple(r for r in ROWS if r != "toy:8")})
    with pytest.raises(UserError, match="job 2 needs 0"):
        sweep.sweep(config, tmp_path, "2", NAMED)
    sweep.sweep(config, tmp_path, "0", NAMED)  # as a cluster's array would
    assert _done(config, tmp_path, capsys) == {"data"}
    sweep.sweep(config, tmp_path, "all", NAMED)
    out = capsys.readouterr().out
    assert "8 of 8 runs are done" in out and "mean training skull" in out
    titles = [row[0] for row in files.read_json(tmp_path / "table.json")["rows"]]
    assert titles[:3] == ["mean training skull", "mirror image", "real plain"]
    assert "best + toy:8" in titles
    assert (tmp_path / "maps.json").exists()
    assert (tmp_path / "figures" / "segmentation.png").exists()
    config.workers = 2  # determines nothing
    every = _done(config, tmp_path, capsys)
    config.generators.toy.generate.threshold = 0.4
    shutil.rmtree(tmp_path / "toy-s0" / "generated.zarr")
    sweep.sweep(config, tmp_path, "1", NAMED)
    assert len(every) == 8
    nets = {"toy-4-s0", "real+toy-8-s0", "best+toy-8-s0"}
    assert _done(config, tmp_path, capsys) == every - nets


def test_sweeps_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs a config with `table`"):
        named = command.Named(Path(common.__file__), "smoke", {})
        sweep.sweep(common.defaults("smoke"), tmp_path, "all", named)
    for which in ("12", "-1", "some"):
        with pytest.raises(UserError, match="list, all, or a number below 9"):
            sweep.sweep(_config(), tmp_path, which, NAMED)


def test_a_comma_in_the_folder_of_a_table_splits_no_store(tmp_path):
    jobs = {job.name: job.make for job in table.plan(_config(), tmp_path / "a,b: c")}
    stores = mixture.named(jobs["real+toy-8-s0"]().segment.stores)
    places = [
        str(tmp_path / "a,b: c" / name) for name in ("data/real.zarr", "toy-s0/generated.zarr")
    ]
    assert [part[0] for part in stores] == places


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
    jobs = table.plan(config, folder)
    done = [job.name for job in jobs if (folder / job.name).exists()]
    result = table.gather(config, folder, jobs, done)
    return result, files.read_json(folder / "table.json")["entries"]


def test_rows_by_hand(tmp_path):
    """Two seeds, three skulls: intervals are over both, the spread is over seeds."""
    config = _config(**{"table.rows": (*ROWS, "ceiling")})
    config.table.seeds = 2
    real = {0: {"x": 0.5, "y": 0.6, "z": 0.7}, 1: {"x": 0.7, "y": 0.6, "z": 0.5}}
    for seed, values in real.items():
        _metrics(tmp_path / f"real-s{seed}", values, selection=0.9)
        for name, more in (("fresh", 0.1), ("ceiling", 0.2)):
            better = {skull: value + more for skull, value in values.items()}
            _metrics(tmp_path / f"{name}-s{seed}", better, selection=0.6)
        _metrics(tmp_path / f"toy-4-s{seed}", {"x": 0.3, "y": 0.3, "z": 0.6})
    result, entries = _gather(config, tmp_path)
    entries = {entry["row"]: entry for entry in entries}
    assert list(entries) == ["real", "fresh", "toy:4", "ceiling"]
    test = {text: entry["tests"]["test"] for text, entry in entries.items()}
    assert test["real"]["mean"] == pytest.approx(0.6)
    assert entries["real"]["seed_sd"] == pytest.approx(0)
    assert test["real"]["skulls"] == ["x", "y", "z"]
    np.testing.assert_allclose(test["real"]["values"], [[0.5, 0.7], [0.6, 0.6], [0.7, 0.5]])
    minus = test["fresh"]["minus_floor"]
    assert (minus["mean"], minus["low"]) == pytest.approx((0.1, 0.1))
    assert test["fresh"]["share"]["mean"] == pytest.approx(0.5)
    # The best control is the one with the best Dice on the split that judges nothing.
    assert "minus best control" in result.columns and test["real"]["minus_best"] is None
    differences = np.array([[-0.2, -0.4], [-0.3, -0.3], [-0.1, 0.1]])
    expected = intervals.interval(differences)
    minus = test["toy:4"]["minus_best"]
    assert (minus["mean"], minus["low"], minus["high"]) == pytest.approx(expected[:3])
    text = "\n".join(tables.text(result))
    assert (
        "8 of 18 runs are done" in text and "headroom on test, ceiling minus real: +0.200" in text
    )
    assert "t over skulls and seeds" in text and "nothing can be told apart" not in text


def test_the_best_control_is_chosen_on_validation(tmp_path):
    controls = {}
    for text, value in (("real", 0.4), ("fresh", 0.7), ("transplants", 0.5)):
        controls[table.row(text)] = [f"{text}-{seed}" for seed in (0, 1)]
        for name in controls[table.row(text)]:
            _metrics(tmp_path / name, {"x": 1 - value}, selection=value)
    assert table.best_control(tmp_path, controls).text == "fresh"
    (tmp_path / "none").mkdir()
    files.write_json(tmp_path / "none" / "metrics.json", {"verdict": {"cases": []}})
    without = {row: ["none"] for row in controls}  # SkullBreak has no such split
    assert table.best_control(tmp_path, without).text == "transplants"


def test_seeds_with_training_pairs_of_their_own_are_averaged(tmp_path):
    config = _config(**{"table.seeds": 2})
    for seed, dice in ((0, 0.5), (1, 0.7)):
        _metrics(tmp_path / f"toy-4-s{seed}", {"x": dice})
        path = tmp_path / f"toy-4-s{seed}" / "metrics.json"
        result = files.read_json(path)
        own = {"net": "vnet", "column": "train", "store": "g", "skull": "", "pair": seed}
        result["verdict"]["cases"].append({**own, "dice": dice + 0.2, "dice_512": dice + 0.2})
        rise = {"rise": 0.005 + 0.01 * seed, "curve": [[4, dice]]}
        result["verdict"]["nets"] = {"vnet": rise}
        files.write_json(path, result)
    result, (entry,) = _gather(config, tmp_path)
    assert entry["train"] == pytest.approx(0.8) and entry["tests"]["test"]["mean"] == 0.6
    assert entry["seed_sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert result.rows[0][-1] == "+0.015 (not converged)"
    assert any("updates were too few for toy:4" in note for note in result.notes)


def test_folds_and_tests_stand_side_by_side(tmp_path):
    config = _config(**{"table.folds": 2})
    for fold, values in ((0, {"x": 0.4, "y": 0.6}), (1, {"z": 0.8})):
        path = tmp_path / f"fold{fold}" / "real-s0"
        _metrics(path, values)
        result = files.read_json(path / "metrics.json")
        other = {**result["verdict"]["cases"][0], "column": "test ct", "skull": "c"}
        result["verdict"]["cases"].append({**other, "dice_512": 0.1 * fold})
        files.write_json(path / "metrics.json", result)
    result, (entry,) = _gather(config, tmp_path)
    assert entry["tests"]["test"]["skulls"] == ["x", "y", "z"]
    assert entry["tests"]["test"]["mean"] == pytest.approx(0.6)
    ct = entry["tests"]["test ct"]  # one skull, tested on in both folds
    assert ct["skulls"] == ["c"] and ct["values"] == [[pytest.approx(0.05)]]
    assert "test ct [95 %]" in result.columns


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("table.rows", ("real", "gan"), r"table\.rows is 'gan': choose one of .*toy.*store"),
        ("table.rows", ("real", "toy:a"), r"table\.rows: 'toy:a': 'toy:a' names no pairs: write"),
        ("table.rows", ("toy:4",), r"table\.rows has no control .*: add the row real"),
        ("table.seeds", 0, r"table\.seeds is 0: it must be 1 or more"),
        ("data.folds", 2, r"data\.folds is 2: it must be 0 to 0"),
        ("table.metric", "foo", r"table\.metric is 'foo': choose one of dice"),
    ],
)
def test_wrong_fields_of_the_table_are_named(tmp_path, field, value, words):
    with pytest.raises(UserError, match=words):
        table.plan(_config(**{field: value}), tmp_path)
