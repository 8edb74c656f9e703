"""`experiments/slurm.sh` beside stand-ins for `sbatch` and `python`: what is submitted, and run."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = ["--config", "experiments/table1.py:smoke", "--config.table.rows=real,vae:4"]


def _script(folder, name, text):
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def _bash(folder, *arguments, **environment):
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    command = ["bash", "experiments/slurm.sh", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def _waves(arguments):
    """By number: the wave of each run of the sweep, as `--sweep=list` says."""
    command = [sys.executable, "launch.py", *map(str, arguments), "--sweep=list"]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines()[2:]]
    needs = {int(r[0]): {int(x.strip(",")) for x in r[4:]} for r in rows if r[3:4] == ["needs"]}
    waves = {int(row[0]): int(row[1]) for row in rows}
    for run, others in needs.items():
        assert all(waves[other] < waves[run] for other in others)
    return waves


def test_each_wave_is_an_array_that_waits_for_the_one_before(tmp_path):
    said = tmp_path / "said"
    _script(tmp_path, "python", f'exec {sys.executable} "$@"')
    _script(tmp_path, "sbatch", f'echo "$*" >> {said}; echo "$((100 + $(wc -l < {said})));here"')
    arguments = [*TABLE, "--workdir", tmp_path / "run"]
    _bash(tmp_path, *arguments, SBATCH_ARGS="--gres=gpu:2")
    waves = _waves(arguments)
    assert sorted(set(waves.values())) == [0, 1, 2]
    *arrays, table = said.read_text(encoding="utf-8").splitlines()
    for wave, line in enumerate(arrays):
        runs = ",".join(str(run) for run in waves if waves[run] == wave)
        before = f" --dependency=afterany:{100 + wave}" if wave else ""
        assert line.startswith(f"--parsable --gres=gpu:2{before} --array={runs} experiments/")
        assert line.endswith(" ".join(map(str, arguments)))
    assert len(arrays) == 3 and "--dependency=afterany:103" in table and "--array" not in table


@pytest.mark.parametrize(
    ("environment", "more"),
    [
        ({"SKULLGEN_JOB": "1", "SLURM_ARRAY_TASK_ID": "3"}, " --sweep=3"),
        ({"SKULLGEN_JOB": "1"}, " --sweep=all"),
    ],
)
def test_a_job_runs_its_run_or_the_table(environment, more, tmp_path):
    _script(tmp_path, "python", 'echo "$*"')
    assert _bash(tmp_path, *TABLE, **environment) == f"launch.py {' '.join(TABLE)}{more}\n"
