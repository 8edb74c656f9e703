"""From a 512^3 gzip NRRD to the model's grid: time and memory on one core, against the obvious way.

    python benchmarks/data.py --json data.json

The skull is a phantom of 128^3 voxels, each made 4^3: files of scanned skulls compress less. The
obvious way is pynrrd and a block mean by reshape.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

OURS = """
from skullgen import volume
import sys
volume.read_reduced(sys.argv[1], 128, keep_native=sys.argv[2] == "implant")
"""
OBVIOUS = """
import nrrd, sys
data, _ = nrrd.read(sys.argv[1])
(data != 0).reshape(128, 4, 128, 4, 128, 4).mean((1, 3, 5)) >= 0.5
"""
# Imports and warm-up come before the clock and the memory are read; peaks from /proc (Linux).
HARNESS = """
import sys, time
body = sys.argv.pop()
import numpy, nrrd, skullgen.volume

def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))

base = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
start = time.perf_counter()
exec(body)
print(time.perf_counter() - start, memory("VmHWM") - base)
"""


def measure(body, path, what, rounds):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-c", HARNESS, str(path), what, body]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append([float(value) for value in out.stdout.split()])
    seconds, memory = zip(*found, strict=True)
    return 1e3 * statistics.median(seconds), max(memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    import numpy as np

    from skullgen import phantom, volume
    from skullgen.defects import cut

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    complete = phantom.skull(0, 128)
    parts = dict(
        zip(("skull", "implant"), cut(complete, "bilateral", 0, voxel_mm=1.6), strict=True)
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, mask in parts.items():
            path = pathlib.Path(folder) / f"{what}.nrrd"
            volume.write(path, np.kron(mask, np.ones((4, 4, 4), bool)), np.diag([0.4, 0.4, 0.4, 1]))
            ours, memory = measure(OURS, path, what, args.rounds)
            peer, peer_memory = measure(OBVIOUS, path, what, args.rounds)
            rows.append(
                {
                    "what": f"512^3 gzip NRRD of one {what} to 128^3",
                    "size": 512,
                    "precision": "bool",
                    "device": "cpu, one core",
                    "ours_ms": round(ours, 1),
                    "peer": "pynrrd and numpy",
                    "peer_ms": round(peer, 1),
                    "ratio": round(peer / ours, 2),
                }
            )
            print(
                f"  ours {ours:.0f} ms, {memory:.0f} MB more; pynrrd and numpy {peer:.0f} ms, "
                f"{peer_memory:.0f} MB more"
            )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
