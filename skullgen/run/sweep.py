"""A sweep: ordinary runs in folders of one folder, reused where they are done, then one table.

Either a table (`run.table`), or what a config file's `sweep(add)` declares. A finished run has a
recipe: what determines it, and the sums of those of the runs that it needs.
"""

import copy
import re
import traceback
from collections.abc import Callable, Collection, Container
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from skullgen.core import files, jobs, provenance
from skullgen.core.errors import UserError, plain
from skullgen.report import page, tables
from skullgen.run import config as command
from skullgen.run import stages, table, workdir

FREE = "workers explore compilation_cache log_every budget_mb".split()
SHOWN = {  # title of a column that is printed -> the number in it
    "test Dice": "vnet.test.dice",
    "at 512³": "vnet.test.dice_512",
    "bDSC": "vnet.test.bdsc",
    "HD95, mm": "vnet.test.hd95_mm",
    "real pairs: test Dice": "vnet_real.test.dice",
    "nearest skull": "quality.skull.nearest_training_dice.generated",
    "(of an unseen skull)": "quality.skull.nearest_training_dice.held_out",
    "nearest defect": "quality.defect.nearest_training_dice.generated",
    "(of an unseen defect)": "quality.defect.nearest_training_dice.held_out",
    "copies": "quality.copies.skull.share_above",
    "empty defects": "quality.removed.empty_defects",
}
Job = table.Job


def sweep(config: ConfigDict, folder: Path, which: str, named: command.Named) -> None:
    """Runs a sweep's jobs in `folder`: `list` shows them, a number runs one, or `all`.

    `all` goes on past a job that fails, ends with the table of what is there and the report, and
    raises UserError where jobs failed.
    """
    config = command.at_home(config)
    if config.get("table"):
        jobs_ = table.plan(config, folder)
    elif declare := named.sweep():
        if (folder / "real.zarr").exists() or (folder / "checkpoints").exists():
            raise UserError(f"{folder}: one run works here: choose another --workdir for a sweep")
        jobs_ = plan(config, declare, named.overrides)
    else:
        raise UserError("--sweep needs a config with `table` or sweep(add): see table1, vae_wgan")
    done = {}
    for job in jobs_:
        done[job.name] = _digest(job, folder, done)
    if which == "list":
        _list(jobs_, done)
        return
    if which != "all" and not (which.isdecimal() and int(which) < len(jobs_)):
        raise UserError(f"--sweep is {which!r}: list, all, or a number below {len(jobs_)}")
    failed = _run(jobs_, which, folder, done)
    finished = [name for name, digest in done.items() if digest]
    print(f"{len(finished)} of {len(jobs_)} runs are done")
    if which == "all":  # of one job nothing more: others of a cluster may be writing, too
        _write(config, folder, jobs_, finished)
    if failed:
        raise UserError(f"these jobs failed, see above: {', '.join(failed)}")


def _list(plan, done):
    """Number, wave (its runs need only runs of earlier waves), name, state."""
    names, waves = [job.name for job in plan], {}
    print(f"  no  wave  {'run':50s} state")
    for number, (name, needs, *_) in enumerate(plan):
        waves[name] = 1 + max([waves[other] for other in needs], default=-1)
        waiting = f"needs {', '.join(str(names.index(other)) for other in needs)}" if needs else ""
        print(f"{number:4d}  {waves[name]:4d}  {name:50s} {'done' if done[name] else waiting}")


def _run(plan, which, folder, done):
    """Runs what is chosen and not done, and notes it in `done`; returns which jobs failed."""
    names, failed = [job.name for job in plan], []
    todo = [n for n in (range(len(plan)) if which == "all" else [int(which)]) if not done[names[n]]]
    for job in [plan[number] for number in todo]:
        if not job.needs:  # wrong fields of a run cost no hours of those before it
            workdir.check(job.make(), folder / job.name)
    for number in todo:
        job, place = plan[number], folder / names[number]
        print(f"== job {number} of {len(plan)}: {job.name}", flush=True)
        try:
            if first := [name for name in job.needs if not done[name]]:
                raise UserError(f"job {number} needs {names.index(first[0])} ({first[0]}) first")
            (place / provenance.FILE).unlink(missing_ok=True)
            workdir.run(job.make(), place)
            provenance.write(place, _recipe(job, done))
            done[job.name] = _digest(job, folder, done)
        except (jobs.Stopped, OSError):
            raise
        except Exception as error:  # of a user's own code, any
            if which != "all":
                raise
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(plain(f"job {number} failed: {error!s}"), flush=True)
            failed.append(f"{number} ({job.name})")
        finally:
            jax.clear_caches()  # each program maps memory, and a process has only so many maps
    return failed


def _recipe(job, done):
    config = command.as_json(command.at_home(job.make()))
    fields = {name: value for name, value in config.items() if name not in FREE}
    return {"config": fields, "needs": {name: done[name] for name in job.needs}}


