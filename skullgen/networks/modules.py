"""Linen modules of section 4.2: encoder, decoder, generator, critic.

`widths` are the channels of the strided blocks from the finest to the coarsest grid. `dtype` is the
precision that is computed in; weights, moments, heads' outputs and logits are float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from skullgen.networks import conv

Grid = Float[Array, "B X Y Z C"]
Convolved = Float[Array, "B x y z c"]
Pairs = Float[Array, "B D D D 2"]
Latents = Float[Array, "B Z"]
Labels = Float[Array, "B labels"]
Probability = Float[Array | np.ndarray, "*grid 2"]
Pair = Bool[Array | np.ndarray, "*grid 2"]

AXIS = "batch"  # the axis of devices, over which batch norm averages
HEADS = {"independent": 2, "exclusive": 3}  # of logits; a `linear` head's are probabilities
_kernel = nn.initializers.glorot_uniform()
# Of a linear head: at full scale its noise, which no sigmoid hides, drowns the rest at first.
_quiet = nn.initializers.variance_scaling(0.01, "fan_avg", "uniform")


def coarsest(resolution: int, widths: Sequence[int]) -> int:
    """Voxels a side of the coarsest grid; ValueError where the widths do not divide it."""
    side, rest = divmod(resolution, 2 ** len(widths))
    if rest or not side:
        cure = "give model.widths fewer entries, or choose a multiple of"
        times = f"resolution {resolution} cannot be halved {len(widths)} times"
        raise ValueError(f"{times}: {cure} {2 ** len(widths)}")
    return side


def probabilities(logits: Float[Array, "*grid logits"], head: str = "") -> Float[Array, "*grid 2"]:
    """The probability of skull and of defect, from two logits or three, or a linear head's."""
    if head == "linear":
        return jnp.clip(logits, 0, 1)
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 2:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits)[..., 1:]


def binarise(probability: Probability, head: str, threshold: float = 0.5) -> Pair:
    """A pair from its probabilities; exclusive: bone by their sum, to the likelier (tie: skull)."""
    if head != "exclusive":
        return probability >= threshold
    skull, defect = probability[..., 0], probability[..., 1]
    bone = skull + defect >= threshold
    return jnp.stack([bone & (skull >= defect), bone & (skull < defect)], axis=-1)


