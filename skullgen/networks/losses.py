"""Equations 3 to 5 and the VAE's loss; every reduction is spelled out, every sum is float32.

Shapes: `B` samples, `D` voxels a side, `Z` latents. A pair's logits have two channels
(`independent`: skull, defect, each a sigmoid) or three (`exclusive`: a softmax over background,
skull, defect), as `skullgen.networks.modules.probabilities` reads them.
"""

import jax
import jax.numpy as jnp
import optax


def gradient_penalty(critic, real, fake, u):
    """Equation 3's penalty `(||grad C(x_hat)||_2 - 1)^2` and the norms that it is made of.

    critic: `[B, ...] -> float32 [B]`. It must not mix samples (no batch norm): only then is the
        gradient of the sum over the batch each sample's own gradient.
    real, fake: [B, D, D, D, 2].
    u: float32 [B] in [0, 1), one a sample: `x_hat = real + u (fake - real)`.

    Returns float32 [B], [B]. 1e-12 stands under the root, whose second derivative at 0 is NaN.
    """
    u = u.reshape(-1, *(1,) * (real.ndim - 1))
    x_hat = real + u * (fake - real)
    slope = jax.grad(lambda x: critic(x).sum())(x_hat).astype(jnp.float32)
    norm = jnp.sqrt(jnp.square(slope).sum(axis=tuple(range(1, slope.ndim))) + 1e-12)
    return jnp.square(norm - 1), norm


def kl(mean, log_variance):
    """KL(N(mean, exp(log_variance)) || N(0, I)), summed over latents: [B, Z] x 2 -> [B]."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(axis=-1)


def reconstruction(logits, pairs, weights):
    """Negative log-likelihood of binary pairs, summed over voxels and channels (section 4.3).

    logits: float [B, D, D, D, 2 or 3].
    pairs: [B, D, D, D, 2], 0 or 1.
    weights: the weight of a skull voxel and of a defect voxel. With two logits it weighs that
        channel's whole cross-entropy, with three the voxels that belong to the class
        (background has 1). Sparse defects are ignored for hundreds of updates at weight 1.

    Returns float32 [B].
    """
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


def squared_error(output, pairs, weights):
    """Sum of squared errors over voxels and channels, divided by D: equations 4 and 5's error.

    Only so reduced do the paper's alpha, beta and m make sense: with a plain sum the hinge never
    acts, with a mean the posterior collapses.

    output: a linear head's, float [B, D, D, D, 2].
    pairs: [B, D, D, D, 2], 0 or 1.
    weights: of the skull's and the defect's channel; the paper's are 1.

    Returns float32 [B].
    """
    error = jnp.square(output.astype(jnp.float32) - pairs) * jnp.asarray(weights, jnp.float32)
    return error.sum(axis=(1, 2, 3, 4)) / pairs.shape[1]


def introspective_encoder(kl_real, kl_fake, error, alpha, beta, margin):
    """Equation 4, each sample's: float32 [B].

    kl_real, error: float32 [B]. kl_fake: float32 [2, B], of reconstructions and prior samples.
    alpha, beta, margin: numbers; `margin` is the paper's m.
    """
    hinge = jnp.maximum(0, margin - kl_fake)
    return kl_real + alpha * hinge.sum(axis=0) + beta * error


def introspective_generator(kl_fake, error, alpha, beta):
    """Equation 5, each sample's: float32 [B]; arguments as in `introspective_encoder`."""
    return alpha * kl_fake.sum(axis=0) + beta * error


def soft_dice(probability, target):
    """Equation 7: one minus twice the overlap over the sum of both sizes and 1, per sample.

    probability: float [B, D, D, D]. target: [B, D, D, D], 0 or 1. Sums are plain, over voxels.

    Returns float32 [B]. Where the target is empty it is 1 and its gradient 0: an empty prediction
    is not rewarded.
    """
    probability, target = probability.astype(jnp.float32), target.astype(jnp.float32)
    axes = tuple(range(1, target.ndim))
    overlap = (probability * target).sum(axis=axes)
    return 1 - 2 * overlap / (probability.sum(axis=axes) + target.sum(axis=axes) + 1)
