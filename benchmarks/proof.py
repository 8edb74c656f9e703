"""What a checkout makes, in sums and numbers: two checkouts that agree here changed no result.

  python benchmarks/proof.py record before.json [NAME ...]
  python benchmarks/proof.py compare before.json after.json

A record holds, of each run, the SHA-256 of the voxels of its stores, every number of `quality` and
`verdict` in `metrics.json`, and the last line of each log. Run it in the checkout that is asked.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMOKE = "vae_wgan vae wgan_gp introvae vnet table1".split()
RUNS = {f"{name}:smoke": {} for name in SMOKE}
RUNS["vae_wgan:smoke stopped"] = {"stop": True}
RUNS["vae_wgan:smoke two devices"] = {"devices": 2}
RUNS["vae_wgan:demo"] = {}


def main(words):
    """`record FILE [NAME ...]` or `compare BEFORE AFTER`; returns the exit code."""
    if words[0] == "compare":
        return compare(*(json.loads(Path(file).read_text()) for file in words[1:]))
    file = Path(words[1])
    for name in words[2:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            run(name, Path(folder) / "run", **RUNS[name])
            seconds = round(time.monotonic() - start, 1)
            record = {"seconds": seconds, "numbers": numbers(Path(folder) / "run")}
        records = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**records, name: record}, indent=1) + "\n")
        print(f"{name}: {seconds} s, {len(record['numbers'])} numbers", flush=True)
    return 0


def run(name, folder, stop=False, devices=1):
    """Runs a config; `stop` kills it in training and again in the V-Net's, and goes on."""
    config = name.split()[0].partition(":")
    command = [sys.executable, "launch.py", "--config", f"experiments/{config[0]}.py:{config[2]}"]
    command += ["--workdir", str(folder)]
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    options = {"env": {**os.environ, "XLA_FLAGS": flags}, "stdout": subprocess.DEVNULL}
    for log in ("train.jsonl", "segment-vnet.jsonl") if stop else ():
        going = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
        while going.poll() is None and not _lines(folder / log):
            time.sleep(0.05)
        going.send_signal(signal.SIGKILL)
        going.wait()
    subprocess.run(command, check=True, stderr=subprocess.PIPE, **options)


def _lines(log):
    return log.exists() and log.read_bytes().count(b"\n")


def numbers(folder):
    """The sums, numbers and last lines of a run, or of all runs of a sweep."""
    import zarr

    values = {}
    for path in sorted(folder.rglob("*.zarr")):
        pairs = zarr.open_group(path, mode="r")["pairs"]
        voxels = hashlib.sha256()
        for row in range(pairs.shape[0]):
            voxels.update(pairs[row].tobytes())
        values[str(path.relative_to(folder))] = voxels.hexdigest()
    for path in sorted(folder.rglob("metrics.json")):
        content = json.loads(path.read_text())
        for part in ("quality", "verdict"):
            values |= leaves(content.get(part), f"{path.relative_to(folder)}.{part}")
    for path in sorted(folder.rglob("*.jsonl")):
        last = json.loads(path.read_text().splitlines()[-1])
        values |= leaves({k: v for k, v in last.items() if k != "crc32"}, path.relative_to(folder))
    return values


def leaves(value, name):
    """Every number of a JSON value by its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in leaves(item, f"{name}.{key}").items()}
    return {str(name): value} if isinstance(value, int | float) else {}


def compare(before, after):
    """Prints what differs, run by run; returns 1 where anything does."""
    worst = 0
    for name in before:
        old, new = before[name]["numbers"], after.get(name, {"numbers": {}})["numbers"]
        other = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        print(f"{name}: {len(old)} numbers, {len(other)} differ")
        for key in other[:10]:
            print(f"  {key}: {old.get(key)} -> {new.get(key)}")
        worst |= bool(other)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
