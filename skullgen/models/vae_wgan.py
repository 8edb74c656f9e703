"""VAE/WGAN-GP (section 3.2): VAE, then WGAN-GP fed with its posterior, then with N(0, I)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from skullgen.core.errors import UserError
from skullgen.core.types import Model
from skullgen.models import labels, steps, vae, wgan_gp


def from_posterior(posterior: Callable, width: int) -> Callable:
    """The bridge's latents: posteriors of the next batch, or pair: none meets its own output."""

    def latents(state, batch, update, keys):
        if batch.pairs.shape[:2] == (1, 1):
            what = "one pair a device and `batches` of 1 compare it with its own posterior"
            cure = "set `batches` to 2 or more, or a larger batch_size"
            raise UserError(f"phases: step `bridge`: {what}: {cure}")
        count = len(batch.pairs)
        pairs, label = (part[(update + 1) % count].astype(jnp.float32) for part in batch)
        if count == 1:
            pairs, label = (jnp.roll(part, 1, axis=0) for part in (pairs, label))
        mean, log_variance = posterior(state.nets["vae"].params, pairs, label[:, :width])
        return mean + jnp.exp(0.5 * log_variance) * steps.normal(keys, mean.shape[-1])

    return latents


def make(config: ConfigDict) -> Model:
    """Steps `vae`, `bridge`, `wgan`; by `config.warm_start` the generator starts as the decoder."""
    if config.warm_start and config.generator_norm != "group":
        cure = "set it to 'group', as model.warm_start begins with the VAE's decoder"
        raise UserError(f"model.generator_norm is {config.generator_norm!r}: {cure}")
    baseline, from_pairs = (
        vae.make(config),
        from_posterior(vae.posteriors(config), labels.width(config)),
    )
    gan_nets, gan_step, decode = wgan_gp.adversarial(config)

    def init(key):
        state = baseline.init(key)
        return state.replace(nets={**state.nets, **gan_nets(jax.random.fold_in(key, 1))})

    def pretrain(state, batch):
        state, metrics = baseline.steps["vae"](state, batch)
        if config.warm_start:
            weights = state.nets["vae"].params["decoder"]
            generator = state.nets["generator"].replace(params=weights)
            state = state.replace(nets={**state.nets, "generator": generator})
        return state, metrics

    def bridge(state, batch):
        return gan_step(state, batch, from_pairs)

    def wgan(state, batch):
        return gan_step(state, batch, lambda state, _, update, keys: baseline.latents(state, keys))

    by_name = {"vae": pretrain, "bridge": bridge, "wgan": wgan}
    drafts = None if config.warm_start else {"vae": baseline.decode}
    latents, conditional = baseline.latents, baseline.conditional
    more = dict(conditional=conditional, drafts=drafts)
    return Model(init, by_name, latents, decode, baseline.encode, **more)
