"""A sweep: ordinary runs in folders of one folder, reused where they are done, then one table.

Either table 1, or what a config file's `sweep(add)` declares:

def sweep(add):
    for penalty in (1.0, 10.0):
        for seed in range(3):
            add({"model.penalty": penalty}, seed=seed)

A finished run has a recipe: what determines it, and the recipes of the runs that it needs, so that
a run whose data or generator was made again is not taken for done.
"""

import copy
import re
import time
import traceback
from collections.abc import Callable, Container
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
from skullgen.run import stages, table1, workdir

FREE = (
    *("workers", "explore", "tensorboard", "compilation_cache"),
    *("log_every", "keep", "budget_mb"),
)
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
Job = table1.Job


def sweep(config: ConfigDict, folder: Path, which: str, named: command.Named) -> None:
    """Runs a sweep's jobs in `folder`: `list` shows them, a number runs one, or `all`.

    config: with `config.table`, or the file that is `named` has a function `sweep(add)`. Jobs that
    are finished are not run again. `all` goes on past a job that fails, and ends with the table of
    what is there, and the report. Raises UserError where jobs failed.
    """
    if config.get("table"):
        jobs_, rows = table1.plan(config, folder)
    elif declare := named.sweep():
        if (folder / "real.zarr").exists() or (folder / "checkpoints").exists():
            raise UserError(f"{folder}: one run works here: choose another --workdir for a sweep")
        jobs_, rows = plan(config, declare, named.overrides)
    else:
        raise UserError(
            "--sweep needs a config with `table`, as experiments/table1.py has, or with a function "
            "sweep(add), as experiments/vae_wgan.py has"
        )
    done = {}
    for job in jobs_:
        done[job.name] = _digest(job, folder, done)
    if which == "list":
        _list(jobs_, done)
        return
    if which != "all" and not (which.isdecimal() and int(which) < len(jobs_)):
        raise UserError(f"--sweep is {which!r}: list, all, or a number below {len(jobs_)}")
    failed = _run(jobs_, which, folder, done)
    count = f"{sum(map(bool, done.values()))} of {len(jobs_)} runs are done"
    print(count)
    if which == "all":  # of one job nothing more: others of a cluster may be writing, too
        _write(config, folder, (jobs_, rows), done, count)
    if failed:
        raise UserError(f"these jobs failed, see above: {', '.join(failed)}")


def _list(plan, done):
    """Number, wave (its runs need only runs of earlier waves), name, state."""
    names, waves = [job.name for job in plan], {}
    print(f"  no  wave  {'run':50s} state")
    for number, job in enumerate(plan):
        needs = ", ".join(str(names.index(name)) for name in job.needs)
        state = "done" if done[job.name] else f"needs {needs}" if needs else ""
        waves[job.name] = 1 + max([waves[name] for name in job.needs], default=-1)
        print(f"{number:4d}  {waves[job.name]:4d}  {job.name:50s} {state}")


def _run(plan, which, folder, done):
    """Runs what is chosen and not done, and notes it in `done`; returns which jobs failed."""
    chosen = list(enumerate(plan)) if which == "all" else [(int(which), plan[int(which)])]
    todo, failed = [(number, job) for number, job in chosen if not done[job.name]], []
    for _, job in todo:
        if not job.needs:  # wrong fields of a run cost no hours of those before it
            workdir.check(job.make(), folder / job.name)
    start = time.monotonic()
    for turn, (number, job) in enumerate(todo):
        spent = time.monotonic() - start
        left = f", about {spent / turn * (len(todo) - turn) / 60:.0f} min left" if turn else ""
        print(f"== job {number} of {len(plan)}: {job.name}{left}", flush=True)
        try:
            for name in job.needs:
                if not done[name]:
                    needed = [other.name for other in plan].index(name)
                    raise UserError(f"job {number} needs {needed} ({name}) first")
            _finish(job, folder, done)
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


def _finish(job, folder, done):
    made, place = job.make(), folder / job.name
    (place / provenance.FILE).unlink(missing_ok=True)
    workdir.run(made, place)
    provenance.write(place, _recipe(made, job, done))
    done[job.name] = _digest(job, folder, done)


def _recipe(config, job, done):
    fields = {name: v for name, v in command.as_json(config).items() if name not in FREE}
    return {"config": fields, "needs": {name: done[name] for name in job.needs}}


def _digest(job, folder, done):
    """The sum of a finished job's recipe; None where it, or what it needs, is not as planned."""
    recipe = provenance.read(folder / job.name)
    if recipe is None or not all(done[name] for name in job.needs):
        return None
    same = not provenance.differences(recipe, _recipe(job.make(), job, done))
    return provenance.digest(recipe) if same else None


def _write(config, folder, plan, done, count):
    """The table and the report of a sweep, and its `config.json` and `versions.json`."""
    folder.mkdir(parents=True, exist_ok=True)  # where all failed
    jobs_, rows = plan
    if config.get("table"):
        kept = [row for row in (row.done(done) for row in rows) if any(row.folders)]
        table = table1.gather(config, folder, kept, count)
        _compare(config, folder, {job.name: job for job in jobs_}, kept)
    else:
        pairs = zip(jobs_, rows, strict=True)
        table = gather(config, folder, {job.name: its for job, its in pairs if done[job.name]})
        table = table._replace(notes=[f"{count}. {table.notes[0]}", *table.notes[1:]])
        files.replace(folder / "sweep.md", tables.markdown(table).encode())
    print("\n".join(map(plain, tables.text(table))))
    files.write_json(folder / "config.json", command.as_json(config))
    seconds = {}
    for job in jobs_:
        spent = files.read_json(folder / job.name / "versions.json") or {}
        seconds[job.name] = round(sum(spent.get("seconds", {}).values()), 1)
    files.write_json(folder / "versions.json", {**stages.versions(), "seconds": seconds})
    print(page.write(folder))


