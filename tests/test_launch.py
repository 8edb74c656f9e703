"""launch.py: what a run leaves, stops and full disks that lose nothing, one line for mistakes."""

import resource
import shutil
import signal
from pathlib import Path

import pytest

from experiments import again
from skullgen.core import files
from skullgen.run import config as command
from skullgen.training import checkpoint
from tests.faults import disk, faults

ROOT = Path(__file__).resolve().parents[1]
TOY = ["--config", "tests/toy_config.py", "--config.compilation_cache=", "--config.workers=1"]


def _run(*arguments):
    process = faults.launch(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never stopped, and the seconds of its stages; only to be read."""
    work = tmp_path_factory.mktemp("finished") / "run"
    return work, faults.reference(faults.TOY, work)


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_goes_on_by_its_own_config_and_leaves_all_that_a_user_looks_for(finished, tmp_path):
    work = shutil.copytree(finished[0], tmp_path / "run")
    stages = files.read_json(work / "config.json")["stages"]
    own = ["--config", work / "config.json", "--config.compilation_cache="]
    code, out, err = _run(
        *own, "--config.stages=report,export", "--config.export.format=skullbreak"
    )
    assert code == 0, err
    assert "warning" not in err and f"work directory: {work}\n" in out
    for name in ("real.zarr", "generated.zarr", "versions.json", "metrics.json", "report.html"):
        assert (work / name).exists()
    assert _lines(work / "train.jsonl") == 70
    pictures = {p.name for p in (work / "figures").iterdir()}
    assert {"real_pairs.png", "generated_pairs.png", "closest.png"} <= pictures
    versions = files.read_json(work / "versions.json")
    assert versions["jax"] and versions["commit"] and versions["devices"]
    assert (work / "export" / "skullbreak" / "pairs.csv").exists()
    assert files.read_json(work / "config.json")["stages"] == [*stages, "report"]
    # Settings of what is handed out are those of the config file, each time.
    assert again.get_config(work / "config.json").export.format == ("nifti",)


STOPS = (
    (signal.SIGKILL, ("ingest", 0.9)),
    (signal.SIGKILL, ("save", 4)),
    (signal.SIGKILL, ("generate", 0.7)),
    (signal.SIGTERM, ("segment", 0.5)),
    (signal.SIGINT, ("evaluate", 0.5)),
)


def _instant(place, times):
    stage, share = place
    return stage, share * times.get(stage, 1)


def test_a_run_stopped_in_every_stage_ends_as_one_that_was_not(finished, tmp_path):
    done, times = finished
    for number, place in STOPS[:-1]:
        result = faults.interrupt(faults.TOY, tmp_path / "run", number, _instant(place, times))
        assert not result["lost"], result
    result = faults.trial(faults.TOY, done, tmp_path / "run", *STOPS[-1])
    assert not result["lost"], result


@pytest.mark.slow
@pytest.mark.parametrize(("number", "place"), STOPS)
def test_a_run_stopped_once_ends_as_one_that_was_not(number, place, finished, tmp_path):
    done, times = finished
    instant = _instant(place, times)
    result = faults.trial(faults.TOY, done, tmp_path / "run", number, instant)
    assert not result["lost"], result


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGINT]])
def test_many_stops_at_random_instants(numbers, tmp_path):
    results = faults.stop("experiments/vae_wgan.py:smoke", 6, numbers, seed=7, folder=tmp_path)
    assert not [result for result in results if result["lost"]]


@pytest.mark.skipif(not disk.possible(), reason="no tmpfs can be mounted here (unshare -rm)")
@pytest.mark.parametrize("names", [["train"], pytest.param(disk.STAGES, marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_loses_nothing(names, finished, tmp_path):
    if "ingest" not in names:
        shutil.copytree(finished[0] / "real.zarr", tmp_path / "whole" / "run" / "real.zarr")
    results = disk.outside(faults.TOY, tmp_path, names)
    assert [result["stopped in"] for result in results] == list(names)
    assert not [result for result in results if result["lost"]], results


def test_memory_that_runs_out_names_the_field_to_lower(tmp_path):
    fields = ["stages=ingest,train", "batch_size=30000", "data.skulls=3", "workers=1"]
    fields += ["data.source=tests.toy_source"]
    process = faults.start(
        "experiments/vae.py:smoke",
        tmp_path / "run",
        *[f"--config.{field}" for field in fields],
        before=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err
    assert "error: train: out of memory on cpu (RESOURCE_EXHAUSTED" in err
    assert "lower config.batch_size or config.budget_mb" in err


def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path):
    long = ["--config.phases[1].updates=100000", "--config.save_every=100000"]
    process = faults.launch(*TOY, "--workdir", tmp_path, "--config.stages=ingest,train", *long)
    assert faults.wait(lambda: _lines(tmp_path / "train.jsonl") > 40, process, 120)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "a checkpoint of update" in out and "the same command goes on from here" in err
    saved = checkpoint.newest(tmp_path / "checkpoints" / "tests.toy")
    assert saved == _lines(tmp_path / "train.jsonl") > 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config"),
        ([*TOY, "--config.sede=3"], "sede"),
        ([*TOY, "--config.seed=three"], "seed"),
        ([*TOY, "--config.phases[7].updates=3"], "phases[7]"),
        (["--config", "experiments/vae.py:huge"], "no size 'huge': choose smoke, demo, paper"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words, tmp_path):
    code, _, err = _run(*arguments, "--workdir", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1) and words in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:", "config.py, line 1: invalid syntax"),
        ("x = 3", "config.py: it needs a function get_config() that returns a ConfigDict"),
        ("\ndef get_config():\n    return 1 / 0", "config.py, line 3: ZeroDivisionError: division"),
        ("raise UserWarning('two\\nlines\\x1b[2J')", r"UserWarning: two\nlines\x1b[2J"),
        (None, "config.py: no such config file"),
    ],
)
def test_config_files_that_cannot_be_used_are_one_line(text, words, tmp_path):
    path = tmp_path / "config.py"
    path.mkdir() if text is None else path.write_text(text)
    code, out, err = _run("--config", path, "--workdir", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err and err.strip().isprintable()
    assert not (tmp_path / "run").exists()


def test_default_work_directory_tells_config_size_and_overrides():
    fields = {"seed": 3, "stages": ("train",), "data.root": "/a/b", "data.kinds": ("a", "b.c")}
    named = command.Named(Path("experiments/vae.py"), "smoke", {**fields, "explore.umap": True})
    assert str(named.folder(False)) == "runs/vae-smoke-seed=3-data.kinds=a+b.c"
    assert str(named.folder(True)) == "runs/vae-smoke-seed=3-data.kinds=a+b.c-sweep"
    json_ = named._replace(file=command.AGAIN, word="runs/x/config.json")
    assert json_.folder(False) == Path("runs/x")
    long = named._replace(overrides={"data.test": "x" * 300}).folder(False).name
    assert len(long) < 80
