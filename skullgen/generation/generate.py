"""latents -> decode -> binarise -> equation 6 -> dust -> store (sections 4.4 and 5).

Sample i's latent is keyed by i, and the device always runs whole, aligned batches of one size:
any range of samples can be made alone, in any order, on several machines, and is bit-equal for
one kind of device, versions and batch size. Binarising, equation 6 and packing happen on the
device; components on a pool of worker processes, each of which writes whole shards.
"""

import jax
import jax.numpy as jnp
import numpy as np

from skullgen.core import hosts, jobs
from skullgen.data import store
from skullgen.generation import postprocess
from skullgen.models import steps
from skullgen.networks import modules
from skullgen.training import parallel

SHARD = 64  # pairs in a file


def drawer(model, *, seed, channels, threshold):
    """`draw(state, index [devices, n]) -> (bits, overlap)` of the samples numbered `index`.

    `draw(state, index, seed)` draws by another seed, without compiling again.

    channels: `independent` or `exclusive` (`modules.binarise`).

    bits: uint8 [devices, n, D^3 * 2 / 8], equation 6 applied. overlap: int32 [devices, n], voxels
    that it removed.
    """

    def make(state, seed, index):
        probability = model.decode(state, latents(model, state, seed, index))
        pair = modules.binarise(probability, channels, threshold)
        skull, defect = pair[..., 0], pair[..., 1]
        apart = jnp.stack([skull, postprocess.separate(skull, defect)], axis=-1)
        return steps.pack(apart), (defect & skull).sum((1, 2, 3), dtype=jnp.int32)

    here = jax.local_devices()
    mapped = jax.pmap(make, axis_name=modules.AXIS, in_axes=(None, None, 0), devices=here)
    return lambda state, index, seed=seed: mapped(state, np.uint32(seed), index)


def sampler(model, state, *, seed, batch, channels, threshold):
    """`make(first) -> (bits, overlap)` for the aligned batches that begin at sample `first`.

    Or `make(first, seed)`. channels: as of `drawer`. One batch of `batch` samples runs on each
    local device: n = batch * devices.

    bits: uint8 [n, D^3 * 2 / 8]. overlap: int32 [n].
    """
    devices, state = jax.local_device_count(), parallel.resident(state)
    mapped = drawer(model, seed=seed, channels=channels, threshold=threshold)

    def run(first, seed=seed):
        index = jnp.arange(first, first + devices * batch).reshape(devices, batch)
        bits, overlap = mapped(state, index, seed)
        return bits.reshape(devices * batch, -1), overlap.reshape(devices * batch)

    return run


def latents(model, state, seed, index):
    """z float32 [n, Z] of the samples int [n]: each by its own key, whatever is drawn beside it."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return model.latents(state, jax.vmap(lambda i: jax.random.fold_in(key, i))(index))


def batches(make, shards, first, batch):
    """For each range of rows in `shards`: (range, its bits, its overlap), as numpy arrays.

    make: as `sampler` returns it. first: the sample in row 0. batch: samples of one call. The
    next call runs on the device while this one's answer is copied and worked on.
    """
    wanted = [
        start
        for shard in shards
        for start in range((first + shard.start) // batch * batch, first + shard.stop, batch)
    ]
    wanted = iter(list(dict.fromkeys(wanted)))
    ahead, made = [], {}
    for shard in shards:
        begin, end = first + shard.start, first + shard.stop
        while not made or max(made) + batch < end:
            while len(ahead) < 2 and (start := next(wanted, None)) is not None:
                ahead.append((start, make(start)))
            start, answer = ahead.pop(0)
            made[start] = [np.asarray(part) for part in answer]
        made = {start: part for start, part in made.items() if start + batch > begin}
        order = sorted(made)
        offset = begin - order[0]
        bits, overlap = (np.concatenate([made[s][part] for s in order]) for part in (0, 1))
        yield shard, bits[offset : offset + len(shard)], overlap[offset : offset + len(shard)]


def whole_batches(run, bits, batch):
    """`run` over packed pairs [n, bytes] in batches of one size, the last filled up: [n, ...].

    One compiled program does, and a pair's answer does not depend on how many there are.
    """
    found = []
    for start in range(0, len(bits), batch):
        jobs.check()
        part = bits[start : start + batch]
        full = np.pad(part, ((0, batch - len(part)), (0, 0)))
        found.append(np.asarray(run(full))[: len(part)])
    return np.concatenate(found)


def run(
    model,
    state,
    path,
    settings,
    *,
    channels,
    voxel_mm,
    size,
    workers,
    attributes,
    share=(0, 1),
):
    """Generates samples `first` to `first + count` into the store `path`, or goes on.

    settings: an experiment's `config.generate`. channels: `independent` or `exclusive`.
    voxel_mm: of the real pairs, by which components of under `settings.dust_mm3` are found.
    size: voxels a side. attributes: of the store (`store.create`). share: (k, n), of the shards.
    """
    count = settings.count
    if hosts.lead():
        store.create(path, count=count, size=size, shard=SHARD, attributes=attributes)
    hosts.first(0)
    shards = store.Store(path).missing(share)
    if not shards:
        print(f"{path}: all {sum(map(len, store.Store(path).shards(share)))} pairs are there")
        return
    options = dict(seed=settings.seed, batch=settings.batch_size, threshold=settings.threshold)
    make = sampler(model, state, channels=channels, **options)
    batch = settings.batch_size * jax.local_device_count()
    tasks = (
        (
            path,
            shard.start,
            bits,
            overlap,
            size,
            voxel_mm,
            dust(settings, voxel_mm),
            settings.connectivity,
        )
        for shard, bits, overlap in batches(make, shards, settings.first, batch)
    )
    workers = min(jobs.workers(workers), len(shards))
    whole, left = (sum(map(len, part)) for part in (store.Store(path).shards(share), shards))
    with jobs.progress(whole, whole - left, "generate", "pair") as bar:
        for done in jobs.ordered(postprocess.finish, tasks, workers):
            bar.update(done)


def dust(settings, voxel_mm):
    """Components of fewer voxels than this are removed: `settings.dust_mm3` in voxels."""
    return int(np.ceil(settings.dust_mm3 / voxel_mm**3))


def removed(path):
    """What post-processing removed from a generated store, as a dict of shares and voxels.

    empty_defects: share of pairs whose defect is empty. overlap: share of defect voxels that lay
    in the skull (equation 6). dust_skull, dust_defect: mean voxels a pair.
    """
    store.Store(path).require_whole("generate")
    group = store.Store(path)
    rows = store.Store(path).rows()
    removed, defects = (
        group.column("removed")[rows].astype(np.int64),
        group.column("voxels")[rows, 1],
    )
    overlap, dust_skull, dust_defect = removed.sum(axis=0).tolist()
    drawn = overlap + dust_defect + int(defects.sum())
    return {
        "pairs": len(defects),
        "empty_defects": float(np.mean(defects == 0)),
        "overlap": overlap / max(drawn, 1),
        "dust_skull_voxels": dust_skull / len(defects),
        "dust_defect_voxels": dust_defect / len(defects),
    }
