"""The command line: what a run leaves, going on by its own config, a signal, mistakes."""

import shutil
import signal
from pathlib import Path

import pytest

from experiments import again
from skullgen.core import files
from skullgen.run import config as command
from skullgen.training import checkpoint
from tests.faults import faults

ROOT = Path(__file__).resolve().parents[1]
TOY = ["--config", "tests/toy_config.py", "--config.compilation_cache=", "--config.workers=1"]


def _run(*arguments):
    process = faults.launch(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """A copy of the run that was never stopped, and what its last stages print."""
    work = shutil.copytree(finished[0], tmp_path_factory.mktemp("whole") / "run")
    code, out, err = _run(*TOY, "--workdir", work, "--config.stages=evaluate,report")
    assert code == 0, err
    return work, out


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
    versions = files.read_json(work / "versions.json")
    assert versions["jax"] and versions["commit"] and versions["devices"]


def test_a_run_goes_on_by_its_own_config_where_it_lies(whole):
    work, _ = whole
    stages = files.read_json(work / "config.json")["stages"]
    own = ["--config", work / "config.json", "--config.compilation_cache="]
    code, out, err = _run(*own, "--config.stages=export", "--config.export.format=skullbreak")
    assert code == 0, err
    assert "warning" not in err and f"work directory: {work}\n" in out
    assert (work / "export" / "skullbreak" / "pairs.csv").exists()
    assert files.read_json(work / "config.json")["stages"] == stages
    # Settings of what is handed out are those of the config file, each time.
    assert again.get_config(work / "config.json").export.format == ("nifti",)


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
    assert json_.folder(False) == json_.again == Path("runs/x") and named.again is None
    long = named._replace(overrides={"data.test": "x" * 300}).folder(False).name
    assert len(long) < 80
