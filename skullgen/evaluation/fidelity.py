"""What generated pairs look like beside real ones, in numbers; and which of them are copies.

Stores are compared packed (`store.pack`): uint8 [N, D^3 * 2 / 8].
"""

import numpy as np

from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.generation import generate

CHANNELS = ("skull", "defect")


def dice_matrix(a, b, size):
    """Dice of every pair of `a` with every one of `b`, for both channels: float32 [2, n, m].

    a, b: packed pairs uint8 [n, bytes], [m, bytes] of `size` voxels a side. Exact: counts are
    sums of 0 and 1 in float32 over one slab of voxels at a time, added in float64.
    """
    both, left, right = _overlaps(a, b, size)
    return (2 * both / np.maximum(left + right, 1)).astype(np.float32)


def _overlaps(a, b, size):
    """Voxels in both [2, n, m], in those of `a` [2, n, 1] and in those of `b` [2, 1, m]."""
    slabs = size if size >= 8 else 1
    parts = [np.array_split(x, slabs, axis=1) for x in (a, b)]
    both = np.zeros((2, len(a), len(b)))
    sums = np.zeros((2, len(a), 1)), np.zeros((2, 1, len(b)))
    for left, right in zip(*parts, strict=True):
        x, y = (
            np.unpackbits(part, axis=1, bitorder="little").reshape(len(part), 4 * part.shape[1], 2)
            for part in (left, right)
        )
        for channel in (0, 1):
            p, q = (part[..., channel].astype(np.float32) for part in (x, y))
            both[channel] += p @ q.T
            sums[0][channel, :, 0] += p.sum(axis=1)
            sums[1][channel, 0] += q.sum(axis=1)
    return both, *sums


def mean_pair(bits, size):
    """The mean of some pairs, packed [1, bytes]: the likeliest voxels, as many as they have.

    Each channel keeps as many voxels as the pairs have in the mean, so that a sparse defect's
    mean is not simply empty.
    """
    share = np.zeros(size**3 * 2)
    for row in bits:
        share += np.unpackbits(row, bitorder="little")
    share = (share / len(bits)).reshape(-1, 2)
    mask = np.zeros(share.shape, bool)
    for channel in (0, 1):
        voxels = round(share[:, channel].sum())
        order = np.argsort(-share[:, channel], kind="stable")
        mask[order[:voxels], channel] = True
    return store.pack(mask.reshape(1, size, size, size, 2))


def training_dice(bits, train, size):
    """Dice of pairs with every training pair, as `copies` means it: a dict of float32 [n, m].

    bits, train: packed pairs [n, bytes], [m, bytes]. `skull`: of complete skulls (both channels
    together: the patient). `pair`: of both channels, voxel by voxel.
    """
    skulls = ((x | x >> 1) & 0x55 for x in (bits, train))  # channels alternate: bit 2 v is skull
    return {"skull": _dice(*skulls, size), "pair": _dice(bits, train, size)}


def copies(train, held, made, *, size, names):
    """How near generated pairs lie to training pairs, beside unseen real ones: a dict.

    train, held, made: packed pairs [n, bytes] of training, held-out real and generated pairs.
    names: of the skull of each training pair. For `skull` and `pair` of `training_dice`: the
    nearest training Dice of every generated and held-out pair, the held-out ones' 95th percentile
    (`limit`), the share of generated ones above it, and the closest ten. Without held-out pairs
    there is no limit.
    """
    result, of = {"compared": len(made)}, [training_dice(x, train, size) for x in (made, held)]
    for name in ("skull", "pair"):
        dices = [matrices[name] for matrices in of]
        near, unseen = (matrix.max(axis=1) for matrix in dices)
        limit = float(np.percentile(unseen, 95)) if len(unseen) else None
        order = np.argsort(-near, kind="stable")[:10].tolist()
        found = dices[0].argmax(axis=1)
        result[name] = {
            "limit": limit,
            "held_out": unseen.tolist(),
            "generated": near.tolist(),
            "share_above": None if limit is None else float((near > limit).mean()),
            "closest": [
                {
                    "generated": number,
                    "training": int(found[number]),
                    "name": names[found[number]],
                    "dice": float(near[number]),
                }
                for number in order
            ],
        }
    return result


def _dice(a, b, size):
    """Dice over both channels taken together, float32 [n, m]."""
    both, left, right = (part.sum(axis=0) for part in _overlaps(a, b, size))
    return (2 * both / np.maximum(left + right, 1)).astype(np.float32)


