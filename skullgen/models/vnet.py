"""V-Net (section 5; Milletari et al. 2016): from a defective skull to its defect."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from skullgen.core.errors import UserError, one_of
from skullgen.core.types import Batch, Model, State
from skullgen.models import steps
from skullgen.networks import conv, losses, modules

Kernel = Float[Array, "2 2 2 C O"]
Skulls = Shaped[Array, "B D D D"]
Logits = Float[Array, "B D D D"]
Added = Float[Array, "B ..."] | int
Blocks = Float[Array, "B x y z c"]


def halve(x: modules.Grid, w: Kernel) -> Float[Array, "B X//2 Y//2 Z//2 O"]:
    """Convolve with kernel and stride 2: blocks of 2^3 to channels, then a product."""
    return to_depth(x, 2) @ w.reshape(8 * x.shape[-1], -1)


def double(x: modules.Grid, w: Kernel) -> Float[Array, "B 2*X 2*Y 2*Z O"]:
    """Transpose a convolution of kernel and stride 2: a product, then channels to blocks of 2^3."""
    return to_space(x @ jnp.moveaxis(w, 3, 0).reshape(x.shape[-1], -1), 2)


def to_depth(x: modules.Grid, side: int) -> Blocks:
    """Blocks of `side`^3 voxels become channels, [B, X / side, ..., side^3 C]; exact."""
    b, p, q, r, c = x.shape
    p, q, r = p // side, q // side, r // side
    x = x.reshape(b, p, side, q, side, r, side, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, p, q, r, side**3 * c)


def to_space(x: modules.Grid, side: int) -> Blocks:
    """The inverse of `to_depth`."""
    b, p, q, r, _ = x.shape
    x = x.reshape(b, p, q, r, side, side, side, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, p * side, q * side, r * side, -1)


class Unit(nn.Module):
    """`conv.conv_same`, `halve` or `double`, a norm, an addition, PReLU with a slope a channel."""

    operation: Any
    kernel: int
    features: int
    norm: str
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: modules.Grid, train: bool, add: Added = 0) -> modules.Convolved:
        """`add` broadcasts to the result."""
        shape = (*(self.kernel,) * 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        x = self.operation(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.norm == "none":
            x = x + self.param("bias", nn.initializers.zeros, shape[-1:]).astype(self.dtype)
        # Runs are short: averages that remember 100 updates would remember the start.
        x = modules.Norm(self.norm, self.groups, momentum=0.9)(x, train) + add
        slope = self.param("slope", nn.initializers.constant(0.25), shape[-1:])
        return jnp.where(x > 0, x, x * slope.astype(self.dtype))


class VNet(nn.Module):
    """Stages of `down` convolutions at each width, halved between them, and `up` with the skips.

    A stage adds its input to its last convolution, before the PReLU; one on the way up the doubled
    grid without the skip. stem: the first stage sees blocks of `stem`^3 voxels as channels.
    """

    widths: tuple[int, ...]
    down: tuple[int, ...]
    up: tuple[int, ...]
    kernel: int
    norm: str
    groups: int
    dtype: Any
    stem: int = 1

    @nn.compact
    def __call__(self, skulls: Skulls, train: bool = True) -> tuple[Logits, Float[Array, "B C"]]:
        """Logits, and means over the bottleneck."""
        unit = functools.partial(Unit, norm=self.norm, groups=self.groups, dtype=self.dtype)

        def stage(x, add, width, count):
            for number in range(1, count + 1):
                sum_with = add if number == count else 0
                x = unit(conv.conv_same, self.kernel, width)(x, train, sum_with)
            return x

        x, skips = to_depth(skulls[..., None].astype(self.dtype), self.stem), []
        for width, count in zip(self.widths, self.down, strict=True):
            x = unit(halve, 2, width)(x, train) if skips else x
            x = stage(x, jnp.tile(x, width // x.shape[-1]), width, count)
            skips.append(x)
        bottom = x.astype(jnp.float32).mean((1, 2, 3))
        for width, count, skip in zip(self.widths[-2::-1], self.up, skips[-2::-1], strict=True):
            x = unit(double, 2, width)(x, train)
            x = stage(jnp.concatenate([x, skip], axis=-1), x, width, count)
        blocks = nn.Dense(self.stem**3, name="head")(x.astype(jnp.float32))
        return to_space(blocks, self.stem)[..., 0], bottom


def network(config: ConfigDict) -> VNet:
    """Of an experiment's `config.segment.model`."""
    widths, down, up = map(tuple, (config.widths, config.down, config.up))
    dtype = steps.dtype(config.precision, "segment.model")
    one_of("segment.model.norm", config.norm, ("group", "batch", "none"))
    one_of("segment.model.kernel", config.kernel, (3, 5))
    if len(down) != len(widths) or len(up) != len(widths) - 1 or min(down + up) < 1:
        what = f"as many entries of `down`, one fewer of `up`, each 1 or more, not {down} and {up}"
        raise UserError(f"segment.model: widths {widths} need {what}")
    groups = config.groups
    if config.norm == "group" and (groups < 1 or any(width % groups for width in widths)):
        raise UserError(f"segment.model.groups is {groups}: give a divisor of all widths {widths}")
    stem = one_of("segment.model.stem", config.get("stem", 1), (1, 2, 4))
    if config.resolution % stem or widths[0] % stem**3:
        what = f"it must divide the grid's {config.resolution} voxels a side"
        what = f"{what}, and its cube the first of widths {widths}"
        raise UserError(f"segment.model.stem is {stem}: {what}")
    modules.coarsest(config.resolution // stem, widths[1:])
    return VNet(widths, down, up, config.kernel, config.norm, groups, dtype, stem)


def make(config: ConfigDict) -> Model:
    """The V-Net; `config` is `config.segment.model` of `experiments/vnet.py`."""
    module = network(config)
    rate, length = config.learning_rate, config.decay_steps
    tx = optax.adam(optax.cosine_decay_schedule(rate, length) if length else rate)

    def init(key):
        skull = jnp.zeros((1, *(config.resolution,) * 3))
        net = steps.new_net(module, tx, jax.random.fold_in(key, 0), skull, False)
        return steps.begin(key, {"vnet": net})

    def step(state: State, batch: Batch):
        net, pairs = state.nets["vnet"], batch.pairs[0]
        skulls, target = pairs[..., 0], pairs[..., 1]

        def loss(params):
            variables = {"params": params, "stats": net.stats}
            (logits, _), stats = module.apply(variables, skulls, mutable=["stats"])
            value = losses.soft_dice(jax.nn.sigmoid(logits), target).mean()
            mask, axes = logits >= 0, (1, 2, 3)
            both, sizes = (mask & target).sum(axes), mask.sum(axes) + target.sum(axes)
            metrics = {"loss": value, "dice": (2 * both / jnp.maximum(sizes, 1)).mean()}
            return value, (stats.get("stats", {}), metrics)

        net, metrics = steps.descend(net, tx, loss, "vnet")
        return steps.advance(state, vnet=net), metrics

    def apply(net, skulls):
        return module.apply({"params": net.params, "stats": net.stats}, skulls, train=False)

    def predict(state, skulls):
        return jax.nn.sigmoid(apply(state.nets["vnet"], skulls)[0])

    def features(state, pairs):
        return apply(state.nets["vnet"], pairs[..., 0])[1]

    return Model(init, {"segment": step}, predict=predict, features=features)
