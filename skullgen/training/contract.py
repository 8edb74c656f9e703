"""What a model's functions must return: asked for by shapes alone, before any work begins.

Shapes: `B` samples, `D` voxels a side, as in `types`.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from skullgen import models
from skullgen.core.errors import UserError, plain
from skullgen.core.types import State
from skullgen.networks import modules
from skullgen.training import loop

B = 2  # samples of the shapes that are tried


class Watched(ConfigDict):
    """A config that keeps the names of the fields that were read, in `names_read`."""

    def __init__(self, config=None):
        object.__setattr__(self, "names_read", set())
        super().__init__(config)
        self.names_read.clear()

    def __getitem__(self, key):
        self.names_read.add(key)
        return super().__getitem__(key)


def require(name, config, size, specs=(), section=""):
    """Tries a model of the user's own (`check`), and warns of fields that nothing reads.

    name, config: as for `loop.load_model`. size: `D`. specs: `config.phases`. section: "segment."
    for a V-Net's. Our own models are tried by our tests, since that takes seconds: of their fields
    only those are told that none of them mentions.
    """
    if "." in name:
        copy = Watched(config)
        model = loop.load_model(name, copy, section)
        phases = loop.phases(specs, model) if specs else ()
        try:
            check(model, name, size, {phase.step: phase.batches for phase in phases})
        except AttributeError as error:
            field = loop.lacked(error)
            if not field:
                raise
            what = f"config.{section}model lacks the field {field}, which {name} reads"
            raise UserError(what) from error
        read = copy.names_read
    else:
        files = [file.read_text() for file in Path(models.__file__).parent.glob("*.py")]
        read = set(re.findall(r"\bconfig\.(\w+)", "".join(files)))
    # What others than the model read of its section: `trained.channels`, `segment.about`.
    unread = sorted(set(config.keys()) - read - {"resolution", "head", "augment"})
    if unread:
        fields = ", ".join(f"config.{section}model.{field}" for field in unread)
        print(plain(f"warning: nothing in {name} reads {fields}"))


def check(model, where, size, batches):
    """UserError where a function of a `Model` returns other shapes than `types` says.

    where: the model's name, for the message. size: `D`. batches: step -> `Phase.batches`. A
    model's own exceptions come as they are, with a note of what was tried.
    """
    ask = functools.partial(_ask, where)
    state = ask("init", model.init, jax.random.key(0))
    if not isinstance(state, State) or _of(state.step) != "int32 []":
        raise UserError(f"{where}: init must return a State whose step is int32 []")
    for name, step in model.steps.items():
        shape = (1, batches.get(name, 1), B, size, size, size, 2)
        batch = jax.ShapeDtypeStruct(shape, bool)
        under = jax.vmap(step, in_axes=(None, 0), axis_name=modules.AXIS)  # one device
        answer = ask(f"step `{name}`", under, state, batch)
        if not isinstance(answer, tuple) or len(answer) != 2 or not hasattr(answer[1], "items"):
            raise UserError(f"{where}: step `{name}` must return (State, metrics by name)")
        after, metrics = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), answer)
        _same(state, after, f"{where}: step `{name}`")
        for metric, value in metrics.items():
            _require(where, f"step `{name}`: metric {metric!r}", value, "[]")
    grid = f"[{B}, {size}, {size}, {size}"
    pairs = jax.ShapeDtypeStruct((B, size, size, size, 2), jnp.float32)
    skulls = jax.ShapeDtypeStruct(pairs.shape[:-1], jnp.float32)
    keys = jax.random.split(jax.random.key(0), B)
    if model.latents:
        z = ask("latents", model.latents, state, keys)
        _require(where, "latents", z, f"[{B}, Z]")
        if model.decode:
            _require(where, "decode", ask("decode", model.decode, state, z), f"{grid}, 2]")
        if model.encode:
            _require(where, "encode", ask("encode", model.encode, state, pairs), f"{list(z.shape)}")
    if model.predict:
        _require(where, "predict", ask("predict", model.predict, state, skulls), f"{grid}]")
    if model.features:
        _require(where, "features", ask("features", model.features, state, pairs), f"[{B}, F]")


def _ask(where, what, function, *arguments):
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        error.add_note(f"{where}: {what}, tried by shapes alone: B is {B} ({__name__}.py)")
        raise


def _of(value):
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{value.dtype} {list(value.shape)}"


def _require(where, what, value, form):
    """UserError unless an array is a float of the shape that `form` tells: a letter is any."""
    shape = [part.strip() for part in form.strip("[]").split(",") if part.strip()]
    same = hasattr(value, "shape") and len(value.shape) == len(shape)
    same = same and all(
        part.isalpha() or int(part) == side for part, side in zip(shape, value.shape, strict=True)
    )
    if not same or not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f"{where}: {what} is {_of(value)}: it must be float32 {form}")


def _same(before, after, where):
    """UserError, by the first leaf that differs, unless two trees have one form."""
    old, new = (
        {jax.tree_util.keystr(path): _of(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (before, after)
    )
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            now, was = new.get(name, "nothing"), old.get(name, "nothing")
            raise UserError(f"{where} returns state{name} as {now}, where init made {was}")
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise UserError(f"{where} returns another kind of State than init")
