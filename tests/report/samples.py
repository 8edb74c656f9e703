"""What a work directory holds: numbers to be followed by hand, pairs to be seen, hostile texts."""

import numpy as np

from skullgen.data import measures, store
from tests.shapes import holed_shell

HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script><a href='//h.st'>$&{{plotly}}"
)
WAYS = [(0, 0.6, 0.8), (0.8, 0, 0.6), (-0.8, 0.6, 0), (0, -0.8, 0.6), (0.6, 0.8, 0), (0, 0, 1)]
QUARTERS = {"generated": 0.25, "training": 0.75}


def row(net="vnet", column="test", metric="dice", mean=0.7, **fields):
    """A row of a verdict's summary, whose interval is 0.1 to either side."""
    place = {"net": net, "column": column, "metric": metric, "by": "all", "group": ""}
    span = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "interval": "t"}
    return {**place, **span, "cases": 40, "skulls": 8, **fields}


def quality(near=0.5, generated=(0.5,) * 5, held_out=(0.6,) * 3, name="J. Doe"):
    """Generated pairs, of which `near` is the mean Dice to the nearest training pair."""
    channel = {"nearest_training_dice": {"generated": near, "held_out": 0.8}}
    channel |= {"pairwise_dice": QUARTERS, "occupancy": QUARTERS}
    copies = {"limit": 0.7, "share_above": 0.2, "generated": list(generated)}
    copies |= {"held_out": list(held_out)}
    copies["closest"] = [{"generated": 1, "training": 0, "name": name, "dice": 0.75}]
    removed = {"pairs": 5, "empty_defects": 0.2, "overlap": 0.125}
    removed |= {"dust_skull_voxels": 1.5, "dust_defect_voxels": 0.0}
    both = {"skull": copies, "pair": copies | {"limit": None}}
    return {
        **{"compared": len(generated), "removed": removed, "copies": both},
        **{"skull": channel, "defect": channel},
    }


def verdict(rows, differences=()):
    """A verdict of the nets in some rows."""
    nets = {row["net"]: {"stores": [{"path": "/home/doe/a.zarr"}]} for row in rows}
    about = {"threshold": 0.5, "voxel_mm": 12.8, "nets": nets}
    return {**about, "summary": rows, "differences": list(differences)}


def pairs(path, ways=WAYS, names=(), size=16, **columns):
    """Makes a store of shells, each with a hole where a way points; returns its pairs."""
    shells = np.stack([np.stack(holed_shell(way, size), axis=-1) for way in ways])
    attributes = {"voxel_mm": 204.8 / size, "kinds": ["bilateral", HOSTILE], "licence": HOSTILE}
    attributes["names"], shape = list(names), store.Shape(len(ways), size, 4)
    made = store.create(path, shape, attributes, {"sources": {HOSTILE: "0123abcd"}})
    for at in range(0, len(ways), 4):
        part = {name: np.array(values[at : at + 4]) for name, values in columns.items()}
        own = [measures.measure(pair, 204.8 / size) for pair in shells[at : at + 4]]
        part["measures"] = np.stack(own)
        made.write(at, store.pack(shells[at : at + 4]), part)
    return shells
