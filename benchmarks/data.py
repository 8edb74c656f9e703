"""The data path against the obvious ways: 512^3 files to the store, Dice, the store to the device.

    python benchmarks/data.py --json data.json

`files`: a gzip NRRD of 512^3 to the model's grid of 128^3; and pairs of such files, in SkullBreak's
layout, to a closed store. They are phantoms of 128^3, each voxel made 4^3; `rough` ones lack every
tenth voxel, at random, so that gzip has more to do; `--file` adds one of yours.
`dice`: soft predictions at 128^3 of a defect, of the same with 400 specks, and of a whole skull;
the obvious ways, on the right grid, take minutes: `--slow`.
`device`: batches of 8 as float32 on the device, drawn at random from all pairs of a store.

Files and Dice are one core's work. Each way has a process of its own, in turn with the others; the
time is that of its second call, the memory that of its first beyond what was there (Linux). Ways
must agree with ours; those whose library is missing are left out. Ratios above 1: ours is faster.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import common
import numpy as np

# Way -> code, its imports in the first line, that makes `mask` or `score` by `path`.
MEAN = "reshape(128, 4, 128, 4, 128, 4).mean((1, 3, 5)) >= 0.5"
READ = {
    "ours": """import skullgen.data.sources
skull = skullgen.data.volumes.in_ras(skullgen.data.volumes.read(path))
mask = skullgen.data.sources.prepare(*skull, 128, reframe=False)[1] >= 0.5""",
    "pynrrd, numpy": f"""import nrrd
mask = nrrd.read(path)[0].{MEAN}""",
    "pynrrd, scikit-image": """import nrrd, skimage.transform
mask = skimage.transform.downscale_local_mean(nrrd.read(path)[0], (4, 4, 4)) >= 0.5""",
    "SimpleITK, numpy": f"""import SimpleITK as sitk
mask = sitk.GetArrayFromImage(sitk.ReadImage(path)).T.{MEAN}""",
    "SimpleITK's BinShrink": """import SimpleITK as sitk
share = sitk.BinShrink(sitk.Cast(sitk.ReadImage(path), sitk.sitkFloat32), [4] * 3)
mask = sitk.GetArrayFromImage(share).T >= 0.5""",
}
PAIRS = 4  # in a folder
INGEST = {
    "ours": """import shutil, experiments.common; from skullgen.data import ingest, store
config = experiments.common.defaults("paper").data
config.root, config.threshold = path, 0.5
shutil.rmtree(path + ".zarr", ignore_errors=True)
place = pathlib.Path(path + ".zarr")
ingest.run(place, 128, config, ingest.Options(workers=1))
mask = store.unpack(store.Store(place).load([0]), 128)[0]""",
    "pynrrd, numpy, savez_compressed": f"""import glob, nrrd
for skull in glob.glob(path + "/train/defective_skull/*/*.nrrd"):
    parts = skull, skull.replace("defective_skull", "implant")
    mask = numpy.stack([nrrd.read(part)[0].{MEAN} for part in parts], -1)
    numpy.savez_compressed(skull + ".npz", mask)""",
}
SCORE = """a, b = (f(x.astype("f4")) > 0.5 for x in (probability, truth))
score = 2 * (a & b).sum() / (a.sum() + b.sum())"""
DICE = {
    "ours": """import skullgen.evaluation.metrics
score = skullgen.evaluation.metrics.upsampled_dice(probability, truth, 512)""",
    "scipy.ndimage.zoom": f"""import scipy.ndimage
f = lambda x: scipy.ndimage.zoom(x, 4, order=1, mode="nearest", grid_mode=True)
{SCORE}""",
    "skimage.transform.resize": f"""import skimage.transform
f = lambda x: skimage.transform.resize(x, (512,) * 3, order=1, mode="edge")
{SCORE}""",
}
HARNESS = """
import json, pathlib, sys, time, zlib, numpy
code, path = sys.argv[1:]
head, _, code = code.partition("\\n")
exec(head)
if path.endswith(".npz"):
    case = numpy.load(path)
    probability, truth = case["probability"], case["truth"]

