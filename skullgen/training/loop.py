"""The one loop, for every model: phases in order, position = `state.step`.

Everything that an update does follows from the store, the seed and its number: a run that was
stopped ends, on one kind of device, as if it never had been.
"""

import collections
import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from skullgen.core import hosts, jobs, provenance
from skullgen.core.errors import Diverged, UserError, in_range
from skullgen.core.types import Model, Phase, State
from skullgen.data import mixture, store
from skullgen.training import checkpoint, logs, methods, parallel

POINTS = 8  # of a learning curve, evenly over a phase
Start = Callable[[Path, Model], methods.Start]
Parts, Plan, Recipe = list[mixture.Part], list[Phase], provenance.Recipe


class Options(NamedTuple):
    """How a network is trained: fields of a config, of those names."""

    seed: int
    batch: int  # pairs of an update, over all devices
    log_every: int  # updates between fetches of the metrics
    save_every: int  # updates between checkpoints
    budget_mb: int  # packed pairs of up to this size stay on the device, more are streamed


class Place(NamedTuple):
    """Where a network's metrics and checkpoints lie, what it is, and how it is looked at."""

    log: Path
    folder: Path
    recipe: Recipe  # `methods.recipe`
    # `(state, phase's step)`, called by process 0 where metrics are fetched.
    sheets: Callable[[State, str], None] | None = None
    # `state -> metrics` for its log, at `POINTS` updates of each phase: a learning curve.
    scores: Callable[[State], Mapping[str, float]] | None = None
    start: Start | None = None  # None: from random weights


class Span(NamedTuple):
    """A phase on the line of updates: its number, the updates before it and at its end."""

    phase: Phase
    number: int
    begin: int
    end: int


class _Run(NamedTuple):
    model: Model
    parts: Parts
    place: Place
    options: Options
    manager: Any  # of checkpoints; None but in process 0
    recent: list[logs.Record]  # of the epoch in progress
    said: set[str]


def check(options: Options, section: str = "") -> None:
    """UserError for an option that is out of bounds; section: "segment." for a V-Net's own."""
    in_range("log_every", options.log_every, 1)
    in_range(f"{section}save_every", options.save_every, 1)
    in_range(f"{section}batch_size", options.batch, 1)
    if hosts.several() and options.batch % jax.device_count():
        what = f"not a multiple of the {jax.device_count()} devices of all processes"
        raise UserError(f"{section}batch_size is {options.batch}: {what}")


def spans(plan: Plan, pairs: int, batch: int) -> list[Span]:
    """The phases on the line of updates: an epoch is `ceil(pairs / batch)` updates."""
    lengths = [phase.updates or phase.epochs * math.ceil(pairs / batch) for phase in plan]
    ends = np.cumsum([0, *lengths]).tolist()
    return [Span(*each) for each in zip(plan, range(len(plan)), ends[:-1], ends[1:], strict=True)]


def train(model: Model, plan: Plan, parts: Parts, place: Place, options: Options) -> State:
    """Trains `model` through `plan` on a mixture of stores of one size, or goes on.

    UserError where `place` holds another network; jobs.Stopped, after a checkpoint, on a signal.
    """
    lead, whole = hosts.lead(), spans(plan, _count(parts), options.batch)
    start, network = place.start and place.start(place.folder, model), place.recipe
    network = {**network, "init_from": start.sum} if start else network
    if lead:
        _claim(place.folder, recipe(plan, parts, network, options.seed, options.batch))
    # Placed as the steps return it, or the first one is compiled twice.
    devices = parallel.sharing(options.batch)
    state = checkpoint.begin(place.folder, model, options.seed, start and start.put)
    state = parallel.resident(state, devices)
    first = int(state.step)
    if start and not (first and start.arrays):
        print(start.line)
    if 0 < first < whole[-1].end:
        print(f"training: goes on from the checkpoint of update {first}")
    own = checkpoint.manager(place.folder) if lead else None
    recent = logs.cut(place.log, first) if lead else []
    with own or contextlib.nullcontext():
        run = _Run(model, parts, place, options, own, recent, set())
        for span in whole:
            if int(state.step) < span.end:
                state = _phase(run, span, state)
        if own:
            checkpoint.finish(own)
    hosts.first(0)  # the last checkpoint is written
    return state


