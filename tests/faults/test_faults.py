"""Runs of launch.py that are killed, or that run out of disk or memory."""

import resource
import signal

import pytest

from tests.faults import disk, faults

SLOW = "experiments/vae_wgan.py:smoke"


@pytest.mark.parametrize(
    ("number", "instant"),
    [
        (signal.SIGKILL, ("ingest", 0.9)),
        (signal.SIGKILL, ("save", 4)),
        (signal.SIGKILL, ("generate", 0.7)),
        (signal.SIGTERM, ("segment", 0.5)),
        pytest.param(signal.SIGINT, ("evaluate", 0.5), marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(number, instant, finished, tmp_path):
    done, times = finished
    stage, place = instant
    instant = stage, place * times.get(stage, 1)
    result = faults.trial(faults.TOY, done, tmp_path / "run", number, instant)
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


def test_memory_that_runs_out_names_the_field_to_lower(tmp_path):
    fields = ["stages=ingest,train", "batch_size=30000", "data.skulls=3", "workers=1"]
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
