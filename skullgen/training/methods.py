"""Methods by their names: found, checked by shapes before any work, and read with their weights."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, plugins, provenance, types
from skullgen.core.errors import UserError, one_of
from skullgen.core.types import Model, Phase, State
from skullgen.data import measures, mixture
from skullgen.models import steps
from skullgen.networks import modules
from skullgen.training import checkpoint

TWINS = "vae/params/decoder/", "generator/params/"  # one network: where one lacks, the other does
B = 2  # samples of the shapes that are tried
Specs = Sequence[Any]  # of a config: dicts with the fields of a Phase


class Trained(NamedTuple):
    """A method with its weights."""

    model: Model
    state: State
    parts: Sequence[mixture.Part] = ()  # what a V-Net learnt from


class Start(NamedTuple):
    """What a network starts from: arrays by their place in `State.nets`, their sum, in words."""

    arrays: Mapping[str, np.ndarray]
    sum: str  # SHA-256, for the recipe
    line: str

    def put(self, state: State) -> State:
        """A new State with the arrays in it; optimisers and step stay as `init` made them."""
        own = self.arrays
        nets = jax.tree.map_with_path(lambda path, x: own.get(_name(path), x), state.nets)
        return state.replace(nets=nets)


def load_config(folder: Path) -> ConfigDict:
    """The config of the run in `folder`, from its `config.json`; UserError where it holds none."""
    path = folder / "config.json"
    fields = files.read_json(path) or {}
    sections = [fields.get("model"), (fields.get("segment") or {}).get("model", {})]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{path}: no config that skullgen wrote: put a copy back")
    for section in sections:
        section.update({k: tuple(v) for k, v in section.items() if isinstance(v, list)})
    return ConfigDict(fields)


def load_model(name: str, config: ConfigDict, section: str = "") -> Model:
    """The Model that `make(config)` of `skullgen.models.<name>`, or of `package.module`, returns.

    section: "segment." of a V-Net's `config.segment.model`. UserError where there is no such
    module, or a field is missing or, for a model of ours, wrong.
    """
    if not name:
        raise UserError(f"{section}model_name is '': no module is named")
    path = name if "." in name else f"skullgen.models.{name}"
    make = plugins.attribute(f"{section}model_name", name, path, "make", "(config) -> Model")
    with _mistakes(name, section):
        model = make(config)
        if not isinstance(model, Model):
            raise UserError(f"{path}: make returned {type(model).__name__}, not a types.Model")
        jax.eval_shape(model.init, jax.random.key(0))  # wrong sizes are found here
        if config.get("augment", False):
            own = {step: steps.augmented(run, config) for step, run in model.steps.items()}
            model = model._replace(steps=own)
    return model


@contextlib.contextmanager
def _mistakes(name, section):
    """UserError for a field that is lacking, or wrong for a model of ours; no other error."""
    try:
        yield
    except AttributeError as error:
        if not error.args or not isinstance(error.args[0], KeyError):  # no field of a ConfigDict
            raise
        field = str(error.args[0].args[0]).split("\n")[0].strip("'")
        what = f"config.{section}model lacks the field {field}, which {name} reads"
        raise UserError(what) from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if "." in name:
            raise
        what = f"config.{section}model does not fit skullgen.models.{name}"
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


def phases(specs: Specs, model: Model) -> list[Phase]:
    """`config.phases` as a list of Phase; UserError for a wrong field, step or length."""
    if not specs:
        raise UserError("phases is empty: `train` needs one, for example dict(step=..., updates=9)")
    result = []
    for number, spec in enumerate(specs):
        where = f"phases[{number}]"
        try:
            phase = Phase(**spec)
        except TypeError:
            fields = ", ".join(Phase._fields)
            raise UserError(f"{where} is {spec}: its fields are {fields}") from None
        one_of(f"{where}.step", phase.step, list(model.steps))
        whole = all(type(length) is int and length >= 0 for length in phase[1:])
        if not whole or (phase.epochs > 0) == (phase.updates > 0) or phase.batches < 1:
            what = "a positive `epochs` or a positive `updates`, not both; `batches` of 1 or more"
            raise UserError(f"{where} needs {what}: whole numbers")
        result.append(phase)
    return result


# --- The weights of a run ------------------------------------------------------------------------


def recipe(name: str, config: ConfigDict, section: str = "") -> provenance.Recipe:
    """What a network is, whatever it learns from: its model, and the sum of a user's own file."""
    if "." in name:
        plugins.module("model_name", name, name)  # what is not imported has no sum
    model = json.loads(config.to_json_best_effort())
    return {f"{section}model_name": name, f"{section}model": model, "code": plugins.sums([name])}


def generator(config: ConfigDict, folder: Path, step: int | None = None) -> Trained:
    """The generator of a run and its newest state, or that of a step; UserError without one."""
    name, place = config.model_name, folder / "checkpoints" / config.model_name
    model = load_model(name, config.model)
    require_generates(name, model)
    step = step or checkpoint.newest(place)
    if not step:
        raise UserError(f"{place}: no checkpoint; run the stage `train` first")
    return restore(place, model, recipe(name, config.model), step)


def restore(folder: Path, model: Model, network: provenance.Recipe, step: int) -> Trained:
    """A state of a network (`recipe`); UserError where `folder` holds checkpoints of another."""
    before = provenance.read(folder)
    if before:  # and not what was left out of a release
        before = {field: before[field] for field in network if field in before}
    provenance.require_same(folder, before, network)
    return Trained(model, checkpoint.read(folder, model, step))


