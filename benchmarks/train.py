"""Training steps of every method against PyTorch: time, memory, and how near the device's limit.

    python benchmarks/train.py --sizes 16 32 --methods wgan_gp vae --json train.json

Ours are the project's own steps (`skullgen.models.*.make` on the fields of the size `paper`, run by
`parallel.data_parallel` on one device): unpacking, draws, losses, metrics, Adam. PyTorch's are
those of `peers.py`, from the same weights and draws; the metrics of the first two steps must agree.
`wgan_gp` is one iteration: five critic updates and one of the generator. Widths are base x (1, 2,
4, 8); V-Net has the paper's own, at 16^3 and 32^3 without the coarsest stages.

Times are in turn in one process, medians and [range]; a ratio above 1 means that ours is faster.
On a GPU float32 is TF32 on both sides, and `--compile` lets torch.compile have all of PyTorch's
but the penalty, of which it refuses the double backward.

flops and least bytes are those of PyTorch's step, counted by `peers.Counter`: products of real
voxels, each operation's operands and results moved once, Adam's 28 bytes a weight; norms and
activations move nothing, as if they were fused away. The limit is the larger of flops over the
measured rate of a large product and bytes over that of a copy (`common.rates`). `--memory`: each
side alone in a process, the peak of a warm step over what was there before it, MiB.

A case that does not fit, is slower than `--limit` or whose sides disagree is a line and no row;
after a disagreement the script fails. Beware of a busy CPU: PyTorch's threads wait for each other
and lose far more there than ours (10 times was seen); `taskset -c 0` compares one core.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import math
import os
import subprocess
import sys
import tempfile

import common
import jax
import numpy as np
import peers
import torch

from experiments import common as experiments
from skullgen.models import steps
from skullgen.networks import modules
from skullgen.training import parallel

STEPS = {"wgan_gp": "wgan", "vae": "vae", "introvae": "intro", "vnet": "segment"}
BATCHES = {"wgan_gp": 5}
# Of the first and the second step's metrics: Adam makes whole steps of tiny gradients' rounding.
TOLERANCE = {"float32": (1e-4, 5e-3), "tf32": (1e-2, 3e-2), "bfloat16": (3e-2, 1e-1)}


class Skip(Exception):
    pass


def fields(method, size, precision, base):
    """The fields that the method's `make` takes: the paper's at this resolution and width."""
    config = experiments.defaults("paper")
    if method == "vnet":
        config = config.segment.model
        stages = min(5, int(math.log2(size)) - 1)  # to 4 voxels a side
        config.widths, config.down = config.widths[:stages], config.down[:stages]
        config.up = config.up[len(config.up) - stages + 1 :]
    else:
        config = getattr(experiments, method)(config, "paper").model
        config.widths = tuple(base * 2**i for i in range(min(4, int(math.log2(size)))))
        config.groups = base // 2  # two channels each at the finest, as in the paper's
    config.resolution, config.precision = size, precision
    return config


def draws(method, config, state, count):
    """What our step draws from `state`, for PyTorch's: it is a function of key and step alone."""

    def normal(stream, update=0):
        return steps.normal(steps.keys(state, stream, count, update), config.latent)

    if method == "vnet":
        return ()
    if method == "vae":
        return (normal(steps.NOISE),)
    if method == "introvae":
        return normal(steps.NOISE), normal(steps.Z)
    u = [steps.uniform(steps.keys(state, steps.U, count, update)) for update in range(5)]
    return jax.numpy.stack([normal(steps.Z, i) for i in range(6)]), jax.numpy.stack(u)


