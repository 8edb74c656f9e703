"""Generation from a checkpoint to a closed store on disk: pairs a second, and where time goes.

    python benchmarks/generate.py --size 32 --base 16 --json generate.json --plot generate.png
    python benchmarks/generate.py --size 128 --beside    # only the part beside the network

The network is `vae_wgan`'s, with the fields of the size `paper` and widths base x (1, 2, 4, 8). It
is not trained, and its noise is not what components and zstd see in use: end to end its answer is
computed, and then replaced, on the device, by phantoms with a few hundred specks of dust. Those
runs go through `generation.generate.run`; their rate counts from when each worker has done three
shards. "All but the network" is the same with bits that are ready.

Beside the network, on one core: packed pairs in, dust out, whole shards on disk. `clean` pairs have
no dust, `noise` is 30 % random: what an early generator makes. The peers are the obvious way
(float32 probabilities, already on the host, `scipy.ndimage.label`, a .nii.gz a channel by nibabel)
and our components with `np.savez_compressed` of the packed bits, a file a pair.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import tempfile
import time
import types
from unittest import mock

import common
import nibabel
import numpy as np
from scipy import ndimage

from skullgen.data import defects, phantom, store
from skullgen.generation import postprocess

SHARD, FEW = 64, 8  # pairs in a file, as `skullgen.generation.generate`'s; pairs that differ
DUST_MM3 = 409.6  # the paper's


def phantoms(size):
    """Packed pairs [FEW, bytes] by kind: `clean`, `dusty` and `noise`."""
    draw, kinds = np.random.default_rng(0), itertools.cycle(defects.KINDS)
    clean = [
        np.stack(defects.cut(phantom.skull(i, size), kind, i, voxel_mm=phantom.FIELD_MM / size), -1)
        for i, kind in zip(range(FEW), kinds, strict=False)
    ]
    dusty = np.array(clean)
    for pair in dusty:
        for channel in [0] * (450 * size**3 // 128**3) + [1] * (150 * size**3 // 128**3):
            begin = draw.integers(0, size - 3, 3)
            pair[(*map(slice, begin, begin + draw.integers(1, 4, 3)), channel)] = True
    pairs = {"clean": np.array(clean), "dusty": dusty, "noise": draw.random(dusty.shape) < 0.3}
    for both in pairs.values():
        both[..., 1] &= ~both[..., 0]
    return {kind: store.pack(both) for kind, both in pairs.items()}


def obvious(folder, probability, least, affine):
    for number, pair in enumerate(probability):
        skull, defect = np.moveaxis(pair >= 0.5, -1, 0)
        for name, mask in (("skull", skull), ("defect", defect & ~skull)):
            labels, _ = ndimage.label(mask)
            keep = np.bincount(labels.ravel()) >= least
            keep[0] = False
            image = nibabel.Nifti1Image(keep[labels].astype(np.uint8), affine)
            nibabel.save(image, folder / f"{number}-{name}.nii.gz")


def beside(folder, kind, few, size, rounds):
    """Rows of the part beside the network for one kind of pairs; on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this process alone
    path, bits, starts = folder / "s.zarr", np.resize(few, (SHARD, few.shape[1])), itertools.count()
    probability, voxel_mm = store.unpack(few, size).astype(np.float32), phantom.FIELD_MM / size
    shape, attributes = store.Shape(1000 * SHARD, size, SHARD), {"voxel_mm": voxel_mm}
    opened = store.create(path, shape, attributes, {})
    affine, least = np.diag([voxel_mm] * 3 + [1]), math.ceil(DUST_MM3 / voxel_mm**3)

    rules = postprocess.Rules("independent", 0.5, least)

    def finish():
        postprocess.finish(opened, SHARD * next(starts), bits, np.zeros(SHARD, int), rules)

    def npz():
        for number, pair in enumerate(postprocess.clean(few, size, rules)):
            np.savez_compressed(folder / f"{number}.npz", pair)

    sides = {
        "ours": (SHARD, finish),
        "components": (SHARD, lambda: postprocess.clean(bits, size, rules)),
        "store": (SHARD, lambda: opened.write(SHARD * next(starts), bits, {})),
        "SciPy, nibabel": (FEW, lambda: obvious(folder, probability, least, affine)),
        "npz": (FEW, npz),
    }
    times = common.interleaved({name: f for name, (_, f) in sides.items()}, rounds)
    files = [folder / f"{FEW - 1}-{name}.nii.gz" for name in ("skull", "defect")]
    theirs = np.stack([np.asarray(nibabel.load(file).dataobj) for file in files], -1)
    kept = postprocess.clean(few[-1:], size, rules)
    np.testing.assert_array_equal(theirs.astype(bool), store.unpack(kept, size)[0])
    ms = {name: [t / sides[name][0] for t in side] for name, side in times.items()}
    put = (size, "bool", "cpu, one core")
    for stage in ("components", "store"):
        yield common.row(f"{stage}, {kind} pairs", *put, ms[stage], stage=stage, kind=kind)
    for peer in ("SciPy, nibabel", "npz"):
        yield common.row(f"beside the network, {kind} pairs", *put, ms["ours"], peer, ms[peer])


def all_beside(size, rounds):
    rows = []
    for kind, few in phantoms(size).items():
        with tempfile.TemporaryDirectory() as folder:
            rows += beside(pathlib.Path(folder), kind, few, size, rounds)
    return rows