def start(where: str, read: Callable[[], State], folder: Path, model: Model) -> Start:
    """What `model` takes of another network (`fitting`), unless `folder` has a checkpoint of it.

    where: the field and its value, for people. UserError for weights that cannot be read.
    """
    begun = (provenance.read(folder) or {}) if checkpoint.newest(folder) else {}
    try:
        return fitting(where, read(), model)
    except UserError as error:
        if "init_from" not in begun:
            raise UserError(f"{where}: {error}") from None
        return Start({}, begun["init_from"], f"note: {where}: {error}; it is not needed any more")


def fitting(where: str, source: State, model: Model) -> Start:
    """What `source` has under the names and in the shapes of `model`; UserError for nothing."""
    mine = _arrays(jax.eval_shape(model.init, jax.random.key(0)))
    # Older releases, the packaged one too, have zeros where they left a network out.
    theirs = {name: array for name, array in _arrays(source).items() if np.any(array)}
    for one, other in (TWINS, TWINS[::-1]):
        theirs = {name.replace(one, other): array for name, array in theirs.items()} | theirs
    taken, rest, digest = {}, [], hashlib.sha256()
    for name, array in mine.items():
        form, there = _form(array), _form(theirs.get(name))
        if form == there:
            taken[name] = np.asarray(theirs[name])
            digest.update(f"{name} {form}".encode() + taken[name].tobytes())
        else:
            rest.append(f"{name} {form}, there {there}")
    what = f"{len(taken)} of {len(mine)} arrays are taken"
    if rest:
        what += f", {len(rest)} begin anew ({'; '.join(rest[:3])}{'; ...' * (len(rest) > 3)})"
    if not taken:
        raise UserError(f"{what}: name weights of this method and resolution")
    return Start(taken, digest.hexdigest(), f"{where}: {what}")


def _arrays(state):
    nets = {role: {"params": net.params, "stats": net.stats} for role, net in state.nets.items()}
    return {_name(path): array for path, array in jax.tree.leaves_with_path(nets)}


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _form(array):
    if array is None:
        return "nothing"
    return f"{list(array.shape)} {array.dtype}".removesuffix(" float32")


def require_generates(name: str, model: Model) -> None:
    """UserError where a model has no latents and decode."""
    if model.decode is None or model.latents is None:
        raise UserError(f"model_name is {name!r}: it has no latents and decode")


def channels(config: ConfigDict) -> str:
    """How a run's pairs are binarised: `independent` or `exclusive`."""
    head = config.model.get("head", "independent")
    return config.generate.channels or ("exclusive" if head == "exclusive" else "independent")


def check(name: str, config: ConfigDict, specs: Specs | None = None, section: str = "") -> None:
    """Tries `load_model`, `phases` and, of a model of the user's own, `check_shapes`."""
    model = load_model(name, config, section)
    plan = [] if specs is None else phases(specs, model)
    batches = {phase.step: phase.batches for phase in plan}
    if "." in name:  # ours are tried by our tests, since that takes seconds
        with _mistakes(name, section):
            check_shapes(model, name, config.resolution, batches)


def check_shapes(model: Model, name: str, size: int, batches: Mapping[str, int]) -> None:
    """UserError where a function returns other shapes than `core.types` says; size: `D`."""
    shape, ask = jax.ShapeDtypeStruct, jax.eval_shape
    skulls, pairs = shape((B, *(size,) * 3), "float32"), shape((B, *(size,) * 3, 2), "float32")
    state = ask(model.init, jax.random.key(0))
    if not isinstance(state, State) or (state.step.shape, state.step.dtype) != ((), "int32"):
        raise UserError(f"{name}: init must return a State whose step is int32 []")
    for step, function in model.steps.items():
        of_device = jax.vmap(function, in_axes=(None, 0), axis_name=modules.AXIS)
        lead = 1, batches.get(step, 1)
        bits, label = (
            shape((*lead, *pairs.shape), bool),
            shape((*lead, B, measures.LABELS), "float32"),
        )
        batch = types.Batch(bits, label)
        answer = ask(of_device, state, batch)
        answer = jax.tree.map(lambda x: shape(x.shape[1:], x.dtype), answer)
        if not isinstance(answer, tuple) or len(answer) != 2 or not hasattr(answer[1], "items"):
            raise UserError(f"{name}: step `{step}` must return (State, metrics by name)")
        wanted = state, dict.fromkeys(answer[1], shape((), "float32"))
        _require(f"{name}: step `{step}`", (answer[0], dict(answer[1])), wanted)
    asked = {"predict": (skulls, skulls), "features": (pairs, None)}
    if model.latents:
        keys = jax.random.split(jax.random.key(0), B)
        z = ask(model.latents, state, keys)
        asked = {"latents": (keys, None), "decode": (z, pairs), "encode": (pairs, z), **asked}
    for what, (argument, wanted) in asked.items():
        if function := getattr(model, what):
            value = ask(function, state, argument)
            any_width = shape((B, *getattr(value, "shape", ())[-1:]), "float32")
            _require(f"{name}: {what}", value, wanted or any_width)


def _require(where, value, wanted):
    """UserError, by the first leaf that differs, unless two trees of arrays have one form."""
    now, then = (
        {jax.tree_util.keystr(path): f"{x.dtype} {list(x.shape)}" for path, x in leaves}
        for leaves in map(jax.tree.leaves_with_path, (value, wanted))
    )
    for leaf in {**then, **now}:
        a, b = now.get(leaf, "nothing"), then.get(leaf, "nothing")
        if a != b:
            raise UserError(f"{where}{leaf} is {a}: it must be {b}")