def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))

base = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
exec(code)
more = memory("VmHWM") - base
start = time.perf_counter()
exec(code)
ms = 1e3 * (time.perf_counter() - start)
value = score if path.endswith(".npz") else zlib.crc32(numpy.packbits(mask))
print(json.dumps([ms, more, float(value)]))
"""


def compare(what, ways, path, rounds, per=1, **more):
    """Rows of ours beside every other way; `per`: how many one call makes."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[1])}
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[threads] = "1"
    found = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(found, reverse=turn % 2 == 1):
            command = [sys.executable, "-c", HARNESS, ways[name], str(path)]
            run = subprocess.run(command, capture_output=True, text=True, env=environment)
            if "ModuleNotFoundError" in run.stderr:
                print(f"without {name}: {run.stderr.splitlines()[-1]}")
                del found[name]
            elif run.returncode:
                raise SystemExit(f"{name}: {run.stderr}")
            else:
                found[name].append(json.loads(run.stdout.splitlines()[-1]))
    ours, rows = found.pop("ours"), []
    # SciPy and scikit-image round an interpolated half, a tie, either way.
    limit = 1e-3 if path.suffix == ".npz" else 0
    for name, peer in found.items() or [(None, None)]:
        sides = {"ours": ours, **({"peer": peer} if name else {})}
        results = [side[0][2] for side in sides.values()]
        if np.ptp(results) > limit:
            raise SystemExit(f"{what}: ours and {name} differ: {results}")
        times = [[ms / per for ms, _, _ in side] for side in sides.values()]
        times.insert(1, name)
        memory = {f"{k}_mb": round(max(mb for _, mb, _ in side)) for k, side in sides.items()}
        kind = "float32" if path.suffix == ".npz" else "bool"
        rows.append(common.row(what, 512, kind, "cpu, one core", *times, **more, **memory))
        show(rows[-1])
    return rows


def show(row):
    notes = [f"{key} {row[key]:,}" for key in row if key.endswith(("_mb", "_bytes"))]
    print("; ".join([common.line(row), *notes]), flush=True)


def files(args, masks, folder):
    from skullgen.data import volumes

    rows, draw, affine = [], np.random.default_rng(0), np.diag([0.4, 0.4, 0.4, 1])
    for rough, what in itertools.product(("", "rough "), masks):
        mask = np.kron(masks[what], np.ones((4, 4, 4), bool))
        for plane in mask if rough else ():
            plane &= draw.random(plane.shape, np.float32) < 0.9
        volumes.write(folder / f"{rough}{what}.nrrd", mask, affine)
    if args.file:
        volumes.write(folder / "file of yours.nrrd", *volumes.in_ras(volumes.read(args.file)))
    for path in sorted(folder.glob("*.nrrd")):
        what, size = f"NRRD of one {path.stem} to 128^3", round(path.stat().st_size / 1e6, 2)
        rows += compare(what, READ, path, args.rounds, file_mb=size)
    for rough in ("", "rough "):
        root = folder / f"{rough}pairs"
        for side, what in (("defective_skull", "skull"), ("implant", "implant")):
            place = root / "train" / side / "bilateral"
            place.mkdir(parents=True)
            for number in range(PAIRS):
                os.link(folder / f"{rough}{what}.nrrd", place / f"{number:03d}.nrrd")
        what = f"NRRD to the store, a {rough}volume"
        rows += compare(what, INGEST, root, args.rounds, per=2 * PAIRS)
    return rows


