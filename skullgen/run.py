"""A work directory and the stages that fill it; `launch.py` is its command line.

Stages meet only through files in the work directory. Only fields that determine work already
done are locked; a run goes on where it stopped.
"""

import contextlib
import fcntl
import importlib.util
import json
import math
import os
import platform
import time

import jax

from skullgen import checkpoint, hosts, jobs, logs, metrics, stages, store, train
from skullgen.errors import UserError, one_of

RANGES = {  # lowest and highest value of a field
    **dict.fromkeys(
        ("seed", "data.seed", "generate.seed", "workers", "generate.first"), (0, 2**31)
    ),
    **dict.fromkeys(("batch_size", "log_every", "save_every", "keep"), (1, math.inf)),
    **dict.fromkeys(("data.skulls", "data.cuts", "generate.count"), (1, math.inf)),
    **dict.fromkeys(("generate.batch_size", "evaluate.pairs"), (1, math.inf)),
    **dict.fromkeys(("explore.pairs", "explore.steps"), (2, math.inf)),
    "explore.perplexity": (1, math.inf),
    "segment.model.rotation_degrees": (0, 180),
    "segment.model.scaling": (0, 0.9),
    "segment.model.shift_mm": (0, 200),
    **dict.fromkeys(("segment.batch_size", "segment.save_every"), (1, math.inf)),
    **dict.fromkeys(("segment.updates", "evaluate.batch_size"), (1, math.inf)),
    **dict.fromkeys(("data.first_cut", "segment.seed", "segment.fresh"), (0, 2**31)),
    **dict.fromkeys(("evaluate.cases", "data.folds"), (0, math.inf)),
    **dict.fromkeys(("budget_mb", "generate.dust_mm3"), (0, math.inf)),
    **dict.fromkeys(("data.threshold", "generate.threshold"), (0.001, 1)),
    "evaluate.threshold": (0.001, 1),
    **dict.fromkeys(("data.test_fraction", "data.validation_fraction"), (0, 1)),
    **dict.fromkeys(("model.resolution", "model.latent", "model.groups"), (1, math.inf)),
}