def _compare(config, folder, made, rows):
    """Figures 3 and 5 of the runs of table 1 that are done."""
    firsts = {
        row.title: next(name for fold in row.folders for name in fold)
        for row in rows
        if not row.title.startswith("best")
    }
    if "real" in firsts:
        real = folder / firsts["real"] / "real.zarr"
        stages.link(real, folder / "real.zarr", config.model.resolution)
        runs = {title: (made[name].make(), folder / name) for title, name in firsts.items()}
        stages.compare(folder, runs)


# --- What a config file's sweep(add) declares ----------------------------------------------------


def plan(
    config: ConfigDict, declare: Callable, fixed: Container[str] = ()
) -> tuple[list[Job], list[dict[str, Any]]]:
    """The runs that `declare` (a config file's `sweep`) adds to, and the fields of each.

    config: what `get_config` returned, with the command line's overrides, which hold for all runs;
    fixed: their fields.
    `add({"model.penalty": 10.0}, seed=0)` adds a run with these fields, named as after
    `--config.`. A run's folder is named by them alone: more runs rename none. Raises UserError for
    a field that is not there, of another kind, or set twice.
    """
    runs = []
    declare(lambda *given, **more: runs.append(dict(*given, **more)))
    plan = [Job(_name(fields), (), lambda f=fields: _made(config, f)) for fields in runs]
    for job, fields in zip(plan, runs, strict=True):
        both = [field for field in fields if field in fixed]
        if both:
            raise UserError(f"--config.{both[0]} is set by sweep(add), too: leave one of them out")
        if [other.name for other in plan].count(job.name) > 1:
            raise UserError(f"sweep(add) adds the run {job.name} twice")
        job.make()
    if not plan:
        raise UserError("sweep(add) adds no run")
    return plan, runs


def _name(fields):
    parts = [f"{field}={command.shown(value)}" for field, value in fields.items()]
    return re.sub(r"[^\w.=+-]+", "_", command.folder_name(parts) or "base", flags=re.ASCII)


def _made(config, fields):
    made = copy.deepcopy(config)
    with made.unlocked():
        for field, value in fields.items():
            try:
                config_path.set_value(field, made, value)
            except (AttributeError, LookupError):
                raise UserError(f"sweep(add): the config has no field {field!r}") from None
            except (TypeError, ValueError) as error:
                raise UserError(f"sweep(add): config.{field} is {value!r}: {error}") from None
    return made


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a run's `metrics.json` by dotted name.

    Of the verdict `net.column.metric`, means over skulls; of the rest their place in the file.
    """
    found = {
        f"{row['net']}.{row['column']}.{row['metric']}": row["mean"]
        for row in (result.get("verdict") or {}).get("summary", ())
        if row["by"] == "all"
    }
    return found | dict(_leaves(result.get("quality") or {}, "quality"))


def _leaves(value, name):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, int | float):
        yield name, float(value)


def gather(config: ConfigDict, folder: Path, runs: dict[str, dict[str, Any]]) -> tables.Table:
    """The table of a sweep's finished runs: means and deviations over seeds.

    config: the sweep's. runs: name -> fields of the finished ones. Runs that differ in nothing but
    seeds (`seed`, `segment.seed`, ...) share a row. Writes `sweep.json` and `sweep.csv`, which have
    all numbers, in `folder`.
    """
    fields = list(dict.fromkeys(f for own in runs.values() for f in own if not _is_seed(f)))
    found = {name: numbers(files.read_json(folder / name / "metrics.json") or {}) for name in runs}
    known = list(dict.fromkeys(key for one in found.values() for key in one))
    groups = {}
    for name, own in runs.items():
        place = tuple(command.shown(own.get(f, config_path.get_value(f, config))) for f in fields)
        groups.setdefault(place, []).append(name)
    means = {place: _means([found[n] for n in names], known) for place, names in groups.items()}
    own = [key for key in known if re.match(r"vnet\.test\..*\.", key)]
    shown = {title: key for title, key in SHOWN.items() if key in known}
    shown |= {key.removeprefix("vnet.test."): key for key in own}
    rows = [
        [*place, str(len(names)), *(_cell(means[place][key]) for key in shown.values())]
        for place, names in groups.items()
    ]
    notes = [
        "Mean ± standard deviation over the runs of a row; what columns mean: docs/extending.md"
    ]
    if not known:
        notes = ["No run has a metrics.json: name the stage `evaluate`."]
    table = tables.Table("Sweep", [*fields, "runs", *shown], rows, notes)
    made = [{"name": name, "fields": runs[name], "numbers": found[name]} for name in runs]
    files.write_json(folder / "sweep.json", {**table._asdict(), "runs": made})
    columns = [*fields, "runs", *(f"{key}{end}" for key in known for end in ("", " sd"))]
    lines = [
        [*place, len(names), *(value for key in known for value in means[place][key])]
        for place, names in groups.items()
    ]
    files.replace(folder / "sweep.csv", tables.csv_text(columns, lines).encode())
    return table


def _is_seed(field):
    return field.rpartition(".")[2] == "seed"


def _means(found, known):
    """Name -> mean, and sd (None of one run), of the runs that have it; None without."""
    values = {key: [one[key] for one in found if key in one] for key in known}
    return {
        key: (
            float(np.mean(v)) if v else None,
            float(np.std(v, ddof=1)) if len(v) > 1 else None,
        )
        for key, v in values.items()
    }


def _cell(value):
    mean, sd = value
    return tables.number(mean) + ("" if sd is None else f" ± {tables.number(sd)}")
