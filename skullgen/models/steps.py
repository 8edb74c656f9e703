"""What the methods share: a network's start, one optimiser update, keys and draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from skullgen.core.errors import one_of
from skullgen.core.types import Metrics, Net, State, Step
from skullgen.data.grids import FIELD_MM
from skullgen.networks import augment, modules

Loss = Callable[[Any], tuple[Float[Array, ""], tuple[Any, Metrics]]]  # of params; stats, metrics
Optimiser = optax.GradientTransformation
Update = int | Int[Array, ""]
# Streams of random draws: latents, the penalty's u, a posterior's noise, augmentation, labels.
Z, U, NOISE, AUGMENT, LABEL = 0, 1, 2, 3, 4


def dtype(precision: str, section: str = "model") -> jnp.dtype:
    """What `config.<section>.precision` names."""
    return jnp.dtype(one_of(f"{section}.precision", precision, ("float32", "bfloat16")))


def generator(config: ConfigDict, norm: str, *more_heads: str) -> modules.Generator:
    """The generator, or decoder, of an experiment's `config.model`."""
    one_of("model.head", config.head, (*modules.HEADS, *more_heads))
    modules.coarsest(config.resolution, config.widths)
    layers = tuple(config.widths), norm, config.groups, config.get("momentum", 0.99)
    head = config.head, tuple(config.occupancy)
    return modules.Generator(config.resolution, *layers, *head, dtype(config.precision))


def new_net(module: nn.Module, tx: Optimiser, key: Key[Array, ""], *arguments: Any) -> Net:
    """A module's weights, running values and optimiser state at the start, as a `types.Net`."""
    variables = module.init(key, *arguments)
    return Net(variables["params"], variables.get("stats", {}), tx.init(variables["params"]))


def begin(key: Key[Array, ""], nets: dict[str, Net]) -> State:
    """The State before any update."""
    return State(jnp.zeros((), jnp.int32), key, nets)


def advance(state: State, **nets: Net) -> State:
    """The State after an update of these networks."""
    return state.replace(step=state.step + 1, nets={**state.nets, **nets})


def occupancy(share: Float[Array, " 2"]) -> Metrics:
    """The share of voxels of skull and of defect, as metrics."""
    return {"occupancy_skull": share[0], "occupancy_defect": share[1]}


def descend(net: Net, tx: Optimiser, loss: Loss, name: str) -> tuple[Net, Metrics]:
    """One update of one network by a loss of this device's samples, averaged over devices."""
    (_, (stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(net.params)
    gradient, metrics = _mean((gradient, metrics))
    updates, opt = tx.update(gradient, net.opt, net.params)
    metrics = {**metrics, f"{name}_update_norm": optax.tree.norm(gradient)}
    return Net(optax.apply_updates(net.params, updates), stats, opt), metrics


def _mean(tree):
    if jax.process_count() == 1:
        return jax.lax.pmean(tree, modules.AXIS)
    # As one array: between processes on CPUs each sum costs a millisecond.
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, modules.AXIS))


def keys(state: State, stream: int, count: int, update: Update = 0) -> Key[Array, " {count}"]:
    """Keys for this device's samples, by (step, stream, critic update, global sample index)."""
    key = state.key
    for number in (state.step, stream, update):
        key = jax.random.fold_in(key, number)
    index = jax.lax.axis_index(modules.AXIS) * count + jnp.arange(count)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def augmentation(config: ConfigDict) -> tuple[float, float, float]:
    """What `augment.augment` is to take from a model's fields: degrees, scaling, voxels."""
    shift = config.shift_mm * config.resolution / FIELD_MM
    return config.rotation_degrees, config.scaling, shift


def augmented(step: Step, config: ConfigDict) -> Step:
    """A step that sees each pair flipped, turned, scaled and shifted, another way every time."""
    amounts = augmentation(config)

    def run(state, batch):
        def anew(update):
            own = keys(state, AUGMENT, batch.pairs.shape[1], update)
            return augment.augment(own, batch.pairs[update], *amounts)

        pairs = jax.lax.map(anew, jnp.arange(len(batch.pairs)))
        return step(state, batch._replace(pairs=pairs))

    return run


def normal(keys: Key[Array, " B"], size: int) -> Float[Array, "B {size}"]:
    """Standard normal draws, one key a sample."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def uniform(keys: Key[Array, " B"]) -> Float[Array, " B"]:
    """Draws from U(0, 1), one key a sample."""
    return jax.vmap(jax.random.uniform)(keys)


def unpack(bits: UInt8[Array, "*n bytes"], size: int) -> Bool[Array, "*n {size} {size} {size} 2"]:
    """Pairs from little-endian bits."""
    bits = (bits[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    return bits.reshape(*bits.shape[:-2], size, size, size, 2).astype(bool)


def pack(pairs: Bool[Array, "B D D D 2"]) -> UInt8[Array, "B bytes"]:
    """The inverse of `unpack`."""
    bits = pairs.reshape(pairs.shape[0], -1, 8).astype(jnp.uint8)
    return (bits << jnp.arange(8, dtype=jnp.uint8)).sum(axis=-1, dtype=jnp.uint8)
