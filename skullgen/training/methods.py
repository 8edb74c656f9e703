"""Methods by their names: found, checked by shapes before any work, and read with their weights.

Shapes: `B` samples, `D` voxels a side, as in `core.types`.
"""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from skullgen.core import files, hosts, plugins, provenance
from skullgen.core.errors import UserError, plain
from skullgen.core.types import Model, Phase, State
from skullgen.data import mixture
from skullgen.networks import modules
from skullgen.training import checkpoint

B = 2  # samples of the shapes that are tried


class Trained(NamedTuple):
    """A method with its weights, and the pairs that they learnt from where a V-Net's are asked."""

    model: Model
    state: State
    parts: Sequence[mixture.Part] = ()


def load_config(folder: Path) -> ConfigDict:
    """The config of the run in `folder`, from its `config.json`; UserError where it holds none."""
    path = folder / "config.json"
    fields = files.read_json(path) or {}
    sections = [fields.get("model"), (fields.get("segment") or {}).get("model", {})]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{path}: no config that skullgen wrote: put a copy back")
    for section in sections:
        for name, value in section.items():
            section[name] = tuple(value) if isinstance(value, list) else value
    return ConfigDict(fields)


def load_model(name: str, config: ConfigDict, section: str = "") -> Model:
    """The Model that `make(config)` returns in `skullgen.models.<name>` or in `package.module`.

    config: an experiment's `config.model`, or that of its section `section` ("segment."). Raises
    UserError where there is no such module, or a field is missing or, for a model of ours, wrong.
    """
    if not name:
        raise UserError(f"{section}model_name is '': no module is named")
    path = name if "." in name else f"skullgen.models.{name}"
    make = plugins.attribute(f"{section}model_name", name, path, "make", "(config) -> Model")
    # A module of the user's own keeps its tracebacks.
    ours = () if "." in name else (ArithmeticError, LookupError, TypeError, ValueError)
    try:
        with _fields(name, section):
            model = make(config)
            if not isinstance(model, Model):
                raise UserError(f"{path}: make returned {type(model).__name__}, not a types.Model")
            jax.eval_shape(model.init, jax.random.key(0))  # wrong sizes are found here
    except ours as error:
        words = " ".join(str(error).split())
        raise UserError(f"config.{section}model does not fit {path}: {words}") from error
    return model


@contextlib.contextmanager
def _fields(name, section):
    """UserError for a field that ConfigDict itself says is lacking; no other AttributeError."""
    try:
        yield
    except AttributeError as error:
        cause = error.args[0] if error.args else None
        if not isinstance(cause, KeyError):
            raise
        field = str(cause.args[0]).split("\n")[0].strip("'")
        raise UserError(
            f"config.{section}model lacks the field {field}, which {name} reads"
        ) from error


def phases(specs: Sequence[Mapping[str, Any]], model: Model) -> list[Phase]:
    """`config.phases` as a list of Phase; UserError for a wrong field, step or length."""
    result = []
    if not specs:
        raise UserError("phases is empty: `train` needs one, for example dict(step=..., updates=9)")
    for number, spec in enumerate(specs):
        where = f"phases[{number}]"
        try:
            phase = Phase(**spec)
        except TypeError:
            shown = dict(spec) if hasattr(spec, "keys") else spec
            raise UserError(
                f"{where} is {shown}: its fields are {', '.join(Phase._fields)}"
            ) from None
        if phase.step not in list(model.steps):
            known = ", ".join(model.steps)
            raise UserError(f"{where}.step is {phase.step!r}: the model's steps are {known}")
        lengths = phase.epochs, phase.updates, phase.batches
        whole = all(type(length) is int and length >= 0 for length in lengths)
        if not whole or (phase.epochs > 0) == (phase.updates > 0) or phase.batches < 1:
            raise UserError(
                f"{where} needs a positive `epochs` or a positive `updates`, not both, "
                "and `batches` of 1 or more: whole numbers"
            )
        result.append(phase)
    return result


# --- The weights of a run ------------------------------------------------------------------------


def recipe(name: str, config: ConfigDict) -> provenance.Recipe:
    """What a network is, whatever it learns from: its model, and the sum of a user's own file."""
    model = json.loads(config.to_json_best_effort())
    if "." in name:
        plugins.module("model_name", name, name)  # what is not imported has no sum
    return {"model_name": name, "model": model, "code": plugins.sums([name])}


def require_same(folder: Path, name: str, config: ConfigDict) -> None:
    """UserError where the checkpoints in `folder` are of another model, or another file of it."""
    before, now = provenance.read(folder), recipe(name, config)
    if before:  # and not what was left out of a release
        before = {field: before[field] for field in now if field in before}
    provenance.require_same(folder, before, now)


def generator(config: ConfigDict, folder: Path, step: int | None = None) -> Trained:
    """The generator of a run and its newest state, or that of a step; UserError without one."""
    name = config.model_name
    model = load_model(name, config.model)
    require_generates(name, model)
    place = folder / "checkpoints" / name
    step = step or checkpoint.newest(place)
    if not step:
        raise UserError(f"{place}: no checkpoint; run the stage `train` first")
    require_same(place, name, config.model)
    return Trained(model, checkpoint.read(place, model, step))


def require_generates(name: str, model: Model) -> None:
    """UserError where a model has no latents and decode."""
    if model.decode is None or model.latents is None:
        raise UserError(f"model_name is {name!r}: it has no latents and decode")


