"""A model outside the package, as a user would write one: one file with `make(config) -> Model`.

It learns the mean occupancy, in two numbers; its samples are boxes whose side a latent sets.
"""

import jax
import jax.numpy as jnp
import optax

from skullgen.core.types import Model, Net, State
from skullgen.models import steps


def make(config):
    tx = optax.adam(config.learning_rate)

    def init(key):
        params = {"logit": jax.random.normal(key, (2,))}
        net = Net(params, {}, tx.init(params))
        return State(jnp.zeros((), jnp.int32), key, {"toy": net})

    def step(state, batch):
        noise = steps.normal(steps.keys(state, 0, batch.pairs.shape[1]), 2).mean(axis=0)
        share = batch.pairs.astype(jnp.float32).mean(axis=(0, 1, 2, 3, 4))

        def loss(params):
            wrong = jax.nn.sigmoid(params["logit"]) - share + 0.01 * noise
            value = (wrong**2).sum() / jnp.where(state.step == config.breaks_at, 0.0, 1.0)
            return value, ({}, {"loss": value})

        net, metrics = steps.descend(state.nets["toy"], tx, loss, "toy")
        return state.replace(step=state.step + 1, nets={"toy": net}), metrics

    def latents(state, keys):
        return jax.vmap(jax.random.uniform)(keys)[:, None]

    def decode(state, z):
        place = jnp.arange(config.resolution)
        inside = (place < 2 + 4 * z)[:, :, None, None] & (place < 6)[None, None, :, None]
        skull = inside & (place < 5)[None, None, None, :]
        defect = inside & ((place == 4) | (place == 5))[None, None, None, :]  # half overlaps
        share = jax.nn.sigmoid(state.nets["toy"].params["logit"]).sum()
        return jnp.stack([skull, defect], axis=-1) * (0.5 + 0.1 * share)

    return Model(init, {"toy": step, "more": step}, latents, decode)
