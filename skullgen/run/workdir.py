"""A work directory and the stages that fill it; `launch.py` is its command line.

Stages meet only through files in the work directory. Only fields that determine work already
done are locked; a run goes on where it stopped.
"""

import contextlib
import json
import sys
import time

import jax

from skullgen.core import files, hosts, jobs, plugins
from skullgen.core.errors import UserError, plain
from skullgen.data import ingest, store
from skullgen.run import fields, stages
from skullgen.training import checkpoint, loop

MEMORY = {  # what to lower where it runs out
    "ingest": "workers",
    "train": "batch_size or config.budget_mb",
    "generate": "generate.batch_size",
    "segment": "segment.batch_size or config.budget_mb",
    "evaluate": "evaluate.batch_size",
    "explore": "explore.pairs",
    "gallery": "gallery.pairs",
    "report": "evaluate.pairs",
    "release": "generate.batch_size",
    "predict": "data.max_voxels, or crop the scan",
    "export": "workers",
}
OWN = ("generate", "segment", "evaluate")  # sections that determine the work of their stage
OUT = ("release", "predict", "export")


def run(config, workdir):
    """Runs `config.stages` in order in `workdir`, which is made.

    Several processes (`hosts.join`) share the stages `stages.TOGETHER`; then process 0 goes on
    alone. With `config.share` this process makes its share of a store, beside others. Raises
    UserError for a user's mistake, Diverged as `loop.train`, jobs.Stopped where a signal came.
    """
    config, names = check(config, workdir)
    share = jobs.share(config.share)
    if share != (0, 1) and not {"ingest", "generate"}.issuperset(names):
        raise UserError(
            f"share is {config.share}: only ingest and generate are made in shares, "
            "so name no other stage in --config.stages"
        )
    if hosts.several():
        if share != (0, 1):
            raise UserError("--distributed makes the shares itself: leave config.share out")
        config = config.copy_and_resolve_references()
        config.share = f"{jax.process_index()}/{jax.process_count()}"
    mine = _taking_back(workdir, share) if hosts.lead() else contextlib.nullcontext()
    with mine:
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


def check(config, workdir):
    """The config with `~` expanded, and the names of its stages, before anything is written.

    Raises UserError for what is wrong.
    """
    names = fields.stages(config, stages.STAGES)
    fields.check(config, names)
    config, real = fields.at_home(config), workdir / "real.zarr"
    stages.check(config, names, workdir)
    first = names.index("ingest") if "ingest" in names else len(names)
    needing = [name for name in names[:first] if name in ("train", "evaluate", "explore")]
    if needing and len(names) > 1 and not (real / "zarr.json").exists():
        what = f"which `{needing[0]}` needs: name the stage `ingest` before it, or leave it out"
        raise UserError(f"{real}: no store of pairs here, {what}")
    return config, names


def _stage(config, workdir, name, record_it):
    start = time.monotonic()
    print(f"== {name}", flush=True)
    stop = 0
    try:
        stages.STAGES[name](config, workdir)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{name}: out of memory on {jax.local_devices()[0].device_kind} "
            f"({plain(str(error).strip())[:100]}): lower config.{MEMORY[name]}"
        ) from None
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
def _taking_back(workdir, share):
    """`alone` in a folder that is made; a mistake that comes before any work leaves no trace."""
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    ours = [workdir / name for name in ("config.json", "versions.json", ".lock")]
    before = {path: path.read_bytes() for path in ours if path.exists()}
    with alone(workdir, share):
        if share == (0, 1):
            files.clear(workdir)
        work = _work(workdir, ours)
        try:
            yield
        except UserError:
            if share == (0, 1) and _work(workdir, ours) == work:
                for path in ours:
                    path.unlink(missing_ok=True)
                    if path in before:
                        path.write_bytes(before[path])
                for folder in new:
                    folder.rmdir()
            raise


def _work(workdir, ours):
    """What tells whether any file of the work was changed."""
    files = (path for path in workdir.rglob("*") if path not in ours)
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in files}


@contextlib.contextmanager
def alone(workdir, share=(0, 1)):
    """Holds the work directory's lock, which the system lets go when the process ends.

    share: (k, n). Shares of a store hold it together, and each of them a lock of its own.
    """
    with contextlib.ExitStack() as stack:
        if share != (0, 1):
            stack.enter_context(files.alone(workdir / ".lock", "--workdir", shared=True))
        name = ".lock" if share == (0, 1) else f".lock-share-{share[0]}"
        stack.enter_context(files.alone(workdir / name, "--workdir"))
        yield