def channels(config: ConfigDict) -> str:
    """How a run's pairs are binarised: `independent` or `exclusive`."""
    head = config.model.get("head", "independent")
    return config.generate.channels or ("exclusive" if head == "exclusive" else "independent")


def tell_unfinished(folder: Path) -> None:
    """A warning where the newest checkpoint in `folder` is before the end of its training."""
    step, made = checkpoint.newest(folder), provenance.read(folder) or {}
    end = sum(updates for *_, updates in made.get("phases", {}).values())
    if step < end and hosts.lead():
        what = f"is of update {step}, before the end of training, {end}: the stage that trains it"
        print(plain(f"warning: {folder}: the newest checkpoint {what} goes on"), file=sys.stderr)


# --- What a model's functions must return, asked for by shapes alone -----------------------------


class Watched(ConfigDict):
    """A config that keeps the names of the fields that were read, in `names_read`."""

    def __init__(self, config: ConfigDict | None = None) -> None:
        object.__setattr__(self, "names_read", set())
        super().__init__(config)
        self.names_read.clear()

    def __getitem__(self, key):
        self.names_read.add(key)
        return super().__getitem__(key)


def check(
    name: str,
    config: ConfigDict,
    size: int,
    specs: Sequence[Mapping[str, Any]] | None = None,
    section: str = "",
) -> None:
    """Tries a model of the user's own (`check_shapes`), and warns of fields that it does not read.

    name, config, section: as for `load_model`. size: `D`. specs: `config.phases`. Our own models
    are tried by our tests, since that takes seconds.
    """
    copy = Watched(config)
    model = load_model(name, copy, section)
    plan = [] if specs is None else phases(specs, model)
    if "." not in name:
        return
    with _fields(name, section):
        check_shapes(model, name, size, {phase.step: phase.batches for phase in plan})
    # What others than the model read of its section: `channels`, `judges.about`.
    unread = sorted(set(config.keys()) - copy.names_read - {"resolution", "head", "augment"})
    if unread:
        fields = ", ".join(f"config.{section}model.{field}" for field in unread)
        print(plain(f"warning: nothing in {name} reads {fields}"))


def check_shapes(model: Model, name: str, size: int, batches: Mapping[str, int]) -> None:
    """UserError where a function of a `Model` returns other shapes than `core.types` says.

    size: `D`. batches: step -> `Phase.batches`. A model's own exceptions come as they are, with a
    note of what was tried.
    """
    state = _ask(name, "init", model.init, jax.random.key(0))
    if not isinstance(state, State) or _form(state.step) != "int32 []":
        raise UserError(f"{name}: init must return a State whose step is int32 []")
    for step, function in model.steps.items():
        _check_step(name, step, function, state, (1, batches.get(step, 1), B, *(size,) * 3, 2))
    grid = f"{B} {size} {size} {size}"
    pairs = jax.ShapeDtypeStruct((B, size, size, size, 2), jnp.float32)
    skulls = jax.ShapeDtypeStruct(pairs.shape[:-1], jnp.float32)
    keys = jax.random.split(jax.random.key(0), B)
    z = model.latents and _asked(name, model, "latents", (state, keys), f"{B} Z")
    if z:
        _asked(name, model, "decode", (state, z), f"{grid} 2")
        _asked(name, model, "encode", (state, pairs), f"{B} {z.shape[1]}")
    _asked(name, model, "predict", (state, skulls), grid)
    _asked(name, model, "features", (state, pairs), f"{B} F")


def _asked(name, model, what, arguments, form):
    """The shape of what a function of a model returns, None where it lacks it."""
    function = getattr(model, what)
    if not function:
        return None
    value = _ask(name, what, function, *arguments)
    _require(name, what, value, form)
    return value


def _check_step(name, step, function, state, shape):
    """shape: [devices, batches, B, D, D, D, 2]."""
    under = jax.vmap(function, in_axes=(None, 0), axis_name=modules.AXIS)  # one device
    answer = _ask(name, f"step `{step}`", under, state, jax.ShapeDtypeStruct(shape, bool))
    if not isinstance(answer, tuple) or len(answer) != 2 or not hasattr(answer[1], "items"):
        raise UserError(f"{name}: step `{step}` must return (State, metrics by name)")
    after, metrics = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), answer)
    _same(state, after, f"{name}: step `{step}`")
    for metric, value in metrics.items():
        _require(name, f"step `{step}`: metric {metric!r}", value, "")


def _ask(name, what, function, *arguments):
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        error.add_note(f"{name}: {what}, tried by shapes alone: B is {B} ({__name__}.py)")
        raise


def _require(name, what, value, form):
    """UserError unless a value is a float array of a shape, as jaxtyping writes it."""
    if not isinstance(value, Float[jax.ShapeDtypeStruct, form]):
        words = f"{what} is {_form(value)}: it must be float32 [{', '.join(form.split())}]"
        raise UserError(f"{name}: {words}")


def _form(value):
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{value.dtype} {list(value.shape)}"


def _same(before, after, where):
    """UserError, by the first leaf that differs, unless two trees have one form."""
    old, new = (
        {jax.tree_util.keystr(path): _form(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (before, after)
    )
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            now, was = new.get(name, "nothing"), old.get(name, "nothing")
            raise UserError(f"{where} returns state{name} as {now}, where init made {was}")
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise UserError(f"{where} returns another kind of State than init")
