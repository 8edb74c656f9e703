"""The convolutions of `skullgen.networks.conv` on CPUs, as products of matrices.

Everything is one product with either rows of 64C (the patch that each output sees), or, x folded
into blocks of 2^3 on a grid one larger, 8O products whose shifts are added. Moving the large
intermediate costs more than the arithmetic: it is built of few, wide strided copies, a few samples
at a time, in memory that stays in the cache. Shapes stand there. `low`: zeros before each axis.
"""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

CHUNK = 2**20  # entries of an intermediate at a time: 4 MB of float32
_OFFSETS = tuple(itertools.product((0, 1), repeat=3))


def _dot(a, b, contract):
    # XLA:CPU has no product of bfloat16 into float32; widening first gives the same sums.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


def patches_win(coarse: Sequence[int]) -> bool:
    """Choose patches where the larger grid of products would waste more than they save."""
    return math.prod(n + 1 for n in coarse) > 1.6 * math.prod(coarse)


def conv(x: Array, w: Array) -> Array:
    """Convolve with a kernel of 4 and stride 2."""
    c, o = w.shape[3:]
    coarse = [n // 2 for n in x.shape[1:4]]

    def patches(x):
        return _dot(_patches(x), rows, ((4,), (0,))).astype(x.dtype)

    def products(x):
        y = jnp.split(_dot(_fold(x), square, ((4,), (0,))), 8, axis=-1)
        return sum(_cut(p, a, coarse) for p, a in zip(y, _OFFSETS, strict=True)).astype(x.dtype)

    if patches_win(coarse):
        rows = w.reshape(64 * c, o)
        return _chunked(patches, x, math.prod(coarse) * 64 * c)
    square = w.reshape(2, 2, 2, 2, 2, 2, c, o).transpose(1, 3, 5, 6, 0, 2, 4, 7)
    square = square.reshape(8 * c, 8 * o)
    return _chunked(products, x, math.prod(n + 1 for n in coarse) * 8 * o)


def conv_transpose(g: Array, w: Array) -> Array:
    """Transpose `conv` in x."""
    c, o = w.shape[3:]
    rows = w.reshape(2, 2, 2, 2, 2, 2, c, o).transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(64 * c, o)
    pads = [((0, 0), *((o, 1 - o) for o in a), (0, 0)) for a in _OFFSETS]

    def overlap(g):
        z = jnp.split(_dot(g, rows, ((4,), (1,))), 8, axis=-1)
        xs = sum(jnp.pad(p, pad) for p, pad in zip(z, pads, strict=True)).astype(g.dtype)
        b, p, q, r, _ = xs.shape
        x = xs.reshape(b, p, q, r, 2, 2, 2, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(b, 2 * p, 2 * q, 2 * r, c)[:, 1:-1, 1:-1, 1:-1]

    return _chunked(overlap, g, math.prod(g.shape[1:4]) * 64 * c)


def weight_gradient(x: Array, g: Array) -> Array:
    """Differentiate `sum(g * conv(x, w))` with respect to w."""
    c, o, voxels = x.shape[-1], g.shape[-1], math.prod(g.shape[1:4])
    samples = _samples(x.shape[0], voxels * 64 * c)
    narrow = c < 8  # too narrow for copies of single patches: 8 products with a shifted fold
    # XLA transposes the left factor in memory: let that be g, or the patches where they are few.
    few = not narrow and samples * voxels <= 2 * o
    shape = (8, o, 8 * c) if narrow else (64 * c, o) if few else (o, 64 * c)

    def product(x, g):
        contract = ((0, 1, 2, 3), (0, 1, 2, 3))
        if narrow:
            xs = _fold(x)
            return jnp.stack([_dot(g, _cut(xs, a, g.shape[1:4]), contract) for a in _OFFSETS])
        pair = (_patches(x), g) if few else (g, _patches(x))
        return _dot(*pair, contract).reshape(shape)

    def add(total, xg):
        return total + product(*xg), None

    parts = _parts(x, samples), _parts(g, samples)
    w, _ = lax.scan(add, jnp.zeros(shape, jnp.float32), parts)
    if narrow:
        w = w.reshape(2, 2, 2, o, 2, 2, 2, c).transpose(0, 4, 1, 5, 2, 6, 7, 3)
    elif not few:
        w = w.T
    return w.reshape(4, 4, 4, c, o).astype(x.dtype)


def _samples(batch, entries):
    """Samples at a time: the largest divisor of the batch that fits `CHUNK`, at least 1."""
    most = max(1, min(batch, CHUNK // entries))
    return next(k for k in range(most, 0, -1) if batch % k == 0)


def _parts(x, samples):
    return x.reshape(x.shape[0] // samples, samples, *x.shape[1:])


def _chunked(f, x, entries):
    """Map f over x a few samples at a time; `entries` a sample is f's largest intermediate."""
    samples = _samples(x.shape[0], entries)
    if samples == x.shape[0]:
        return f(x)
    y = lax.map(f, _parts(x, samples))
    return y.reshape(x.shape[0], *y.shape[2:])


def _pairs(x):
    """Pad by 1 and put pairs of z side by side: `[B, 2n+2, 2n+2, n+1, 2C]`, without a copy."""
    b, p, q, r, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    return x.reshape(b, p + 2, q + 2, r // 2 + 1, 2 * c)


def _fold(x):
    """`[B, 2n, 2n, 2n, C]` to `[B, n+1, n+1, n+1, 8C]`: pad by 1, move 2^3 blocks to channels."""
    x = _pairs(x)
    return jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)


def _patches(x):
    """`[B, 2n, 2n, 2n, C]` to `[B, n, n, n, 64C]`: the 4^3 voxels that each output sees."""
    p, q, r = (n // 2 for n in x.shape[1:4])
    x = _pairs(x)
    places = itertools.product(range(4), range(4), range(2))
    pieces = [x[:, i : i + 2 * p - 1 : 2, j : j + 2 * q - 1 : 2, k : k + r] for i, j, k in places]
    return jnp.concatenate(pieces, axis=-1)


def _cut(x, offset, sides):
    return x[(slice(None), *(slice(o, o + n) for o, n in zip(offset, sides, strict=True)))]


# Stride 1: what the taps along the last `inner` axes see is gathered as rows, the taps along the
# others are columns of the product, whose shifts are added, at the price of a halo.


def _taps(shape, kernel, low):
    """List the kernel's taps along each axis that ever meet a voxel rather than padding."""
    return [range(max(0, low + 1 - n), min(kernel, low + n)) for n in shape[1:4]]


def form(sides: Sequence[int], sizes: Sequence[int], c: int, o: int) -> tuple[int, int]:
    """Choose `inner` (1 to 3); also the entries a sample of both factors then has."""
    cost = {}
    for inner in (1, 2, 3):
        outer = 3 - inner
        halo = math.prod(n + k - 1 for n, k in zip(sides[:outer], sizes, strict=False))
        rows, columns = math.prod(sizes[outer:]) * c, math.prod(sizes[:outer]) * o
        places = halo * math.prod(sides[outer:])
        # Measured: 50 products take as long as to add an entry, and to gather one three times that.
        cost[inner] = places * (rows * columns / 50 + 3 * rows + columns), places * (rows + columns)
    inner = min(cost, key=cost.get)
    return inner, cost[inner][1]


def _windows(x, taps, low, inner):
    """Pad x, and put what each tap along the last `inner` axes sees side by side."""
    x = jnp.pad(x, ((0, 0), *((low - t.start, t.stop - 1 - low) for t in taps), (0, 0)))
    for axis in range(3, 3 - inner, -1):
        k = len(taps[axis - 1])
        n = x.shape[axis] - k + 1
        x = jnp.concatenate([lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(k)], axis=-1)
    return x


def same(x: Array, w: Array, low: int) -> Array:
    """Convolve with stride 1."""
    taps, sides = _taps(x.shape, len(w), low), x.shape[1:4]
    w = w[tuple(slice(t.start, t.stop) for t in taps)]
    inner, entries = form(sides, w.shape[:3], *w.shape[3:])
    outer = 3 - inner
    rows = w.transpose(*range(outer, 4), *range(outer), 4)
    rows = rows.reshape(math.prod(rows.shape[: inner + 1]), -1)
    places = [(*a, *(0,) * inner) for a in itertools.product(*map(range, w.shape[:outer]))]

    def product(x):
        y = _dot(_windows(x, taps, low, inner), rows, ((4,), (0,)))
        parts = zip(jnp.split(y, len(places), axis=-1), places, strict=True)
        return sum(_cut(part, place, sides) for part, place in parts).astype(x.dtype)

    return _chunked(product, x, entries)


def same_weight(x: Array, g: Array, low: int, kernel: int) -> Array:
    """Differentiate `sum(g * same(x, w, low))` with respect to w, of `kernel` a side."""
    taps, c, o = _taps(x.shape, kernel, low), x.shape[-1], g.shape[-1]
    sizes = [len(t) for t in taps]
    inner, entries = form(x.shape[1:4], sizes, c, o)
    outer = 3 - inner
    samples = _samples(x.shape[0], entries)

    def add(total, xg):
        x, g = xg
        for axis in range(outer, 0, -1):
            k = sizes[axis - 1]
            pads = [[(0, 0)] * axis + [(i, k - 1 - i)] + [(0, 0)] * (4 - axis) for i in range(k)]
            g = jnp.concatenate([jnp.pad(g, pad) for pad in pads], axis=-1)
        return total + _dot(_windows(x, taps, low, inner), g, ((0, 1, 2, 3), (0, 1, 2, 3))), None

    shape = (*sizes[outer:], c, *sizes[:outer], o)
    start = jnp.zeros((math.prod(shape[: inner + 1]), math.prod(shape[inner + 1 :])), jnp.float32)
    w, _ = lax.scan(add, start, (_parts(x, samples), _parts(g, samples)))
    w = w.reshape(shape).transpose(*range(inner + 1, 4), *range(inner + 1), 4).astype(x.dtype)
    return jnp.pad(w, (*((t.start, kernel - t.stop) for t in taps), (0, 0), (0, 0)))
