"""What the benchmarks share: timing in turn, rows of results, and the rates of this device."""

import json
import os
import pathlib
import statistics
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # of `experiments`
CORES = len(os.sched_getaffinity(0))


def timed(f):
    """Milliseconds that one call takes; `f` itself waits for what it started."""
    start = time.perf_counter()
    f()
    return 1e3 * (time.perf_counter() - start)


def interleaved(sides, rounds, repeats=1):
    """{name: f} -> {name: [ms]}: in turn, `repeats` calls each, and every other round backwards.

    A turn begins with a call that does not count: the other side's threads go to sleep and its
    data leaves the cache.
    """
    times = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sorted(sides, reverse=turn % 2 == 1):
            sides[name]()
            times[name] += [timed(sides[name]) for _ in range(repeats)]
    return times


def device():
    import jax

    kind = jax.devices()[0].device_kind
    return f"{kind}, {CORES} cores" if kind == "cpu" else kind


def row(what, size, precision, device, ours, peer=None, peer_ms=None, **more):
    """One result. ours, peer_ms: milliseconds, or all of a side's times (a median and a range)."""
    sides = {"ours": ours, "peer": peer_ms}
    times = {k: t if isinstance(t, list) else [t] for k, t in sides.items() if t is not None}
    ms = {side: statistics.median(t) for side, t in times.items()}
    result = {
        "what": what,
        "size": size,
        "precision": precision,
        "device": device,
        "ours_ms": round(ms["ours"], 3),
        "peer": peer,
        "peer_ms": round(ms["peer"], 3) if "peer" in ms else None,
        "ratio": round(ms["peer"] / ms["ours"], 3) if "peer" in ms else None,
    }
    for side, t in times.items():
        if len(t) > 1:
            result[f"{side}_range_ms"] = [round(min(t), 3), round(max(t), 3)]
    if all(f"{side}_range_ms" in result for side in sides):
        result["ratio_of_minima"] = round(min(times["peer"]) / min(times["ours"]), 3)
    return result | more


def line(row):
    """A row, readable: medians, spread, ratio."""

    def side(name, key):
        low, high = row.get(f"{key}_range_ms", (None, None))
        spread = "" if low is None else f" [{low:.4g}-{high:.4g}]"
        return f"{name} {row[f'{key}_ms']:.4g}{spread} ms"

    text = f"{row['size']:4} {row['precision']:8} {row['what']}: {side('ours', 'ours')}"
    if row["peer_ms"] is None:
        return text
    return f"{text}, {side(row['peer'], 'peer')}: ratio {row['ratio']:.2f}"


def save(rows, path):
    """Writes the rows as JSON; `path` None: nowhere."""
    if path:
        with open(path, "w") as file:
            json.dump(rows, file, indent=1)


def rates(precision):
    """This device's limits, measured through jax: (flop/s of a large product, bytes/s of a copy).

    bfloat16: the better of its own rate and float32's, by which a CPU may compute it. The copy
    is of 1 GiB (CPU: 256 MiB) in place, read and written; what fits into a CPU's cache is faster.
    """
    import jax
    import jax.numpy as jnp

    gpu = jax.default_backend() != "cpu"
    side, entries = (8192, 2**28) if gpu else (2048, 2**26)

    def best(f, x):
        x = jax.block_until_ready(f(x))
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            x = jax.block_until_ready(f(x))
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    products = []
    for dtype in {"float32", precision}:
        square = jnp.full((side, side), 1 / side, dtype)  # its own square
        products.append(2 * side**3 / best(jax.jit(lambda x: x @ x), square))
    copy = best(jax.jit(lambda x: x + 1, donate_argnums=0), jnp.zeros(entries, jnp.float32))
    return max(products), 8 * entries / copy