def _count(parts):
    return sum(len(part.rows) for part in parts)


# --- What a network is made of -------------------------------------------------------------------


def recipe(plan: Plan, parts: Parts, network: Recipe, seed: int, batch: int) -> Recipe:
    """All that determines a trained network (network: `methods.recipe`), lengths in updates."""
    stores, phases = {}, {}
    for number, part in enumerate(parts):
        runs = np.split(part.rows, np.flatnonzero(np.diff(part.rows) != 1) + 1)
        runs = [[int(run[0]), int(run[-1]) + 1] for run in runs]
        stores[str(number)] = {"recipe": provenance.digest(part.store.recipe), "rows": runs}
    for phase, number, begin, end in spans(plan, _count(parts), batch):
        phases[str(number)] = [phase.step, phase.batches, end - begin]
    return {**network, "seed": seed, "batch_size": batch, "stores": stores, "phases": phases}


def training_rows(workdir: Path, name: str) -> Int[np.ndarray, " n"]:
    """Rows of `real.zarr` that the generator `name` learnt from, or V-Nets where it is "".

    All training pairs where it learnt from what was made of them.
    """
    real, rows = store.Store(workdir / "real.zarr"), []
    trained = provenance.read(workdir / "checkpoints" / name) if name else None
    for part in trained["stores"].values() if trained else ():
        if part["recipe"] == provenance.digest(real.recipe):
            rows += [np.arange(*run) for run in part["rows"]]
    return np.unique(np.concatenate(rows)) if rows else real.rows("train")


def _claim(folder, now):
    """UserError unless what was trained in `folder` is what `now` begins with; writes `now`."""
    if step := checkpoint.newest(folder):
        before = provenance.read(folder) or {}
        provenance.require_same(folder, _until(before, step), _until(now, step))
    provenance.write(folder, now)


def _until(recipe, step):
    """A recipe with its phases as far as an update."""
    phases = {}
    for number, (name, batches, updates) in recipe.get("phases", {}).items():
        if step > 0:
            phases[number] = [name, batches, min(updates, step)]
        step -= updates
    return {**recipe, "phases": phases}


# --- A phase, update by update -------------------------------------------------------------------


def _phase(run, span, state):
    first, options, name = int(state.step), run.options, span.phase.step
    place = run.place if hosts.lead() else run.place._replace(sheets=None, scores=None)
    size, devices, pending = run.parts[0].store.size, parallel.sharing(options.batch), []
    update = parallel.data_parallel(run.model.steps[name], size, devices)
    length, done = span.end - span.begin, first - span.begin
    points = {span.begin + math.ceil(length * k / POINTS) for k in range(1, POINTS + 1)}
    with jobs.progress(length, done, f"train {name}", "update") as bar:
        for step, batch in enumerate(_batches(run, span, first), first + 1):
            state, metrics = update(state, *batch)
            if place.scores and step in points:
                metrics = {**metrics, **place.scores(state)}
            pending.append((step, metrics))
            due = step % options.save_every == 0 or step == span.end
            fetch = len(pending) >= options.log_every or due
            # Several processes stop in the same update, one alone at once.
            stop = hosts.largest(jobs.asked()) if fetch or not hosts.several() else 0
            if fetch or stop:  # metrics are looked at before the state is saved
                _fetch(run, span, pending, bar)
                pending = []
            bar.update()
            if run.manager and (due or stop):
                checkpoint.save(run.manager, state)
            if stop:
                if run.manager:
                    checkpoint.finish(run.manager)
                print(f"\na checkpoint of update {step} is written in {place.folder}")
                raise jobs.Stopped(stop, agreed=True)
            if fetch and place.sheets:
                place.sheets(state, name)
    return state


