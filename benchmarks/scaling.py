"""What a run costs as it grows: resolution, batch, devices, processes, pairs; and its start.

    python benchmarks/scaling.py --json scaling.json --plot scaling.png
    python benchmarks/scaling.py --what pairs --counts 1000 100000

`resolution`, `batch`: milliseconds of a training step (`wgan_gp`: five critic updates and one of
the generator) of one network at every size, on one device, each case in a process of its own. The
exponent is that between a case and the one before it: voxels grow by 3, samples by 1.
`devices`: one batch on 1, 2 and 4 forced host devices of this CPU, each in a process of its own,
in turn; and a step of next to nothing on one device under pmap and under jit alone.
`processes`: `launch.py` on this CPU, `vae` of the size `smoke`: training by two processes
(`--distributed`), by one on two forced devices, by one on one; generation and ingestion by two
processes with a worker each (that is their own process) and by one with two workers.
`pairs`: the rate and the peak memory of generation and ingestion, of the main process and of its
largest worker (Linux). `startup`: from a process's start to the end of its first update.

Times of whole runs are those of their files: between flushes of the log, each of which waits for
the device, or from a store's first shards to its last. A ratio above 1: faster than the peer.
"""

import argparse
import collections
import concurrent.futures
import functools
import importlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import common
import numpy as np

from skullgen.data import store

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOST = f"cpu, {common.CORES} cores"
STEPS = {"vae": ("vae", 1), "wgan_gp": ("wgan", 5), "vnet": ("segment", 1)}  # and its batches
STAGES = {  # stage: its store, the field of its length, pairs of one of those
    "generate": ("generated.zarr", "generate.count", 1),
    "ingest": ("real.zarr", "data.skulls", 5),
}
EVENTS = {  # of XLA; traces of functions within functions count twice
    "tracing": "/jax/core/compile/jaxpr_trace_duration",
    "lowering": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compiling or loading": "/jax/core/compile/backend_compile_duration",
    "loading": "/jax/compilation_cache/cache_retrieval_time_sec",
}
# Runs launch.py until its first update is logged, and prints when it came where.
PROBE = """
import collections, json, os, runpy, sys, time
import jax
from skullgen.run import workdir
from skullgen.training import checkpoint, logs, parallel
sys.argv, marks, spent = sys.argv[1:], {}, collections.Counter()
def note(module, name):
    f = getattr(module, name)
    def noted(*args, **options):
        marks[name] = time.time()
        if name == "append":
            print(json.dumps({**marks, **spent}), flush=True)
            os._exit(0)
        return f(*args, **options)
    setattr(module, name, noted)
def add(event, seconds, **_):
    spent[event] += seconds
jax.monitoring.register_event_duration_secs_listener(add)
note(workdir, "run")
note(checkpoint, "begin")
note(parallel, "data_parallel")
note(logs, "append")
runpy.run_path("launch.py", run_name="__main__")
"""


