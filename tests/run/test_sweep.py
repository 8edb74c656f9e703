"""Sweeps that a config file declares: names, fields, what is reused, and the table by hand."""

from pathlib import Path

import numpy as np
import pytest

from experiments import vae_wgan
from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.run import config as command
from skullgen.run import sweep, table, workdir
from tests import toy_config


def _config(**fields):
    config = toy_config.get_config()
    config.stages = ("ingest", "train", "generate", "evaluate")
    config.generate.count = 8
    config.phases = [dict(step="toy", updates=2)]
    config.workers = 1
    config.update_from_flattened_dict(fields)
    config.lock()
    return config


def _named(declare, **overrides):
    """What a command line names: a config file with this `sweep(add)`."""
    file = type("File", (command.Named,), {"sweep": lambda self: declare})
    return file(Path("a.py"), "", overrides)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The fields of a store that all runs share."""
    folder = tmp_path_factory.mktemp("pairs")
    workdir.run(_config(stages=("ingest",)), folder)
    return {"data.source": "store", "data.root": str(folder / "real.zarr")}


def _two(add):
    for rate in (0.1, 0.2):
        for seed in (0, 1):
            add({"model.learning_rate": rate}, seed=seed)


def test_a_sweep_is_listed_run_reused_and_gathered(tmp_path, capsys, pairs):
    config = _config(**pairs)
    folder, named = tmp_path / "s", _named(_two)
    names = [f"model.learning_rate=0.{r}-seed={s}" for r in "12" for s in "01"]
    sweep.sweep(config, folder, "1", named)
    sweep.sweep(config, folder, "list", named)
    heads, *lines = capsys.readouterr().out.splitlines()[-5:]
    assert heads.split() == ["no", "wave", "run", "state"]
    assert [line.split() for line in lines] == [
        [str(n), "0", name, *["done"] * (n == 1)] for n, name in enumerate(names)
    ]
    sweep.sweep(config, folder, "all", named)
    out = capsys.readouterr().out
    assert "== job 1 of" not in out and "4 of 4 runs are done" in out
    written = files.read_json(folder / "sweep.json")
    assert [row[:2] for row in written["rows"]] == [["0.1", "2"], ["0.2", "2"]]
    assert written["columns"][:3] == ["model.learning_rate", "runs", "nearest skull"]
    skull = files.read_json(folder / names[2] / "metrics.json")["quality"]["skull"]
    key = "quality.skull.nearest_training_dice.generated"
    numbers = {run["name"]: run["numbers"][key] for run in written["runs"]}
    assert numbers[names[2]] == skull["nearest_training_dice"]["generated"]
    values = [numbers[name] for name in names[2:]]
    cell = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert cell in written["rows"][1] and cell in out
    assert "Sweep" in (folder / "report.html").read_text(encoding="utf-8")
    before = (folder / names[0] / "train.jsonl").stat().st_mtime_ns
    sweep.sweep(config, folder, "all", named)
    assert "== job" not in capsys.readouterr().out
    assert (folder / names[0] / "train.jsonl").stat().st_mtime_ns == before


def test_an_exception_of_a_users_own_code_stops_no_other(tmp_path, capsys, pairs, monkeypatch):
    real, ran = workdir.run, []

    def breaks(config, folder):
        ran.append(config.seed)
        if config.seed == 0:
            raise TypeError("a bug of mylab")
        real(config, folder)

    monkeypatch.setattr(workdir, "run", breaks)
    with pytest.raises(UserError, match=r"these jobs failed.* 0 \(seed=0\)"):
        named = _named(lambda add: [add(seed=seed) for seed in (0, 1)])
        sweep.sweep(_config(stages=("ingest",), **pairs), tmp_path, "all", named)
    said = capsys.readouterr()
    assert ran == [0, 1] and "1 of 2 runs are done" in said.out
    assert "job 0 failed: a bug of mylab" in said.out and "Traceback" in said.err


@pytest.mark.parametrize(
    ("runs", "fixed", "words"),
    [
        ([{"model.learning": 1.0}], (), r"the config has no field 'model\.learning'"),
        ([{"phases[3].updates": 1}], (), r"the config has no field 'phases\[3\]\.updates'"),
        ([{"seed": "three"}], (), r"config\.seed is 'three'"),
        ([{"data.threshold": 2.0}], (), r"config\.data\.threshold is 2\.0: it must be 0\.001 to 1"),
        ([{"model_name": "vea"}], (), r"no module skullgen\.models\.vea"),
        ([{"seed": 1}], (), "adds the run seed=1 twice"),
        ([{"log_every": 3}], ("log_every",), r"--config\.log_every is set by sweep\(add\), too"),
    ],
)
def test_wrong_fields_are_told_before_anything_is_run(tmp_path, runs, fixed, words, monkeypatch):
    monkeypatch.setattr(workdir, "run", lambda *_: pytest.fail("a run was begun"))
    named = _named(lambda add: [add(run) for run in ({"seed": 1}, *runs)], **dict.fromkeys(fixed))
    with pytest.raises(UserError, match=words):
        sweep.sweep(_config(), tmp_path / "s", "all", named)
    assert not (tmp_path / "s").exists()


def test_a_sweep_without_a_run_or_in_the_folder_of_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="adds no run"):
        sweep.sweep(_config(), tmp_path, "all", _named(lambda add: None))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="one run works here"):
        sweep.sweep(_config(), tmp_path, "all", _named(_two))


def test_runs_are_named_by_what_they_set_and_share_nothing():
    def declare(add):
        add()
        add({"phases[0].updates": 9, "model.widths": (8, 16)})
        add({"data.root": "/a b/c"})
        add({"data.test": "x" * 300})

    config = _config()
    plan = sweep.plan(config, declare)
    names = [job.name for job in plan]
    assert names[:3] == ["base", "phases_0_.updates=9-model.widths=8+16", "data.root=_a_b_c"]
    assert len(names[3]) < 80 and all(len(name.split()) == 1 for name in names)
    own = plan[1].make()
    assert (own.phases[0]["updates"], config.phases[0]["updates"]) == (9, 2)
    assert tuple(own.model.widths) == (8, 16)


def test_a_seeds_row_by_hand(tmp_path):
    values = {"a-seed=0": 0.5, "a-seed=1": 0.7, "b": 0.9}
    for name, value in values.items():
        (tmp_path / name).mkdir()
        row = {"net": "vnet", "column": "test", "by": "all", "group": ""}
        rows = [{**row, "metric": metric, "mean": value} for metric in ("dice", "mylab.m.error")]
        rows.append({**row, "by": "kind", "metric": "dice", "mean": 99.0})
        quality = {"removed": {"empty_defects": 0, "x": []}}
        result = {"verdict": {"summary": rows}, "quality": quality}
        files.write_json(tmp_path / name / "metrics.json", result)
    runs = {
        "a-seed=0": {"generate.count": 8, "seed": 0},
        "a-seed=1": {"seed": 1},  # the config's own count: the same row
        "b": {"generate.count": 9, "seed": 0},
    }
    jobs = [table.Job(name, (), dict, fields) for name, fields in runs.items()]
    result = sweep.gather(_config(), tmp_path, jobs, list(values))
    titles = ["generate.count", "runs", "test Dice", "empty defects", "mylab.m.error"]
    assert result.columns == titles
    shown = f"0.600 ± {np.std([0.5, 0.7], ddof=1):.3f}"
    assert result.rows == [
        ["8", "2", shown, "0.000 ± 0.000", shown],
        ["9", "1", "0.900", "0.000", "0.900"],
    ]


def test_the_examples_sweep_is_three_seeds_of_all_that_is_drawn():
    """Fault 6: a V-Net and pairs of one seed in every run would make the deviation too small."""
    for seed, job in enumerate(sweep.plan(vae_wgan.get_config("smoke"), vae_wgan.sweep)):
        config = job.make()
        seeds = {config.seed, config.segment.seed, config.generate.seed, config.explore.seed}
        assert seeds == {seed} and job.row == {"seed": seed}
    assert seed == 2


def test_a_seed_that_is_set_follows_no_other():
    config = _config(**{"segment.seed": 7, "seed": 3})
    assert (config.segment.seed, config.generate.seed) == (7, 3)
    (job,) = sweep.plan(config, lambda add: add(seed=4))
    own = job.make()
    assert (own.segment.seed, own.generate.seed, config.seed) == (7, 4, 3)
    assert command.at_home(own).generate.seed == command.as_json(own)["generate"]["seed"] == 4
