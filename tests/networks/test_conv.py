"""Every form of the closed family against plain lax: values, and gradients of any order."""

import functools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import lax

from skullgen.networks import conv, conv_cpu

LAYOUT = ("NXYZC", "XYZIO", "NXYZC")
IMPLS = ("matmul", "lax")
# (fine sides, C, O): every matmul form (products and patches, narrow and few), unequal sides.
SHAPES = [((16, 16, 16), 2, 3), ((8, 8, 8), 8, 12), ((4, 8, 6), 3, 4), ((2, 2, 4), 9, 20)]


def plain_conv(x, w):
    return lax.conv_general_dilated(x, w, (2, 2, 2), ((1, 1),) * 3, dimension_numbers=LAYOUT)


def plain_same(x, w):
    return lax.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=LAYOUT)


def plain_transpose(g, w):
    return lax.conv_transpose(
        g, w, (2, 2, 2), "SAME", dimension_numbers=LAYOUT, transpose_kernel=True
    )


def normal(*shapes, seed=0):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=s), jnp.float32) for s in shapes]


def arrays(sides, c, o):
    coarse = [s // 2 for s in sides]
    return normal((2, *sides, c), (4, 4, 4, c, o), (2, *coarse, o))


def close(a, b, rel=1e-4):
    for got, want in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= rel * np.abs(want).max()


def equal(ours, plain, x, w, g):
    """The values of two functions of (x, w), and the gradients of g times them."""
    (y, pull), (want, plain_pull) = jax.vjp(ours, x, w), jax.vjp(plain, x, w)
    close(y, want)
    close(pull(g), plain_pull(g))


@pytest.mark.parametrize("impl", [*IMPLS, "matmul of one sample at a time"])
@pytest.mark.parametrize(("sides", "c", "o"), SHAPES)
def test_value_and_gradients_equal_plain_lax(sides, c, o, impl, monkeypatch):
    forms = {conv_cpu.patches_win([s // 2 for s in each]) for each, _, _ in SHAPES}
    assert forms == {True, False}
    if impl not in IMPLS:
        monkeypatch.setattr(conv_cpu, "CHUNK", 1)
        impl = "matmul"
    x, w, g = arrays(sides, c, o)
    equal(functools.partial(conv.conv, impl=impl), plain_conv, x, w, g)
    equal(functools.partial(conv.conv_transpose, impl=impl), plain_transpose, g, w, x)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("sides", "kernel"),
    [*(((n, n, n + 1), 4) for n in (1, 2, 3, 5)), *(((6, 4, 8), k) for k in (2, 3, 5))],
)
def test_same_equals_plain_lax(sides, kernel, impl):
    same_equals_plain_lax((2, *sides), kernel, impl)


def same_equals_plain_lax(grid, kernel, impl):
    x, w, g = normal((*grid, 3), (kernel,) * 3 + (3, 5), (*grid, 5))
    equal(functools.partial(conv.conv_same, impl=impl), plain_same, x, w, g)


@pytest.mark.parametrize("inner", [1, 2, 3])
@pytest.mark.parametrize("kernel", [4, 5])
def test_every_form_of_same_gives_the_same(inner, kernel, monkeypatch):
    monkeypatch.setattr(conv_cpu, "form", lambda sides, sizes, c, o: (inner, conv_cpu.CHUNK))
    same_equals_plain_lax((2, 2, 6, 4), kernel, "matmul")


def penalty(forward, transpose, same, weights, x):
    """Gradient penalty of a critic that uses all three layers; `weights` one kernel a layer."""

    def critic(x):
        h = jnp.tanh(forward(x, weights[0]))
        h = jnp.tanh(same(h, weights[1]))
        h = jnp.tanh(transpose(h, weights[2]))
        return jnp.tanh(forward(h, weights[0])).sum()

    return (jax.grad(critic)(x) ** 2).sum()


def penalty_arrays(sides=(8, 8, 8)):
    x, *weights = normal((2, *sides, 2), (4, 4, 4, 2, 3), (4, 4, 4, 3, 3), (4, 4, 4, 2, 3))
    return [0.1 * w for w in weights], x


def layers(impl):
    family = conv.conv, conv.conv_transpose, conv.conv_same
    return [functools.partial(f, impl=impl) for f in family]


@pytest.mark.parametrize("sides", [(8, 8, 8), (2, 4, 6)])  # at 1, 2, 3 some taps see only padding
@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_of_gradient_equals_plain_lax(sides, impl):
    weights, x = penalty_arrays(sides)
    ours = functools.partial(penalty, *layers(impl))
    got = jax.jit(jax.grad(ours, (0, 1)))(weights, x)
    plain = functools.partial(penalty, plain_conv, plain_transpose, plain_same)
    close(got, jax.jit(jax.grad(plain, (0, 1)))(weights, x))


@pytest.mark.parametrize("impl", IMPLS)
def test_bfloat16_is_close_to_float32(impl):
    x, w, g = [a.astype(jnp.bfloat16) for a in arrays((8, 8, 8), 2, 3)]
    family = conv.conv, conv.conv_same, conv.conv_transpose, conv.weight_gradient
    for f, pair in zip(family, [(x, w), (x, w), (g, w), (x, g)], strict=True):
        got, want = f(*pair, impl), f(*(a.astype(jnp.float32) for a in pair), impl)
        assert (got.dtype, want.dtype) == (jnp.bfloat16, jnp.float32)
        close(got, want, rel=2**-7)


def test_gradients_have_no_dilated_convolution_of_xlas_own():
    """None at all on CPUs, and of stride 1 none that is dilated anywhere."""
    weights, x = penalty_arrays()

    def lowered(loss):
        text = jax.jit(jax.grad(loss, (0, 1))).lower(weights, x).as_text()
        return text.count("stablehlo.convolution"), re.findall(r"_dilate = \[\d, \d, [^1]", text)

    def same(weights, x):
        return conv.conv_same(x, weights[2], "lax").sum()

    assert lowered(functools.partial(penalty, *layers("lax")))[1]  # the text would show one
    assert lowered(functools.partial(penalty, *layers("matmul"))) == (0, [])
    assert lowered(same)[0] > 0 and not lowered(same)[1]


def test_shapes_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    x, w, g = arrays((4, 4, 4), 2, 3)
    with pytest.raises(ValueError, match="even"):
        conv.conv(x[:, 1:], w)
    with pytest.raises(ValueError, match="do not fit"):
        conv.weight_gradient(x, g[:, 1:])
    with pytest.raises(KeyError):
        conv.conv(x, w, "cudnn")
