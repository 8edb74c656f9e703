"""Every form of the closed family against plain lax: values, and gradients of any order."""

import functools

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


def test_the_matmul_forms_and_their_parts():
    forms = {conv_cpu.patches_win([s // 2 for s in sides]) for sides, _, _ in SHAPES}
    assert forms == {True, False}
    # 6 samples of a quarter of the chunk: 4 fit, 3 divide.
    assert conv_cpu._samples(6, conv_cpu.CHUNK // 4) == 3
    assert conv_cpu._samples(6, 10 * conv_cpu.CHUNK) == 1
    assert conv_cpu._samples(7, 1) == 7


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("sides", "c", "o"), SHAPES)
def test_value_and_gradients_equal_plain_lax(sides, c, o, impl):
    x, w, g = arrays(sides, c, o)
    y, pull = jax.vjp(functools.partial(conv.conv, impl=impl), x, w)
    want, plain_pull = jax.vjp(plain_conv, x, w)
    close(y, want)
    close(pull(g), plain_pull(g))
    y, pull = jax.vjp(functools.partial(conv.conv_transpose, impl=impl), g, w)
    want, plain_pull = jax.vjp(plain_transpose, g, w)
    close(y, want)
    close(pull(x), plain_pull(x))


@pytest.mark.parametrize(("sides", "c", "o"), SHAPES)
def test_one_sample_at_a_time_gives_the_same(sides, c, o, monkeypatch):
    x, w, g = arrays(sides, c, o)
    monkeypatch.setattr(conv_cpu, "CHUNK", 1)
    assert conv_cpu._samples(len(x), 1) == 1
    matmul = functools.partial(conv.conv, impl="matmul")
    close(jax.vjp(matmul, x, w)[1](g), jax.vjp(plain_conv, x, w)[1](g))
    close(matmul(x, w), plain_conv(x, w))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_same_equals_plain_lax(side, impl):
    grid = (2, side, side, side + 1)
    x, w, g = normal((*grid, 3), (4, 4, 4, 3, 5), (*grid, 5))

    def second(f):
        def squares(x, w):
            dx, dw = jax.vjp(f, x, w)[1](jnp.tanh(g) * f(x, w))
            return (dx**2).sum() + (dw**2).sum()

        return jax.grad(squares, (0, 1))(x, w)

    same_equals_plain_lax(grid, 4, impl)
    close(second(functools.partial(conv.conv_same, impl=impl)), second(plain_same))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_same_of_any_kernel_equals_plain_lax(kernel, impl):
    same_equals_plain_lax((2, 6, 4, 8), kernel, impl)


def same_equals_plain_lax(grid, kernel, impl):
    x, w, g = normal((*grid, 3), (kernel,) * 3 + (3, 5), (*grid, 5))
    ours = functools.partial(conv.conv_same, impl=impl)
    close(ours(x, w), plain_same(x, w))
    close(jax.vjp(ours, x, w)[1](g), jax.vjp(plain_same, x, w)[1](g))


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


@pytest.mark.parametrize("sides", [(8, 8, 8), (4, 8, 12)])
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
    wide = [a.astype(jnp.float32) for a in (x, w, g)]
    pairs = {conv.conv: (0, 1), conv.conv_transpose: (2, 1), conv.weight_gradient: (0, 2)}
    for f, (i, j) in {**pairs, conv.conv_same: (0, 1)}.items():
        got = f((x, w, g)[i], (x, w, g)[j], impl)
        want = f(wide[i], wide[j], impl)
        assert (got.dtype, want.dtype) == (jnp.bfloat16, jnp.float32)
        close(got, want, rel=2**-7)


def test_penalty_on_cpu_has_no_dilated_convolution():
    weights, x = penalty_arrays()

    def lowered(impl):
        grad = jax.grad(functools.partial(penalty, *layers(impl)))
        return jax.jit(grad).lower(weights, x).as_text()

    assert "lhs_dilate" in lowered("lax")  # the text would show one
    assert "dilate" not in lowered("matmul")
    assert "convolution" not in lowered("matmul")


def test_shapes_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    x, w, g = arrays((4, 4, 4), 2, 3)
    with pytest.raises(ValueError, match="even"):
        conv.conv(x[:, 1:], w)
    with pytest.raises(ValueError, match="do not fit"):
        conv.weight_gradient(x, g[:, 1:])
    with pytest.raises(KeyError):
        conv.conv(x, w, "cudnn")