def dice(args, masks, folder):
    from scipy import ndimage

    # The masks, softened: surfaces in the right place, none of them exact.
    soft = {k: ndimage.uniform_filter(mask.astype(np.float32), 3) for k, mask in masks.items()}
    soft["specks"] = soft["implant"].copy()
    soft["specks"][tuple(np.random.default_rng(0).integers(0, 128, (3, 400)))] = 0.9
    rows = []
    for case in soft:
        path = folder / f"{case}.npz"
        np.savez(path, probability=soft[case], truth=masks.get(case, masks["implant"]))
        ways, rounds = (DICE, 1) if args.slow else ({"ours": DICE["ours"]}, args.rounds)
        rows += compare(f"Dice, {case} at 128^3", ways, path, rounds)
    return rows


def device(args, masks, folder):
    from skullgen.data import phantom
    from skullgen.data.defects import cut

    small = cut(phantom.skull(0, 32), "bilateral", 0, voxel_mm=6.4)
    rows = batches(args, small, 512, folder / "32.zarr")
    return rows + batches(args, masks.values(), 24, folder / "128.zarr")


def batches(args, masks, count, path):
    """From packed bits on the device; from uint8 there; or sent from the host, a batch a time."""
    import jax
    import jax.numpy as jnp

    from skullgen.data import store
    from skullgen.models import steps
    from skullgen.training import parallel

    pair, draw, everything = np.stack(list(masks), -1), np.random.default_rng(0), list(range(count))
    size = len(pair)
    opened = store.create(path, store.Shape(count, size, count), {}, {})
    opened.write(0, np.stack([store.pack(np.roll(pair, k, 0)) for k in everything]), {})
    loads = [common.timed(lambda: opened.load(everything)) / count for _ in range(args.rounds)]
    rows = [common.row("store to packed pairs, a pair", size, "bits", common.device(), loads)]
    packed = opened.load(everything)
    bytes_ = store.unpack(packed, size).view(np.uint8)
    floats = bytes_.astype(np.float32)
    here, there = parallel.resident(packed), parallel.resident(bytes_)
    unpacked = jax.jit(lambda data, k: steps.unpack(data[k], size).astype(jnp.float32))
    picked = jax.jit(lambda data, k: data[k].astype(jnp.float32))
    cast = jax.jit(lambda batch: batch.astype(jnp.float32))
    ways = {
        "ours": lambda k: unpacked(here, k),
        "uint8 on the device": lambda k: picked(there, k),
        "uint8 on the host": lambda k: cast(jax.device_put(bytes_[k])),
        "float32 on the host": lambda k: jax.device_put(floats[k]),
    }
    for way in ways.values():
        np.testing.assert_array_equal(way(np.arange(8)), floats[:8])

    def side(way):
        return lambda: jax.block_until_ready(way(draw.integers(0, count, 8).astype(np.int32)))

    times = common.interleaved({k: side(way) for k, way in ways.items()}, 4 * args.rounds)
    for name in list(ways)[1:]:
        more = {"ours_bytes": here.nbytes // count}  # of a pair, for as long as training lasts
        more["peer_bytes"] = there.nbytes // count if name == "uint8 on the device" else 0
        sides = times["ours"], name, times[name]
        what = "a batch of 8 on the device"
        rows.append(common.row(what, size, "float32", common.device(), *sides, **more))
    for row in rows:
        show(row)
    return rows


PARTS = {"files": files, "dice": dice, "device": device}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file", help="a mask of 512^3 voxels")
    parser.add_argument("--slow", action="store_true", help="SciPy's and scikit-image's Dice too")
    parser.add_argument("--json")
    args = parser.parse_args()
    from skullgen.data import phantom
    from skullgen.data.defects import cut

    masks = cut(phantom.skull(0, 128), "bilateral", 0, voxel_mm=1.6)
    masks = dict(zip(("skull", "implant"), masks, strict=True))
    rows, cores = [], os.sched_getaffinity(0)
    for part in args.parts:
        os.sched_setaffinity(0, cores if part == "device" else {min(cores)})
        with tempfile.TemporaryDirectory() as folder:
            rows += PARTS[part](args, masks, pathlib.Path(folder))
    common.save(rows, args.json)


if __name__ == "__main__":
    main()
