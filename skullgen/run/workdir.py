"""A work directory and the stages that fill it, which meet only through the files in it.

Each artifact has a recipe (`core.provenance`), so that a run goes on where it stopped.
"""

import contextlib
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from skullgen.core import files, hosts, jobs, plugins
from skullgen.core.errors import UserError, in_range
from skullgen.data import store
from skullgen.run import stages
from skullgen.run.config import as_json, at_home

LOWER = "config.batch_size or config.budget_mb, or the stage's own batch_size, pairs or workers"


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs `config.stages` in order in `workdir`, which is made.

    Several processes (`hosts.join`) share `stages.TOGETHER`; then process 0 goes on alone.
    """
    config, names = check(config, workdir)
    with contextlib.ExitStack() as stack:
        if hosts.lead():
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.alone(workdir / ".lock"))
            files.clear(workdir)
            if files.read_json(workdir / "config.json") is None:
                record(config, workdir)
        hosts.first(0)  # process 0 holds the lock
        if not (workdir / "config.json").exists():
            raise UserError(f"{workdir}: not on a disk that all processes share")
        for number, name in enumerate(names):
            if not stages.TOGETHER.intersection(names[number:]):
                hosts.leave()
                if not hosts.lead():
                    return
            if hosts.lead() or name in stages.TOGETHER:
                _stage(config, workdir, name)
                jobs.check()


def check(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, list[str]]:
    """The config with `~` expanded, and the names of its stages, before anything is written."""
    names, config = plugins.listed(config.stages), at_home(config)
    if not names or not set(names) <= stages.STAGES.keys():
        wanted = f"name some of {', '.join(stages.STAGES)}, comma-separated"
        raise UserError(f"stages is {', '.join(names)!r}: {wanted}")
    in_range("workers", config.workers, 0, 1024)
    in_range("model.resolution", config.model.resolution, 2, store.MAX_SIDE)
    stages.check(config, names, workdir)
    return config, names


def _stage(config, workdir, name):
    start, stop = time.monotonic(), 0
    print(f"== {name}", flush=True)
    try:
        stages.STAGES[name](config, workdir)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = f"{name}: out of memory on {jax.local_devices()[0].device_kind}"
        raise UserError(f"{what} ({str(error).strip()[:100]}): lower {LOWER}") from None
    except jobs.Stopped as stopped:
        if stopped.agreed:
            raise
        stop = stopped.signum
    if hosts.lead() and name not in stages.OUT:
        record(config, workdir, name)
    if name in stages.TOGETHER:  # where one stops, all do
        stop = hosts.largest(stop or jobs.asked())
    if stop:
        raise jobs.Stopped(stop)
    took = time.monotonic() - start
    print(f"== {name}: {took:.0f} s", flush=True)
    if hosts.lead():
        spent = (files.read_json(workdir / "versions.json") or {}).get("seconds", {})
        spent[name] = round(spent.get(name, 0) + took, 1)
        files.write_json(workdir / "versions.json", {**stages.versions(), "seconds": spent})


def record(config: ConfigDict, workdir: Path, stage: str = "") -> None:
    """Writes `config.json`: all stages so far, and the settings by which each of them ran last."""
    old, new = files.read_json(workdir / "config.json"), as_json(config)
    if old and stage:
        shared = {"ingest": {"data"}, "train": new.keys() - stages.STAGES.keys()}
        own, so_far = {stage, *shared.get(stage, ())}, {*old["stages"], stage}
        new = {k: v if k in own else old.get(k, v) for k, v in new.items()}
        new["stages"] = [name for name in stages.STAGES if name in so_far]
    files.write_json(workdir / "config.json", new)
