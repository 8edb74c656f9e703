"""latents -> decode -> binarise -> equation 6 -> dust -> store (sections 4.4 and 5).

Sample i's latent is keyed by i, and the device always runs whole, aligned batches of one size:
any range of samples can be made alone, bit-equal for one kind of device, versions and batch size.
"""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Integer, Shaped, UInt8
from ml_collections import ConfigDict

from skullgen.core import hosts, jobs, plugins, provenance
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.core.types import Model, State
from skullgen.data import measures, store, where
from skullgen.generation import postprocess
from skullgen.generation.postprocess import Rules
from skullgen.models import labels, steps
from skullgen.networks import modules
from skullgen.training import parallel
from skullgen.training.methods import Trained

SHARD = 64  # pairs in a file
CANDIDATES = 64_000  # samples that a shard is chosen from; fewer than 1 in 1,000 are too few
FEW = 5_000  # of them, before that is said
Binary = tuple[UInt8[Array, "n bytes"], Int32[Array, " n"]]
Rows = Shaped[np.ndarray, "n width"]
Share = tuple[int, int]  # (k, n): the k-th of n runs of the shards


def check(settings: ConfigDict) -> None:
    """UserError for what `run` would find wrong with `config.generate` after hours of training."""
    in_range("generate.count", settings.count, 1)
    in_range("generate.batch_size", settings.batch_size, 1, 2**16)
    in_range("generate.threshold", settings.threshold, 0.001, 1)
    in_range("generate.dust_mm3", settings.dust_mm3, 0)
    one_of("generate.channels", settings.channels, ("", "independent", "exclusive"))
    if where.bounds(dict(settings.where), field="generate.where"):
        if settings.first % SHARD:
            what = f"generate.first is {settings.first}: where pairs are chosen"
            raise UserError(f"{what} (generate.where) it must be a multiple of {SHARD}")
        in_range("generate.first + generate.count", settings.first + settings.count, 1, 2_000_000)


def rules(settings: ConfigDict, channels: str, voxel_mm: float) -> Rules:
    """The rules of an experiment's `config.generate`; channels: as of `methods.channels`."""
    dust = int(np.ceil(settings.dust_mm3 / voxel_mm**3))
    return Rules(channels, settings.threshold, dust)


