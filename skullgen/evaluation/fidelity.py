"""What generated pairs look like beside real ones, in numbers; and which of them are copies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from skullgen.core.errors import UserError
from skullgen.data import measures, mixture, store
from skullgen.evaluation import distances, explore
from skullgen.evaluation.distances import Sample
from skullgen.generation import generate
from skullgen.models import steps
from skullgen.networks import augment

COMPONENTS = 16  # of features, at most: many more than a covariance of some dozens of pairs has
LEAST = 8  # pairs of a group; fewer tell nothing
LOOKS = 60  # comparisons of two volumes that a mean MS-SSIM is of, at most
CHANNELS = ("skull", "defect")
A, B = UInt8[np.ndarray, "n bytes"], UInt8[np.ndarray, "m bytes"]  # packed pairs
Rows = Int[np.ndarray, " n"]
Some = UInt8[np.ndarray, "_ bytes"]
Features = Callable[[store.Packed], Float[np.ndarray, "n F"]]


class Group(NamedTuple):
    """Pairs that are judged, and the number of each one's skull."""

    bits: store.Packed
    skulls: distances.Skulls


def dice_matrix(a: A, b: B, size: int) -> Float32[np.ndarray, "2 n m"]:
    """Dice of every pair of `a` with every one of `b`, for both channels."""
    return _dice(*_overlaps(a, b, size))


def _overlaps(a, b, size):
    """Voxels [2, n, m] of each channel in both, and of both added; sums of float32, yet exact."""
    both, total = np.zeros((2, 2, len(a), len(b)))
    for parts in zip(*(np.array_split(x, size, axis=1) for x in (a, b)), strict=True):
        flat = (np.unpackbits(x, axis=1, bitorder="little") for x in parts)
        x, y = (np.stack([f[:, 0::2], f[:, 1::2]]).astype(np.float32) for f in flat)
        both += x @ y.mT
        total += x.sum(axis=2)[:, :, None] + y.sum(axis=2)[:, None]
    return both, total


def _dice(both, total):
    return (2 * both / np.maximum(total, 1)).astype(np.float32)


def mean_pair(bits: A, size: int) -> UInt8[np.ndarray, "1 bytes"]:
    """The likeliest voxels of some pairs; of each channel as many as the pairs have in the mean."""
    share = sum(np.unpackbits(row, bitorder="little").astype(float) for row in bits) / len(bits)
    mask = np.zeros((size**3, 2), bool)
    for channel, part in enumerate(share.reshape(-1, 2).T):
        mask[np.argsort(-part, kind="stable")[: round(part.sum())], channel] = True
    return store.pack(mask.reshape(1, size, size, size, 2))


def training_dice(bits: A, train: B) -> dict[str, Float32[np.ndarray, "n m"]]:
    """Dice with every training pair: of `skull` (the patient: both channels) and of `pair`."""
    whole = measures.dice(measures.whole(bits), measures.whole(train))
    return {"skull": whole, "pair": measures.dice(bits, train)}


def copies(train: Some, unseen: Some, generated: Some, size: int, names: list[str]) -> dict:
    """How near generated pairs lie to training ones; limit: what 95 % of the unseen pairs keep."""
    result = {"compared": len(generated)}
    dice, apart = (training_dice(bits, train) for bits in (generated, unseen))
    for name in ("skull", "pair"):
        near, unseen_near = dice[name].max(axis=1), apart[name].max(axis=1)
        nearest = dice[name].argmax(axis=1).tolist()
        limit = float(np.percentile(unseen_near, 95)) if len(unseen_near) else None
        closest = []
        for row in np.argsort(-near, kind="stable")[:10].tolist():
            copy = {"generated": row, "training": nearest[row], "name": names[nearest[row]]}
            closest.append({**copy, "dice": float(near[row])})
        result[name] = {
            "limit": limit,
            "held_out": unseen_near.tolist(),
            "generated": near.tolist(),
            "share_above": None if limit is None else float((near > limit).mean()),
            "closest": closest,
        }
    return result


def fidelity(
    real: store.Store, generated: store.Store, pairs: int = 200, source_rows: Rows | None = None
) -> dict[str, Any]:
    """Generated pairs beside their yardsticks; source_rows: learnt from (None: split train)."""
    real.require_whole("ingest")
    generated.require_whole("generate")
    size, rows = generated.size, generated.rows()[:pairs]
    if real.size != size:
        raise UserError(f"{generated.path}: its pairs are not of the size of those of {real.path}")
    unseen = real.load(np.sort(np.concatenate([real.rows(s) for s in ("test", "validation")])))
    source_rows = real.rows("train") if source_rows is None else source_rows
    ours, train = generated.load(rows), real.load(source_rows)
    groups = {"generated": ours, "held_out": unseen, "mean_training_pair": mean_pair(train, size)}
    nearest = {who: dice_matrix(group, train, size) for who, group in groups.items()}
    near = copies(train, unseen, ours, size, real.names(real.column("skull")[source_rows]))
    for copy in [*near["skull"]["closest"], *near["pair"]["closest"]]:  # by rows of the stores
        copy["generated"] = int(rows[copy["generated"]])
        copy["training"] = int(source_rows[copy["training"]])
    result = {"compared": len(rows), "removed": generate.removed(generated), "copies": near}
    few = np.linspace(0, len(train) - 1, min(pairs, len(train))).astype(int)
    some = {"generated": ours, "training": train[few]}
    pairwise = {who: dice_matrix(group, group, size) for who, group in some.items()}
    shares = {who: store.voxels(group).T.copy() / size**3 for who, group in some.items()}
    for channel, name in enumerate(CHANNELS):
        result[name] = {
            "nearest_training_dice": {who: _nearest(x[channel]) for who, x in nearest.items()},
            "pairwise_dice": {who: _mean_apart(x[channel]) for who, x in pairwise.items()},
            "occupancy": {who: float(x[channel].mean()) for who, x in shares.items()},
        }
    return result


