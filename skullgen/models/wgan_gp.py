"""WGAN-GP (section 3.1, equation 3): five critic updates, then one of the generator.

Shapes: `B` samples, `D` voxels a side, `Z` latents.
"""

import jax
import jax.numpy as jnp
import optax

from skullgen.core.errors import one_of
from skullgen.core.types import Model, Net, State
from skullgen.models import steps
from skullgen.networks import losses, modules

PRECISIONS = ("float32", "bfloat16")
Z, U = 0, 1  # streams of random draws


def networks(config):
    """The generator and the critic that `config` (an experiment's `config.model`) describes."""
    dtype = jnp.dtype(one_of("model.precision", config.precision, PRECISIONS))
    one_of("model.head", config.head, modules.HEADS)
    modules.coarsest(config.resolution, config.widths)
    one_of("model.generator_norm", config.generator_norm, ("batch", "group", "layer", "none"))
    # Not batch norm: it mixes samples, and the penalty is each sample's own.
    one_of("model.critic_norm", config.critic_norm, ("layer", "channel", "group", "none"))
    generator = modules.Generator(
        resolution=config.resolution,
        widths=tuple(config.widths),
        norm=config.generator_norm,
        groups=config.groups,
        momentum=config.momentum,
        head=config.head,
        occupancy=tuple(config.occupancy),
        dtype=dtype,
    )
    return generator, modules.Critic(tuple(config.widths), config.critic_norm, config.groups, dtype)


def new_net(module, tx, key, *arguments):
    """A module's weights, running values and optimiser state at the start, as a `types.Net`."""
    variables = module.init(key, *arguments)
    params = variables["params"]
    return Net(params, variables.get("stats", {}), tx.init(params))


def adversarial(config):
    """The two networks' starts and the adversarial step, for this method and for its hybrids.

    Returns `init(key) -> {"generator": Net, "critic": Net}` and
    `step(state, batch, latents) -> (state, metrics)`, where `latents(state, batch, update, keys)
    -> z [B, Z]` says where the generator's input comes from. `batch` is bool
    [batches, B, D, D, D, 2]: one new real batch for each critic update.
    """
    generator, critic = networks(config)
    rates = {"generator": config.learning_rate, "critic": config.critic_learning_rate}
    tx = {role: optax.adam(rate, b1=config.b1, b2=config.b2) for role, rate in rates.items()}
    shape = (1, *(config.resolution,) * 3, 2)

    def init(key):
        generator_key, critic_key = jax.random.split(key)
        z = jnp.zeros((1, config.latent))
        return {
            "generator": new_net(generator, tx["generator"], generator_key, z, False),
            "critic": new_net(critic, tx["critic"], critic_key, jnp.zeros(shape)),
        }

    def generate(net, params, z):
        logits, stats = generator.apply(
            {"params": params, "stats": net.stats}, z, mutable=["stats"]
        )
        return modules.probabilities(logits), stats.get("stats", {})

    def step(state, batch, latents):
        maker, judge = state.nets["generator"], state.nets["critic"]
        updates, count = batch.shape[:2]

        def critic_update(judge, update):
            real = batch[update].astype(jnp.float32)
            z = latents(state, batch, update, steps.keys(state, Z, count, update))
            # Batch statistics, and their running update discarded.
            fake, _ = generate(maker, maker.params, z)
            u = steps.uniform(steps.keys(state, U, count, update))

            def loss(params):
                def judged(x):
                    return critic.apply({"params": params}, x)

                scores = judged(jnp.concatenate([fake, real])).reshape(2, count).mean(axis=1)
                penalty, norm = losses.gradient_penalty(judged, real, fake, u)
                distance = scores[1] - scores[0]
                metrics = {
                    "critic_distance": distance,
                    "penalty": penalty.mean(),
                    "gradient_norm": norm.mean(),
                }
                return config.penalty * penalty.mean() - distance, (judge.stats, metrics)

            return steps.descend(judge, tx["critic"], loss, "critic")

        judge, metrics = jax.lax.scan(critic_update, judge, jnp.arange(updates))
        z = latents(state, batch, 0, steps.keys(state, Z, count, updates))

        def loss(params):
            fake, stats = generate(maker, params, z)
            score = critic.apply({"params": judge.params}, fake).mean()
            occupancy = fake.mean(axis=(0, 1, 2, 3))
            metrics = {
                "generator_loss": -score,
                "occupancy_skull": occupancy[0],
                "occupancy_defect": occupancy[1],
            }
            return -score, (stats, metrics)

        maker, more = steps.descend(maker, tx["generator"], loss, "generator")
        together = {**state.nets, "generator": maker, "critic": judge}
        # The last of the critic's updates, but the largest norm: one bad update must be seen.
        last = {name: value[-1] for name, value in metrics.items()}
        last["critic_update_norm"] = metrics["critic_update_norm"].max()
        return state.replace(step=state.step + 1, nets=together), {**last, **more}

    return init, step


def decoder(config):
    """`decode(state, z [B, Z]) -> float32 [B, D, D, D, 2]` by the generator's running averages."""
    generator, _ = networks(config)

    def decode(state, z):
        net = state.nets["generator"]
        return modules.probabilities(
            generator.apply({"params": net.params, "stats": net.stats}, z, train=False)
        )

    return decode


def make(config):
    """WGAN-GP; `config` is `config.model` of `experiments/wgan_gp.py`."""
    one_of("model.latents", config.latents, ("prior",))
    init, step = adversarial(config)

    def start(key):
        return State(jnp.zeros((), jnp.int32), key, init(jax.random.fold_in(key, 0)))

    def prior(keys):
        return steps.normal(keys, config.latent)

    return Model(
        init=start,
        steps={
            "wgan": lambda state, batch: step(
                state, batch, lambda state, batch, update, keys: prior(keys)
            )
        },
        latents=lambda state, keys: prior(keys),
        decode=decoder(config),
    )
