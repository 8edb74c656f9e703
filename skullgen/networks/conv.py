"""The 3-D convolutions of the networks: k4 s2 p1, its transpose, and stride 1 of any kernel.

Legend: `X Y Z` voxels a side, `C` channels on the fine grid, `O` on the coarse one. `impl` is
"matmul" (fast on CPUs), "lax" (cuDNN) or "auto", by the default backend. Results are of the first
array's dtype, summed in float32. All are differentiable to any order in reverse mode only.

A k4 s2 p1 convolution is bilinear in (x, w): its derivatives are the three contractions of one
trilinear form, `conv` (over x, w), `conv_transpose` (over g, w) and `weight_gradient` (over x, g).
XLA never derives a dilated one of its own, on a CPU up to 1000 times slower.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skullgen.networks import conv_cpu

Grid = Float[Array, "B X Y Z C"]
Coarse = Float[Array, "B X Y Z O"]
Kernel = Float[Array, "4 4 4 C O"]
_FORWARD = ("NXYZC", "XYZIO", "NXYZC")
_GRADIENT = ("CXYZN", "IXYZO", "XYZNC")  # of the weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Grid, w: Kernel, impl: str = "auto") -> Float[Array, "B X//2 Y//2 Z//2 O"]:
    """Convolve with a kernel of 4, stride 2 and padding 1; ValueError when a side is odd."""
    if any(n % 2 for n in x.shape[1:4]):
        raise ValueError(f"conv: the sides of {x.shape} must be even")
    if _matmul(impl):
        return conv_cpu.conv(x, w)
    return _lax(x, w, _FORWARD, strides=(2, 2, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_transpose(g: Coarse, w: Kernel, impl: str = "auto") -> Float[Array, "B 2*X 2*Y 2*Z C"]:
    """Transpose `conv` of kernel w in x: a decoder layer from O to C channels."""
    if _matmul(impl):
        return conv_cpu.conv_transpose(g, w)
    layout = ("NXYZC", "XYZOI", "NXYZC")
    return _lax(g, jnp.flip(w, (0, 1, 2)), layout, padding=((2, 2),) * 3, lhs_dilation=(2, 2, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def weight_gradient(x: Grid, g: Float[Array, "B X//2 Y//2 Z//2 O"], impl: str = "auto") -> Kernel:
    """Differentiate `sum(g * conv(x, w))` by w; ValueError where the grids do not fit."""
    if x.shape[1:4] != tuple(2 * n for n in g.shape[1:4]):
        raise ValueError(f"conv: fine grid {x.shape} and coarse grid {g.shape} do not fit")
    if _matmul(impl):
        return conv_cpu.weight_gradient(x, g)
    return _lax(x, g, _GRADIENT, rhs_dilation=(2, 2, 2))


conv.defvjp(
    lambda x, w, impl: (conv(x, w, impl), (x, w)),
    lambda impl, xw, g: (conv_transpose(g, xw[1], impl), weight_gradient(xw[0], g, impl)),
)
conv_transpose.defvjp(
    lambda g, w, impl: (conv_transpose(g, w, impl), (g, w)),
    lambda impl, gw, x: (conv(x, gw[1], impl), weight_gradient(x, gw[0], impl)),
)
weight_gradient.defvjp(
    lambda x, g, impl: (weight_gradient(x, g, impl), (x, g)),
    lambda impl, xg, w: (conv_transpose(xg[1], w, impl), conv(xg[0], w, impl)),
)


def conv_same(x: Grid, w: Float[Array, "k k k C O"], impl: str = "auto") -> Coarse:
    """Convolve, stride 1 and SAME padding; mirrored it is the paper's k4 s1 transposed one."""
    return _same(x, w, (len(w) - 1) // 2, impl)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _same(x, w, low, impl):
    """Convolve with stride 1, `low` zeros before and k - 1 - low after each axis."""
    if not _matmul(impl):
        return _lax(x, w, _FORWARD, padding=((low, len(w) - 1 - low),) * 3)
    return conv_cpu.same(x, w, low)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _same_weight(x, g, low, kernel, impl):
    """Differentiate `sum(g * _same(x, w, low))` with respect to w, of `kernel` a side."""
    if not _matmul(impl):
        return _lax(x, g, _GRADIENT, padding=((low, kernel - 1 - low),) * 3)
    return conv_cpu.same_weight(x, g, low, kernel)


def _mirror(w):
    return jnp.flip(w, (0, 1, 2)).swapaxes(3, 4)


_same.defvjp(
    lambda x, w, low, impl: (_same(x, w, low, impl), (x, w)),
    lambda low, impl, xw, g: (
        _same(g, _mirror(xw[1]), len(xw[1]) - 1 - low, impl),
        _same_weight(xw[0], g, low, len(xw[1]), impl),
    ),
)
_same_weight.defvjp(
    lambda x, g, low, kernel, impl: (_same_weight(x, g, low, kernel, impl), (x, g)),
    lambda low, kernel, impl, xg, w: (
        _same(xg[1], _mirror(w), kernel - 1 - low, impl),
        _same(xg[0], w, low, impl),
    ),
)


def _matmul(impl):
    if impl == "auto":
        return jax.default_backend() == "cpu"
    return {"matmul": True, "lax": False}[impl]


# The lax forms are those that XLA recognises as cuDNN's own backward convolutions. Only their
# derivatives by autodiff are slow (jax issue 31662), and the closed family never asks for them.
# cuDNN sums products of bfloat16 in float32 by itself.


def _lax(a, b, layout, strides=(1, 1, 1), padding=((1, 1),) * 3, **dilation):
    return lax.conv_general_dilated(a, b, strides, padding, dimension_numbers=layout, **dilation)
