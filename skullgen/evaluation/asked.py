"""Whether a conditional model makes what it is asked for: labels beside measures."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from skullgen.data import measures, store
from skullgen.data.measures import AREA_CM2, KINDS, NAMES

USUAL = 0.05  # a region that as many of a kind's real pairs have is that kind's
WITHIN = 1.2  # the greatest ratio of areas that counts as the one asked for
SHUFFLES = 20

Labels, Values = Float32[np.ndarray, "n labels"], Float32[np.ndarray, "n names"]
Regions = Bool[np.ndarray, "kinds regions"]


def asked(real: store.Store, generated: store.Store) -> dict[str, Any] | None:
    """Shares of generated pairs whose kind's region, side and area are those asked for.

    `chance`: the same with labels that were shuffled, as of a model that does not hear them. None
    where nothing was asked for.
    """
    rows = generated.rows()
    labels, values = (generated.column(name)[rows] for name in ("asked", "measures"))
    there = ~np.isnan(labels).any(1) & ~np.isnan(values[:, NAMES.index("area_cm2")])
    if not there.any():
        return None
    labels, values, train = labels[there], values[there], real.rows("train")
    own = regions(real.column("kind")[train], real.column("measures")[train])
    random = np.random.default_rng(0)
    shuffled = [hits(random.permutation(labels), values, own) for _ in range(SHUFFLES)]
    result = {}
    for name, share in hits(labels, values, own).items():
        result[name] = {"got": share, "chance": float(np.mean([one[name] for one in shuffled]))}
    return {"pairs": int(there.sum()), **result}


def regions(kinds: Int[np.ndarray, " n"], values: Values) -> Regions:
    """The regions that each kind's real pairs lie in."""
    region, result = (
        values[:, NAMES.index("region")],
        np.zeros((KINDS, len(measures.REGIONS)), bool),
    )
    for kind in set(kinds.tolist()) & set(range(KINDS)):
        own = region[(kinds == kind) & ~np.isnan(region)].astype(int)
        result[kind] = np.bincount(own, minlength=result.shape[1]) > USUAL * len(own)
    return result


def hits(labels: Labels, values: Values, own: Regions) -> dict[str, float]:
    """Shares of pairs that have their label's kind's region, its side, and nearly its area."""
    region, side, area = (values[:, NAMES.index(n)] for n in ("region", "side", "area_cm2"))
    kind = labels[:, :KINDS].argmax(1)
    there = labels[:, :KINDS].any(1)
    ratio = np.log(np.maximum(area, 1e-6) / AREA_CM2) - labels[:, KINDS + 1]
    return {
        "kind's region": float(own[kind, region.astype(int)][there].mean()) if there.any() else 0.0,
        "side": float((side - 1 == np.rint(labels[:, KINDS])).mean()),
        "area": float((np.abs(ratio) <= np.log(WITHIN)).mean()),
    }


def text(result: dict[str, Any]) -> str:
    """The shares in a line."""
    shares = [
        f"{name} {its['got']:.0%} (by chance {its['chance']:.0%})"
        for name, its in result.items()
        if name != "pairs"
    ]
    return f"asked for and got, {result['pairs']} pairs: {', '.join(shares)}"
