"""Single k4 s2 layers: the matmul forms of `networks.conv` against plain lax on this machine.

    python benchmarks/conv.py --batch 8 --json conv.json

Columns, in milliseconds: the convolution, its input gradient (the transposed convolution) and its
weight gradient, each as the median of interleaved rounds. lax's input gradient on a CPU takes
seconds from 16^3 up; such a cell is timed once.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from skullgen.networks import conv

# (fine side, C, O): the layers of a 32^3 network of base width 16, and the first of base 32.
LAYERS = [(32, 2, 16), (16, 16, 32), (8, 32, 64), (4, 64, 128), (32, 2, 32)]


def timed(f, arguments):
    start = time.perf_counter()
    jax.block_until_ready(f(*arguments))
    return 1e3 * (time.perf_counter() - start)


def compare(operation, arguments, rounds):
    """Median milliseconds of "matmul" and "lax"; the slower form once if it takes a second."""
    forms = {
        impl: jax.jit(lambda a, b, impl=impl: operation(a, b, impl)) for impl in ("matmul", "lax")
    }
    values = [f(*arguments) for f in forms.values()]
    np.testing.assert_allclose(*values, atol=1e-4 * float(jnp.abs(values[1]).max()))
    first = {impl: timed(f, arguments) for impl, f in forms.items()}
    times = {impl: [t] for impl, t in first.items()}
    for _ in range(rounds):
        for impl, f in forms.items():
            if first[impl] < 1000:
                times[impl].append(timed(f, arguments))
    return {impl: statistics.median(t) for impl, t in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json")
    args = parser.parse_args()
    draw, rows = np.random.default_rng(0), []
    for side, c, o in LAYERS:
        x, w, g = (
            jnp.asarray(draw.normal(size=shape), jnp.float32)
            for shape in (
                (args.batch, side, side, side, c),
                (4, 4, 4, c, o),
                (args.batch, side // 2, side // 2, side // 2, o),
            )
        )
        for name, operation, arguments in (
            ("conv", conv.conv, (x, w)),
            ("conv_transpose", conv.conv_transpose, (g, w)),
            ("weight_gradient", conv.weight_gradient, (x, g)),
        ):
            ms = compare(operation, arguments, args.rounds)
            rows.append(
                {
                    "what": f"{name}, batch {args.batch}, {c} to {o} channels",
                    "size": side,
                    "precision": "float32",
                    "device": jax.devices()[0].device_kind,
                    "ours_ms": round(ms["matmul"], 3),
                    "peer": "lax",
                    "peer_ms": round(ms["lax"], 3),
                    "ratio": round(ms["lax"] / ms["matmul"], 2),
                }
            )
            print(
                f"{side:3}^3 {c:3}->{o:<3} {name:15} ours {ms['matmul']:8.2f}  "
                f"lax {ms['lax']:8.1f} ms; ratio {rows[-1]['ratio']:.1f}",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
