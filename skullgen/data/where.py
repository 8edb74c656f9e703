"""Which pairs are wanted: bounds of their measures (`data.measures`), as fields say them.

A bound is `LOW,HIGH` (one of them may be empty), one number, a word (`left`, `temporal`), or
`real`: at most what 95 % of the real training pairs have, and of `nearest_*` what 95 % of the
unseen ones have. An azimuth from LOW to a smaller HIGH goes around the back.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from skullgen.core.errors import UserError, one_of
from skullgen.data import measures, store

MOST = 1e6  # of any measure
TWO_SIDED = "azimuth", "elevation", "rim_on_bone", *measures.WORDS  # of which `real` says nothing
Bounds = dict[str, tuple[float, float]]  # lowest and highest value of a measure
Measures = Float32[np.ndarray, "n names"]


def bounds(
    wanted: Mapping[str, Any], real: store.Store | None = None, field: str = "where"
) -> Bounds:
    """The bounds that fields by measures say ("": none); UserError for what is none.

    real: of which `real` tells; without it that word is no bound.
    """
    result = {}
    for name, text in wanted.items():
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        one_of(f"a measure of {field}", name, measures.NAMES)
        if not (isinstance(text, str) and text.strip() == "real"):
            result[name] = _bound(f"{field}.{name}", name, text)
        elif name in TWO_SIDED:
            raise UserError(
                f"{field}.{name} is 'real', at most what most have: write LOW,HIGH or a word"
            )
        elif real:
            result[name] = -MOST, _usual(real, name)
    return result


def passes(values: Measures, bounds: Bounds) -> Bool[np.ndarray, " n"]:
    """Which pairs keep all bounds; one whose measure is not known does not."""
    keep = np.ones(len(values), bool)
    for name, (low, high) in bounds.items():
        value = values[:, measures.NAMES.index(name)]
        above, below = value >= low, value <= high
        keep &= above & below if low <= high else above | below
    return keep


def text(bounds: Bounds) -> str:
    """Bounds in words: `pieces 1 to 1, side left`."""
    lines = []
    for name, (low, high) in bounds.items():
        words, most = measures.WORDS.get(name), f"at most {high:.4g}"
        numbers = most if low == -MOST else f"{low:.4g} to {high:.4g}"
        lines.append(f"{name} {words[int(low)] if words else numbers}")
    return ", ".join(lines)


def _bound(field, name, value):
    words, text = measures.WORDS.get(name, ()), str(value).strip()
    if text in words:
        return (words.index(text),) * 2
    ends = [*value] if isinstance(value, tuple | list | np.ndarray) else text.split(",")
    ends = ends if len(ends) == 2 else [*ends, *ends]
    try:
        pairs = zip(ends, (-MOST, MOST), strict=True)
        low, high = (float(most if end in (None, "") else end) for end, most in pairs)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if words or np.isnan([low, high]).any():
        example = f"one of {', '.join(words)}" if words else "LOW,HIGH, one number, or real"
        raise UserError(f"{field} is {value!r}: write {example}")
    if low > high and name != "azimuth":
        raise UserError(f"{field} is {value!r}: LOW is more than HIGH: no pair has that")
    return low, high


def _usual(real, name):
    """What 95 % of the real pairs keep."""
    if name.startswith("nearest_"):
        unseen = np.concatenate([real.rows(split) for split in ("test", "validation")])
        if not len(unseen):
            return MOST
        both = measures.nearest(real.load(unseen), real.load(real.rows("train")))
        values = both[:, int(name == "nearest_pair")]
    else:
        values = real.column("measures")[real.rows("train"), measures.NAMES.index(name)]
    return float(np.nanpercentile(values, 95))
