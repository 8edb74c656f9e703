"""The one loop, for every model: phases in order, position = `state.step`.

Everything that an update does follows from the store, the seed and its number, so a run that was
stopped goes on from its newest checkpoint and on one device kind ends as if it never had been.
"""

import concurrent.futures
import contextlib
import itertools
import math
import operator
import sys
from pathlib import Path

import jax
import numpy as np

from skullgen.core import files, hosts, jobs, plugins
from skullgen.core.errors import Diverged, UserError, plain
from skullgen.core.types import Model, Phase
from skullgen.data import store
from skullgen.training import checkpoint, logs, parallel

CODE = "code.json"  # beside checkpoints


def load_model(name, config, where=""):
    """The Model that `make(config)` returns in `skullgen.models.<name>` or in `package.module`.

    config: an experiment's `config.model`, or that of its section `where` ("segment."). Raises
    UserError where there is no such module.
    """
    path = name if "." in name else f"skullgen.models.{name}"
    make = plugins.attribute(f"{where}model_name", name, path, "make", "(config) -> Model")
    # A module of the user's own keeps its tracebacks, but for a field that the config lacks.
    wrong = (ArithmeticError, LookupError, TypeError, ValueError)
    caught = (AttributeError, *(() if "." in name else wrong))
    try:
        model = make(config)
        if not isinstance(model, Model):
            raise UserError(f"{path}: make returned {type(model).__name__}, not a types.Model")
        jax.eval_shape(model.init, jax.random.key(0))  # shapes only: wrong sizes are found here
    except caught as error:
        name, words = lacked(error), " ".join(str(error).split())
        words = f"it lacks the field {name}" if name else words
        raise UserError(f"config.{where}model does not fit {path}: {words}") from error
    return model


def lacked(error):
    """The field that a ConfigDict lacks, where an AttributeError says that it was read; else ""."""
    told = error.args[0] if error.args else None
    return str(told.args[0]).split("\n")[0].strip("'") if isinstance(told, KeyError) else ""


def learnt(workdir, name):
    """Rows int [n] of `real.zarr` that the generator `name` learns from, or V-Nets where it is "".

    What was left out when its training began is not what `leave_out.txt` lists now.
    """
    real = workdir / "real.zarr"
    if not name:
        return store.Store(real).rows("train")
    left = files.read_json(workdir / "checkpoints" / name / "left_out.json") or {}
    return np.setdiff1d(store.Store(real).every("train"), left.get("pairs", []))


def tell_code(name, folder, going_on=False):
    """A warning where a user's own model is not the file that trained what is in `folder`.

    name: the model's; of ours the commit tells. going_on: it is trained now; `code.json` in
    `folder` holds the SHA-256 of its file by the update from which on it was that file.
    """
    step, sums = checkpoint.newest(folder), plugins.sums([name])
    if not sums or not hosts.lead():
        return
    [(file, now)] = sums.items()
    with logs.as_written(folder):
        held = (files.read_json(folder / CODE) or {}).get(file, {})
        held = {update: sha256 for update, sha256 in held.items() if int(update) < step}
        last = held[max(held, key=int)] if held else None
        if last not in (None, now):
            what = "training goes on with it" if going_on else "put that one back, or train anew"
            what = f"{file} has changed since it trained {folder}: {what}"
            print(plain(f"warning: {what}"), file=sys.stderr)
    if going_on:
        folder.mkdir(parents=True, exist_ok=True)
        held |= {str(step): now} if last != now else {}
        files.write_json(folder / CODE, {file: held})


def phases(specs, model):
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


def divides(field, batch):
    """UserError where a batch (the value of `field`) cannot be shared by all devices alike."""
    if batch % jax.device_count():
        count = jax.device_count()
        raise UserError(f"{field} is {batch}: not a multiple of the {count} devices")


def schedule(phases, pairs, batch):
    """The update at which each phase ends: an epoch is `ceil(pairs / batch)` updates."""
    lengths = [phase.updates or phase.epochs * math.ceil(pairs / batch) for phase in phases]
    return np.cumsum(lengths).tolist()


