"""A localised statistical shape model: new skulls that are no one's, without adversaries.

`register` brings all training skulls to a common shape by diffeomorphisms (groupwise, after Joshi
et al. 2004). A sample deforms one skull by a mixture of these that is another one in every part of
the head (after Wilms et al. 2017) and takes the hole of a training pair, carried along.

Shapes: `M` skulls, `P` pairs, `f` points a side of a velocity (in mm), `g` of the noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from skullgen.core.types import Batch, Model, Net, State
from skullgen.data.grids import FIELD_MM
from skullgen.data.measures import LABELS
from skullgen.models import labels, steps
from skullgen.networks import modules, warp

COARSE, FINE = 8, 16  # points a side of a velocity's two parts
NOISE, NOISE_MM = 8, 30.0  # points a side of the noise, and how far it is alike (sigma)
LARGEST = 48  # voxels a side at which skulls are registered, at most
INNER = 20  # iterations of an update
BLURS = (1.5, 0.8, 0.0)  # voxels, of the images, a third of the iterations each
ALIKE = 0.97  # Dice from which two pairs are of one skull
LEAST = 0.1  # a smaller share of bone than this is none
HOLE_MM = 6.0  # over which the share of hole is carried off the bone
FIT, USE = 4, 5  # squarings

Skulls = Float[Array, "M r r r"]
Velocity = Float[Array, "f f f 3"]


class Bank(NamedTuple):
    """The training pairs, packed, of which skull each is (-1: no pair yet), and their labels."""

    pairs: UInt8[Array, "P bytes"]
    owner: Int[Array, " P"]
    labels: Float[Array, "P labels"]


def collect(
    bank: Bank, bits: UInt8[Array, "B bytes"], label: Float[Array, "B labels"], skulls: int
) -> Bank:
    """Adds the pairs that are new, while there is room for them and for their skulls."""

    def add(bank, new):
        pair, label = new
        there = bank.owner >= 0
        whole, ours = ((x | x >> 1) & 0x55 for x in (bank.pairs, pair))  # channels alternate
        count = jax.lax.population_count
        sizes = count(whole).sum(1, dtype=jnp.int32) + count(ours).sum(dtype=jnp.int32)
        both = 2 * count(whole & ours).sum(1, dtype=jnp.int32)
        same = there & (both >= ALIKE * sizes)
        number = jnp.where(same.any(), bank.owner[same.argmax()], bank.owner.max() + 1)
        twice = (there & (bank.pairs == pair).all(1)).any()
        room = ~twice & ~there.all() & (number < skulls)
        place = jnp.where(room, there.sum(), len(there))  # out of bounds is dropped
        new = Bank(pair, number, label)
        return jax.tree.map(lambda old, x: old.at[place].set(x, mode="drop"), bank, new), None

    return jax.lax.scan(add, bank, (bits, label))[0]


def wholes(bank: Bank, skulls: int, size: int) -> tuple[Bool[Array, "M D D D"], Bool[Array, " M"]]:
    """The complete skulls, of each its first pair's, and which of them there are."""
    of_skull = bank.owner == jnp.arange(skulls)[:, None]
    pairs = steps.unpack(bank.pairs[of_skull.argmax(1)], size)
    return pairs.any(-1), of_skull.any(1)


def images(skulls: Skulls) -> Float[Array, "M r r r 2"]:
    """What is registered: signed distances, cut at -4 and 12 mm, and occupancies."""
    mm = FIELD_MM / skulls.shape[1]
    far = jax.lax.map(lambda skull: warp.distances(skull >= 0.5) * mm, skulls)
    return jnp.stack([jnp.clip(far, -4, 12) / 4, 1.5 * skulls], -1)


def blur(x: Float[Array, "n X Y Z C"], sigma: Any) -> Float[Array, "n X Y Z C"]:
    """A Gaussian along three axes; sigma, in voxels, may be traced, and 0."""
    taps = jnp.arange(-4, 5)
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, 1e-3)) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2, 3):
        padded = jnp.pad(x, [(4, 4) if k == axis else (0, 0) for k in range(x.ndim)], "edge")
        size = x.shape[axis]
        parts = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(9))
        x = sum(w * part for w, part in zip(weights, parts, strict=True))
    return x


def velocities(params: dict[str, Array], there: Bool[Array, " M"]) -> Float[Array, "M f f f 3"]:
    """The skulls' velocities, from the common shape to each, without their mean."""
    shape = params["fine"].shape
    coarse = jax.image.resize(params["coarse"], shape, "linear")
    field = blur(coarse, 1.0) + blur(params["fine"], 1.0)
    weights = (there / jnp.maximum(there.sum(), 1))[:, None, None, None, None]
    return (field - (weights * field).sum(0)) * (weights > 0)


