"""VAE, the paper's baseline: summed cross-entropy, or squared error / D, plus weighted KL."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from skullgen.core.errors import one_of
from skullgen.core.types import Batch, Model, State
from skullgen.models import steps
from skullgen.networks import losses, modules

Latents = modules.Latents
Moments = dict[str, Float[Array, "..."]]


class Autoencoder(nn.Module):
    """Encoder and decoder under one set of weights, as one optimiser trains them."""

    encoder: modules.Encoder
    decoder: modules.Generator

    def __call__(self, pairs: modules.Pairs) -> Float[Array, "B D D D logits"]:
        """The head's output for the posterior's mean."""
        return self.decoder(self.encoder(pairs)[0])


def autoencoder(config: ConfigDict) -> Autoencoder:
    """Of an experiment's `config.model`."""
    one_of("model.pool", config.pool, ("average", "flatten"))
    decoder, widths = steps.generator(config, "group", "linear"), tuple(config.widths)
    encoder = modules.Encoder(config.latent, widths, config.groups, config.pool, decoder.dtype)
    return Autoencoder(encoder, decoder)


def posteriors(config: ConfigDict) -> Callable:
    """`posterior(params, pairs) -> mean, log-variance`; params: of an `Autoencoder`."""
    encoder = autoencoder(config).encoder
    return lambda params, pairs: encoder.apply({"params": params["encoder"]}, pairs)


def unknown(latent: int) -> Moments:
    """`Net.stats` before any update: moments of the aggregate posterior, all pairs' mixture."""
    mean, square = jnp.zeros(latent), jnp.zeros((latent, latent))
    return {"mean": mean, "square": square, "weight": jnp.zeros(())}


def follow(stats: Moments, mean: Latents, log_variance: Latents, momentum: float) -> Moments:
    """Moves the aggregate posterior's moments a little towards this batch's, over all devices."""
    variance = jnp.exp(log_variance).mean(axis=0)
    square = mean.T @ mean / len(mean) + jnp.diag(variance)
    new = {"mean": mean.mean(axis=0), "square": square, "weight": jnp.ones(())}
    new = jax.lax.pmean(jax.lax.stop_gradient(new), modules.AXIS)
    return jax.tree.map(lambda old, now: momentum * old + (1 - momentum) * now, stats, new)


def aggregate(stats: Moments, keys: Key[Array, " B"]) -> Latents:
    """Draws from the Gaussian with the aggregate posterior's moments; N(0, I) at first."""
    begun = stats["weight"] > 0
    weight = jnp.where(begun, stats["weight"], 1)
    mean = stats["mean"] / weight
    covariance = stats["square"] / weight - jnp.outer(mean, mean)
    covariance = jnp.where(begun, covariance, jnp.eye(len(mean)))
    root = jnp.linalg.cholesky(covariance + 1e-6 * jnp.eye(len(mean)))
    return mean + steps.normal(keys, len(mean)) @ root.T


def sampler(config: ConfigDict, source: str) -> Callable:
    """`Model.latents` from `config.latents`; source: the role whose stats hold the aggregate."""
    one_of("model.latents", config.latents, ("prior", "aggregate"))
    if config.latents == "prior":
        return lambda state, keys: steps.normal(keys, config.latent)
    return lambda state, keys: aggregate(state.nets[source].stats, keys)


def make(config: ConfigDict) -> Model:
    """The VAE; `config` is `config.model` of `experiments/vae.py`."""
    module, posterior = autoencoder(config), posteriors(config)
    tx = optax.adam(config.vae_learning_rate)
    distance = losses.squared_error if config.head == "linear" else losses.reconstruction

    def init(key):
        pair = jnp.zeros((1, *(config.resolution,) * 3, 2))
        net = steps.new_net(module, tx, jax.random.fold_in(key, 0), pair)
        return steps.begin(key, {"vae": net.replace(stats=unknown(config.latent))})

    def output(params, z):
        return module.decoder.apply({"params": params["decoder"]}, z)

    def step(state: State, batch: Batch):
        net, pairs = state.nets["vae"], batch[0].astype(jnp.float32)
        noise = steps.normal(steps.keys(state, steps.NOISE, len(pairs)), config.latent)

        def loss(params):
            mean, log_variance = posterior(params, pairs)
            logits = output(params, mean + jnp.exp(0.5 * log_variance) * noise)
            error = distance(logits, pairs, config.channel_weights).mean()
            divergence = losses.kl(mean, log_variance).mean()
            share = modules.probabilities(logits, config.head).mean(axis=(0, 1, 2, 3))
            metrics = {"reconstruction": error, "kl": divergence, **steps.occupancy(share)}
            stats = follow(net.stats, mean, log_variance, config.posterior_momentum)
            return error + config.kl_weight * divergence, (stats, metrics)

        net, metrics = steps.descend(net, tx, loss, "vae")
        return steps.advance(state, vae=net), metrics

    def decode(state, z):
        return modules.probabilities(output(state.nets["vae"].params, z), config.head)

    def encode(state, pairs):
        return posterior(state.nets["vae"].params, pairs.astype(jnp.float32))[0]

    return Model(init, {"vae": step}, sampler(config, "vae"), decode, encode)
