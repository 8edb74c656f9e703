"""What was asked for and what was got, in cases that can be counted."""

import numpy as np

from skullgen.data import measures, store
from skullgen.evaluation import asked

REGION, SIDE, AREA = (measures.NAMES.index(name) for name in ("region", "side", "area_cm2"))


def _values(regions, sides, areas):
    values = np.full((len(regions), len(measures.NAMES)), np.nan, np.float32)
    values[:, REGION], values[:, SIDE], values[:, AREA] = regions, sides, areas
    return values


def _store(path, values, **columns):
    bits = np.zeros((len(values), 8**3 * 2 // 8), np.uint8)
    opened = store.create(path, store.Shape(len(values), 8, 50), {"names": []}, {})
    opened.write(0, bits, {"measures": values, **columns})
    return opened


def test_shares_by_hand(tmp_path):
    """Kind 0 is frontal, kind 1 temporal or parietal."""
    real = _store(
        tmp_path / "real.zarr",
        _values([0, 0, 2, 1], [0, 2, 0, 2], [50] * 4),
        split=np.zeros(4),
        kind=np.array([0, 0, 1, 1]),
    )
    wanted = measures.labels(np.array([0, 0, 1, 1]), _values([0] * 4, [0, 2, 2, 2], [50] * 4))
    got = _values([0, 2, 1, 2], [0, 0, 2, 2], [59, 61, 42, 41])
    made = _store(tmp_path / "made.zarr", got, split=-np.ones(4), asked=wanted)
    result = asked.asked(real, made)
    assert result["pairs"] == 4
    assert result["kind's region"]["got"] == 0.75  # the second is temporal
    assert result["side"]["got"] == 0.75  # and on the left
    assert result["area"]["got"] == 0.5  # 61 and 41 are more than a fifth away
    assert result["area"]["chance"] == 0.5  # all were asked for 50
    # Of 4 x 4 ways to pair kinds with regions 2 x 1 + 2 x 3 are right.
    assert 0.3 < result["kind's region"]["chance"] < 0.7
    assert asked.text(result).startswith("asked for and got, 4 pairs: kind's region 75% (by chance")
    plain = _store(tmp_path / "plain.zarr", got, split=-np.ones(4))
    assert asked.asked(real, plain) is None
