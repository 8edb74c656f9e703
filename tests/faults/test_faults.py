"""Runs of launch.py that are killed, that run out of disk or memory, and damaged files."""

import signal

import pytest

from tests.faults import disk, faults

SLOW = "experiments/vae_wgan.py:smoke"
ONE = "--config.workers=1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run never stopped, and the times of its stages."""
    work = tmp_path_factory.mktemp("whole") / "run"
    return work, faults.reference(faults.TOY, work)


def _copy(whole, folder, names=faults.STAGES):
    """A run of its own that has what the stages before `names` left."""
    work = folder / "run"
    code, _, err = faults.run(faults.TOY, work, faults.stages(names))
    assert code == 0, err
    return work


@pytest.mark.parametrize(
    ("number", "instant"),
    [
        (signal.SIGKILL, ("ingest", 0.9)),
        (signal.SIGKILL, ("save", 4)),
        (signal.SIGTERM, ("evaluate", 0.5)),
        (signal.SIGINT, ("train", 0.5)),
    ],
)
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(number, instant, whole, tmp_path):
    done, times = whole
    stage, place = instant
    if stage != "save":
        part = faults.STAGES.index(stage)
        place = times[part] + place * (times[part + 1] - times[part])
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