def stages(model, state, settings, args, batch):
    """Rows of what the device does to a batch."""
    import jax

    from skullgen.generation import generate
    from skullgen.training.methods import Trained

    rules = postprocess.Rules("independent", settings.threshold)
    draw = generate.sampler(Trained(model, state), rules, batch)
    make = functools.partial(draw, seed=settings.seed)
    pairs, times = batch * jax.local_device_count(), {"network": [], "transfer": []}
    jax.block_until_ready(make(0))
    for turn in range(4 * args.rounds):
        start = time.perf_counter()
        answer = jax.block_until_ready(make(turn * pairs))
        times["network"].append(1e3 * (time.perf_counter() - start) / pairs)
        copy = functools.partial(list, map(np.asarray, answer))
        times["transfer"].append(common.timed(copy) / pairs)
    for stage, ms in times.items():
        put = (f"{stage}, batch {batch}", args.size, args.precision, common.device())
        yield common.row(*put, ms, stage=stage, batch=batch)


def posing(model, bits, size):
    """The model with phantoms in place of what its network decodes, which is still computed."""
    import jax
    import jax.numpy as jnp

    from skullgen.models import steps

    def decode(state, z):
        rows = jax.lax.bitcast_convert_type(z[:, 0], jnp.uint32) % len(bits)
        # Zero times a float is not always zero: XLA keeps it.
        return steps.unpack(jnp.asarray(bits)[rows], size) + 0 * model.decode(state, z)

    return model._replace(decode=decode)


def whole(what, saved, model, settings, args, workers):
    """One run from checkpoint to closed store: a row."""
    from skullgen.generation import generate
    from skullgen.training import checkpoint
    from skullgen.training.methods import Trained

    shards = workers * max(math.ceil(args.count / SHARD / workers), 8)
    settings.count = shards * SHARD
    stamps = []

    @contextlib.contextmanager
    def progress(*_):
        yield types.SimpleNamespace(update=lambda done: stamps.append(time.perf_counter()))

    attributes = {"voxel_mm": phantom.FIELD_MM / args.size}
    plan = generate.Plan(args.size, "independent", attributes, {})
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("skullgen.core.jobs.progress", progress),
    ):
        path, start = pathlib.Path(folder) / "s.zarr", time.perf_counter()
        generator = Trained(model, checkpoint.read(saved, model, 0))
        generate.run(generator, path, settings, plan, workers, (0, 1))
        wall = time.perf_counter() - start
        assert not store.Store(path).missing()
    # While the workers start, the device fills the queue: two shards a worker, left out here.
    ms = 1e3 * (stamps[-1] - stamps[3 * workers - 1]) / (shards - 3 * workers) / SHARD
    more = dict(pairs_per_s=round(1e3 / ms, 1), workers=workers, batch=settings.batch_size)
    more |= dict(count=settings.count, wall_s=round(wall, 2))
    put = (args.size, args.precision, f"{common.device()}; host: {common.CORES} cores")
    what = f"{what}, batch {settings.batch_size}, workers {workers}"
    return common.row(what, *put, ms, first_shard_s=round(stamps[0] - start, 2), **more)


def with_network(args):
    import jax

    from experiments import vae_wgan
    from skullgen.training import checkpoint, methods

    config = vae_wgan.get_config("paper")
    blocks = min(4, int(math.log2(args.size)))
    config.model.widths = tuple(args.base * 2**block for block in range(blocks))
    config.model.groups = args.base // 2  # two channels each at the finest, as the paper's
    config.model.resolution, config.model.precision = args.size, args.precision
    model, settings = methods.load_model(config.model_name, config.model), config.generate
    state = jax.jit(model.init)(jax.random.key(0, impl="rbg")).replace(key=jax.random.key(0))
    for batch in args.batches:
        yield from stages(model, state, settings, args, batch)
    bits, settings.batch_size = phantoms(args.size)["dusty"], args.batches[-1]
    model, pairs = posing(model, bits, args.size), args.batches[-1] * jax.local_device_count()
    block = np.resize(bits, (pairs, bits.shape[1]))
    ready = mock.Mock(return_value=lambda first, seed: (block.copy(), np.zeros(pairs, np.int32)))
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")  # launch.py has one too
        saved = pathlib.Path(folder) / "checkpoints"
        with checkpoint.manager(saved) as manager:
            checkpoint.save(manager, state)
        for workers in args.workers:
            yield whole("end to end", saved, model, settings, args, workers)
            with mock.patch("skullgen.generation.generate.sampler", ready):
                yield whole("all but the network", saved, model, settings, args, workers)


def plot(rows, path):
    """Stacked bars: milliseconds a pair by stage, one bar a batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = sorted({row["batch"] for row in rows if row.get("stage") == "network"}) or [0]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    bottom = np.zeros(len(batches))
    for stage in ("network", "transfer", "components", "store"):
        mine = [row for row in rows if row.get("stage") == stage]
        mine = [row for row in mine if row.get("kind", "dusty") == "dusty"]
        ms = {row.get("batch"): row["ours_ms"] for row in mine}
        if mine:
            ms = np.array([ms.get(batch, mine[0]["ours_ms"]) for batch in batches])
            axes.bar(range(len(ms)), ms, bottom=bottom, label=f"{stage} ({mine[0]['device']})")
            bottom += ms
    axes.set_xticks(range(len(batches)), [f"batch {batch}" if batch else "" for batch in batches])
    axes.set_ylabel("ms a pair, one stage after the other")
    axes.set_title(f"Generation at {rows[0]['size']}³, dusty pairs")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--count", type=int, default=1024, help="pairs of a whole run, at least")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", action="store_true", help="only what needs no network")
    parser.add_argument("--json")
    parser.add_argument("--plot", help="file of a chart of the stages")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        rows = pool.submit(all_beside, args.size, args.rounds).result()
    print(*map(common.line, rows), sep="\n", flush=True)
    for row in () if args.beside else with_network(args):
        rate = f"; {row['pairs_per_s']} pairs/s" if "pairs_per_s" in row else ""
        print(f"{common.line(row)}{rate}", flush=True)
        rows.append(row)
    common.save(rows, args.json)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
