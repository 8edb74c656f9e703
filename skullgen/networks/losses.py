"""Equations 3 to 5 and 7, and the VAE's loss, of logits as `modules.probabilities` reads them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

Samples = Float[Array, " B"]
Latents = Float[Array, "B Z"]
Grid = Float[Array, "B X Y Z C"]
Kl = Float[Array, "2 B"]  # of reconstructions and of prior samples
Logits = Float[Array, "B *grid logits"]
Pairs = Shaped[Array, "B *grid 2"]
Critic = Callable[[Array], Samples]
Weights = tuple[float, float]  # of the skull's channel and the defect's


def gradient_penalty(critic: Critic, real: Grid, fake: Grid, u: Samples) -> tuple[Samples, Samples]:
    """Equation 3's penalty `(||grad C(x)||_2 - 1)^2` at `x = (1 - u) real + u fake`, and the norms.

    critic: it must not mix samples (no batch norm). 1e-12: the root's second derivative at 0.
    """
    u = u.reshape(-1, *(1,) * (real.ndim - 1))
    x_hat = real + u * (fake - real)
    slope = jax.grad(lambda x: critic(x).sum())(x_hat).astype(jnp.float32)
    norm = jnp.sqrt(jnp.square(slope).sum(axis=tuple(range(1, slope.ndim))) + 1e-12)
    return jnp.square(norm - 1), norm


def kl(mean: Latents, log_variance: Latents) -> Samples:
    """KL(N(mean, exp(log_variance)) || N(0, I)), summed over latents."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(axis=-1)


def reconstruction(logits: Logits, pairs: Pairs, weights: Weights) -> Samples:
    """Negative log-likelihood of binary pairs; weights: of channels, or classes (background: 1)."""
    logits, pairs = logits.astype(jnp.float32), pairs.astype(jnp.float32)
    weights = jnp.asarray(weights, jnp.float32)
    if logits.shape[-1] == 2:
        loss = optax.sigmoid_binary_cross_entropy(logits, pairs) * weights
    else:
        background = 1 - pairs.sum(axis=-1, keepdims=True)
        classes = jnp.concatenate([background, pairs], axis=-1)
        weights = jnp.concatenate([jnp.ones(1), weights])
        loss = -(classes * weights) * jax.nn.log_softmax(logits)
    return loss.sum(axis=tuple(range(1, loss.ndim)))


def squared_error(output: Grid, pairs: Pairs, weights: Weights) -> Samples:
    """Sum of squared errors over voxels and channels, divided by D: equations 4 and 5's error.

    Only so reduced do the paper's alpha, beta and m make sense: with a plain sum the hinge never
    acts, with a mean the posterior collapses.
    """
    error = jnp.square(output.astype(jnp.float32) - pairs) * jnp.asarray(weights, jnp.float32)
    return error.sum(axis=(1, 2, 3, 4)) / pairs.shape[1]


def introspective_encoder(
    kl_real: Samples, kl_fake: Kl, error: Samples, alpha: float, beta: float, margin: float
) -> Samples:
    """Equation 4; margin: the paper's m."""
    hinge = jnp.maximum(0, margin - kl_fake)
    return kl_real + alpha * hinge.sum(axis=0) + beta * error


def introspective_generator(kl_fake: Kl, error: Samples, alpha: float, beta: float) -> Samples:
    """Equation 5; arguments as in `introspective_encoder`."""
    return alpha * kl_fake.sum(axis=0) + beta * error


def soft_dice(probability: Float[Array, "B X Y Z"], target: Shaped[Array, "B X Y Z"]) -> Samples:
    """Equation 7; of an empty target it is 1 and its gradient 0: emptiness is not rewarded."""
    probability, target = probability.astype(jnp.float32), target.astype(jnp.float32)
    axes = tuple(range(1, target.ndim))
    overlap = (probability * target).sum(axis=axes)
    return 1 - 2 * overlap / (probability.sum(axis=axes) + target.sum(axis=axes) + 1)