def prepare(config, workdir):
    """Checks that the work directory may go on with this config; writes it, with all stages so far.

    Each stage has the settings by which it ran last; those that only hand out have their first.

    Raises UserError, by name, for a locked field that changed.
    """
    new = json.loads(config.to_json_best_effort())
    del new["share"]
    path = workdir / "config.json"
    old = _held(workdir)
    if old:
        try:
            locked = _locked(old, new, workdir)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: no config that skullgen wrote ({error!r})") from None
        for field in locked:
            raise UserError(
                f"{workdir}: config.{field} was {_get(old, field)!r} and is now "
                f"{_get(new, field)!r}, but work that it determines is done here: "
                f"set it back (--config {path} sets all), or choose another --workdir"
            )
        told = plugins.listed(f"{old.get('stages')},{new['stages']}")
        kept = [name for name in stages.STAGES if name in told]
        again = set(OWN).intersection(plugins.listed(new["stages"]))
        for name in {*OWN, *OUT}.intersection(old).difference(again):
            new[name] = old[name]
        new["stages"] = ",".join([name for name in kept if name not in OUT] or kept)
    files.write_json(path, new)


def _held(workdir):
    """The config of the work that is here, from its copy where it is damaged; None without work."""
    path, copy = workdir / "config.json", workdir / "versions.json"
    try:
        held, what = files.read_json(path), "missing"
    except UserError:
        held, what = None, "damaged"
    if held is None and copy.exists():
        held = files.read_json(copy).get("config")
        print(f"warning: {path} is {what}: its copy in {copy.name} is used", file=sys.stderr)
    if held is None and (workdir / "checkpoints").exists():  # stores hold settings of their own
        raise UserError(
            f"{path}: {what}, and nothing else tells the settings of the checkpoints here: "
            "put a copy back, or choose another --workdir"
        )
    return held


def record(workdir, seconds):
    """Writes versions, and adds the seconds that stages took now to those of earlier calls."""
    path = workdir / "versions.json"
    held = {}
    with contextlib.suppress(UserError):  # damaged: its times are lost
        held = (files.read_json(path) or {}).get("seconds")
    held = held if isinstance(held, dict) else {}
    held = {name: held[name] for name in stages.STAGES if isinstance(held.get(name), float | int)}
    total = {name: round(held.get(name, 0) + spent, 1) for name, spent in seconds.items()}
    made = {**stages.versions(), "seconds": {**held, **total}}
    files.write_json(path, {**made, "config": files.read_json(workdir / "config.json")})


def tell_versions(folder):
    """A warning for each version, of those that `folder` was made with, that is another now."""
    held, now = files.read_json(folder / "versions.json") or {}, stages.versions()
    config = files.read_json(folder / "config.json") or {}  # damaged, or changed: not that run
    for name in now:
        if held.get(name) != now[name]:
            what = f"{folder} was made with {name} {held.get(name)}, this is {now[name]}"
            print(plain(f"warning: {what}: bits may differ"), file=sys.stderr)
    for path in (folder / name for name in store.MADE):
        if store.exists(path) and len(store.Store(path).rows()) < len(store.Store(path).every()):
            what = f"{path / 'leave_out.txt'} lists pairs, which are used here: to do without, make"
            what += f" {path.name} first (--config.stages) and put a copy of the list into it"
            print(plain(f"warning: {what}"), file=sys.stderr)
    judge = (config.get("segment") or {}).get("model_name")
    for name, model in ((config.get("model_name"), config.get("model_name")), ("vnet", judge)):
        with contextlib.suppress(UserError):  # no such module: said where it is needed
            if "." in str(model):
                plugins.module("model_name", model, model)
                loop.tell_code(model, folder / "checkpoints" / name)


def _locked(old, new, workdir):
    """The fields that changed although work that they determine is done, in order."""
    done = []
    real = workdir / "real.zarr"
    begun = store.exists(real) and store.Store(real).missing() != store.Store(real).shards()
    step = checkpoint.newest(workdir / "checkpoints" / old["model_name"])
    if begun or step:
        names = {**old["data"], **new["data"]}
        done += [f"data.{name}" for name in names if name not in ingest.FREE]
        done += ["model.resolution"]
    if step:
        done += ["seed", "batch_size", "model_name"]
        done += [f"model.{name}" for name in {**old["model"], **new["model"]}]
        done += _locked_phases(old, new, workdir, step)
    # A field that a later version added is, where it is left empty, what was before it.
    values = {field: (_get(old, field) or None, _get(new, field) or None) for field in done}
    return [field for field, (before, now) in values.items() if before != now]


def _locked_phases(old, new, workdir, step):
    """Phases that were finished are locked whole, the one in progress but for a longer end."""
    if not store.exists(workdir / "real.zarr"):  # taken away: no telling how long epochs were
        return [f"phases[{number}]" for number in range(len(old["phases"]))]
    pairs = len(loop.learnt(workdir, old["model_name"]))
    fields, begin = [], 0
    for number, spec in enumerate(old["phases"]):
        where = f"phases[{number}]"
        if begin >= step:
            break
        phase = loop.Phase(**spec)
        end = begin + loop.schedule([phase], pairs, old["batch_size"])[0]
        if number >= len(new["phases"]):
            return [*fields, where]
        now = loop.Phase(**new["phases"][number])
        longer = begin + loop.schedule([now], pairs, old["batch_size"])[0]
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