def run(config, workdir):
    """Runs `config.stages` in order in `workdir`, which is made.

    Several processes (`hosts.join`) share the stages `stages.TOGETHER`; then process 0 goes on
    alone. With `config.share` this process makes its share of a store, beside others.
    """
    names = [name.strip() for name in config.stages.split(",") if name.strip()]
    unknown = [name for name in names if name not in stages.STAGES]
    if unknown or not names:
        raise UserError(
            f"stages is {config.stages!r}: name some of {', '.join(stages.STAGES)}, comma-separated"
        )
    check(config)
    share = jobs.share(config.share)
    if share != (0, 1) and not {"ingest", "generate"}.issuperset(names):
        raise UserError(
            f"share is {config.share}: only ingest and generate are made in shares, "
            "so name no other stage in --config.stages"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if hosts.several():
        if share != (0, 1):
            raise UserError("--distributed makes the shares itself: leave config.share out")
        config = config.copy_and_resolve_references()
        config.share = f"{jax.process_index()}/{jax.process_count()}"
    with alone(workdir, share) if hosts.lead() else contextlib.nullcontext():
        if hosts.lead():
            prepare(config, workdir)
            if share[0] == 0:
                record(workdir, {})
        hosts.first(0)  # process 0 holds the lock
        if not (workdir / "config.json").exists():
            raise UserError(f"{workdir}: not on a disk that all processes share")
        for number, name in enumerate(names):
            if not stages.TOGETHER.intersection(names[number:]):
                hosts.leave()
                if not hosts.lead():
                    return
            if hosts.lead() or name in stages.TOGETHER:
                _stage(config, workdir, name, record_it=hosts.lead() and share[0] == 0)
                jobs.check()


def _stage(config, workdir, name, record_it):
    start = time.monotonic()
    print(f"== {name}", flush=True)
    stop = 0
    try:
        stages.STAGES[name](config, workdir)
    except jobs.Stopped as stopped:
        if stopped.agreed:
            raise
        stop = stopped.signum
    if name in stages.TOGETHER:  # where one stops, all do
        stop = hosts.largest(stop or jobs.asked())
    if stop:
        raise jobs.Stopped(stop)
    seconds = time.monotonic() - start
    print(f"== {name}: {seconds:.0f} s", flush=True)
    if record_it:
        record(workdir, {name: seconds})


@contextlib.contextmanager
def alone(workdir, share=(0, 1)):
    """Holds the work directory's lock, which the system lets go when the process ends.

    share: (k, n). Shares of a store hold it together, and each of them a lock of its own.
    """
    with contextlib.ExitStack() as stack:
        if share != (0, 1):
            whole = stack.enter_context(open(workdir / ".lock", "a+"))
            _hold(whole, workdir, fcntl.LOCK_SH)
            whole.truncate(0)  # the words of the last whole run
        name = ".lock" if share == (0, 1) else f".lock-share-{share[0]}"
        file = stack.enter_context(open(workdir / name, "a+"))
        _hold(file, workdir, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _hold(file, workdir, kind):
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{workdir}: another run works here ({file.read().strip() or 'shares of a store'}): "
            "wait for its end, or choose another --workdir"
        ) from None


def check(config):
    """UserError for a number that is out of range, before anything is written."""
    for field, (low, high) in RANGES.items():
        value = config
        for part in field.split("."):
            value = value.get(part) if value is not None else None
        if value is not None and not low <= value <= high:
            upper = f" to {high}" if high < math.inf else " or more"
            raise UserError(f"config.{field} is {value}: it must be {low}{upper}")
    if config.get("generate"):
        one_of("generate.connectivity", config.generate.connectivity, (6, 18, 26))
        one_of("generate.channels", config.generate.channels, ("", "independent", "exclusive"))
    if config.get("evaluate"):
        one_of("evaluate.upsampling", config.evaluate.upsampling, metrics.RULES)
    umap = config.get("explore") and config.explore.umap and "explore" in config.stages
    if umap and importlib.util.find_spec("umap") is None:
        raise UserError("explore.umap is True: pip install 'skullgen[umap]' first")


def prepare(config, workdir):
    """Checks that the work directory may go on with this config; writes config and versions.

    Raises UserError, by name, for a locked field that changed.
    """
    new = json.loads(config.to_json_best_effort())
    del new["share"]
    path = workdir / "config.json"
    if path.exists():
        old = json.loads(path.read_text())
        for field in _locked(old, new, workdir):
            raise UserError(
                f"{workdir}: config.{field} was {_get(old, field)!r} and is now "
                f"{_get(new, field)!r}, but work that it determines is done here: "
                "set it back, or choose another --workdir"
            )
    logs.write_json(path, new)


def record(workdir, seconds):
    """Writes versions, and adds the seconds that stages took now to those of earlier calls."""
    path = workdir / "versions.json"
    held = json.loads(path.read_text()).get("seconds", {}) if path.exists() else {}
    total = {name: round(held.get(name, 0) + spent, 1) for name, spent in seconds.items()}
    logs.write_json(path, {**stages.versions(), "seconds": {**held, **total}})


def _locked(old, new, workdir):
    """The fields that changed although work that they determine is done, in order."""
    done = []
    real = workdir / "real.zarr"
    begun = store.recipe(real) is not None and store.missing(real) != store.shards(real)
    step = checkpoint.newest(workdir / "checkpoints" / old["model_name"])
    if begun or step:
        done += [f"data.{name}" for name in {**old["data"], **new["data"]} if name != "root"]
        done += ["model.resolution"]
    if step:
        done += ["seed", "batch_size", "model_name"]
        done += [f"model.{name}" for name in {**old["model"], **new["model"]}]
        done += _locked_phases(old, new, workdir, step)
    return [field for field in dict.fromkeys(done) if _get(old, field) != _get(new, field)]


def _locked_phases(old, new, workdir, step):
    """Phases that were finished are locked whole, the one in progress but for a longer end."""
    if store.recipe(workdir / "real.zarr") is None:  # taken away: no telling how long epochs were
        return [f"phases[{number}]" for number in range(len(old["phases"]))]
    pairs = len(store.rows(workdir / "real.zarr", "train"))
    fields, begin = [], 0
    for number, spec in enumerate(old["phases"]):
        where = f"phases[{number}]"
        if begin >= step:
            break
        phase = train.Phase(**spec)
        end = begin + train.schedule([phase], pairs, old["batch_size"])[0]
        if number >= len(new["phases"]):
            return [*fields, where]
        now = train.Phase(**new["phases"][number])
        longer = begin + train.schedule([now], pairs, old["batch_size"])[0]
        last = number == len(old["phases"]) - 1 or step < end
        same = (phase.step, phase.batches) == (now.step, now.batches)
        if not (same and (longer == end or (last and longer >= step))):
            fields.append(where)
        begin = end
    return fields


def _get(config, field):
    """The value at `a.b` or `a[2]` of nested dicts and lists; None where there is none."""
    for part in field.replace("[", ".").replace("]", "").split("."):
        if isinstance(config, list):
            config = config[int(part)] if int(part) < len(config) else None
        else:
            config = (config or {}).get(part)
    return config
