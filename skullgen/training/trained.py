"""The trained networks of a run, as its config and its checkpoints tell them."""

import sys

from ml_collections import ConfigDict

from skullgen.core import files, hosts
from skullgen.core.errors import UserError
from skullgen.run import fields
from skullgen.training import checkpoint, logs, loop


def config(folder):
    """The config of the run in `folder`, from its `config.json`.

    Raises UserError where it is damaged, or a field is out of the bounds of those that may run.
    """
    held = files.read_json(folder / "config.json")
    with logs.as_written(folder):
        for section in (held["model"], (held.get("segment") or {}).get("model", {})):
            for name, value in section.items():
                section[name] = tuple(value) if isinstance(value, list) else value
        found = ConfigDict(held)
        fields.check(found, ("generate" if found.get("model_name") else "segment",), made=True)
        return found


def model(config):
    """The `Model` of `config.model_name`; UserError where there is none."""
    if not config.model_name:
        raise UserError("model_name is '': no module is named: it has no generator, only V-Nets")
    return loop.load_model(config.model_name, config.model)


def require_generates(config, model):
    """UserError where the config's model has no latents and decode."""
    if model.decode is None or model.latents is None:
        raise UserError(f"model_name is {config.model_name!r}: it has no latents and decode")


def generator(config, workdir, step=None):
    """The generator and its newest state, or that of a step; UserError where there is none."""
    method = model(config)
    require_generates(config, method)
    folder = workdir / "checkpoints" / config.model_name
    step = step or checkpoint.newest(folder)
    if not step:
        raise UserError(f"{folder}: no checkpoint; run the stage `train` first")
    loop.tell_code(config.model_name, folder)
    return method, checkpoint.read(folder, method, step)


def channels(config):
    """How pairs are binarised (`nets.binarise`): `independent` or `exclusive`."""
    head = config.model.get("head", "independent")
    return config.generate.channels or ("exclusive" if head == "exclusive" else "independent")


def tell_unfinished(config, workdir, model, newest):
    """A warning where the newest checkpoint is not the last one of the plan."""
    pairs = len(loop.learnt(workdir, config.model_name))
    plan = loop.phases(config.phases, model)
    end = loop.schedule(plan, pairs, config.batch_size)[-1]
    if newest < end and hosts.lead():
        where = f"{config.model_name} is of update {newest}, before the end of training, {end}"
        print(
            f"warning: the newest checkpoint of {where}: the stage `train` goes on", file=sys.stderr
        )