def flow(velocity: Velocity, squarings: int) -> Velocity:
    """The displacement in mm of flowing along a velocity in mm."""
    mm = FIELD_MM / len(velocity)
    return warp.exponential(velocity / mm, squarings) * mm


def moved(field: Velocity, places: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Places in mm from the cube's corner, after a displacement."""
    return places + warp.sample(field, places * (len(field) / FIELD_MM) - 0.5)


def places(size: int) -> Float[Array, "D D D 3"]:
    """The middles of a cube's voxels in mm from its corner."""
    at = (jnp.arange(size) + 0.5) * (FIELD_MM / size)
    return jnp.stack(jnp.meshgrid(at, at, at, indexing="ij"), -1)


def seen(grid: Float[Array, "D D D C"], at: Float[Array, "*n 3"]) -> Float[Array, "*n C"]:
    """A cube's values at places in mm."""
    return warp.sample(grid, at * (len(grid) / FIELD_MM) - 0.5)


def misfit(params: Any, pictures: Float[Array, "M r r r 2"], there: Bool[Array, " M"]) -> Array:
    """How far the skulls are from their mean in the common shape, and how bent the ways there."""
    field, side = velocities(params, there), pictures.shape[1]

    def brought(own, picture):
        away = jax.image.resize(flow(own, FIT), (side, side, side, 3), "linear")
        return seen(picture, places(side) + away)

    warped = jax.vmap(brought)(field, pictures)
    weights = there[:, None, None, None, None] / jnp.maximum(there.sum(), 1)
    target = jax.lax.stop_gradient((weights * warped).sum(0))
    error = (weights * jnp.square(warped - target)).sum(0).mean()
    mm = FIELD_MM / FINE
    slopes = [jnp.diff(field, axis=k) / mm for k in (1, 2, 3)]
    bends = [jnp.diff(slope, axis=k) / mm for slope in slopes for k in (1, 2, 3)]
    count = jnp.maximum(there.sum() / len(there), 1e-6)
    rough = 0.25 * sum(jnp.square(s).mean() for s in slopes) / count
    return error + rough + 12 * sum(jnp.square(b).mean() for b in bends) / count


def mixtures(side: int) -> Float[np.ndarray, "f g"]:
    """How noise is spread along an axis: rows of unit length, so that its variance stays 1."""
    at, of = ((np.arange(n) + 0.5) * FIELD_MM / n for n in (side, NOISE))
    rows = np.exp(-0.5 * ((at[:, None] - of) / NOISE_MM) ** 2)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make(config: ConfigDict) -> Model:
    """The model of `config.model` of `experiments/shape.py`; steps `collect`, then `register`."""
    size, skulls, spread, total = config.resolution, config.skulls, config.spread, config.iterations
    decay = optax.linear_schedule(1.0, 0.0, int(0.3 * total), int(0.7 * total))
    tx = optax.scale_by_adam()
    rates = {
        "coarse": lambda n: config.coarse_rate * decay(n),
        "fine": lambda n: jnp.where(n < total / 4, 0.0, config.fine_rate * decay(n)),
    }

    def init(key):
        sides = {"coarse": COARSE, "fine": FINE}
        params = {name: jnp.zeros((skulls, *(side,) * 3, 3)) for name, side in sides.items()}
        pairs = jnp.zeros((config.pairs, size**3 * 2 // 8), jnp.uint8)
        none = jnp.zeros((config.pairs, LABELS))
        bank = Bank(pairs, jnp.full(config.pairs, -1, jnp.int32), none)
        net = Net(params, bank._asdict(), tx.init(params))
        return steps.begin(key, {"shape": net, **labels.begin(config)})

    def collect_step(state: State, batch: Batch):
        net = state.nets["shape"]
        new = steps.pack(batch.pairs[0]), batch.labels[0]
        new = jax.lax.all_gather(new, modules.AXIS, tiled=True)
        bank, state = collect(Bank(**net.stats), *new, skulls), labels.remember(state, batch)
        metrics = {"skulls": bank.owner.max() + 1.0, "pairs": (bank.owner >= 0).sum() * 1.0}
        return steps.advance(state, shape=net.replace(stats=bank._asdict())), metrics

    def register(state: State, batch: Batch):
        net = state.nets["shape"]
        whole, there = wholes(Bank(**net.stats), skulls, size)
        side = min(size, LARGEST)
        pictures = jax.image.resize(whole.astype(jnp.float32), (skulls, side, side, side), "linear")
        pictures = images(pictures)

        def iterate(carry, _):
            params, opt = carry
            sigma = jnp.array(BLURS)[jnp.minimum(3 * opt.count // total, 2)]
            loss, slope = jax.value_and_grad(misfit)(params, blur(pictures, sigma), there)
            change, opt = tx.update(slope, opt)
            change = {name: -rates[name](opt.count - 1) * step for name, step in change.items()}
            return (optax.apply_updates(params, change), opt), loss

        (params, opt), losses = jax.lax.scan(iterate, (net.params, net.opt), None, INNER)
        metrics = {"misfit": losses[-1], "shift_mm": jnp.abs(velocities(params, there)).mean()}
        return steps.advance(state, shape=Net(params, net.stats, opt)), metrics

    def latents(state, keys, asked=labels.ANY):
        def draw(key):
            noise, choice = jax.random.split(key)
            mixed = jax.random.normal(noise, (skulls * NOISE**3,))
            return jnp.concatenate([mixed, jax.random.uniform(choice, (2,))])

        label = labels.wanted(config, state, keys, asked)
        return jnp.concatenate([jax.vmap(draw)(keys), label], -1)

    def decode(state, z):
        net = state.nets["shape"]
        bank, axis = Bank(**net.stats), mixtures(FINE)
        whole, there = wholes(bank, skulls, size)
        field = velocities(net.params, there)
        count, pairs = jnp.maximum(there.sum(), 2), (bank.owner >= 0).sum()

        def one(z):
            z, wanted = jnp.split(z, [len(z) - labels.width(config)])
            noise = z[:-2].reshape(skulls, NOISE, NOISE, NOISE)
            noise = noise * there[:, None, None, None]
            mixed = jnp.einsum("mabc,xa,yb,zc->mxyz", noise, axis, axis, axis)
            own = spread / jnp.sqrt(count - 1.0) * (mixed[..., None] * field).sum(0)
            skull, donor = (z[-2:] * jnp.array([there.sum(), pairs])).astype(int)
            if labels.width(config):  # of the pairs that have nearly such a label, one by chance
                chance = (z[-1] + 0.618 * jnp.arange(len(bank.owner))) % 1
                away = jnp.abs(bank.labels - wanted).sum(1) + 0.1 * chance
                donor = jnp.where(bank.owner >= 0, away, jnp.inf).argmin()
            fine = 2 * size
            common = moved(flow(-own, USE), places(fine))
            bone = whole[skull].astype(jnp.float32)
            share = seen(sharpened(bone)[..., None], moved(flow(field[skull], USE), common))
            share = share.reshape(size, 2, size, 2, size, 2).mean((1, 3, 5))
            share = ridges(share)
            solid = share >= warp.threshold(share, bone.sum())
            holes = hole(steps.unpack(bank.pairs[donor][None], size)[0])
            way = flow(field[bank.owner[donor]], USE)
            open_ = seen(holes[..., None], moved(way, moved(flow(-own, USE), places(size))))[..., 0]
            pair = jnp.stack([solid & (open_ < 0.5), solid & (open_ >= 0.5)], -1)
            return pair.astype(jnp.float32)

        return jax.lax.map(one, z)

    by_name, conditional = {"collect": collect_step, "register": register}, labels.width(config) > 0
    return Model(init, by_name, latents, decode, conditional=conditional)


def sharpened(x: Float[Array, "D D D"]) -> Float[Array, "D D D"]:
    """A share minus a twelfth of its Laplacian: what linear sampling blurs away."""
    padded = jnp.pad(x, 1, "edge")
    ways = [(step, axis) for step in (-1, 1) for axis in (0, 1, 2)]
    around = sum(jnp.roll(padded, *way)[1:-1, 1:-1, 1:-1] for way in ways)
    return x - (around - 6 * x) / 12


def ridges(share: Float[Array, "D D D"]) -> Float[Array, "D D D"]:
    """Shares of the greatest next to each: bone thinner than a voxel does not tear between two."""
    sides = (3, 3, 3), (1, 1, 1), "SAME"
    most = jax.lax.reduce_window(share, -jnp.inf, jax.lax.max, *sides)
    return jnp.where(share >= LEAST, jnp.clip(share / jnp.maximum(most, LEAST), 0, 1), 0)


def hole(pair: Bool[Array, "D D D 2"]) -> Float[Array, "D D D"]:
    """The share of hole among the bone around each place, carried a little beyond the bone."""
    sigma = HOLE_MM * len(pair) / FIELD_MM
    near = blur(pair.astype(jnp.float32)[None], sigma)[0]
    return near[..., 1] / jnp.maximum(near.sum(-1), 1e-4)
