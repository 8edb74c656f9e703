"""A disk that is full in the middle of a stage: a small tmpfs in a mount namespace of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from tests.faults import faults

STAGES = (*faults.STAGES, "explore", "report")


def possible():
    """Whether this machine lets us mount a tmpfs of our own."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        return False


def outside(config, folder, names):
    """One result for each of the stages `names`, as `faults.trial` returns them.

    What the stages before them made lies in `folder / "whole" / "run"`.
    """
    ask = ["unshare", "-rm", sys.executable, "-m", "tests.faults.disk", config, folder, *names]
    done = subprocess.run(
        list(map(str, ask)), cwd=faults.ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def inside(config, folder, names):
    """Runs every stage once on a disk that fills up, and again with room; prints the results."""
    whole, disk, results = folder / "whole" / "run", folder / "disk", []
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", disk], check=True)
    if whole.exists():
        shutil.copytree(whole, disk / "run")
    for name in names:
        sizes = [_size(whole)]
        code, _, err = faults.run(config, whole, faults.stages([name]))
        assert code == 0, err
        sizes.append(_size(whole))
        results.append(_filled(config, disk, name, (sizes[1] - sizes[0]) // 3))
        code, _, err = faults.run(config, disk / "run", faults.stages([name]))
        if code:
            results[-1]["lost"].append(f"did not go on: {err.strip()[-500:]}")
    lost = [name for name in faults.differences(disk / "run", whole) if "report" not in name]
    results[-1]["lost"] += lost
    print(json.dumps(results))


def _size(folder):
    return sum(map(len, faults.content(folder).values()))


def _filled(config, disk, stage, room):
    """What a stage says that has so many bytes of room, and what it did that it should not."""
    work, filler = disk / "run", disk / "filler"
    earlier = faults.content(work)
    with open(filler, "wb") as file:  # config.json is written first
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 2**15 - room)
    code, _, err = faults.run(config, work, faults.stages([stage]))
    filler.unlink()
    words, count = err.strip().rpartition("\n")[2], err.lower().count("error: ")
    now = faults.content(work)
    problems = [f"{p} was changed" for p, data in earlier.items() if now.get(p) != data]
    problems = [text for text in problems if not text.startswith(("config.json", ".lock"))]
    if (code, count) != (2, 1) or "no room left on its disk" not in words or "Traceback" in err:
        problems.append(f"exit code {code}: {err.strip()[-2000:]}")
    return {"stopped in": stage, "said": words.replace(str(disk), "DISK"), "lost": problems}


if __name__ == "__main__":
    inside(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
