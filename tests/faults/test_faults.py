"""Runs of launch.py that are killed, that run out of disk or memory, and damaged files."""

import os
import pathlib
import platform
import resource
import shutil
import signal

import pytest

from tests.faults import disk, faults

SLOW = "experiments/vae_wgan.py:smoke"
ONE = "--config.workers=1"


@pytest.mark.parametrize(
    ("number", "instant"),
    [
        (signal.SIGKILL, ("ingest", 0.9)),
        (signal.SIGKILL, ("save", 4)),
        (signal.SIGTERM, ("evaluate", 0.5)),
        pytest.param(signal.SIGINT, ("train", 0.5), marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(number, instant, finished, tmp_path):
    done, times = finished
    stage, place = instant
    place = place if stage == "save" else place * times[stage]
    result = faults.trial(faults.TOY, done, tmp_path / "run", number, (stage, place))
    assert not result["lost"], result


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGINT]])
def test_many_stops_at_random_instants(numbers, tmp_path):
    results = faults.stop(SLOW, 6, numbers, seed=7, folder=tmp_path)
    assert not [result for result in results if result["lost"]]


room = pytest.mark.skipif(not disk.possible(), reason="no tmpfs can be mounted here (unshare -rm)")


@room
@pytest.mark.parametrize("names", [["train"], pytest.param(disk.STAGES, marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_loses_nothing(names, tmp_path):
    results = disk.outside(faults.TOY, tmp_path, names)
    assert [result["stopped in"] for result in results] == list(names)
    assert not [result for result in results if result["lost"]], results


def _workers(parent):
    """Process numbers of the worker processes of a run."""
    found = []
    for place in pathlib.Path("/proc").iterdir():
        try:
            _, _, rest = (place / "stat").read_text().rpartition(")")
            mine = place.name.isdigit() and int(rest.split()[1]) == parent
            if mine and b"popen_loky" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("stage", "name"), [("ingest", "real"), ("generate", "generated")])
def test_a_worker_that_dies_ends_the_run_in_one_line(stage, name, finished, tmp_path):
    work, two, name = tmp_path / "run", "--config.workers=2", f"{name}.zarr"
    if stage == "generate":
        shutil.copytree(finished[0], work)
        shutil.rmtree(work / name)
    process = faults.start(faults.TOY, work, faults.stages([stage]), two)
    assert faults.wait(lambda: _workers(process.pid), process, 60)
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert process.returncode == 2 and "Traceback" not in err, err
    assert len(errors) == 1 and "a worker process died" in errors[0]
    code, _, err = faults.run(faults.TOY, work, faults.stages([stage]), two)
    assert code == 0, err
    assert faults.left(work / name) == faults.left(finished[0] / name)


def test_memory_that_runs_out_names_the_field_to_lower(tmp_path):
    arguments = ["--config.batch_size=30000", "--config.data.skulls=3", ONE]
    limit = 6 * 2**30
    process = faults.start(
        "experiments/vae.py:smoke",
        tmp_path / "run",
        faults.stages(["ingest", "train"]),
        *arguments,
        before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err
    assert "error: train: out of memory on cpu (RESOURCE_EXHAUSTED" in err
    assert "lower config.batch_size or config.budget_mb" in err


def test_a_second_run_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path):
    work = tmp_path / "run"
    first = faults.start(faults.TOY, work, faults.stages(["ingest"]), ONE)
    assert faults.wait(lambda: (work / "config.json").exists(), first, 60)
    code, _, err = faults.run(faults.TOY, work, faults.stages(["ingest"]), ONE)
    assert code == 2 and f"process {first.pid} on {platform.node()}" in err
    assert first.poll() is None, "it ended too early for this test"
    first.kill()
    first.communicate()
    assert str(first.pid) in (work / ".lock").read_text()
    code, _, err = faults.run(faults.TOY, work, faults.stages(["ingest"]), ONE)
    assert code == 0, err
