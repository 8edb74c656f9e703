"""From a 512^3 gzip NRRD to the model's grid, and Dice at 512^3: time and memory on one core.

    python benchmarks/data.py --json data.json

The skull is a phantom of 128^3 voxels, each made 4^3: files of scanned skulls compress less. The
obvious way is pynrrd and a block mean by reshape. Dice is that of a soft prediction at 128^3 of the
skull, and of its defect; there the obvious way is SciPy's zoom on the right grid (`--slow`).
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
# The probabilities are the masks, softened: surfaces in the right place, none of them exact.
SCORE = """
mask = numpy.load(sys.argv[1])
probability = ndimage.uniform_filter(mask.astype(numpy.float32), 3)
"""
DICE = """
metrics.upsampled_dice(probability, mask, 512, sys.argv[2])
"""
ZOOM = """
a, b = (
    ndimage.zoom(x.astype(numpy.float32), 4, order=1, mode="nearest", grid_mode=True) > 0.5
    for x in (probability, mask)
)
2 * (a & b).sum() / (a.sum() + b.sum())
"""
# Imports and warm-up come before the clock and the memory are read; peaks from /proc (Linux).
HARNESS = """
import sys, time
body, before = sys.argv.pop(), sys.argv.pop()
import numpy, nrrd, skullgen.volume
from scipy import ndimage
from skullgen import metrics
exec(before)

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


def measure(body, path, what, rounds, before=""):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-c", HARNESS, str(path), what, before, body]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append([float(value) for value in out.stdout.split()])
    seconds, memory = zip(*found, strict=True)
    return 1e3 * statistics.median(seconds), max(memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow", action="store_true", help="SciPy's zoom too")
    parser.add_argument("--json")
    args = parser.parse_args()
    import numpy as np

    from skullgen import metrics, phantom, volume
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
        for what, mask in parts.items():
            path = pathlib.Path(folder) / f"{what}.npy"
            np.save(path, mask)
            slow = measure(ZOOM, path, what, 1, SCORE) if args.slow else (None, None)
            for rule in metrics.RULES:
                ours, memory = measure(DICE, path, rule, args.rounds, SCORE)
                trilinear = rule == "probability" and args.slow
                peer, peer_memory = slow if trilinear else (None, None)
                rows.append(
                    {
                        "what": f"Dice at 512^3 of one {what} at 128^3, {rule}",
                        "size": 512,
                        "precision": "float32",
                        "device": "cpu, one core",
                        "ours_ms": round(ours, 1),
                        "peer": "scipy.ndimage.zoom" if trilinear else None,
                        "peer_ms": round(peer, 1) if trilinear else None,
                        "ratio": round(peer / ours, 2) if trilinear else None,
                    }
                )
                print(f"  {what}, {rule}: {ours:.0f} ms, {memory:.0f} MB more", end="")
                print(f"; zoom {peer:.0f} ms, {peer_memory:.0f} MB more" if trilinear else "")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
