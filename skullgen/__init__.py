"""skullgen: generated pairs (defective skull, its defect) for cranial implant design, in JAX.

`load(where)` gives a trained run to draw from (`skullgen.delivery.api.Run`). `Pairs(path)` gives a
store to a data loader (`skullgen.data.pairs.Pairs`), and needs no jax. Each is imported when it is
first used.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Pairs", "Run", "load"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module 'skullgen' has no attribute {name!r}")
    place = "skullgen.data.pairs" if name == "Pairs" else "skullgen.delivery.api"
    return getattr(importlib.import_module(place), name)
