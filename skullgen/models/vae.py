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
from skullgen.models import labels, steps
from skullgen.networks import losses, modules

Latents, Labels = modules.Latents, modules.Labels
Both = Float[Array, "B both"]
Moments = dict[str, Float[Array, "..."]]


class Autoencoder(nn.Module):
    """Encoder and decoder under one set of weights, as one optimiser trains them."""

    encoder: modules.Encoder
    decoder: modules.Generator

    def __call__(self, pairs: modules.Pairs, labels: Labels) -> Float[Array, "B D D D logits"]:
        """The head's output for the posterior's mean."""
        return self.decoder(jnp.concatenate([self.encoder(pairs, labels)[0], labels], -1))


def autoencoder(config: ConfigDict) -> Autoencoder:
    """Of an experiment's `config.model`."""
    one_of("model.pool", config.pool, ("average", "flatten"))
    decoder, widths = steps.generator(config, "group", "linear"), tuple(config.widths)
    encoder = modules.Encoder(config.latent, widths, config.groups, config.pool, decoder.dtype)
    return Autoencoder(encoder, decoder)


def posteriors(config: ConfigDict) -> Callable:
    """`posterior(params, pairs, labels) -> mean, log-variance`; params: of an `Autoencoder`."""
    encoder = autoencoder(config).encoder
    return lambda params, *given: encoder.apply({"params": params["encoder"]}, *given)


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


def beside(mean: Latents, log_variance: Latents, label: Labels) -> tuple[Both, Both]:
    """A posterior of latents and labels, these without variance: whose moments `follow` follows."""
    widths = (0, 0), (0, label.shape[1])
    certain = jnp.pad(log_variance, widths, constant_values=-jnp.inf)
    return jnp.concatenate([mean, label], -1), certain


def aggregate(stats: Moments, keys: Key[Array, " B"], label: Labels) -> Latents:
    """Draws from the Gaussian with the aggregate posterior's moments, given labels.

    N(0, I) at first. A latent tells of side and place, too: one drawn without regard to the labels
    would contradict them.
    """
    begun = stats["weight"] > 0
    weight = jnp.where(begun, stats["weight"], 1)
    mean = stats["mean"] / weight
    covariance = stats["square"] / weight - jnp.outer(mean, mean)
    covariance = jnp.where(begun, covariance, jnp.eye(len(mean)))
    size = len(mean) - label.shape[1]
    own, middle = covariance[:size, :size], mean[:size]
    if label.shape[1]:
        ridge = covariance[size:, size:] + 1e-3 * jnp.eye(label.shape[1])
        slope = jnp.linalg.solve(ridge, covariance[size:, :size])
        own, middle = own - covariance[:size, size:] @ slope, middle + (label - mean[size:]) @ slope
    root = jnp.linalg.cholesky(own + 1e-6 * jnp.eye(size))
    return middle + steps.normal(keys, size) @ root.T


def sampler(config: ConfigDict, source: str) -> Callable:
    """`Model.latents` from `config.latents`; source: the role whose stats hold the aggregate."""
    one_of("model.latents", config.latents, ("prior", "aggregate"))

    def latents(state, keys, asked=labels.ANY):
        label = labels.wanted(config, state, keys, asked)
        if config.latents == "prior":
            z = steps.normal(keys, config.latent)
        else:
            z = aggregate(state.nets[source].stats, keys, label)
        return jnp.concatenate([z, label], -1)

    return latents


def means(config: ConfigDict, posterior: Callable) -> Callable:
    """`Model.encode` of `posterior(state, pairs, labels)`: of a pair no label is known."""

    def encode(state, pairs):
        none = jnp.zeros((len(pairs), labels.width(config)))
        return jnp.concatenate([posterior(state, pairs.astype(jnp.float32), none)[0], none], -1)

    return encode


def make(config: ConfigDict) -> Model:
    """The VAE; `config` is `config.model` of `experiments/vae.py`."""
    module, posterior = autoencoder(config), posteriors(config)
    tx = optax.adam(config.vae_learning_rate)
    distance = losses.squared_error if config.head == "linear" else losses.reconstruction

    def init(key):
        pair = jnp.zeros((1, *(config.resolution,) * 3, 2)), jnp.zeros((1, labels.width(config)))
        net = steps.new_net(module, tx, jax.random.fold_in(key, 0), *pair)
        net = net.replace(stats=unknown(config.latent + labels.width(config)))
        return steps.begin(key, {"vae": net, **labels.begin(config)})

    def output(params, z):
        return module.decoder.apply({"params": params["decoder"]}, z)

    def step(state: State, batch: Batch):
        net, pairs = state.nets["vae"], batch.pairs[0].astype(jnp.float32)
        noise = steps.normal(steps.keys(state, steps.NOISE, len(pairs)), config.latent)
        label = labels.of(config, state, batch)

        def loss(params):
            mean, log_variance = posterior(params, pairs, label)
            z = mean + jnp.exp(0.5 * log_variance) * noise
            logits = output(params, jnp.concatenate([z, label], -1))
            error = distance(logits, pairs, config.channel_weights).mean()
            divergence = losses.kl(mean, log_variance).mean()
            share = modules.probabilities(logits, config.head).mean(axis=(0, 1, 2, 3))
            metrics = {"reconstruction": error, "kl": divergence, **steps.occupancy(share)}
            own = beside(mean, log_variance, batch.labels[0, :, : labels.width(config)])
            stats = follow(net.stats, *own, config.posterior_momentum)
            return error + config.kl_weight * divergence, (stats, metrics)

        net, metrics = steps.descend(net, tx, loss, "vae")
        return steps.advance(labels.remember(state, batch), vae=net), metrics

    def decode(state, z):
        return modules.probabilities(output(state.nets["vae"].params, z), config.head)

    encode = means(config, lambda state, *given: posterior(state.nets["vae"].params, *given))
    latents, conditional = sampler(config, "vae"), bool(labels.width(config))
    return Model(init, {"vae": step}, latents, decode, encode, conditional=conditional)