class Ours:
    def __init__(self, method, config, count):
        model = importlib.import_module(f"skullgen.models.{method}").make(config)
        self.device = jax.devices()[:1]
        self.state = jax.jit(model.init)(jax.random.key(0, impl="rbg"))
        self.state = self.state.replace(key=jax.random.key(0))
        self.index = np.arange(BATCHES.get(method, 1) * count, dtype=np.int32).reshape(-1, count)
        shape = (self.index.size, *(config.resolution,) * 3, 2)
        self.pairs = np.random.default_rng(0).random(shape, np.float32) < 0.1
        self.data = parallel.resident(
            np.packbits(self.pairs.reshape(len(self.pairs), -1), 1, "little")
        )
        self.run = parallel.data_parallel(
            model.steps[STEPS[method]], config.resolution, self.device
        )
        self.draws = jax.pmap(
            lambda state, _: draws(method, config, state, count),
            modules.AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=self.device,
        )

    def step(self):
        self.state, metrics = self.run(self.state, self.data, self.index)
        return jax.block_until_ready(metrics)


class Theirs:
    """PyTorch's side of an `Ours`: `load` its draws of the next step, `step`."""

    def __init__(self, method, config, ours):
        self.where = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.peer = peers.Peer(method, config, ours.state, self.where)
        pairs = ours.pairs.reshape(*ours.index.shape, *ours.pairs.shape[1:])
        self.pairs = torch.tensor(pairs, device=self.where).movedim(-1, 2)

    def load(self, ours):
        drawn = [np.array(x) for x in ours.draws(ours.state, np.zeros(1))]
        self.drawn = [torch.tensor(x, device=self.where) for x in drawn]

    def step(self):
        metrics = self.peer.step(self.pairs, *self.drawn)
        if self.where == "cuda":
            torch.cuda.synchronize()
        return metrics


def agree(ours, theirs, tolerance):
    """Raises AssertionError where the two sides' metrics of a step differ."""
    names = sorted(theirs)
    np.testing.assert_allclose(
        *([float(side[name]) for name in names] for side in (ours, theirs)),
        rtol=tolerance,
        err_msg=", ".join(names),
    )


def compare(method, size, precision, args, rates):
    """A row: both sides' first two steps, which must agree, then their times in turn."""
    config = fields(method, size, precision, args.base)
    ours = Ours(method, config, args.batch)
    theirs = Theirs(method, config, ours)
    tf32 = precision == "float32" and theirs.where == "cuda"
    counter, took = peers.Counter(), []
    for tolerance in TOLERANCE["tf32" if tf32 else precision]:
        theirs.load(ours)
        mine = {}
        took.append(common.timed(lambda mine=mine: mine.update(ours.step())))
        with contextlib.nullcontext() if len(took) > 1 else counter:
            agree(mine, theirs.step(), tolerance)
        if args.compile and len(took) == 1:
            theirs.peer.compile()
    sides = {"ours": ours.step, "torch": theirs.step}
    for name, step in sides.items():
        if (seconds := common.timed(step) / 1e3) > args.limit:
            raise Skip(f"a step of {name} takes {seconds:.0f} s, more than --limit")
    times = common.interleaved(sides, args.rounds, args.repeats)
    width = "kernel 5" if method == "vnet" else f"base {args.base}"
    compiled = " compiled" if args.compile else ""
    row = common.row(
        f"{method} step, batch {args.batch}, {width}",
        size,
        precision,
        common.device(),
        times["ours"],
        f"PyTorch {torch.__version__}{compiled}",
        times["torch"],
        method=method,
        first_call_ms=round(took[0]),
    )
    (matrix, copy), seconds = rates(precision), row["ours_ms"] / 1e3
    limit = max(counter.flops / matrix, counter.bytes / copy)
    figures = {
        "gflop": counter.flops / 1e9,
        "least_gb": counter.bytes / 1e9,
        "tflop_s": counter.flops / seconds / 1e12,
        "gb_s": counter.bytes / seconds / 1e9,
        "limit_ms": 1e3 * limit,
        "fraction": limit / seconds,
        "matrix_tflop_s": matrix / 1e12,
        "copy_gb_s": copy / 1e9,
    }
    return row | {name: float(f"{value:.4g}") for name, value in figures.items()}


