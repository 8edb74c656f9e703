"""What each field of a config may be: a mistake is found before anything is written."""

import importlib.util
import math
import os
import re

from ml_collections import ConfigDict

from skullgen.core.errors import UserError, one_of
from skullgen.evaluation import metrics

SECTIONS = {  # of the config, that a stage reads beside `data` and `model`
    "ingest": (),
    "train": ("generate",),
    "generate": ("generate",),
    "segment": ("segment",),
    "evaluate": ("segment", "evaluate"),
    "explore": ("generate", "segment", "evaluate", "explore"),
    "gallery": ("gallery",),
    "report": (),
    "release": ("segment", "predict"),
    "predict": ("segment", "predict"),
    "export": ("export",),
}
WORDS = (
    *("model_name", "share", "data.source", "data.root", "data.test", "data.validation"),
    *("data.splits", "data.licence", "generate.channels", "segment.model_name", "segment.stores"),
    "generate.weights",
    *("evaluate.upsampling", "evaluate.metrics", "explore.stores", "data.kinds"),
    "gallery.stores",
    *("predict.file", "predict.net", "predict.suffixes", "predict.folder", "predict.weights"),
    *("export.store", "export.format", "export.folder", "export.rows", "export.split"),
    *("export.kinds", "export.dataset"),
)
PATHS = (
    *("data.root", "generate.weights", "segment.stores", "explore.stores", "gallery.stores"),
    *("predict.file", "predict.folder", "predict.weights", "export.store", "export.folder"),
)
SWITCHES = (
    *("tensorboard", "data.reframe", "data.strict", "segment.reference", "evaluate.rules"),
    "explore.umap",
)
RANGES = {  # lowest and highest value of a field, whole numbers where the lowest is one
    **dict.fromkeys(("seed", "data.seed", "data.first_cut", "data.fold"), (0, 2**31)),
    **dict.fromkeys(("generate.seed", "generate.first", "explore.seed"), (0, 2**31)),
    **dict.fromkeys(("segment.seed", "segment.fresh"), (0, 2**31)),
    **dict.fromkeys(("batch_size", "log_every", "save_every", "keep"), (1, math.inf)),
    "workers": (0, 1024),
    **dict.fromkeys(("data.skulls", "data.cuts", "generate.count"), (1, 2**31)),
    **dict.fromkeys(("evaluate.pairs", "gallery.pairs"), (1, math.inf)),
    "generate.batch_size": (1, 2**16),
    **dict.fromkeys(("explore.pairs", "explore.steps"), (2, math.inf)),
    "explore.perplexity": (1.0, math.inf),
    **dict.fromkeys(("segment.batch_size", "segment.save_every"), (1, math.inf)),
    **dict.fromkeys(("segment.updates", "evaluate.batch_size"), (1, math.inf)),
    **dict.fromkeys(("evaluate.cases", "data.folds"), (0, math.inf)),
    **dict.fromkeys(("budget_mb", "preview_minutes", "generate.dust_mm3"), (0.0, math.inf)),
    **dict.fromkeys(("data.bone_hu", "predict.bone_hu"), (-math.inf, math.inf)),
    "data.max_voxels": (1, math.inf),
    **dict.fromkeys(("data.threshold", "generate.threshold"), (0.001, 1)),
    **dict.fromkeys(("evaluate.threshold", "predict.threshold"), (0.001, 1)),
    "predict.dust_mm3": (0.0, math.inf),
    "predict.pieces": (0, math.inf),
    **dict.fromkeys(("data.label", "predict.label"), (0, 2**31)),
    **dict.fromkeys(("data.test_fraction", "data.validation_fraction"), (0.0, 1)),
    "generate.connectivity": (6, 26),
    "export.voxel_mm": (0.0, 10),
    "model.resolution": (2, 512),  # as schema.MAX_SIDE
}
MODEL = {  # fields of our own models; one outside the package has its own
    **dict.fromkeys(("latent", "groups"), (1, 2**20)),
    **dict.fromkeys(("learning_rate", "critic_learning_rate"), (0.0, math.inf)),
    **dict.fromkeys(("vae_learning_rate", "kl_weight", "penalty"), (0.0, math.inf)),
    **dict.fromkeys(("alpha", "beta", "margin", "channel_weights"), (0.0, math.inf)),
    **dict.fromkeys(("b1", "b2", "momentum", "posterior_momentum", "occupancy"), (0.0, 1)),
    **dict.fromkeys(("widths", "down", "up"), (1, 2**20)),
    "decay_steps": (0, math.inf),
    "rotation_degrees": (0.0, 180),
    "scaling": (0.0, 0.9),
    "shift_mm": (0.0, 200),
}
SERIES = {"widths": 0, "down": 0, "up": 0, "occupancy": 2, "channel_weights": 2}  # 0: any length


