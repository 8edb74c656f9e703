"""Several processes of one run: losses, checkpoints, shares of a store, a signal, mistakes."""

import shutil
import signal
import socket

import numpy as np
import pytest

from skullgen.data import store
from skullgen.training import checkpoint, logs
from tests.faults import faults
from tests.test_launch import TOY

HYBRID = ["--config", "experiments/vae_wgan.py:smoke", "--config.phases[0].updates=4"]
HYBRID += ["--config.workers=1", "--config.generate.count=130"]  # three shards
SMALL = [*TOY, "--config.generate.count=130", "--config.phases[0].updates=8"]
# The arguments of a run, the name of its checkpoints, and what makes it an update longer.
RUNS = {
    "toy": ([*SMALL, "--config.phases[1].updates=8"], "tests.toy", "phases[1].updates=9"),
    "hybrid": (HYBRID, "vae_wgan", "phases[2].updates=3"),
}


def _start(arguments, devices=1, **more):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return faults.launch(*arguments, XLA_FLAGS=flags, JAX_PLATFORMS="cpu", **more)


def _ends(processes):
    """What each printed; their exit codes are one."""
    said = [process.communicate(timeout=240) for process in processes]
    codes = {process.returncode for process in processes}
    assert len(codes) == 1, said
    return codes.pop(), said


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _two(arguments):
    port = _free_port()
    return [_start([*arguments, f"--distributed={k}/2@localhost:{port}"]) for k in (0, 1)]


def _slurm(arguments):
    """Two processes as `srun` starts them on one node."""
    job = next(n for n in np.random.default_rng().permutation(2**12).tolist() if _is_free(n))
    shared = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    shared |= {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
    auto = [*arguments, "--distributed=auto"]
    return [_start(auto, **shared, SLURM_PROCID=str(k)) for k in (0, 1)]


def _is_free(job):
    with socket.socket() as one:
        return one.connect_ex(("localhost", job + 2**16 - 2**12)) != 0


def _log(work):
    return logs.read(work / "train.jsonl")


@pytest.fixture(scope="module", params=["toy", pytest.param("hybrid", marks=pytest.mark.slow)])
def two(request, tmp_path_factory):
    """Ingest, training and generation by two processes, and evaluation by the first of them."""
    work = tmp_path_factory.mktemp("two") / "run"
    stages = "--config.stages=ingest,train,generate,evaluate"
    code, said = _ends(_slurm([*RUNS[request.param][0], "--workdir", work, stages]))
    assert code == 0, said
    return work, said, *RUNS[request.param]


def test_two_processes_have_the_losses_of_one(two, tmp_path):
    work, said, command, *_ = two
    shutil.copytree(work / "real.zarr", tmp_path / "real.zarr")
    alone = [*command, "--workdir", tmp_path, "--config.stages=train"]
    code, words = _ends([_start(alone, devices=2)])
    assert code == 0, words
    ours, theirs = _log(work), _log(tmp_path)
    assert len(ours) == len(theirs) >= 8
    for here, there in zip(ours, theirs, strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert value == (there[name] if isinstance(value, str) else pytest.approx(there[name]))
    assert "==" not in said[1][0] and "== evaluate" in said[0][0]  # one process speaks, and goes on
    assert (work / "metrics.json").exists()


def test_their_store_and_checkpoint_are_those_of_one_process(two, tmp_path):
    work, _, command, name, field = two
    alone = tmp_path / "alone"
    shutil.copytree(work, alone)
    shutil.rmtree(alone / "generated.zarr")
    longer, updates = [*command, "--workdir", alone, f"--config.{field}"], len(_log(work))
    code, words = _ends([_start([*longer, "--config.stages=generate"])])
    assert code == 0, words
    assert store.Store(work / "generated.zarr").missing() == []
    assert faults.content(alone / "generated.zarr") == faults.content(work / "generated.zarr")
    code, words = _ends([_start([*longer, "--config.stages=train"])])
    assert code == 0 and f"goes on from the checkpoint of update {updates}" in words[0][0]
    assert checkpoint.newest(alone / "checkpoints" / name) == updates + 1


def test_a_signal_to_one_process_stops_both_in_the_same_update(tmp_path):
    command = [*TOY, "--workdir", tmp_path, "--config.stages=ingest,train"]
    command += ["--config.phases[1].updates=40000", "--config.save_every=50"]
    processes = _two(command)
    log = tmp_path / "train.jsonl"
    assert faults.wait(lambda: log.exists() and len(_log(tmp_path)) > 40, processes[0], 120)
    processes[1].send_signal(signal.SIGTERM)
    code, said = _ends(processes)
    assert code == 143, said
    stopped = checkpoint.newest(tmp_path / "checkpoints" / "tests.toy")
    assert stopped and len(_log(tmp_path)) == stopped


def test_work_directories_that_are_not_one_are_refused(tmp_path):
    port = _free_port()
    processes = [
        _start([*TOY, "--workdir", tmp_path / str(k), f"--distributed={k}/2@localhost:{port}"])
        for k in (0, 1)
    ]
    said = processes[1].communicate(timeout=120)
    assert processes[1].returncode == 2 and "not on a disk that all processes share" in said[1]
    processes[0].kill()
    processes[0].communicate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--distributed=0/1@localhost:1", "--sweep=all"], "--distributed is for one run"),
        (["--distributed=two"], "--distributed is 'two': auto, or K/N@HOST:PORT"),
        (["--distributed=auto"], "JAX finds no such cluster"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path):
    code, said = _ends([_start([*TOY, "--workdir", tmp_path / "run", *arguments])])
    assert code == 2 and words in said[0][1] and said[0][1].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_two_processes_start_from_weights_as_one_does(two, tmp_path):
    """Both read them; process 0's count."""
    work, _, command, *_ = two
    begun, logs_ = [*command, "--config.stages=train", f"--config.init_from={work}"], []
    for folder, run in (("two", _two), ("one", lambda words: [_start(words, devices=2)])):
        shutil.copytree(work / "real.zarr", tmp_path / folder / "real.zarr")
        code, said = _ends(run([*begun, "--workdir", tmp_path / folder]))
        assert code == 0 and " arrays are taken" in said[0][0], said
        logs_.append(_log(tmp_path / folder))
    for here, there, scratch in zip(*logs_, _log(work), strict=True):
        numbers = [[x for x in one.values() if isinstance(x, float)] for one in (here, there)]
        assert numbers[0] == pytest.approx(numbers[1]) and here != scratch
