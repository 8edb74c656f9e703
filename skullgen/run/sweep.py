"""A sweep: ordinary runs in folders of one folder, reused where they are done, then one table.

Either table 1, or what a config file's `sweep(add)` declares (`variants`).

A finished run has a mark: what determines it, and the marks of the runs that it needs, so that a
run whose data or generator was made again is not taken for done.
"""

import hashlib
import json
import time
import traceback

import jax

from skullgen.core import files, jobs
from skullgen.core.errors import UserError, plain
from skullgen.report import page
from skullgen.run import stages, table1, variants, workdir

FREE = (
    *("workers", "share", "explore", "tensorboard", "compilation_cache"),
    *("log_every", "keep", "budget_mb"),
)


def sweep(config, folder, which, declare=None, fixed=()):
    """Runs a sweep's jobs in `folder`: `list` shows them, a number runs one, or `all`.

    config: with `config.table`, or `declare` is the config file's `sweep(add)` and `fixed` the
    fields that the command line sets.

    The list: number, wave (its runs need only runs of earlier waves), name, state.

    Jobs that are finished are not run again. `all` goes on past a job that fails, and ends with
    the table of what is there, and the report. Raises UserError where jobs failed.
    """
    if config.get("table"):
        plan, rows = table1.plan(config, folder)
    elif declare:
        if (folder / "real.zarr").exists() or (folder / "checkpoints").exists():
            raise UserError(f"{folder}: one run works here: choose another --workdir for a sweep")
        plan, rows = variants.plan(config, declare, fixed)
    else:
        raise UserError(
            "--sweep needs a config with `table`, as experiments/table1.py has, or with a function "
            "sweep(add), as experiments/vae_wgan.py has"
        )
    names = [job.name for job in plan]
    marks = {}
    for job in plan:
        marks[job.name] = _mark(job, folder, marks)
    if which == "list":
        waves = {}
        print(f"  no  wave  {'run':50s} state")
        for number, job in enumerate(plan):
            needs = ", ".join(str(names.index(name)) for name in job.needs)
            state = "done" if marks[job.name] else f"needs {needs}" if needs else ""
            waves[job.name] = 1 + max([waves[name] for name in job.needs], default=-1)
            print(f"{number:4d}  {waves[job.name]:4d}  {job.name:50s} {state}")
        return
    if which != "all" and not (which.isdecimal() and int(which) < len(plan)):
        raise UserError(f"--sweep is {which!r}: list, all, or a number below {len(plan)}")
    chosen = plan if which == "all" else [plan[int(which)]]
    todo, failed = [job for job in chosen if not marks[job.name]], []
    for job in todo:
        if not job.needs:  # wrong fields of a run cost no hours of those before it
            workdir.check(job.make(), folder / job.name)
    start = time.monotonic()
    for turn, job in enumerate(todo):
        number = names.index(job.name)
        spent = time.monotonic() - start
        left = f", about {spent / turn * (len(todo) - turn) / 60:.0f} min left" if turn else ""
        print(f"== job {number} of {len(plan)}: {job.name}{left}", flush=True)
        try:
            lacking = [name for name in job.needs if not marks[name]]
            if lacking:
                needed = names.index(lacking[0])
                raise UserError(f"job {number} needs {needed} ({lacking[0]}) first")
            made, path = job.make(), folder / job.name / "finished.json"
            path.unlink(missing_ok=True)
            workdir.run(made, folder / job.name)
            files.write_json(path, _content(made, job, marks))
            marks[job.name] = _mark(job, folder, marks)
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
    count = f"{sum(map(bool, marks.values()))} of {len(plan)} runs are done"
    print(count if todo else f"{count}: nothing to do")
    if which == "all":  # of one job nothing more: others of a cluster may be writing, too
        folder.mkdir(parents=True, exist_ok=True)  # where all failed
        if config.get("table"):
            _table1(config, folder, plan, rows, marks, count)
        else:
            runs = {job.name: its for job, its in zip(plan, rows, strict=True) if marks[job.name]}
            table = variants.gather(config, folder, runs, count)
            print("\n".join(map(plain, variants.describe(table))))
        _describe(config, folder, plan)
        print(page.write(folder))
    if failed:
        raise UserError(f"these jobs failed, see above: {', '.join(failed)}")


def _content(config, job, marks):
    fields = json.loads(config.to_json_best_effort())
    fields = {name: value for name, value in fields.items() if name not in FREE}
    return {"config": fields, "needs": {name: marks[name] for name in job.needs}}


def _mark(job, folder, marks):
    """The hash of a finished job's mark; None where it, or what it needs, is not as planned."""
    path = folder / job.name / "finished.json"
    if not path.exists() or not all(marks[name] for name in job.needs):
        return None
    same = files.read_json(path) == _content(job.make(), job, marks)
    return hashlib.sha256(path.read_bytes()).hexdigest() if same else None


def _table1(config, folder, plan, rows, marks, count):
    """Table 1, and figures 3 and 5, of the runs that are done."""
    done = [row.done(marks) for row in rows]
    table = table1.gather(config, folder, [row for row in done if any(row.folders)], count)
    print("\n".join(map(plain, table1.describe(table))))
    made = {job.name: job for job in plan}
    firsts = {
        row.title: next(name for fold in row.folders for name in fold)
        for row in done
        if any(row.folders) and not row.title.startswith("best")
    }
    if "real" in firsts:
        real = folder / firsts["real"] / "real.zarr"
        stages.link(real, folder / "real.zarr", config.model.resolution)
        runs = {title: (made[name].make(), folder / name) for title, name in firsts.items()}
        stages.compare(folder, runs)


def _describe(config, folder, plan):
    """The sweep's `config.json`, and `versions.json` with the seconds of its runs."""
    files.write_json(folder / "config.json", json.loads(config.to_json_best_effort()))
    seconds = {}
    for job in plan:
        path = folder / job.name / "versions.json"
        if path.exists():
            spent = files.read_json(path).get("seconds", {}).values()
            seconds[job.name] = round(sum(spent), 1)
    files.write_json(folder / "versions.json", {**stages.versions(), "seconds": seconds})
