"""Kinds of defect: SkullBreak's five (`defects`), and functions of a user's own package."""

import numpy as np

from skullgen.core import plugins
from skullgen.core.errors import UserError
from skullgen.data import defects

_FORM = "(complete, seed, voxel_mm, area_cm2) -> bool [X, Y, Z]"


def named_by(config):
    """The kinds of `config.kinds` (`config` is an experiment's `config.data`), in order.

    "" means `defects.KINDS`. A dotted name is a function `(complete, seed, voxel_mm, area_cm2) ->
    bool [X, Y, Z]` with the arguments of `defects.cut` (voxel_mm: [3]); it returns the piece that
    is taken out. Raises UserError for a kind that is none.
    """
    text = config.get("kinds", "")
    found = plugins.listed(text) or list(defects.KINDS)
    for kind in found:
        if "." in kind:
            plugins.function("data.kinds", kind, _FORM)
        elif kind not in defects.KINDS:
            known = ", ".join(defects.KINDS)
            what = f"choose of {known}, or name a function of your own, package.module.function"
            raise UserError(f"data.kinds names {kind!r}: {what}")
    if len(set(found)) < len(found) or len(found) > 127:  # the column `kind` is int8
        raise UserError(f"data.kinds is {text!r}: at most 127 kinds, each of them once")
    return tuple(found)


def cut(complete, kind, seed, *, voxel_mm, area_cm2):
    """`defects.cut`, also of a kind that is a function of the user's own.

    complete: bool [X, Y, Z], RAS. voxel_mm: [3]. area_cm2: least and largest, of the outer surface.
    Returns two bool [X, Y, Z], the defective skull and its implant.

    Raises UserError where it returns anything but a part of the skull.
    """
    if "." not in kind:
        return defects.cut(complete, kind, seed, voxel_mm=voxel_mm, area_cm2=area_cm2)
    implant = plugins.function("data.kinds", kind, _FORM)(complete, seed, voxel_mm, area_cm2)
    if np.shape(implant) != complete.shape or np.asarray(implant).dtype != bool:
        shown = f"{np.asarray(implant).dtype} {list(np.shape(implant))}"
        raise UserError(f"{kind} returned {shown}: it must return bool {list(complete.shape)}")
    implant = implant & complete
    if not implant.any() or np.array_equal(implant, complete):
        raise UserError(f"{kind} took {'all' if implant.any() else 'none'} of the bone out")
    return complete & ~implant, implant