def resident():
    """MiB of memory that this process has, and has had at most since it was last asked."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return [int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]


def peak(side, method, size, precision, args):
    """MiB that a warm step of one side adds to what its process holds."""
    config = fields(method, size, precision, args.base)
    ours = Ours(method, config, args.batch)
    step = ours.step
    if side == "torch":
        theirs = Theirs(method, config, ours)
        theirs.load(ours)
        if args.compile:
            theirs.peer.compile()
        step = theirs.step
    gpu = jax.default_backend() == "gpu"
    if gpu and side == "ours":  # its peak is never reset, so it must not have compiled here
        before = ours.device[0].memory_stats()["bytes_in_use"]
        step()
        return (ours.device[0].memory_stats()["peak_bytes_in_use"] - before) / 2**20
    step()
    step()
    gc.collect()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    resident()
    before, _ = resident()
    step()
    return resident()[1] - before


def alone(side, method, size, precision, args):
    """`peak` in a process of its own, or None; ours once before, to fill the compilation cache."""
    command = [sys.executable, __file__, "--side", side, "--methods", method]
    command += ["--sizes", str(size), "--precisions", precision, "--base", str(args.base)]
    command += ["--batch", str(args.batch), *(["--compile"] if args.compile else [])]
    for _ in range(2 if side == "ours" else 1):
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            reason = (out.stderr.strip().splitlines() or ["killed"])[-1]
            print(f"{size:4} {precision:8} {method}: memory of {side}: {reason}", flush=True)
            return None
    return round(float(out.stdout.split()[-1]), 1)


def plot(rows, path):
    """Bars of the ratio, by method and size; 1 is PyTorch's speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys((row["size"], row["precision"]) for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for i, kind in enumerate(kinds):
        mine = [row for row in rows if (row["size"], row["precision"]) == kind]
        at = [methods.index(row["method"]) + (i + 0.5) / len(kinds) * 0.8 - 0.4 for row in mine]
        bars = axes.bar(at, [row["ratio"] for row in mine], 0.8 / len(kinds))
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
        bars.set_label(f"{kind[0]}³ {kind[1]}")
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(methods)), methods)
    axes.set_ylabel("PyTorch's time / ours")
    axes.set_title(f"Training steps, {rows[0]['device']}")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--methods", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60, help="seconds; slower steps are left")
    parser.add_argument("--compile", action="store_true", help="let torch.compile have PyTorch's")
    parser.add_argument("--memory", action="store_true", help="measure peaks too")
    parser.add_argument("--json")
    parser.add_argument("--plot", help="file of a chart of the ratios")
    parser.add_argument("--side", choices=("ours", "torch"), help="print this side's peak alone")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some too
    torch.set_num_threads(common.CORES)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True  # as jax's
    cases = list(itertools.product(args.methods, args.sizes, args.precisions))
    if args.side:
        print(peak(args.side, *cases[0], args))
        return
    memory, rows, differ, rates = {}, [], [], functools.cache(common.rates)
    if args.memory:  # before this process takes any of a GPU's
        with tempfile.TemporaryDirectory() as folder:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
            for case in cases:
                memory[case] = {f"{s}_mib": alone(s, *case, args) for s in ("ours", "torch")}
    for case in cases:
        try:
            row = compare(*case, args, rates) | memory.get(case, {})
        except (AssertionError, MemoryError, RuntimeError, Skip) as error:
            reason = " ".join(str(error).split())[:300]
            if isinstance(error, RuntimeError) and "memory" not in reason.lower():
                raise
            differ += [case] if isinstance(error, AssertionError) else []
            print(f"{case[1]:4} {case[2]:8} {case[0]}: {reason}", flush=True)
            continue
        finally:
            gc.collect()
        rows.append(row)
        peaks = f"; peaks {row['ours_mib']} and {row['torch_mib']} MiB" if args.memory else ""
        print(
            f"{common.line(row)}; {row['tflop_s']} TFLOP/s, {row['gb_s']} GB/s, "
            f"{row['fraction']:.1%} of the limit{peaks}",
            flush=True,
        )
        common.save(rows, args.json)
    if args.plot and rows:
        plot(rows, args.plot)
    if differ:
        sys.exit(f"the sides disagree: {differ}")


if __name__ == "__main__":
    main()
