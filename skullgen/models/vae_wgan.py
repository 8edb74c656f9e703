"""VAE/WGAN-GP (section 3.2): VAE, then WGAN-GP fed with its posterior, then with N(0, I).

Shapes: `B` samples, `D` voxels a side, `Z` latents.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from skullgen.core.errors import UserError
from skullgen.core.types import Model
from skullgen.models import steps, vae, wgan_gp


def from_posterior(posterior: Callable) -> Callable:
    """The bridge's `latents(state, batch, update, keys)`: reparametrised posteriors.

    No pair is compared with its own reconstruction, to which x_hat would join it: the posteriors
    are those of the next batch (cyclic), or, of one batch, of the next pair in it.
    """

    def latents(state, batch, update, keys):
        if batch.shape[:2] == (1, 1):
            raise UserError(
                "phases: step `bridge` with `batches` of 1 and one pair a device compares each "
                "skull with its own posterior: set `batches` to 2 or more, or a larger batch_size"
            )
        pairs = batch[(update + 1) % len(batch)].astype(jnp.float32)
        if len(batch) == 1:
            pairs = jnp.roll(pairs, 1, axis=0)
        mean, log_variance = posterior(state.nets["vae"].params, pairs)
        return mean + jnp.exp(0.5 * log_variance) * steps.normal(keys, mean.shape[-1])

    return latents


def make(config: ConfigDict) -> Model:
    """The hybrid of `config.model`; steps, in the paper's order: `vae`, `bridge`, `wgan`.

    The bridge is fed with posteriors of training pairs, the last from `config.latents`. With
    `config.warm_start` the generator starts as the VAE's decoder, else on its own, as in the paper.
    """
    if config.warm_start and config.generator_norm != "group":
        raise UserError(
            f"model.generator_norm is {config.generator_norm!r}: with model.warm_start the "
            "generator starts as the VAE's decoder, so set it to 'group'"
        )
    init_vae, vae_step, posterior = vae.variational(config)
    init_gan, gan_step = wgan_gp.adversarial(config)
    draw, from_pairs = vae.sampler(config, "vae"), from_posterior(posterior)

    def init(key):
        vae_key, gan_key = (jax.random.fold_in(key, stream) for stream in (0, 1))
        return steps.begin(key, {"vae": init_vae(vae_key), **init_gan(gan_key)})

    def pretrain(state, batch):
        state, metrics = vae_step(state, batch)
        if config.warm_start:
            weights = state.nets["vae"].params["decoder"]
            generator = state.nets["generator"].replace(params=weights)
            state = state.replace(nets={**state.nets, "generator": generator})
        return state, metrics

    def bridge(state, batch):
        return gan_step(state, batch, from_pairs)

    def wgan(state, batch):
        return gan_step(state, batch, lambda state, batch, update, keys: draw(state, keys))

    def encode(state, pairs):
        return posterior(state.nets["vae"].params, pairs.astype(jnp.float32))[0]

    by_name = {"vae": pretrain, "bridge": bridge, "wgan": wgan}
    drafts = None if config.warm_start else {"vae": vae.make(config).decode}
    return Model(init, by_name, draw, wgan_gp.decoder(config), encode, drafts=drafts)
