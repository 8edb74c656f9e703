"""Known answers of equations 3 to 5, the KL and the reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skullgen.networks import losses


def test_penalty_is_taken_on_the_segment_from_real_to_fake():
    # C(x) = |x|^2 / 2 has gradient x: the norm tells where x_hat lies.
    real, fake = jnp.zeros((3, 1, 1, 1, 1)), jnp.full((3, 1, 1, 1, 1), 8.0)
    u = jnp.array([0.0, 0.25, 1.0])
    penalty, norm = losses.gradient_penalty(lambda x: 0.5 * (x**2).sum((1, 2, 3, 4)), real, fake, u)
    np.testing.assert_allclose(norm, [1e-6, 2.0, 8.0], rtol=1e-5)
    np.testing.assert_allclose(penalty, [1.0, 1.0, 49.0], rtol=1e-5)


def test_penalty_has_a_finite_gradient_where_the_critic_is_flat():
    def loss(w):
        def critic(x):
            return w * (x**3).sum((1, 2, 3, 4))

        zero = jnp.zeros((1, 2, 2, 2, 2))
        return losses.gradient_penalty(critic, zero, zero, jnp.zeros(1))[0].sum()

    assert np.isfinite(jax.grad(loss)(1.0))


def test_kl_by_hand():
    mean, log_variance = jnp.array([[0.0, 0.0], [1.0, 2.0]]), jnp.log(jnp.array([[1, 1], [4, 1.0]]))
    expected = [0.0, 0.5 * ((1 + 4 - 1 - np.log(4)) + (4 + 1 - 1 - 0))]
    np.testing.assert_allclose(losses.kl(mean, log_variance), expected, rtol=1e-6)


def test_reconstruction_by_hand():
    # Two voxels: one of skull, one empty.
    pairs = jnp.array([[1.0, 0], [0, 0]]).reshape(1, 2, 1, 1, 2)
    p = np.array([[0.9, 0.2], [0.3, 0.1]])
    logits = jnp.log(p / (1 - p)).reshape(1, 2, 1, 1, 2)
    by_hand = -(np.log(0.9) + np.log(0.7)) - 6 * (np.log(0.8) + np.log(0.9))
    assert losses.reconstruction(logits, pairs, (1, 6)) == pytest.approx(by_hand, rel=1e-5)

    classes = np.array([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    logits = jnp.log(classes).reshape(1, 2, 1, 1, 3)
    by_hand = -2 * np.log(0.7) - np.log(0.5)
    assert losses.reconstruction(logits, pairs, (2, 6)) == pytest.approx(by_hand, rel=1e-5)


def test_squared_error_is_summed_and_divided_by_the_voxels_a_side():
    pairs = jnp.zeros((2, 4, 4, 4, 2), bool)
    pairs = pairs.at[1, 0, 0, 0, 0].set(True).at[1, 1, 1, 1, 1].set(True)
    output = jnp.zeros((2, 4, 4, 4, 2)).at[1, 0, 0, 0, 0].set(0.5)
    # A linear output may leave 0..1, and pays for it.
    output = output.at[0, 0, 0, 0].set(jnp.array([2.0, -1.0]))
    by_hand = [(2**2 + 3 * 1**2) / 4, (0.5**2 + 3 * 1**2) / 4]
    np.testing.assert_allclose(losses.squared_error(output, pairs, (1, 3)), by_hand, rtol=1e-6)


def test_equations_4_and_5_by_hand():
    kl_real, error = jnp.array([7.0, 8.0]), jnp.array([100.0, 200.0])
    kl_fake = jnp.array([[4.0, 12.0], [9.0, 10.5]])  # of reconstructions, of prior samples
    encoder = losses.introspective_encoder(kl_real, kl_fake, error, 0.25, 0.5, 10.0)
    # The hinge is each sample's: 10 - 4 and 10 - 9 of the first, none of the second.
    np.testing.assert_allclose(encoder, [7 + 0.25 * (6 + 1) + 50, 8 + 100], rtol=1e-6)
    generator = losses.introspective_generator(kl_fake, error, 0.25, 0.5)
    np.testing.assert_allclose(generator, [0.25 * 13 + 50, 0.25 * 22.5 + 100], rtol=1e-6)


def test_soft_dice_by_hand():
    target = jnp.zeros((4, 2, 2, 2)).at[:3, 0].set(1)  # four voxels, and an empty one
    half, quarter = jnp.full((2, 2, 2), 0.5), jnp.zeros((2, 2, 2)).at[0, 0].set(0.25)
    # Perfect, disjoint, half of everything, and something where there is nothing.
    prediction = jnp.stack([target[0], 1 - target[0], half, quarter])
    expected = [1 - 8 / 9, 1, 1 - 4 / 9, 1]
    np.testing.assert_allclose(losses.soft_dice(prediction, target), expected, rtol=1e-6)
    # Of an empty target nothing is asked.
    slope = jax.grad(lambda p: losses.soft_dice(p, jnp.zeros((1, 2, 2, 2))).sum())
    np.testing.assert_array_equal(slope(jnp.full((1, 2, 2, 2), 0.5)), 0)
