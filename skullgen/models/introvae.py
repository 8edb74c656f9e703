"""IntroVAE (section 3.3): the encoder tells real pairs from generated ones by their KL."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from skullgen.core.errors import one_of
from skullgen.core.types import Batch, Model, State
from skullgen.models import labels, steps, vae
from skullgen.networks import losses, modules

FAKES = ("reconstruction", "prior")  # s = rec, p in equations 4 and 5
ng = jax.lax.stop_gradient


def objectives(config: ConfigDict) -> tuple[Callable, Callable]:
    """Equations 4 and 5 of `(encoder, decoder, given, noise, prior, alpha)`, means over a batch.

    given: its pairs and labels.
    """
    module = vae.autoencoder(config)

    def encode(params, pairs, label):
        return module.encoder.apply({"params": params}, pairs, label)

    def forward(encoder, decoder, given, noise, prior):
        (mean, log_variance), label = encode(encoder, *given), given[1]
        latents = mean + jnp.exp(0.5 * log_variance) * noise, prior
        latents = [jnp.concatenate([z, label], -1) for z in latents]
        fakes = [module.decoder.apply({"params": decoder}, z) for z in latents]
        error = losses.squared_error(fakes[0], given[0], config.channel_weights)
        return (mean, log_variance), fakes, error

    def divergences(encoder, fakes, label):
        both = jnp.concatenate(fakes), jnp.concatenate([label, label])
        return losses.kl(*encode(encoder, *both)).reshape(2, -1)

    def encoder_loss(encoder, decoder, given, noise, prior, alpha):
        posterior, fakes, error = forward(encoder, decoder, given, noise, prior)
        real = losses.kl(*posterior)
        fake = divergences(encoder if alpha else ng(encoder), ng(fakes), given[1])
        loss = losses.introspective_encoder(real, fake, error, alpha, config.beta, config.margin)
        share = jnp.clip(fakes[0], 0, 1).mean(axis=(0, 1, 2, 3))
        metrics = {"reconstruction": error.mean(), "kl_real": real.mean()}
        metrics |= steps.occupancy(share)
        for name, kl in zip(FAKES, fake, strict=True):
            metrics[f"kl_{name}"] = kl.mean()
            metrics[f"hinge_active_{name}"] = jnp.mean(kl < config.margin, dtype=jnp.float32)
        return loss.mean(), (posterior, metrics)

    def decoder_loss(encoder, decoder, given, noise, prior, alpha):
        _, fakes, error = forward(ng(encoder), decoder, given, noise, prior)
        fake = divergences(ng(encoder), fakes if alpha else ng(fakes), given[1])
        return losses.introspective_generator(fake, error, alpha, config.beta).mean()

    return encoder_loss, decoder_loss


def advice(config: ConfigDict, records: list[dict]) -> list[str]:
    """What an epoch's records of one phase say about `config.margin`."""
    margin, lines = f"config.model.margin ({config.margin:g})", []
    kl = f"KL(real) is {sum(record['kl_real'] for record in records) / len(records):.3g}"
    if records[-1]["phase"] == "vae":
        return [f"{kl}: set {margin} a little above it"]
    for name in FAKES:
        share, *others = {record[f"hinge_active_{name}"] for record in records}
        if share in (0, 1) and not others:
            what, cure = ("saturated", "lower") if share else ("idle", "raise")
            what = f"the {name}'s hinge was {what} for a whole epoch"
            lines.append(f"warning: {what}, {kl}: {cure} {margin}")
    return lines


def make(config: ConfigDict) -> Model:
    """Steps `vae` (alpha = 0) and `intro`: the encoder, then the decoder by the new encoder."""
    one_of("model.head", config.head, ("linear",))
    module, width = vae.autoencoder(config), labels.width(config)
    encoder_loss, decoder_loss = objectives(config)
    tx = optax.adam(config.learning_rate)

    def init(key):
        pair, none = jnp.zeros((1, *(config.resolution,) * 3, 2)), jnp.zeros((1, width))
        z = jnp.zeros((1, config.latent + width))
        encoder = steps.new_net(module.encoder, tx, jax.random.fold_in(key, 0), pair, none)
        encoder = encoder.replace(stats=vae.unknown(config.latent + width))
        decoder = steps.new_net(module.decoder, tx, jax.random.fold_in(key, 1), z)
        nets = {"encoder": encoder, "decoder": decoder, **labels.begin(config)}
        return steps.begin(key, nets)

    def step(state: State, batch: Batch, alpha: float):
        encoder, decoder = state.nets["encoder"], state.nets["decoder"]
        pairs, label = batch.pairs[0].astype(jnp.float32), labels.of(config, state, batch)
        keys = [steps.keys(state, stream, len(pairs)) for stream in (steps.NOISE, steps.Z)]
        data = (pairs, label), *(steps.normal(key, config.latent) for key in keys), alpha

        def judge(params):
            loss, (posterior, metrics) = encoder_loss(params, decoder.params, *data)
            own = vae.beside(*posterior, batch.labels[0, :, :width])
            stats = vae.follow(encoder.stats, *own, config.posterior_momentum)
            return loss, (stats, metrics)

        encoder, metrics = steps.descend(encoder, tx, judge, "encoder")

        def generate(params):
            return decoder_loss(encoder.params, params, *data), (decoder.stats, {})

        decoder, more = steps.descend(decoder, tx, generate, "decoder")
        state = labels.remember(state, batch)
        return steps.advance(state, encoder=encoder, decoder=decoder), {**metrics, **more}

    def decode(state, z):
        output = module.decoder.apply({"params": state.nets["decoder"].params}, z)
        return modules.probabilities(output, config.head)

    def posterior(state, *given):
        return module.encoder.apply({"params": state.nets["encoder"].params}, *given)

    alphas = {"vae": 0.0, "intro": config.alpha}
    by_name = {name: functools.partial(step, alpha=alpha) for name, alpha in alphas.items()}
    latents, notes = vae.sampler(config, "encoder"), functools.partial(advice, config)
    more = dict(notes=notes, conditional=bool(width))
    return Model(init, by_name, latents, decode, vae.means(config, posterior), **more)
