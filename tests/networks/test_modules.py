"""Shapes, norms and heads of section 4.2's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skullgen.networks import modules

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(3, 2, (4, 2, 4, 2, 8)), jnp.float32)


@pytest.mark.parametrize(
    ("norm", "groups", "axes"),
    [("layer", 1, (1, 2, 3, 4, 5)), ("group", 4, (1, 2, 3, 5))],
)
def test_norm_equals_its_definition(norm, groups, axes, x):
    grouped = x.reshape(*x.shape[:4], groups, -1)
    expected = grouped - grouped.mean(axes, keepdims=True)
    expected = expected / np.sqrt(grouped.var(axes, keepdims=True) + 1e-5)
    module = modules.Norm(norm, groups=groups)
    y = module.apply(module.init(KEY, x, False), x)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-4)


def test_batch_norm_trains_on_the_batch_and_samples_by_running_averages(x):
    """Two devices with half a batch each: the moments are of the whole batch."""
    module, axes = modules.Norm("batch", momentum=0.75), (0, 1, 2, 3)
    variables = module.init(KEY, x, False)
    train = jax.vmap(
        lambda part: module.apply(variables, part, mutable=["stats"]), axis_name=modules.AXIS
    )
    y, new = train(x.reshape(2, 2, *x.shape[1:]))
    expected = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    np.testing.assert_allclose(y.reshape(x.shape), expected, atol=1e-4)
    mean, square = new["stats"]["moments"]
    np.testing.assert_allclose(mean[0], 0.25 * x.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(square[0], 0.75 + 0.25 * (x**2).mean(axes), rtol=1e-5)
    running = {"params": variables["params"], "stats": {"moments": (mean[0], square[0])}}
    alone, together = (module.apply(running, part, False) for part in (x[:1], x))
    np.testing.assert_array_equal(alone[0], together[0])


def test_critic_does_not_mix_samples():
    critic = modules.Critic((4, 8))
    x = jax.random.normal(KEY, (3, 8, 8, 8, 2))
    params = critic.init(KEY, x)
    jacobian = jax.jacobian(lambda x: critic.apply(params, x))(x)
    cross = np.abs(jacobian).sum(axis=(2, 3, 4, 5))
    assert np.all(cross[~np.eye(3, dtype=bool)] == 0)
    assert np.all(np.diag(cross) > 0)


@pytest.mark.parametrize(("head", "logits"), [*modules.HEADS.items(), ("linear", 2)])
def test_generator_starts_near_the_occupancy(head, logits):
    generator = modules.Generator(8, (8, 8), norm="group", head=head, occupancy=(0.1, 0.02))
    z = jnp.zeros((2, 5))
    variables = generator.init(KEY, z)
    output = generator.apply(variables, z)
    assert output.shape == (2, 8, 8, 8, logits)
    p = output if head == "linear" else modules.probabilities(output)
    np.testing.assert_allclose(p.mean((0, 1, 2, 3)), (0.1, 0.02), rtol=1e-3)
    if head == "linear":  # quiet, too: noise of logits is hidden by a sigmoid, this would not be
        assert generator.apply(variables, jax.random.normal(KEY, (2, 5))).std() < 0.2


def test_exclusive_channels_never_overlap():
    p = modules.probabilities(jax.random.normal(KEY, (1000, 3)) * 3)
    assert np.all(p.sum(-1) <= 1 + 1e-6)
    pair = modules.binarise(p, "exclusive")
    assert not np.any(pair[:, 0] & pair[:, 1])
    np.testing.assert_array_equal(pair.any(-1), p.sum(-1) >= 0.5)
    by_hand = jnp.array([[0.3, 0.3], [0.2, 0.4], [0.4, 0.0], [0.6, 0.7]])
    for head, expected in (("exclusive", ["s", "d", "", "d"]), ("linear", ["", "", "", "sd"])):
        pair = modules.binarise(by_hand, head).tolist()
        assert ["s" * skull + "d" * defect for skull, defect in pair] == expected


def test_encoder_pools():
    x = jax.random.normal(KEY, (2, 8, 8, 8, 2))
    for pool, inputs in (("average", 8), ("flatten", 8 * 8)):
        encoder = modules.Encoder(3, (8, 8), groups=4, pool=pool)
        params = encoder.init(KEY, x)
        assert params["params"]["mean"]["kernel"].shape == (inputs, 3)
        mean, log_variance = encoder.apply(params, x)
        assert mean.shape == log_variance.shape == (2, 3)