def train(
    model,
    plan,
    parts,
    log,
    folder,
    *,
    seed,
    batch,
    log_every,
    save_every,
    keep,
    budget_mb,
    tensorboard=None,
    watch=None,
):
    """Trains `model` through `plan` (a list of Phase) on a mixture of stores, or goes on.

    parts: list of `store.Part` of one size; each has an equal share of every batch. log: file of
    the metrics. folder: of the checkpoints. batch: pairs of an update, over all devices.
    log_every, save_every: updates between fetches of the metrics and between checkpoints. keep:
    newest checkpoints kept, beside those at the phases' ends. budget_mb: packed pairs of up to
    this size stay on the device, more are streamed. tensorboard: its folder, or None. watch:
    `(state, phase's step) -> records` for TensorBoard, whose `says` is printed; called by process 0
    wherever metrics were fetched.

    Returns the State. Raises Diverged for a metric that is not finite, jobs.Stopped after
    a checkpoint where a signal came.
    """
    divides("batch_size", batch)
    lead = hosts.lead()
    counts = [len(part.rows) for part in parts]
    size = store.Store(parts[0].path).size
    ends = schedule(plan, sum(counts), batch)
    epoch = math.ceil(sum(counts) / batch)
    board = logs.tensorboard(tensorboard if lead else None)
    with contextlib.ExitStack() as stack:
        manager = None
        if lead:
            manager = stack.enter_context(
                contextlib.closing(checkpoint.manager(folder, keep, ends, mend=True))
            )
        # Placed as the steps return it, or the first one is compiled twice.
        state = parallel.resident(checkpoint.begin(manager, model, seed))
        if 0 < int(state.step) < ends[-1]:
            print(f"training: goes on from the checkpoint of update {int(state.step)}")
        recent, said = logs.rewind(log, int(state.step)) if lead else [], set()

        def save(state, stop):
            if not lead:
                return
            for step in manager.all_steps():  # of an earlier stop: the end is as without it
                if step % save_every and step not in ends and step < int(state.step):
                    manager.delete(step)
            checkpoint.save(manager, state)
            if stop:
                checkpoint.finish(manager)
                print(f"\na checkpoint of update {int(state.step)} is written in {folder}")

        for number, (phase, end) in enumerate(zip(plan, ends, strict=True)):
            begin, first = ends[number - 1] if number else 0, int(state.step)
            if first >= end:
                continue

            def draw(update, phase=phase, number=number, begin=begin):
                place = dict(phase=number, update=update - begin, batches=phase.batches)
                return store.batch_rows(counts, batch, seed=seed, **place)

            batches = _batches(parts, map(draw, range(first, end)), budget_mb * 2**20)

            def due(step, end=end):
                return step % save_every == 0 or step == end

            def describe(step, metrics, phase=phase, begin=begin):
                place = {"phase": phase.step, "epoch": (step - begin - 1) // epoch + 1}
                values = {name: float(value) for name, value in metrics.items()}
                return {**place, "step": step, **values}

            def flush(pending, describe=describe, end=end, draw=draw):
                records = [describe(*item) for item in jax.device_get(pending)]
                good = _finite(records)
                if lead:
                    logs.append(log, good)
                board(good)
                if len(good) < len(records):
                    if manager:
                        checkpoint.finish(manager)
                    bad = records[len(good)]
                    batch_of = _named(parts, draw(bad["step"] - 1))
                    _diverged(bad, folder, batch_of, log)
                *whole, last = epochs([*recent, *records])
                over = records[-1]["step"] == end
                recent[:] = [] if over else last
                lines = [x for x in notes(model, whole) if x.startswith("warning: ")]
                for line in lines + (notes(model, [last]) if over else []):
                    if line not in said:
                        bar.write(line)
                        said.add(line)
                return records

            def look(state, phase=phase):
                for record in watch(state, phase.step) if watch and lead else ():
                    board([record])
                    bar.write(record["says"])

            run = parallel.data_parallel(model.steps[phase.step], size)
            with jobs.progress(end - begin, first - begin, f"train {phase.step}", "update") as bar:
                state = _loop(run, state, batches, bar, flush, save, look, due, log_every)
        if lead:
            checkpoint.finish(manager)
    hosts.first(0)  # the last checkpoint is written
    return state


def epochs(records):
    """The records of a log by epoch: a list of lists, in order."""
    key = operator.itemgetter("phase", "epoch")
    return [list(group) for _, group in itertools.groupby(records, key)]


def notes(model, groups):
    """What `model.notes` says of some epochs' records, each line once, in order."""
    if model.notes is None:
        return []
    return list(dict.fromkeys(line for group in groups for line in model.notes(group)))


def _loop(run, state, batches, bar, flush, save, look, due, log_every):
    """One phase, update by update; metrics are looked at before the state is saved."""
    step, pending, compiled = int(state.step), [], False
    for data, index in batches:
        state, metrics = run(state, data, index)
        if not compiled:  # the bar's rate begins now
            jax.block_until_ready(metrics)
            bar.unpause()
            compiled = True
        step += 1
        pending.append((step, metrics))
        fetch = len(pending) >= log_every or due(step)
        # Several processes stop in the same update, one alone at once.
        stop = hosts.largest(jobs.asked()) if fetch or not hosts.several() else 0
        if fetch or stop:
            bar.set_postfix(epoch=flush(pending)[-1]["epoch"], refresh=False)
            pending = []
        bar.update()
        if due(step) or stop:
            save(state, stop)
        if stop:
            raise jobs.Stopped(stop, agreed=True)
        if fetch:
            look(state)
    return state


def _finite(records):
    """The records before the first that holds a value that is not finite."""
    for number, record in enumerate(records):
        if not all(np.isfinite(v) for v in record.values() if isinstance(v, float)):
            return records[:number]
    return records


def _named(parts, index):
    """The pairs of a draw [batches, size]: a list of [store, row] for each batch."""
    starts = np.cumsum([0, *(len(part.rows) for part in parts)])

    def name(row):
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return [str(parts[number].path), int(parts[number].rows[row - starts[number]])]

    return [[name(row) for row in batch] for batch in index]


def _diverged(record, folder, batches, log):
    """Writes which batches an update took beside the log, and raises Diverged."""
    name, value = next(
        (name, value)
        for name, value in record.items()
        if isinstance(value, float) and not np.isfinite(value)
    )
    path, last = log.with_name(f"{log.stem}-diverged.json"), checkpoint.newest(folder)
    if hosts.lead():
        files.write_json(path, {"record": record, "checkpoint": last, "batches": batches})
    rows = ", ".join(str(row) for _, row in batches[0][:8]) + ", ..." * (len(batches[0]) > 8)
    kept = f"update {last}, the last good checkpoint" if last else "the beginning"
    raise Diverged(
        f"training of {folder.name} stopped: {name} is {value} at update {record['step']} (phase "
        f"{record['phase']}), on rows {rows} of {Path(batches[0][0][0]).name} (all in "
        f"{path.name}): the same command replays it from {kept}; lower the learning rate or the "
        "penalty, or compute in float32, in a new --workdir"
    )


def _batches(parts, draws, budget):
    """(packed pairs, rows of them) for each draw: resident where they fit, else streamed.

    Of several processes, each reads from the stores only its own columns of a draw.
    """
    size = int(np.prod(store.Store(parts[0].path)["pairs"].shape[1:])) // 8
    counts = [len(part.rows) for part in parts]
    if sum(counts) * size <= budget and jax.process_count() == 1:
        data = parallel.resident(np.concatenate([store.load(*part) for part in parts]))
        for index in draws:
            yield data, index
        return
    starts = np.cumsum([0, *counts[:-1]])

    def fetch(index):
        mine = hosts.columns(index.shape[1])
        flat = index[:, mine].ravel()
        bits = np.empty((len(flat), size), np.uint8)
        owner = np.searchsorted(starts, flat, side="right") - 1
        for number, part in enumerate(parts):
            its = owner == number
            bits[its] = store.Store(part.path).load(part.rows[flat[its] - starts[number]])
        local = np.zeros_like(index)
        local[:, mine] = np.arange(len(flat)).reshape(len(index), -1)
        return bits, local

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ahead = []
        for index in draws:
            ahead.append(pool.submit(fetch, index))
            if len(ahead) > 4:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()