def latents(
    model: Model,
    state: State,
    seed: int | Integer[Array, ""],
    index: Int[Array, " n"],
    asked: labels.Asked = labels.ANY,
) -> Float[Array, "n Z"]:
    """z of the samples numbered `index`: each by its own key, whatever is drawn beside it.

    asked: of a conditional model's labels; others are as they were learnt from.
    """
    key = jax.random.fold_in(jax.random.key(seed), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    return model.latents(state, keys, *[asked] * model.conditional)


def asked(text: str, kinds: Sequence[str], field: str = "generate.labels") -> labels.Asked:
    """The weights of kinds that `KIND:WEIGHT,...` says; "" asks for none."""
    weights = np.zeros(measures.KINDS, np.float32)
    for item in plugins.listed(text):
        kind, _, weight = item.partition(":")
        number = list(kinds).index(one_of(field, kind, list(kinds)[: measures.KINDS]))
        if not re.fullmatch(r"\d*\.?\d+", weight or "1") or not float(weight or 1):
            raise UserError(f"{field}: {item!r}: write KIND:WEIGHT, for example {kind}:0.5")
        weights[number] = float(weight or 1)
    return labels.ANY._replace(kinds=weights)


def binary(probability: Float[Array, "n D D D 2"], rules: Rules) -> Binary:
    """Packed pairs, binarised and after equation 6, and the voxels that it removed."""
    pair = modules.binarise(probability, rules.channels, rules.threshold)
    skull, defect = pair[..., 0], pair[..., 1]
    apart = jnp.stack([skull, postprocess.separate(skull, defect)], axis=-1)
    return steps.pack(apart), (defect & skull).sum((1, 2, 3), dtype=jnp.int32)


def pairs(probability: Float[Any, "n D D D 2"], rules: Rules) -> Bool[np.ndarray, "n D D D 2"]:
    """The pairs that section 4.4 makes of what a network (numpy or jax) says of each voxel."""
    size = probability.shape[1]
    # One by one: the device need not hold all.
    bits = [np.asarray(binary(jnp.asarray(one)[None], rules)[0]) for one in probability]
    return store.unpack(postprocess.clean(np.concatenate(bits), size, rules), size)


def drawer(model: Model, rules: Rules) -> Callable:
    """`draw(state, index int [devices, n], seed=0, asked=ANY)`, [devices, n, ...] of each part.

    The parts are those of `binary` of the samples, and their labels (of width 0 without any).
    """

    def draw(state, seed, asked, index):
        z = latents(model, state, seed, index, asked)
        return *binary(model.decode(state, z), rules), z[:, z.shape[1] - width :]

    here, width = jax.local_devices(), measures.LABELS * model.conditional
    axes = (None, None, None, 0)
    mapped = jax.pmap(draw, axis_name=modules.AXIS, in_axes=axes, devices=here)
    return lambda state, index, seed=0, asked=labels.ANY: mapped(
        state, np.uint32(seed), labels.Asked(*map(np.float32, asked)), index
    )


def sampler(generator: Trained, rules: Rules, batch: int) -> Callable:
    """`draw(first, seed, asked=ANY)`: samples `first` on, `batch` of them on each local device."""
    devices, state = jax.local_device_count(), parallel.resident(generator.state)
    draw = drawer(generator.model, rules)

    def run(first, seed, asked=labels.ANY):
        index = jnp.arange(first, first + devices * batch).reshape(devices, batch)
        parts = draw(state, index, seed, asked)
        return [part.reshape(devices * batch, *part.shape[2:]) for part in parts]

    return run


def batches(
    draw: Callable[[int], Sequence], shards: list[range], first: int, batch: int
) -> Iterator[tuple[range, Shaped[np.ndarray, "n bytes"], Integer[np.ndarray, " n"], Any]]:
    """Each of `shards`, which rise, with the parts of its draws; `draw` runs one call ahead."""
    needs = [range((first + x.start) // batch * batch, first + x.stop, batch) for x in shards]
    calls = ((start, draw(start)) for start in dict.fromkeys(itertools.chain(*needs)))
    ahead, ready = next(calls, None), {}
    for shard, need in zip(shards, needs, strict=True):
        ready = {start: part for start, part in ready.items() if start >= need[0]}
        while need[-1] not in ready:
            (start, answer), ahead = ahead, next(calls, None)
            ready[start] = [np.asarray(part) for part in answer]
        rows = slice(first + shard.start - need[0], first + shard.stop - need[0])
        parts = zip(*(ready[start] for start in need), strict=True)
        yield shard, *(np.concatenate(part)[rows] for part in parts)


def whole_batches(run: Callable, rows: Rows, batch: int) -> Shaped[np.ndarray, "n ..."]:
    """`run` over rows (packed pairs, latents) in batches of one size, the last filled up."""
    answers = []
    for start in range(0, len(rows), batch):
        jobs.check()
        part = rows[start : start + batch]
        full = np.pad(part, ((0, batch - len(part)), (0, 0)))
        answers.append(np.asarray(run(full))[: len(part)])
    return np.concatenate(answers)


class Plan(NamedTuple):
    """A store of generated pairs: voxels a side, `Rules.channels`, attributes (with `voxel_mm`)."""

    size: int
    channels: str
    attributes: dict[str, Any]
    recipe: provenance.Recipe
    train: postprocess.Part | None  # the pairs that a pair's nearest ones are looked for among
    bounds: where.Bounds  # of samples' measures; none: all are taken
    asked: labels.Asked = labels.ANY


def run(
    generator: Trained, path: Path, settings: ConfigDict, plan: Plan, workers: int, share: Share
) -> None:
    """Generates samples `first` on of `config.generate` into share k of n of a store's shards.

    Where there are bounds, shard k (of all stores of a seed) holds the first of samples 64,000 k on
    that keep them: whatever was stopped, or made by others, it is the same.
    """
    if hosts.lead():
        shape = store.Shape(settings.count, plan.size, SHARD)
        store.create(path, shape, plan.attributes, plan.recipe)
    hosts.first(0)
    generated = store.Store(path)
    shards, total = generated.missing(share), sum(map(len, generated.shards(share)))
    if not shards:
        print(f"{path}: all {total} pairs are there")
        return
    how = rules(settings, plan.channels, plan.attributes["voxel_mm"])
    source = postprocess.Source(generated, how, plan.train, plan.bounds)
    draw = sampler(generator, how, settings.batch_size)
    draw = functools.partial(draw, seed=settings.seed, asked=plan.asked)
    batch, first = settings.batch_size * jax.local_device_count(), settings.first
    with jobs.progress(total, total - sum(map(len, shards)), "generate", "pair") as bar:
        if plan.bounds:
            _choose(source, draw, shards, (first, batch), jobs.workers(workers), bar)
            return
        tasks = (
            (source, shard.start, range(first + shard.start, first + shard.stop), *parts)
            for shard, *parts in batches(draw, shards, first, batch)
        )
        for count in jobs.ordered(
            postprocess.finish, tasks, min(jobs.workers(workers), len(shards))
        ):
            bar.update(count)


def _choose(source, draw, shards, place, workers, bar):
    """Writes the first samples of each shard's candidates that keep the bounds."""
    (first, batch), kept, order = place, dict.fromkeys(shards, 0), collections.deque()

    def tasks():
        for shard in shards:
            begin = (first + shard.start) // SHARD * CANDIDATES
            for start in range(begin, begin + CANDIDATES, batch):
                if kept[shard] >= len(shard):  # of what is drawn ahead nothing is used
                    break
                samples = range(start, min(start + batch, begin + CANDIDATES))
                parts = (np.asarray(part)[: len(samples)] for part in draw(start))
                order.append((shard, samples.stop - begin, len(samples)))
                yield source, samples, *parts

    found, total, chosen = [], 0, 0
    for bits, columns in jobs.ordered(postprocess.measured, tasks(), workers):
        shard, drawn, count = order.popleft()
        room = len(shard) - kept[shard]
        if not room:
            continue
        found.append((bits[:room], {name: column[:room] for name, column in columns.items()}))
        total, chosen = total + count, chosen + len(bits)
        bar.set_postfix(share=f"{chosen / total:.1%} of the samples", refresh=False)
        bar.update(len(bits[:room]))
        kept[shard] += len(bits[:room])
        if kept[shard] == len(shard):
            parts = {name: np.concatenate([own[name] for _, own in found]) for name in columns}
            source.generated.write(shard.start, np.concatenate([one for one, _ in found]), parts)
            found.clear()
        elif drawn >= FEW and 1000 * kept[shard] < drawn:
            what = f"of {drawn} samples {kept[shard]} keep {where.text(source.bounds)}"
            raise UserError(f"generate.where: {what}: fewer than one in a thousand: ask for less")


def removed(generated: store.Store) -> dict[str, Any]:
    """What post-processing removed from a store: shares of empty defects, overlap; dust a pair."""
    generated.require_whole("generate")
    rows = generated.rows()
    removed, defects = generated.column("removed")[rows], generated.column("voxels")[rows, 1]
    overlap, dust_skull, dust_defect = removed.astype(np.int64).sum(axis=0).tolist()
    return {
        "pairs": len(defects),
        "empty_defects": float(np.mean(defects == 0)),
        "overlap": overlap / max(overlap + dust_defect + int(defects.sum()), 1),
        "dust_skull_voxels": dust_skull / len(defects),
        "dust_defect_voxels": dust_defect / len(defects),
    }
