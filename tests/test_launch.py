"""The command line: a run from nothing, kill -9 and on, signals, mistakes in one line."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from experiments import again
from skullgen.run import config as command
from tests.faults import faults

ROOT = Path(__file__).resolve().parents[1]
TOY = ["--config", "tests/toy_config.py", "--config.compilation_cache=", "--config.workers=1"]


def _run(*arguments):
    process = faults.launch(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def _bytes(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """A copy of the run that was never stopped, and what its last stages print."""
    work = shutil.copytree(finished[0], tmp_path_factory.mktemp("whole") / "run")
    code, out, err = _run(*TOY, "--workdir", work, "--config.stages=evaluate,report")
    assert code == 0, err
    return work, out


def _wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    pytest.fail("the run never came to the place to stop at")


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_leaves_all_that_a_user_looks_for(whole):
    work, out = whole
    for name in ("real.zarr", "generated.zarr", "config.json", "versions.json", "metrics.json"):
        assert (work / name).exists()
    assert _lines(work / "train.jsonl") == 70
    pictures = {p.name for p in (work / "figures").iterdir()}
    assert {"real_pairs.png", "generated_pairs.png", "closest.png"} <= pictures
    assert (work / "report.html").exists()
    assert "nearest training pair: held-out real" in out
    versions = json.loads((work / "versions.json").read_text())
    assert versions["jax"] and versions["commit"] and versions["devices"]


def test_a_second_call_does_nothing_again(whole):
    work, _ = whole
    before = _bytes(work / "generated.zarr")
    code, out, _ = _run(*TOY, "--workdir", work, "--config.stages=train,generate")
    assert code == 0
    assert "all 300 pairs are there" in out
    assert _bytes(work / "generated.zarr") == before


def test_a_run_goes_on_by_its_own_config_where_it_lies(whole):
    work, _ = whole
    stages = json.loads((work / "config.json").read_text())["stages"]
    own = ["--config", work / "config.json", "--config.compilation_cache="]
    code, out, err = _run(*own, "--config.stages=export", "--config.export.format=skullbreak")
    assert code == 0, err
    assert "warning" not in err and f"work directory: {work}\n" in out
    assert (work / "export" / "skullbreak" / "pairs.csv").exists()
    assert json.loads((work / "config.json").read_text())["stages"] == stages
    # Settings of what is handed out are those of the config file, each time.
    assert again.get_config(work / "config.json").export.format == ("nifti",)


@pytest.mark.parametrize("when", ["generation", "segmentation"])
def test_kill_9_and_again_ends_bit_identical(whole, when, tmp_path):
    work = tmp_path / "run"
    stages = "--config.stages=ingest,train,generate,segment,evaluate"
    process = faults.launch(*TOY, "--workdir", work, stages)
    if when == "segmentation":
        _wait_for(lambda: _lines(work / "segment-vnet.jsonl") > 20, process)
    else:
        done = work / "generated.zarr" / "voxels" / "c"
        _wait_for(lambda: done.exists() and any(done.iterdir()), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    code, _, err = _run(*TOY, "--workdir", work, stages)
    assert code == 0, err
    for name in ("real.zarr", "generated.zarr"):
        expected, got = _bytes(whole[0] / name), _bytes(work / name)
        assert expected.keys() == got.keys()
        different = [str(key) for key in expected if expected[key] != got[key]]
        assert not different
    for name in ("train.jsonl", "segment-vnet.jsonl", "segment-vnet_real.jsonl"):
        assert (work / name).read_text() == (whole[0] / name).read_text()
    cases = [
        json.loads((w / "metrics.json").read_text())["verdict"]["cases"] for w in (work, whole[0])
    ]
    assert cases[0] == cases[1] and cases[0]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(number, code, tmp_path):
    work = tmp_path / "run"
    long = ["--config.phases[1].updates=100000", "--config.save_every=100000"]
    process = faults.launch(*TOY, "--workdir", work, "--config.stages=ingest,train", *long)
    _wait_for(lambda: _lines(work / "train.jsonl") > 40, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "a checkpoint of update" in out
    assert "the same command goes on from here" in err
    saved = (work / "checkpoints" / "tests.toy").iterdir()
    steps = [int(p.name) for p in saved if p.name.isdigit()]
    assert max(steps) == _lines(work / "train.jsonl") > 30


def test_a_signal_to_the_whole_group_is_no_crash_of_a_worker(tmp_path):
    """As schedulers send it: to the workers, too."""
    work = tmp_path / "run"
    process = faults.launch(*TOY, "--config.workers=2", "--workdir", work, "--config.stages=ingest")
    _wait_for(lambda: (work / "real.zarr").exists(), process)
    time.sleep(2)  # the workers begin
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "the same command goes on from here" in err and "worker process died" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "experiments/none.py"], "experiments/none.py"),
        ([], "--config"),
        ([*TOY, "--config.sede=3"], "sede"),
        ([*TOY, "--config.seed=three"], "seed"),
        ([*TOY, "--config.phases[7].updates=3"], "phases[7]"),
        (["--config", "experiments/vae.py:huge"], "no size 'huge': choose smoke, demo, paper"),
        (
            ["--config", "experiments/vae_wgan.py:paper", "--config.explore.umap=False"],
            "data.root is empty",
        ),
        (["--config", "experiments/table1.py:smoke", "--sweep=99"], "a number below 15"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words, tmp_path):
    code, _, err = _run(*arguments, "--workdir", tmp_path / "run")
    assert code == 2
    assert "Traceback" not in err
    assert words in err
    assert len(err.strip().splitlines()) == 1


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


def test_a_changed_setting_of_work_done_is_refused_by_name(whole):
    before = (whole[0] / "config.json").read_text()
    code, _, err = _run(*TOY, "--workdir", whole[0], "--config.model.learning_rate=0.5")
    assert code == 2
    assert "tests.toy: made with model.learning_rate 0.1, now 0.5: set it back, or choose" in err
    assert (whole[0] / "config.json").read_text() == before


def test_default_work_directory_tells_config_size_and_overrides():
    fields = {"seed": 3, "stages": ("train",), "data.root": "/a/b", "data.kinds": ("a", "b.c")}
    named = command.Named(Path("experiments/vae.py"), "smoke", {**fields, "explore.umap": True})
    assert str(named.folder(False)) == "runs/vae-smoke-seed=3-data.kinds=a+b.c"
    assert str(named.folder(True)) == "runs/vae-smoke-seed=3-data.kinds=a+b.c-sweep"
    json_ = named._replace(file=command.AGAIN, word="runs/x/config.json")
    assert json_.folder(False) == json_.again == Path("runs/x") and named.again is None
    long = named._replace(overrides={"data.test": "x" * 300}).folder(False).name
    assert len(long) < 80
