"""WGAN-GP (section 3.1, equation 3): `batches` critic updates (paper: 5), then the generator's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from skullgen.core.errors import one_of
from skullgen.core.types import Batch, Decode, Model, State
from skullgen.models import labels, steps
from skullgen.networks import losses, modules


def networks(config: ConfigDict) -> tuple[modules.Generator, modules.Critic]:
    """Of an experiment's `config.model`."""
    one_of("model.generator_norm", config.generator_norm, ("batch", "group", "layer", "none"))
    # Not batch norm: it mixes samples, and the penalty is each sample's own.
    one_of("model.critic_norm", config.critic_norm, ("layer", "group", "none"))
    generator = steps.generator(config, config.generator_norm)
    norm, groups = config.critic_norm, config.groups
    return generator, modules.Critic(generator.widths, norm, groups, generator.dtype)


def adversarial(config: ConfigDict) -> tuple[Callable, Callable, Decode]:
    """`init(key) -> nets`, `step(state, batch, latents(state, batch, update, keys))`, `decode`."""
    (generator, critic), width = networks(config), labels.width(config)
    rates = {"generator": config.learning_rate, "critic": config.critic_learning_rate}
    tx = {role: optax.adam(rate, b1=config.b1, b2=config.b2) for role, rate in rates.items()}

    def init(key):
        keys = jax.random.split(key)
        none, pair = jnp.zeros((1, width)), jnp.zeros((1, *(config.resolution,) * 3, 2))
        z = jnp.zeros((1, config.latent + width))
        return {
            "generator": steps.new_net(generator, tx["generator"], keys[0], z, False),
            "critic": steps.new_net(critic, tx["critic"], keys[1], pair, none),
        }

    def generate(net, params, z):
        variables = {"params": params, "stats": net.stats}
        logits, stats = generator.apply(variables, z, mutable=["stats"])
        return modules.probabilities(logits), stats.get("stats", {})

    def update_critic(net, real, fake, u, label):
        def loss(params):
            def score(pairs):
                own = jnp.tile(label, (len(pairs) // len(label), 1))
                return critic.apply({"params": params}, pairs, own)

            scores = score(jnp.concatenate([fake, real])).reshape(2, len(real)).mean(axis=1)
            penalty, norm = losses.gradient_penalty(score, real, fake, u)
            distance = scores[1] - scores[0]
            metrics = {"critic_distance": distance, "penalty": penalty.mean()}
            metrics["gradient_norm"] = norm.mean()
            return config.penalty * penalty.mean() - distance, (net.stats, metrics)

        return steps.descend(net, tx["critic"], loss, "critic")

    def update_generator(net, critic_net, z, label):
        def loss(params):
            fake, stats = generate(net, params, z)
            score = critic.apply({"params": critic_net.params}, fake, label).mean()
            share = fake.mean(axis=(0, 1, 2, 3))
            return -score, (stats, {"generator_loss": -score, **steps.occupancy(share)})

        return steps.descend(net, tx["generator"], loss, "generator")

    def step(state: State, batch: Batch, latents: Callable):
        net, state = state.nets["generator"], labels.remember(state, batch)
        updates, count = batch.pairs.shape[:2]

        def critic_step(critic_net, update):
            real = batch.pairs[update].astype(jnp.float32)
            z = latents(state, batch, update, steps.keys(state, steps.Z, count, update))
            label = labels.of(config, state, batch, update)
            z = jnp.concatenate([z[:, : config.latent], label], -1)  # those of the real pairs
            # Batch statistics, and their running update discarded.
            fake, _ = generate(net, net.params, z)
            u = steps.uniform(steps.keys(state, steps.U, count, update))
            return update_critic(critic_net, real, fake, u, label)

        critic_net, metrics = jax.lax.scan(critic_step, state.nets["critic"], jnp.arange(updates))
        # The last of the critic's updates, but the largest norm: one bad update must be seen.
        last = {name: value[-1] for name, value in metrics.items()}
        last["critic_update_norm"] = metrics["critic_update_norm"].max()
        z = latents(state, batch, 0, steps.keys(state, steps.Z, count, updates))
        label = labels.of(config, state, batch)
        z = jnp.concatenate([z[:, : config.latent], label], -1)
        net, more = update_generator(net, critic_net, z, label)
        return steps.advance(state, generator=net, critic=critic_net), {**last, **more}

    def decode(state, z):
        net = state.nets["generator"]
        variables = {"params": net.params, "stats": net.stats}
        return modules.probabilities(generator.apply(variables, z, train=False))

    return init, step, decode


def make(config: ConfigDict) -> Model:
    """WGAN-GP; `config` is `config.model` of `experiments/wgan_gp.py`."""
    one_of("model.latents", config.latents, ("prior",))
    nets, step, decode = adversarial(config)

    def init(key):
        return steps.begin(key, nets(jax.random.fold_in(key, 0)) | labels.begin(config))

    def prior(state, keys, asked=labels.ANY):
        label = labels.wanted(config, state, keys, asked)
        return jnp.concatenate([steps.normal(keys, config.latent), label], -1)

    def wgan(state, batch):
        return step(state, batch, lambda state, batch, update, keys: prior(state, keys))

    return Model(init, {"wgan": wgan}, prior, decode, conditional=bool(labels.width(config)))