class Norm(nn.Module):
    """A normalisation with one scale and one offset a channel.

    kind: `layer` (over each sample, as in WGAN-GP's own code), `group` (over groups of channels),
    `batch` (over all samples; running averages when `train` is False), `none`.
    """

    kind: str
    groups: int = 8
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: Grid, train: bool = True) -> Grid:
        """In x's dtype."""
        if self.kind == "none":
            return x
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        offset = self.param("offset", nn.initializers.zeros, (channels,))
        mean, square = self._moments(x.astype(jnp.float32), train)
        # One x * a + b a voxel: its double backward is several times faster than (x - m) / s.
        a = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + 1e-5)
        return (x * a + (offset - mean * a)).astype(x.dtype)

    def _moments(self, x, train):
        mean, square = x.mean((1, 2, 3)), jnp.square(x).mean((1, 2, 3))  # [B, C]
        if self.kind == "batch":
            return self._averages(mean.mean(0), square.mean(0), train)
        groups = {"layer": 1, "group": self.groups}[self.kind]

        def pool(moment):
            grouped = moment.reshape(len(moment), groups, -1).mean(-1, keepdims=True)
            whole = jnp.broadcast_to(grouped, (*grouped.shape[:2], moment.shape[1] // groups))
            return whole.reshape(len(moment), 1, 1, 1, -1)

        return pool(mean), pool(square)

    def _averages(self, mean, square, train):
        start, m = (jnp.zeros_like(mean), jnp.ones_like(square)), self.momentum
        running = self.variable("stats", "moments", lambda: start)
        if not train:
            return running.value
        moments = jax.lax.pmean((mean, square), AXIS)
        pairs = zip(running.value, moments, strict=True)
        running.value = tuple(m * old + (1 - m) * new for old, new in pairs)
        return moments


class _Convolution(nn.Module):
    """A convolution in `dtype`, of a kernel that is kept in float32."""

    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = _kernel
    operation: Any = None

    @nn.compact
    def __call__(self, x: Grid) -> Convolved:
        ends = x.shape[-1], self.features
        if self.operation is conv.conv_transpose:  # its kernel is that of the convolution
            ends = ends[::-1]
        kernel = self.param("kernel", self.kernel_init, (4, 4, 4, *ends))
        return self.operation(x.astype(self.dtype), kernel.astype(self.dtype))


class Down(_Convolution):
    """Conv k4 s2: sides are halved."""

    operation: Any = conv.conv


class Up(_Convolution):
    """Transposed conv k4 s2: sides are doubled."""

    operation: Any = conv.conv_transpose


class Same(_Convolution):
    """Conv k4 s1, the generator's stem."""

    operation: Any = conv.conv_same


class Critic(nn.Module):
    """Section 4.2's critic: (conv k4 s2, norm, LeakyReLU 0.2) a width, flatten, dense 1."""

    widths: tuple[int, ...]
    norm: str = "layer"
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pairs: Pairs, labels: Labels | None = None) -> Float[Array, " B"]:
        """How real each pair is, with its labels: these are projected (Miyato and Koyama 2018)."""
        x = pairs
        for width in self.widths:
            x = nn.leaky_relu(Norm(self.norm, self.groups)(Down(width, self.dtype)(x)), 0.2)
        x = x.astype(jnp.float32)
        score = nn.Dense(1, dtype=jnp.float32)(x.reshape(len(x), -1))[:, 0]
        if labels is None or not labels.shape[-1]:
            return score
        return score + (nn.Dense(x.shape[-1], name="labels")(labels) * x.mean((1, 2, 3))).sum(-1)


class Encoder(nn.Module):
    """The VAE's encoder: the critic's blocks, a pool (`average`, the paper's, or `flatten`)."""

    latent: int
    widths: tuple[int, ...]
    groups: int = 8
    pool: str = "average"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pairs: Pairs, labels: Labels | None = None) -> tuple[Latents, Latents]:
        """Mean and log-variance of the posterior, given the labels."""
        x = pairs
        for width in self.widths:
            x = nn.leaky_relu(Norm("group", self.groups)(Down(width, self.dtype)(x)), 0.2)
        x = x.astype(jnp.float32)
        x = x.mean((1, 2, 3)) if self.pool == "average" else x.reshape(len(x), -1)
        x = x if labels is None else jnp.concatenate([x, labels], -1)
        mean = nn.Dense(self.latent, name="mean")(x)
        # Narrow at first: a posterior of variance 1 would drown the mean in noise.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        return mean, nn.Dense(self.latent, name="log_variance", kernel_init=small)(x)


class Generator(nn.Module):
    """The generator (norm `batch`) and the VAE's decoder (norm `group`) of section 4.2.

    The last of its latents are labels, where it is conditional.

    head: `independent` (the paper's two channels), `exclusive` (softmax over background, skull,
    defect) or `linear`. occupancy: shares of skull and defect, where the head's bias starts: else
    sparse channels stay empty long.
    """

    resolution: int
    widths: tuple[int, ...]
    norm: str = "batch"
    groups: int = 8
    momentum: float = 0.99
    head: str = "independent"
    occupancy: tuple[float, float] = (0.05, 0.004)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Latents, train: bool = True) -> Float[Array, "B D D D logits"]:
        """Logits; a linear head's are the probabilities themselves."""

        def block(layer, x):
            return nn.relu(Norm(self.norm, self.groups, self.momentum)(layer(x), train))

        side = coarsest(self.resolution, self.widths)
        x = nn.Dense(side**3 * self.widths[-1], dtype=self.dtype)(z)
        x = x.reshape(len(z), side, side, side, self.widths[-1])
        x = block(Same(self.widths[-1], self.dtype), x)
        for width in reversed(self.widths[:-1]):
            x = block(Up(width, self.dtype), x)
        channels, kernel = (2, _quiet) if self.head == "linear" else (HEADS[self.head], _kernel)
        logits = Up(channels, self.dtype, kernel)(x).astype(jnp.float32)
        return logits + self.param("bias", lambda key: self._bias())

    def _bias(self):
        share = jnp.asarray(self.occupancy, jnp.float32)
        if self.head == "linear":
            return share
        if self.head == "independent":
            return jnp.log(share) - jnp.log1p(-share)
        return jnp.log(jnp.concatenate([1 - share.sum(keepdims=True), share]))