def _fetch(run, span, pending, bar):
    """Writes the metrics of some updates, and says the model's notes on them."""
    epoch, records = math.ceil(_count(run.parts) / run.options.batch), []
    for step, metrics in jax.device_get(pending):
        place = {"phase": span.phase.step, "epoch": (step - span.begin - 1) // epoch + 1}
        values = {name: float(value) for name, value in metrics.items()}
        records.append({**place, "step": step, **values})
    bar.set_postfix(epoch=records[-1]["epoch"], refresh=False)
    good = list(itertools.takewhile(lambda record: not _infinite(record), records))
    if hosts.lead():
        logs.append(run.place.log, good)
    if len(good) < len(records):
        raise _diverged(run, records[len(good)])
    *whole, last = epochs([*run.recent, *records])
    over = records[-1]["step"] == span.end
    run.recent[:] = [] if over else last
    lines = [line for line in notes(run.model, whole) if line.startswith("warning: ")]
    for line in lines + (notes(run.model, [last]) if over else []):
        if line not in run.said:
            bar.write(line)
            run.said.add(line)


def epochs(records: list[logs.Record]) -> list[list[logs.Record]]:
    """The records of a log by epoch, in order."""
    key = operator.itemgetter("phase", "epoch")
    return [list(group) for _, group in itertools.groupby(records, key)]


def notes(model: Model, groups: list[list[logs.Record]]) -> list[str]:
    """What `model.notes` says of some epochs' records, each line once, in order."""
    say = model.notes or (lambda records: [])
    return list(dict.fromkeys(line for group in groups for line in say(group)))


def _infinite(record):
    """The names of a record's metrics that are not finite."""
    return [k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]


def _diverged(run, record):
    if run.manager:
        checkpoint.finish(run.manager)
    folder, name = run.place.folder, _infinite(record)[0]
    what = f"{name} is {record[name]} at update {record['step']} (phase {record['phase']})"
    again = f"the same command replays it from update {checkpoint.newest(folder)}"
    cure = "lower the learning rate or the penalty, or compute in float32, in a new --workdir"
    return Diverged(f"{folder.name}: {what}: {again}; {cure}")


# --- Batches: packed pairs, and the rows of them that an update takes ----------------------------


def _draw(run, span, update):
    """Rows [batches, size], counted through all parts, of the update after so many."""
    place = mixture.Place(run.options.seed, span.number, update - span.begin)
    counts = [len(part.rows) for part in run.parts]
    return mixture.batch_rows(counts, run.options.batch, place, span.phase.batches)


def _batches(run, span, first):
    """The batches of the updates after `first`: resident where they fit, else streamed."""
    draws = (_draw(run, span, update) for update in range(first, span.end))
    needed = _count(run.parts) * run.parts[0].store.size ** 3 * 2 // 8
    if needed <= run.options.budget_mb * 2**20 and jax.process_count() == 1:
        data = np.concatenate([part.store.load(part.rows) for part in run.parts])
        data = data, mixture.labels(run.parts)
        data = parallel.resident(data, parallel.sharing(run.options.batch))
        yield from ((data, index) for index in draws)
        return
    labels = mixture.labels(run.parts)
    with ThreadPoolExecutor(4) as pool:
        ahead = collections.deque()
        for index in draws:
            ahead.append(pool.submit(_read, run.parts, labels, index))
            if len(ahead) > 4:
                yield ahead.popleft().result()
        yield from (task.result() for task in ahead)


def _read(parts, labels, index):
    """The pairs of one draw; of several processes, each reads only its own columns of it."""
    mine = hosts.columns(index.shape[1])
    wanted = index[:, mine].ravel()
    owner = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])[wanted]
    rows = np.concatenate([part.rows for part in parts])[wanted]
    bits = np.empty((len(rows), parts[0].store.size ** 3 * 2 // 8), np.uint8)
    for number, part in enumerate(parts):
        bits[owner == number] = part.store.load(rows[owner == number])
    local = np.zeros_like(index)
    local[:, mine] = np.arange(len(rows)).reshape(len(index), -1)
    return (bits, labels[wanted]), local
