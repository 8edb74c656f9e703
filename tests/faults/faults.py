"""Stops real runs of launch.py at random instants, goes on, and compares with one never stopped.

  python -m tests.faults.faults kill --count 30 --config experiments/vae_wgan.py:smoke
  python -m tests.faults.faults signal --count 10
  python -m tests.faults.faults disk

Prints a table of what was tried; exit code 1 where anything was lost.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGES = ("ingest", "train", "generate", "segment", "evaluate")
TOY = "tests/toy_config.py"
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}


def start(config, work, *more, before=None):
    """A child process that runs a config in the folder `work`; `before` is called in it first."""
    return launch("--config", config, "--workdir", work, *more, before=before)


def launch(*arguments, before=None, **environment):
    """A child process of launch.py, of a group of its own."""
    own = {"PYTHONUNBUFFERED": "1", "XLA_FLAGS": "", "JAX_DEFAULT_PRNG_IMPL": "threefry2x32"}
    command = [sys.executable, "launch.py", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    how = dict(cwd=ROOT, start_new_session=True, preexec_fn=before, **pipes)
    return subprocess.Popen(command, env={**os.environ, **own, **environment}, **how)


def run(config, work, *more):
    """(exit code, stdout, stderr) of a whole run."""
    return end(start(config, work, *more))


def end(process):
    """(exit code, stdout, stderr) of a child process."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def content(folder):
    """File -> its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stages(names=STAGES):
    """The flag that names stages."""
    return f"--config.stages={','.join(names)}"


def left(work):
    """All that a run's result is: file -> its bytes, and of a checkpoint its state's sum."""
    result = {}
    for name, data in content(work).items():
        about = work.joinpath(*name.parts[:3]) / "_CHECKPOINT_METADATA"
        if name.name in ("versions.json", ".lock") or (about.exists() and about != work / name):
            continue
        if about == work / name:
            data = json.dumps(json.loads(data)["custom_metadata"]).encode()
        result[name.as_posix()] = data.replace(str(work).encode(), b"WORK")
    return result


def differences(work, whole):
    """Names of what differs between two work directories."""
    a, b = left(work), left(whole)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def saving(work):
    """Whether a checkpoint is being written in the folder `work`."""
    return any((work / "checkpoints").glob("*/*.orbax-checkpoint-tmp*"))


def wait(condition, process, seconds):
    """Waits until `condition()`, the end of the process, or so many seconds; tells the first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def reference(config, work):
    """A run never stopped: the seconds that each of its stages took."""
    process, begun = start(config, work, stages()), {}
    for line in process.stdout:
        if line.startswith("== "):
            begun.setdefault(line.split()[1].rstrip(":"), time.monotonic())
    err = process.communicate()[1]
    assert process.returncode == 0, err
    return dict(zip(begun, np.diff([*begun.values(), time.monotonic()]).tolist(), strict=True))


def interrupt(config, work, number, instant):
    """Stops a run by the signal `number`, and says what became of it.

    instant: (stage, seconds after it began), or ("save", n): in the middle of the n-th save seen.
    """
    process, lines = start(config, work, stages()), []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    stage, place = instant
    if stage == "save":
        seen = 0
        while wait(lambda: saving(work), process, 300) and seen < place:
            seen += 1
            wait(lambda: not saving(work), process, 60)
    else:
        wait(lambda: f"== {stage}\n" in lines, process, 300)
        wait(lambda: False, process, place)
    begin, finished = time.monotonic(), process.poll() is not None
    if number != signal.SIGKILL:
        process.send_signal(number)
    elif not finished:
        os.killpg(process.pid, number)
    err = process.stderr.read()
    process.wait(timeout=120)
    seconds = time.monotonic() - begin
    reader.join()
    last = [line.split()[1].rstrip(":") for line in lines if line.startswith("== ")]
    ends, problems = {0} if finished else CODES[number] | {0}, []
    if process.returncode not in ends or "Traceback" in err:
        problems = [f"exit code {process.returncode}: {err.strip()[-300:]}"]
    return {
        "signal": signal.Signals(number).name,
        "stopped in": f"a save in {last[-1]}" if stage == "save" else (last or ["start"])[-1],
        "exit code": process.returncode,
        "seconds to the end": round(seconds, 2),
        "lost": problems,
    }


def trial(config, whole, work, number, instant):
    """Stops a run, starts it again, and says what became of it."""
    result = interrupt(config, work, number, instant)
    code, _, words = run(config, work, stages())
    result["lost"] += (
        [f"did not go on: {words.strip()[-300:]}"] if code else differences(work, whole)
    )
    return result


def stop(config, count, numbers, seed, folder):
    """`count` trials at random instants of the stages in turn, every sixth in a save."""
    whole = folder / "whole"
    reference(config, folder / "warm")  # fills the compilation cache, so that the times below hold
    times = reference(config, whole)
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()), flush=True)
    draw, results = np.random.default_rng(seed), []
    for turn in range(2 * count):
        # A stage each in turn, and within it a random instant: short stages are stopped, too.
        stage = STAGES[turn % len(STAGES)]
        instant = (stage, float(draw.uniform(0, times[stage])))
        if turn % 6 == 5:
            instant = ("save", int(draw.integers(0, 12)))
        work = folder / f"run-{turn}"
        result = trial(config, whole, work, numbers[turn % len(numbers)], instant)
        print(f"{turn + 1:3d}", *result.values(), sep="  ", flush=True)
        if result["exit code"] or result["lost"]:  # else it had ended before it was to be stopped
            results.append(result)
        shutil.rmtree(work)
        if len(results) == count:
            break
    return results


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kill", "signal", "disk"])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--config", default="experiments/vae_wgan.py:smoke")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if given.what == "disk":
            from tests.faults import disk

            results = disk.outside(given.config, folder, disk.STAGES)
        else:
            numbers = [signal.SIGKILL]
            numbers = numbers if given.what == "kill" else [signal.SIGTERM, signal.SIGINT]
            results = stop(given.config, given.count, numbers, given.seed, folder)
    lost = [result for result in results if result["lost"]]
    print(f"tried {len(results)}, survived {len(results) - len(lost)}, lost {len(lost)}")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