def training(method, size, base, precision, batch, jit=False):
    """`step(count=1)`: the project's own, on packed random pairs, under pmap or under jit alone."""
    import jax

    from experiments import common as experiments
    from skullgen.models import steps
    from skullgen.training import parallel

    config = experiments.defaults("paper")
    if method == "vnet":
        config = config.segment.model
    else:
        config = getattr(experiments, method)(config, "paper").model
        config.widths = tuple(base * 2**i for i in range(min(4, int(math.log2(size)) - 1)))
        config.groups = base // 2  # two channels each at the finest, as in the paper's
    config.resolution, config.precision = size, precision
    model = importlib.import_module(f"skullgen.models.{method}").make(config)
    state = jax.jit(model.init)(jax.random.key(0, impl="rbg")).replace(key=jax.random.key(0))
    name, batches = STEPS[method]
    index = np.arange(batches * batch, dtype=np.int32).reshape(batches, batch)
    bits = np.random.default_rng(0).integers(0, 256, (index.size, size**3 // 4), np.uint8)
    # Placed as pmap returns it: else the second step compiles again.
    state, data = parallel.resident(state), parallel.resident(bits)
    run = parallel.data_parallel(model.steps[name], size)
    if jit:
        step = model.steps[name]
        run = jax.jit(lambda s, x, i: step(s, steps.unpack(x[i], size)), donate_argnums=0)

    def go(count=1):
        nonlocal state
        for _ in range(count):
            state, metrics = run(state, data, index)
        return jax.block_until_ready(metrics)

    return go


def begin(*case):
    """In a child: compiles the step that `again` times; seconds that a warm one takes."""
    global step
    step = training(*case)
    step(2)
    return common.timed(step) / 1e3


def again(repeats):
    return [common.timed(step) for _ in range(1 + repeats)][1:]


def child(**environment):
    """A pool of one new process, begun under this environment."""
    pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with mock.patch.dict(os.environ, environment):
        pool.submit(os.getpid).result()
    return pool


def title(method, batch, base):
    width = "kernel 5" if method == "vnet" else f"base {base}"
    return f"{method} step, batch {batch}, {width}"


def forced(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def grown(over, args, where):
    """Rows of every method's steps, smallest first; a method ends with the first that fails."""
    sizes = args.sizes if over == "resolution" else [args.size]
    batches = args.batches if over == "batch" else [args.batch]
    for method in args.methods:
        last = None
        for size, batch in itertools.product(sorted(sizes), sorted(batches)):
            what = title(method, batch, args.base)
            try:
                with child() as pool:
                    case = method, size, args.base, args.precision, batch
                    if (seconds := pool.submit(begin, *case).result()) > args.limit:
                        raise RuntimeError(f"a step takes {seconds:.0f} s, more than --limit")
                    ms = pool.submit(again, args.rounds).result()
            except (MemoryError, RuntimeError) as error:  # killed for memory: it is one, too
                reason = (str(error).splitlines() or ["no memory"])[0]
                print(f"{size:4} {args.precision:8} {what}: {reason}; no larger one", flush=True)
                break
            row = common.row(what, size, args.precision, where, ms, over=over, method=method)
            at, took = (size if over == "resolution" else batch), row["ours_ms"]
            row |= {"batch": batch, "ms_a_sample": round(took / batch, 3)}
            if last:
                row["exponent"] = round(math.log(took / last[1]) / math.log(at / last[0]), 2)
            last = at, took
            yield row


def devices(args):
    size = 16
    for method in args.methods:
        pools = {count: child(**forced(count)) for count in (1, 2, 4)}
        times = {count: [] for count in pools}
        for pool in pools.values():
            pool.submit(begin, method, size, 16, "float32", args.batch).result()
        for turn in range(args.rounds):
            for count in sorted(pools, reverse=turn % 2 == 1):
                times[count] += pools[count].submit(again, 2).result()
        for count, pool in pools.items():
            pool.shutdown()
            what = f"{title(method, args.batch, 16)}, forced devices: {count}"
            peer = () if count == 1 else ("one", times[1])
            yield common.row(what, size, "float32", HOST, times[count], *peer, devices=count)
    with child() as pool:
        yield pool.submit(dispatch, args.rounds).result()


def dispatch(rounds, count=200):
    """A row: the smallest step of `vae`, `count` in a row as in training, pmap against jit."""
    case = "vae", 8, 4, "float32", 1
    sides = {"pmap": training(*case)}
    # On one device collectives do nothing, and jit has no axis for them.
    plain = dict(pmean=lambda x, axis_name: x, axis_index=lambda axis_name: 0)
    with mock.patch.multiple("jax.lax", **plain):
        sides["jit"] = training(*case, jit=True)
        theirs = sides["jit"]()
    for name, value in sides["pmap"]().items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, err_msg=name)
    runs = {name: functools.partial(step, count) for name, step in sides.items()}
    times = {k: [t / count for t in side] for k, side in common.interleaved(runs, rounds).items()}
    what = "vae step, batch 1, base 4, pmap on one device"
    put = (8, "float32", common.device(), times["pmap"], "jit", times["jit"])
    row = common.row(what, *put)
    return row | {"overhead_us": round(1e3 * (row["ours_ms"] - row["peer_ms"]), 1)}


def peak(pid, worker=False):
    """MiB that a process has had at most; 0 where it is gone, or no worker of multiprocessing."""
    try:
        if worker and b"spawn_main" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            return 0
        with open(f"/proc/{pid}/status") as file:
            return next((int(x.split()[1]) / 1024 for x in file if x.startswith("VmHWM")), 0)
    except OSError:
        return 0


def launch(*commands, environment=(), log=None):
    """Runs `launch.py` with each list of arguments, all at once, to their ends.

    Returns the peaks in MiB of the first process and of its largest child, and [(lines, seconds)]
    as `log` grew. Raises SystemExit where one fails.
    """
    options = dict(cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    options["env"] = {**os.environ, **dict(environment)}
    begun = [
        subprocess.Popen([sys.executable, "launch.py", *map(str, command)], **options)
        for command in commands
    ]
    main, largest, grew = 0, 0, {}
    while any([process.poll() is None for process in begun]):
        main = max(main, peak(begun[0].pid))
        for path in pathlib.Path(f"/proc/{begun[0].pid}/task").glob("*/children"):
            try:
                children = path.read_text().split()
                largest = max([largest, *(peak(pid, worker=True) for pid in children)])
            except OSError:  # that thread has ended
                continue
        if log and log.exists():
            seen = log.stat()
            grew[seen.st_size] = seen.st_mtime_ns / 1e9
        time.sleep(0.02)
    said = [process.communicate()[1] for process in begun]
    if any(process.returncode for process in begun):
        raise SystemExit("\n".join(said))
    text = log.read_bytes() if log else b""
    return main, largest, [(text[:size].count(b"\n"), at) for size, at in grew.items() if size]


def rate(path, workers=2):
    """Milliseconds a pair of a store: from its first shards, one a worker, to its last."""
    made = sorted(
        ((path / "voxels" / "c" / f"{number}" / "0").stat().st_mtime_ns / 1e6, len(shard))
        for number, shard in enumerate(store.Store(path).shards())
    )
    return (made[-1][0] - made[workers - 1][0]) / sum(pairs for _, pairs in made[workers:])


def prepared(folder):
    """A work directory with pairs and a VAE, and the command that made it but for `stages`."""
    command = ["--config", "experiments/vae.py:smoke", "--workdir", folder / "run"]
    command += [f"--config.compilation_cache={folder / 'cache'}"]
    command += ["--config.phases[0].updates=200"]  # so that pairs are not empty
    launch([*command, "--config.stages=ingest,train,generate"])  # and warms the cache
    return folder / "run", command


def processes(args, folder):
    work, command = prepared(folder)
    found = {f"training, {args.updates} updates, batch 4": distributed(work, command, args)}
    for stage, count in (("generate", 10_000), ("ingest", 300)):
        found[f"{stage}, {count} pairs"] = shared(work, command, stage, count, args.runs)
    for what, times in found.items():
        (first, ms), *others = times.items()
        yield common.row(f"{what}: {first}", 16, "float32", HOST, ms)
        for name, other in others:
            yield common.row(f"{what}: {name}", 16, "float32", HOST, other, first, ms)


def distributed(work, command, args):
    """{who trained: [ms an update]}, one for each stretch of the log but the first."""
    times = {"one process, one device": [], "one process, two devices": [], "two processes": []}
    command = [*command, "--config.stages=train", "--config.save_every=1000000"]
    command += [f"--config.phases[0].updates={args.updates}", "--config.log_every=50"]
    for turn, (number, name) in itertools.product(range(args.runs), enumerate(times)):
        place = work.with_name(f"{turn}-{number}")
        shutil.copytree(work / "real.zarr", place / "real.zarr")
        commands = [[*command, "--workdir", place]]
        if name == "two processes":
            commands = two(commands[0])
        environment = forced(2 if name == "one process, two devices" else 1)
        grew = launch(*commands, environment=environment, log=place / "train.jsonl")[2]
        whole = [(lines, at) for lines, at in grew if lines % 50 == 0]  # a flush is two writes
        times[name] += [
            1e3 * (end - start) / (last - first)
            for (first, start), (last, end) in itertools.pairwise(whole)
        ]
    return times


def two(command):
    """The command by two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [[*command, f"--distributed={k}/2@localhost:{port}"] for k in (0, 1)]


def make(work, command, stage, count):
    """The command for a new store of `count` pairs, its path."""
    name, field, each = STAGES[stage]
    place = work if stage == "generate" else work.with_name("ingested")
    shutil.rmtree(place / name, ignore_errors=True)
    command = [*command, "--workdir", place, f"--config.stages={stage}"]
    return [*command, f"--config.{field}={count // each}"], place / name


def shared(work, command, stage, count, runs):
    """{who made a store: [ms a pair]}."""
    times = {"one process, two workers": [], "two processes": []}
    for _, name in itertools.product(range(runs), times):
        run, path = make(work, command, stage, count)
        commands = [[*run, "--config.workers=2"]]
        if name == "two processes":
            commands = two([*run, "--config.workers=1"])
        launch(*commands, environment=forced(1))
        times[name].append(rate(path))
    return times


def pairs(args, folder, where):
    work, command = prepared(folder)
    put = 16, "float32", f"{where}; host: {common.CORES} cores"
    for stage, counts in (("generate", args.counts), ("ingest", args.ingests)):
        for count in counts:
            run, path = make(work, command, stage, count)
            main, worker, _ = launch([*run, "--config.workers=2"])
            row = common.row(f"{stage}, {count} pairs, 2 workers: a pair", *put, rate(path))
            row |= dict(over="pairs", stage=stage, pairs=count)
            row |= dict(pairs_per_s=round(1e3 / row["ours_ms"], 1))
            yield row | dict(main_mib=round(main, 1), worker_mib=round(worker, 1))


def startup(args, folder, where):
    run = functools.partial(subprocess.run, cwd=ROOT, check=True, capture_output=True, text=True)
    code = ["-c", "import skullgen.run.workdir"]
    ms = [common.timed(lambda: run([sys.executable, *code])) for _ in range(args.runs)]
    packages = collections.Counter()
    for line in run([sys.executable, "-X", "importtime", *code]).stderr.splitlines():
        took, _, name = line.removeprefix("import time:").split("|")
        if took.strip().isdigit():
            packages[name.strip().partition(".")[0]] += int(took) / 1e3
    dearest = {name: round(took) for name, took in packages.most_common(7)}
    yield common.row("import skullgen.run.workdir", 16, "float32", HOST, ms, parts_ms=dearest)

    command = ["--config", "experiments/vae_wgan.py:smoke", "--workdir", str(folder / "run")]
    launch([*command, "--config.stages=ingest"])
    command += ["--config.stages=train", "--config.log_every=1"]
    command += [f"--config.compilation_cache={folder / 'cache'}"]
    found = []
    for _ in range(1 + args.runs):
        start = time.time()
        out = run([sys.executable, "-c", PROBE, "launch.py", *command]).stdout
        marks = json.loads(out.splitlines()[-1])
        at = [start, *(marks[name] for name in ("run", "begin", "data_parallel", "append"))]
        stretches = ("imports", "checks and store", "weights", "first update")
        found.append({"all": at[-1] - start, **dict(zip(stretches, np.diff(at), strict=True))})
        found[-1] |= {name: marks.get(event, 0) for name, event in EVENTS.items()}
    for cache, runs in (("empty", found[:1]), ("warm", found[1:])):
        ms = {name: [1e3 * took[name] for took in runs] for name in runs[0]}
        parts = {name: round(float(np.median(took))) for name, took in ms.items() if name != "all"}
        what = f"start to first update, compilation cache {cache}"
        yield common.row(what, 16, "float32", where, ms["all"], parts_ms=parts)


def plot(rows, path):
    """Time against resolution and peak memory against pairs, each where there are such rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    grown = [row for row in rows if row.get("over") == "resolution"]
    for method in dict.fromkeys(row["method"] for row in grown):
        mine = [row for row in grown if row["method"] == method]
        line = [row["size"] for row in mine], [row["ours_ms"] for row in mine]
        left.loglog(*line, "o-", label=mine[0]["what"])
    sizes = sorted({row["size"] for row in grown})
    left.set_xticks(sizes, sizes)
    left.minorticks_off()
    left.set(xlabel="voxels a side", ylabel="ms a step", title="Training step")
    counted = [row for row in rows if row.get("over") == "pairs"]
    for stage, who in itertools.product(dict.fromkeys(r["stage"] for r in counted), PEAKS):
        mine = [row for row in counted if row["stage"] == stage]
        line = [row["pairs"] for row in mine], [row[who] for row in mine]
        right.semilogx(*line, "o-", label=f"{stage}, {PEAKS[who]}")
    right.set(xlabel="pairs", ylabel="peak, MiB", ylim=(0, None), title="Memory, 16³")
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=8)
    figure.suptitle(rows[0]["device"])
    figure.savefig(path, dpi=150)


PEAKS = {"main_mib": "main process", "worker_mib": "largest worker"}
NOTES = ("exponent", "ms_a_sample", "overhead_us", "pairs_per_s", *PEAKS, "parts_ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sections = ("resolution", "batch", "devices", "processes", "pairs", "startup")
    parser.add_argument("--what", nargs="+", default=sections, choices=sections)
    parser.add_argument("--methods", nargs="+", default=list(STEPS), choices=STEPS)
    number, numbers = dict(type=int), dict(type=int, nargs="+")
    parser.add_argument("--sizes", **numbers, help="of `resolution`; 16 32, on a GPU up to 256")
    parser.add_argument("--size", **number, help="of `batch`; 16, on a GPU 64")
    parser.add_argument("--base", **number, help="width; 16, on a GPU 64")
    parser.add_argument("--precision", help="float32, on a GPU bfloat16")
    parser.add_argument("--batch", **number, default=8, help="of all but `batch`")
    parser.add_argument("--batches", **numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--limit", type=float, default=20, help="seconds; slower steps are left")
    parser.add_argument("--rounds", **number, default=6, help="of steps")
    parser.add_argument("--updates", **number, default=600, help="of training in `processes`")
    parser.add_argument("--runs", **number, default=3, help="of whole processes")
    parser.add_argument("--counts", **numbers, default=[1000, 10_000, 40_000], help="of `pairs`")
    parser.add_argument("--ingests", **numbers, default=[300, 1000, 3000], help="of `pairs`")
    parser.add_argument("--json")
    parser.add_argument("--plot", help="file of a chart of time and memory")
    args, rows = parser.parse_args(), []
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    with child() as pool:  # this process leaves the device to the others
        where = pool.submit(common.device).result()
    gpu = where != HOST
    args.sizes = args.sizes or ([16, 32, 64, 128, 256] if gpu else [16, 32])
    args.size, args.base = args.size or (64 if gpu else 16), args.base or (64 if gpu else 16)
    args.precision = args.precision or ("bfloat16" if gpu else "float32")
    for what in args.what:
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            found = {
                "resolution": lambda: grown("resolution", args, where),
                "batch": lambda: grown("batch", args, where),
                "devices": lambda: devices(args),
                "processes": lambda place=place: processes(args, place),
                "pairs": lambda place=place: pairs(args, place, where),
                "startup": lambda place=place: startup(args, place, where),
            }[what]()
            for row in found:
                rows.append(row)
                notes = [f"{name} {row[name]}" for name in NOTES if name in row]
                print("; ".join([common.line(row), *notes]), flush=True)
                common.save(rows, args.json)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