def stages(config, known):
    """The names in `config.stages`, a list; UserError unless all of them are in `known`."""
    _field(config, "stages", str)
    names = [name.strip() for name in config.stages.split(",") if name.strip()]
    if not names or not set(names) <= set(known):
        raise UserError(
            f"stages is {config.stages!r}: name some of {', '.join(known)}, comma-separated"
        )
    return names


def check(config, names=(), made=False):
    """UserError for a field that is missing, of a wrong kind or out of range, and where to mend it.

    names: of the stages that are to run, whose sections have to be there. made: of a run that was
    made, maybe by an earlier version: other fields may be missing, and extras are not asked for.
    """
    needed = {"data", "model"}.union(*(SECTIONS[name] for name in names))
    sections = {"": config}
    shown = ("explore", "gallery", "export", "predict")
    for name in ("data", "model", "generate", "segment", "evaluate", *shown):
        sections[name] = config.get(name)
        if not isinstance(sections[name], ConfigDict) and (name in needed or name in config):
            _wrong(name, config, "a section as in experiments/common.py")
    sections["segment.model"] = sections["segment"] and config.segment.get("model")
    if sections["segment"] and not isinstance(sections["segment.model"], ConfigDict):
        _wrong("segment.model", config.segment, "a section as in experiments/common.py")
    kinds = {**dict.fromkeys(WORDS, str), **dict.fromkeys(SWITCHES, bool), **RANGES}
    for field, kind in kinds.items():
        section, _, name = field.rpartition(".")
        if sections[section] is not None and not (made and name not in sections[section]):
            _field(sections[section], field, kind)
    if not isinstance(config.get("phases"), list | tuple):
        _wrong("phases", config, "a list, empty where no stage is `train`")
    for section in ("", "segment."):
        held = sections.get(f"{section}model")
        if held is not None and "." not in sections[section.strip(".")].model_name:
            for name in [name for name in MODEL if name in held]:
                _field(held, f"{section}model.{name}", MODEL[name])
    for name in ("data", "predict"):
        held = config.get(name) or {}
        if held.get("bone_hu") and held.get("label"):
            raise UserError(f"{name}.bone_hu is for a CT, {name}.label for a segmentation: set one")
    if config.get("generate"):
        one_of("generate.connectivity", config.generate.connectivity, (6, 18, 26))
        one_of("generate.channels", config.generate.channels, ("", "independent", "exclusive"))
    if config.get("evaluate"):
        one_of("evaluate.upsampling", config.evaluate.upsampling, metrics.RULES)
    extras = {
        "tensorboard": ("tensorboardX", "train", "segment"),
        "explore.umap": ("umap", "explore"),
    }
    for field, (module, *users) in extras.items():
        section, _, name = field.rpartition(".")
        used = sections[section] and sections[section][name] and set(users).intersection(names)
        if used and not made and importlib.util.find_spec(module) is None:
            raise UserError(f"{field} is True: pip install 'skullgen[{name}]' first")


def at_home(config):
    """A copy of the config with the home folder for each `~` that begins a path."""
    config = config.copy_and_resolve_references()
    for field in PATHS:
        section, name = field.split(".")
        if name in config.get(section, ()):
            paths = config[section][name]
            config[section][name] = re.sub(
                r"(^|,\s*)(~[^/,]*)", lambda at: at[1] + os.path.expanduser(at[2]), paths
            )
    return config


def _field(held, field, kind):
    """UserError where a field of the section `held` is not of its kind.

    kind: str, bool, or (lowest, highest) of a number or of each of several.
    """
    name = field.rpartition(".")[2]
    if not isinstance(kind, tuple):
        if not isinstance(held.get(name), kind):
            _wrong(field, held, "text" if kind is str else "True or False")
        return
    low, high = kind
    value, whole = held.get(name), isinstance(low, int)
    words = f"{low} to {high}" if high < math.inf else f"{low:g} or more" * (low > -math.inf)
    if name in SERIES:
        count = SERIES[name] or "one or more"
        words = f"a tuple of {count} {'whole ' * whole}numbers, {words}"
        length = isinstance(value, list | tuple) and len(value)
        good = length and length == (SERIES[name] or length)
    else:
        value, good = (value,), True
    numbers = good and all(_number(one, whole) for one in value)
    if not numbers or not all(low <= one <= high for one in value):
        kind = "" if numbers or name in SERIES else "a whole number, " if whole else "a number, "
        _wrong(field, held, (kind + words).strip(", "))


def _number(value, whole):
    kind = int if whole else int | float
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < math.inf


def _wrong(field, held, words):
    value = held.get(field.rpartition(".")[2])
    said = "missing" if value is None else repr(value)
    raise UserError(f"config.{field} is {said}: it must be {words}")