def _nearest(dice):
    """The mean of the rows' greatest values; None without any row."""
    return float(dice.max(axis=1).mean()) if len(dice) else None


def _mean_apart(dice):
    """The mean of a square matrix without its diagonal; None where that is all."""
    values = dice[~np.eye(len(dice), dtype=bool)]
    return float(values.mean()) if len(values) else None


def beside(
    real: store.Store,
    made: dict[str, store.Store],
    features: dict[str, Features],
    amounts: tuple[float, float, float] | None,
    pairs: int = 200,
    source_rows: Rows | None = None,
) -> dict[str, Any]:
    """Groups of pairs, as many of each, beside real training pairs; {} where skulls are too few.

    made: stores by the group's name, and held-out real pairs and training pairs augmented by
    `amounts` (None: none are). features: by title, besides the volumes' own. One half of the
    training skulls is what all are compared with; principal components (and their unit) are fitted
    on the other half, so that the reference is as new to them as held-out pairs are.
    """
    source_rows = real.rows("train") if source_rows is None else source_rows
    skulls = _skulls(mixture.Part(real, source_rows))
    names = np.random.default_rng(0).permutation(np.unique(skulls))
    first = np.isin(skulls, names[: len(names) // 2])
    unseen = np.concatenate([real.rows(split) for split in ("validation", "test")])
    parts = {"reference": mixture.Part(real, source_rows[~first])}
    parts |= {"held_out": mixture.Part(real, np.sort(unseen))}
    parts |= {name: mixture.Part(one, one.rows()) for name, one in made.items()}
    if amounts:
        parts |= {"augmentation": mixture.Part(real, source_rows)}
    parts = {name: part for name, part in parts.items() if _enough(part)}
    fit = mixture.Part(real, source_rows[first])
    if "reference" not in parts or not _enough(fit):
        return {}
    count = min(pairs, *(len(part.rows) for part in parts.values()))
    groups = {name: _group(part, count) for name, part in parts.items()}
    if group := groups.get("augmentation"):
        bits = _augmented(group.bits, real.size, amounts)
        groups["augmentation"] = group._replace(bits=bits)
    volumes = {"PCA of the volumes": lambda bits: explore.volumes(bits, real.size)}
    apart = {}
    for title, run in (features | volumes).items():
        if samples := _samples(run, _group(fit, pairs), groups):
            reference = samples.pop("reference")
            rows = {name: _distances(one, reference) for name, one in samples.items()}
            bias = distances.frechet_bias(reference)
            apart[title] = {"frechet_bias": bias, "groups": rows}
    return {
        "pairs": count,
        "skulls": {name: len(np.unique(group.skulls)) for name, group in groups.items()},
        "features": apart,
        "variety": {name: _variety(group, real.size) for name, group in groups.items()},
    }


def _skulls(part):
    """The number of each pair's skull; one that is not known is of a skull of its own."""
    skull = part.store.column("skull")[part.rows]
    return np.where(skull < 0, -1 - np.arange(len(skull)), skull)


def _enough(part):
    """Whether pairs are enough to be compared, and of more than one skull."""
    return len(part.rows) >= LEAST and len(np.unique(_skulls(part))) > 1


def _group(part, count):
    rows = np.sort(explore.skulls_first(part.store, part.rows, count, 0))
    return Group(part.store.load(rows), _skulls(part._replace(rows=rows)))


def _augmented(bits, size, amounts):
    """Pairs, each augmented once."""

    def one(own):
        pair = steps.unpack(own[0][None], size)
        return steps.pack(augment.augment(own[1][None], pair, *amounts))[0]

    keys = jax.random.split(jax.random.key(0), len(bits))
    return np.asarray(jax.jit(lambda *both: jax.lax.map(one, both))(bits, keys))


def _samples(run, fit, groups):
    """The principal components of groups' features, in their unit; {} where all are alike."""
    from sklearn.decomposition import PCA

    known = run(fit.bits)
    if not np.ptp(known, axis=0).any():
        return {}
    most = min(COMPONENTS, len(known) - 1, known.shape[1])
    pca = PCA(most, random_state=0).fit(known.astype(float))
    unit = np.sqrt(pca.explained_variance_.mean())
    return {
        name: Sample(pca.transform(run(group.bits).astype(float)) / unit, group.skulls)
        for name, group in groups.items()
    }


def _distances(sample, reference):
    return {
        "mmd": distances.mmd(sample, reference)._asdict(),
        "frechet": distances.frechet(sample.features, reference.features),
        **distances.manifold(sample, reference),
        "nearest_accuracy": distances.nearest_accuracy(sample, reference),
    }


def _variety(group, size):
    """Of two pairs of different skulls, each channel: mean Dice, and MS-SSIM of some of them."""
    different = distances.apart(group.skulls)
    dice = [one[different].mean() for one in dice_matrix(group.bits, group.bits, size)]
    both = np.argwhere(np.triu(different))
    both = np.random.default_rng(0).permutation(both)[:LOOKS]
    volumes = explore.volumes(group.bits, size)
    side = round((volumes.shape[1] / 2) ** (1 / 3))
    looks = volumes.reshape(-1, side, side, side, 2)[both]
    result = {}
    for channel, name in enumerate(CHANNELS):
        similar = distances.ms_ssim(looks[:, 0, ..., channel], looks[:, 1, ..., channel])
        result[name] = {"dice": float(dice[channel]), "ms_ssim": float(similar.mean())}
    return result