def quality(real, generated, *, pairs=200, learnt=None):
    """Generated pairs beside their yardsticks: a dict that `describe` puts in words.

    real, generated: paths of stores of one size. pairs: at most so many generated ones are
    compared (the first), and so many of every group in the pairwise comparison. learnt: rows of
    `real` that the generator learnt from; without them, those of split train that are not left out.

    For each channel: mean Dice to the nearest training pair of generated pairs, of held-out real
    pairs (test and validation; None where there are none), and of the mean training pair; mean
    Dice of two different pairs, generated and training; mean occupancy of both. And `copies`.
    Raises UserError where a store is not whole, or their sizes differ.
    """
    store.Store(real).require_whole("ingest")
    store.Store(generated).require_whole("generate")
    group = store.Store(generated)
    size = group.size
    if store.Store(real).size != size:
        raise UserError(f"{generated}: its pairs are not of the size of those of {real}")
    held = store.Store(real).load(
        np.sort(np.concatenate([store.Store(real).rows(s) for s in ("test", "validation")]))
    )
    learnt = store.Store(real).rows("train") if learnt is None else learnt
    rows = store.Store(generated).rows()[:pairs], learnt
    made, train = store.Store(generated).load(rows[0]), store.Store(real).load(rows[1])
    spread = [x[np.linspace(0, len(x) - 1, min(pairs, len(x))).astype(int)] for x in (made, train)]
    nearest = {
        "generated": dice_matrix(made, train, size).max(axis=2),
        "held_out": dice_matrix(held, train, size).max(axis=2) if len(held) else None,
        "mean_training_pair": dice_matrix(mean_pair(train, size), train, size).max(axis=2),
    }
    skulls = store.Store(real).column("skull")[rows[1]]
    names = store.Store(real).names(skulls)
    result = {
        "compared": len(made),
        "removed": generate.removed(generated),
        "copies": copies(train, held, made, size=size, names=names),
    }
    for name in ("skull", "pair"):
        for found in result["copies"][name]["closest"]:  # rows of the stores
            found["generated"] = int(rows[0][found["generated"]])
            found["training"] = int(rows[1][found["training"]])
    for channel, name in enumerate(CHANNELS):
        pairwise = [dice_matrix(x, x, size)[channel][~np.eye(len(x), dtype=bool)] for x in spread]
        shares = [
            np.mean([np.unpackbits(row, bitorder="little")[channel::2].mean() for row in x])
            for x in spread
        ]
        result[name] = {
            "nearest_training_dice": {
                who: None if values is None else float(values[channel].mean())
                for who, values in nearest.items()
            },
            "pairwise_dice": {
                who: float(values.mean()) if len(values) else None
                for who, values in zip(("generated", "training"), pairwise, strict=True)
            },
            "occupancy": {
                who: float(value)
                for who, value in zip(("generated", "training"), shares, strict=True)
            },
        }
    return result


def describe(result):
    """The numbers of `quality` as lines of text, with what they say."""

    def show(value):
        return "    -" if value is None else f"{value:.3f}"

    removed = result["removed"]
    lines = [
        f"{removed['pairs']} generated pairs: {removed['empty_defects']:.1%} empty defects; "
        f"equation 6 took {removed['overlap']:.1%} of the defects' voxels; dust, voxels a pair: "
        f"{removed['dust_skull_voxels']:.1f} of skull, {removed['dust_defect_voxels']:.1f} of "
        "defect",
        "",
        f"{'Dice':38s} skull  defect",
    ]
    table = {
        "nearest training pair: generated": ("nearest_training_dice", "generated"),
        "nearest training pair: held-out real": ("nearest_training_dice", "held_out"),
        "nearest training pair: mean pair": ("nearest_training_dice", "mean_training_pair"),
        "two generated pairs": ("pairwise_dice", "generated"),
        "two training pairs": ("pairwise_dice", "training"),
    }
    for title, (what, who) in table.items():
        values = [show(result[name][what][who]) for name in CHANNELS]
        lines.append(f"{title:38s} {values[0]}  {values[1]}")
    for who in ("generated", "training"):
        values = [f"{100 * result[name]['occupancy'][who]:.2f}%" for name in CHANNELS]
        lines.append(f"{'occupancy, ' + who:38s} {values[0]}  {values[1]}")
    for name in CHANNELS:
        near = result[name]["nearest_training_dice"]
        if near["held_out"] is not None and near["generated"] > near["held_out"] + 0.05:
            lines.append(
                f"The generated {name}s lie nearer to a training pair than held-out real ones "
                f"do ({near['generated']:.3f}, {near['held_out']:.3f}): they copy or interpolate."
            )
    for name, what in (("skull", "skulls (patients)"), ("pair", "pairs")):
        found = result["copies"][name]
        if found["limit"] is not None:
            lines.append(
                f"{found['share_above']:.1%} of the generated {what} lie nearer to a training one "
                f"(Dice {found['limit']:.3f} or more) than 95 % of unseen real ones do; the "
                f"closest has Dice {found['closest'][0]['dice']:.3f}."
            )
    return lines