def _digest(job, folder, done):
    """The sum of a finished job's recipe; None where it, or what it needs, is not as planned."""
    recipe = provenance.read(folder / job.name)
    if recipe is None or not all(done[name] for name in job.needs):
        return None
    return None if provenance.differences(recipe, _recipe(job, done)) else provenance.digest(recipe)


def _write(config, folder, plan, done):
    """The table and the report of a sweep, and its `config.json` and `versions.json`."""
    folder.mkdir(parents=True, exist_ok=True)  # where all failed
    result = (table.gather if config.get("table") else gather)(config, folder, plan, done)
    if config.get("table"):
        table.figures(config, folder, plan, done)
    print("\n".join(map(plain, tables.text(result))))
    files.write_json(folder / "config.json", command.as_json(config))
    files.write_json(folder / "versions.json", stages.versions())
    print(page.write(folder))


# --- What a config file's sweep(add) declares ----------------------------------------------------


def plan(config: ConfigDict, declare: Callable, fixed: Container[str] = ()) -> list[Job]:
    """The runs that `declare` adds, named by their fields, which are each `Job.row`.

    fixed: the fields that the command line set in `config`, for all runs.
    """
    runs = []
    declare(lambda *given, **more: runs.append(dict(*given, **more)))
    if not runs:
        raise UserError("sweep(add) adds no run")
    plan = {}
    for fields in runs:
        for field in filter(fixed.__contains__, fields):
            raise UserError(f"--config.{field} is set by sweep(add), too: leave one of them out")
        if (name := _name(fields)) in plan:
            raise UserError(f"sweep(add) adds the run {name} twice")
        plan[name] = Job(name, (), partial(_variant, config, fields), fields)
        plan[name].make()
    return list(plan.values())


def _name(fields):
    parts = [f"{field}={command.as_text(value)}" for field, value in fields.items()]
    return re.sub(r"[^\w.=+-]+", "_", command.folder_name(parts) or "base", flags=re.ASCII)


def _variant(config, fields):
    own = copy.deepcopy(config)
    with own.unlocked():
        for field, value in fields.items():
            try:
                config_path.set_value(field, own, value)
            except (AttributeError, LookupError):
                raise UserError(f"sweep(add): the config has no field {field!r}") from None
            except (TypeError, ValueError) as error:
                raise UserError(f"sweep(add): config.{field} is {value!r}: {error}") from None
    return own


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a run's `metrics.json`, by dotted names such as `net.column.metric`."""
    means = {
        f"{row['net']}.{row['column']}.{row['metric']}": row["mean"]
        for row in (result.get("verdict") or {}).get("summary", ())
        if row["by"] == "all"
    }
    leaves = provenance.leaves(result.get("quality") or {}, "quality").items()
    return means | {name: float(v) for name, v in leaves if isinstance(v, int | float)}


def gather(
    config: ConfigDict, folder: Path, jobs: list[Job], done: Collection[str]
) -> tables.Table:
    """The table of finished runs, a row for those that differ in seeds only; `sweep.json`."""
    runs = {job.name: job.row for job in jobs if job.name in done}
    every = dict.fromkeys(field for own in runs.values() for field in own)
    fields = [field for field in every if field.rpartition(".")[2] != "seed"]
    of_run = {name: numbers(files.read_json(folder / name / "metrics.json") or {}) for name in runs}
    keys = list(dict.fromkeys(key for one in of_run.values() for key in one))
    groups = {}
    for name, own in runs.items():
        place = tuple(command.as_text(own.get(f, config_path.get_value(f, config))) for f in fields)
        groups.setdefault(place, []).append(of_run[name])
    titles = {title: key for title, key in SHOWN.items() if key in keys}
    own = [key for key in keys if re.match(r"vnet\.test\..*\.", key)]
    titles |= {key.removeprefix("vnet.test."): key for key in own}
    rows = []
    for place, group in groups.items():
        cells = [_cell([one[key] for one in group if key in one]) for key in titles.values()]
        rows.append([*place, str(len(group)), *cells])
    note = "Mean ± standard deviation over the runs of a row (of their metrics.json)."
    notes = [f"{len(done)} of {len(jobs)} runs are done. {note}"]
    result = tables.Table("Sweep", [*fields, "runs", *titles], rows, notes)
    every = [{"name": name, "fields": runs[name], "numbers": of_run[name]} for name in runs]
    files.write_json(folder / "sweep.json", {**result._asdict(), "runs": every})
    return result


def _cell(values):
    """Mean, and standard deviation where there are several values."""
    mean = tables.number(float(np.mean(values)) if values else None)
    return mean + (f" ± {tables.number(np.std(values, ddof=1))}" if len(values) > 1 else "")
