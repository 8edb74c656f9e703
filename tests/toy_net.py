"""A segmentation network outside the package: it learns the mean defect, whatever the skull."""

import jax
import jax.numpy as jnp
import optax

from skullgen.core.types import Model, Net, State
from skullgen.models import steps


def make(config):
    tx = optax.adam(config.learning_rate)

    def init(key):
        params = {"logit": jnp.zeros((config.resolution,) * 3)}
        return State(jnp.zeros((), jnp.int32), key, {"toy": Net(params, {}, tx.init(params))})

    def step(state, batch):
        target = batch.pairs[0, ..., 1].astype(jnp.float32)

        def loss(params):
            logits = jnp.broadcast_to(params["logit"], target.shape)
            value = optax.sigmoid_binary_cross_entropy(logits, target).mean()
            return value, ({}, {"loss": value})

        net, metrics = steps.descend(state.nets["toy"], tx, loss, "toy")
        return state.replace(step=state.step + 1, nets={"toy": net}), metrics

    def predict(state, skulls):
        return jnp.broadcast_to(jax.nn.sigmoid(state.nets["toy"].params["logit"]), skulls.shape)

    def features(state, pairs):
        return pairs[..., 0].mean((1, 2))

    return Model(init, {"segment": step}, predict=predict, features=features)
