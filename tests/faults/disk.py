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
    """One result for each of the stages `names`, as `faults.trial` returns them."""
    ask = ["unshare", "-rm", sys.executable, "-m", "tests.faults.disk", config, folder, *names]
    done = subprocess.run(list(map(str, ask)), cwd=faults.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _used(path):
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def inside(config, folder, names):
    """Runs every stage once on a disk that fills up, and again with room; prints the results."""
    whole, disk = folder / "whole" / "run", folder / "disk"
    sizes, through = [], STAGES[: 1 + max(map(STAGES.index, names))]
    for name in through:
        code, _, err = faults.run(config, whole, faults.stages([name]))
        assert code == 0, err
        sizes.append(_used(whole))
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(disk)]
    subprocess.run(mount, check=True)
    work, results, before = disk / "run", [], 0
    for name, after in zip(through, sizes, strict=True):
        problems, words = [], ""
        if name in names:
            held = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
            filler = disk / "filler"
            room = 2**15 + (after - before) // 3  # versions.json is written first
            with open(filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
            code, _, err = faults.run(config, work, faults.stages([name]))
            words = err.strip().splitlines()[-1] if err.strip() else ""
            lines = [line for line in err.splitlines() if "error: " in line.lower()]
            if code != 2 or "no room left on its disk" not in words or len(lines) != 1:
                problems.append(f"exit code {code}: {err.strip()[-2000:]}")
            if "Traceback" in err:
                problems.append(f"traceback: {err.strip()[-2000:]}")
            changed = [p for p, was in held.items() if not p.exists() or p.read_bytes() != was]
            mine = ("config.json", "versions.json", ".lock")
            problems += [f"{p} was changed" for p in changed if p.name not in mine]
            filler.unlink()
        code, _, err = faults.run(config, work, faults.stages([name]))
        if code:
            problems.append(f"did not go on: {err.strip()[-500:]}")
        if name in names:
            words = words.replace(str(disk), "DISK")
            results.append({"stopped in": name, "said": words, "lost": problems})
        before = after
    lost = [name for name in faults.differences(work, whole) if not name.startswith("report")]
    results[-1]["lost"] += lost
    print(json.dumps(results))


if __name__ == "__main__":
    inside(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
