"""The one loop, for every model: phases in order, position = `state.step`.

Everything that an update does follows from the store, the seed and its number, so a run that was
stopped goes on from its newest checkpoint and on one device kind ends as if it never had been.
"""

import concurrent.futures
import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8

from skullgen.core import files, hosts, jobs, provenance
from skullgen.core.errors import Diverged, UserError, in_range
from skullgen.core.types import Model, Phase, State
from skullgen.data import store
from skullgen.training import checkpoint, logs, parallel

Watch = Callable[[State, str], Iterable[logs.Record]]


class Options(NamedTuple):
    """How a network is trained; of a run, the fields of its config.

    log_every, save_every: updates between fetches of the metrics and between checkpoints. keep:
    newest checkpoints kept, beside those at the phases' ends. budget_mb: packed pairs of up to
    this size stay on the device, more are streamed. tensorboard: its folder.
    """

    seed: int
    batch: int  # pairs of an update, over all devices
    log_every: int
    save_every: int
    keep: int
    budget_mb: int
    tensorboard: Path | None = None


class Place(NamedTuple):
    """Where a network's metrics and checkpoints lie, and what it is (`methods.recipe`)."""

    log: Path
    folder: Path
    recipe: provenance.Recipe


class Batch(NamedTuple):
    """Packed pairs, and the rows of them that one update takes."""

    data: UInt8[Array | np.ndarray, "N bytes"]
    index: Int[np.ndarray, "batches size"]


class Span(NamedTuple):
    """A phase, its number, and the updates before it and at its end."""

    phase: Phase
    number: int
    begin: int
    end: int


class _Run(NamedTuple):
    model: Model
    parts: list[store.Part]
    place: Place
    options: Options
    ends: list[int]  # of the phases
    manager: Any  # of checkpoints, in process 0
    journal: "_Journal"
    watch: Watch | None


def check(options: Options, section: str = "") -> None:
    """UserError for an option that is out of bounds, or a batch that devices cannot share alike.

    section: of the config's fields, "segment." for a V-Net's.
    """
    for field in ("log_every", "keep"):
        in_range(field, getattr(options, field), 1)
    in_range(f"{section}save_every", options.save_every, 1)
    in_range(f"{section}batch_size", options.batch, 1)
    count = jax.device_count()
    if options.batch % count:
        raise UserError(
            f"{section}batch_size is {options.batch}: not a multiple of the {count} devices"
        )


def spans(plan: list[Phase], pairs: int, batch: int) -> list[Span]:
    """The phases on the line of updates: an epoch is `ceil(pairs / batch)` updates."""
    lengths = [phase.updates or phase.epochs * math.ceil(pairs / batch) for phase in plan]
    ends = np.cumsum([0, *lengths]).tolist()
    return [Span(*each) for each in zip(plan, range(len(plan)), ends[:-1], ends[1:], strict=True)]


def train(
    model: Model,
    plan: list[Phase],
    parts: list[store.Part],
    place: Place,
    options: Options,
    watch: Watch | None = None,
) -> State:
    """Trains `model` through `plan` on a mixture of stores of one size, or goes on.

    parts: each has an equal share of every batch. watch: `(state, phase's step) -> records` for
    TensorBoard, whose `says` is printed; called by process 0 wherever metrics were fetched.

    Raises UserError where `place` holds a network of another recipe, Diverged for a metric that is
    not finite, jobs.Stopped after a checkpoint where a signal came.
    """
    check(options)
    lead, pairs = hosts.lead(), sum(len(part.rows) for part in parts)
    whole = spans(plan, pairs, options.batch)
    ends = [span.end for span in whole]
    if lead:
        _claim(place.folder, recipe(plan, parts, place.recipe, options))
    board = logs.tensorboard(options.tensorboard if lead else None)
    with contextlib.ExitStack() as stack:
        # Placed as the steps return it, or the first one is compiled twice.
        state = parallel.resident(checkpoint.begin(place.folder, model, options.seed))
        manager, first = None, int(state.step)
        if lead:
            manager = checkpoint.manager(place.folder, options.keep, ends)
            stack.enter_context(contextlib.closing(manager))
        if 0 < first < ends[-1]:
            print(f"training: goes on from the checkpoint of update {first}")
        recent = logs.cut(place.log, first) if lead else []
        journal = _Journal(model, place.log, board, recent)
        run = _Run(model, parts, place, options, ends, manager, journal, watch)
        for span in whole:
            if int(state.step) < span.end:
                state = _phase(run, span, state)
        if lead:
            checkpoint.finish(manager)
    hosts.first(0)  # the last checkpoint is written
    return state


# --- What a network is made of -------------------------------------------------------------------


def recipe(
    plan: list[Phase], parts: list[store.Part], network: provenance.Recipe, options: Options
) -> provenance.Recipe:
    """All that determines a trained network, its phases' lengths too.

    network: as of `methods.recipe`. Rows of a store are kept as runs [first, last + 1].
    """
    pairs = sum(len(part.rows) for part in parts)
    stores = [
        {"recipe": provenance.digest(part.store.recipe), "rows": _runs(part.rows)} for part in parts
    ]
    phases = [
        [span.phase.step, span.phase.batches, span.end - span.begin]
        for span in spans(plan, pairs, options.batch)
    ]
    return {
        **network,
        "seed": options.seed,
        "batch_size": options.batch,
        "stores": {str(number): part for number, part in enumerate(stores)},
        "phases": {str(number): phase for number, phase in enumerate(phases)},
    }


def learnt(workdir: Path, name: str) -> Int[np.ndarray, " n"]:
    """Rows of `real.zarr` that the generator `name` learnt from, or V-Nets where it is ""."""
    made = provenance.read(workdir / "checkpoints" / name) if name else None
    if not made:
        return store.Store(workdir / "real.zarr").rows("train")
    return np.concatenate([np.arange(*run) for run in made["stores"]["0"]["rows"]])


def _runs(rows):
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(rows, breaks)]


def _claim(folder, now):
    """UserError unless what was trained in `folder` is what `now` begins with; writes `now`."""
    step = checkpoint.newest(folder)
    if step:
        before = provenance.read(folder) or {}
        provenance.require_same(folder, _until(before, step), _until(now, step))
    folder.mkdir(parents=True, exist_ok=True)
    provenance.write(folder, now)


def _until(recipe, step):
    """A recipe with its phases as they were trained up to an update."""
    phases = {}
    for number, (name, batches, updates) in recipe.get("phases", {}).items():
        if step > 0:
            phases[number] = [name, batches, min(updates, step)]
        step -= updates
    return {**recipe, "phases": phases}


# --- A phase, update by update -------------------------------------------------------------------


def _phase(run, span, state):
    """Metrics are looked at before the state is saved."""
    first, options = int(state.step), run.options
    update = parallel.data_parallel(run.model.steps[span.phase.step], run.parts[0].store.size)
    name, length = f"train {span.phase.step}", span.end - span.begin
    with jobs.progress(length, first - span.begin, name, "update") as bar:
        pending = []
        for step, batch in enumerate(_batches(run, span, first), first + 1):
            state, metrics = update(state, *batch)
            if step == first + 1:  # compiled: the bar's rate begins now
                jax.block_until_ready(metrics)
                bar.unpause()
            pending.append((step, metrics))
            due = step % options.save_every == 0 or step == span.end
            fetch = len(pending) >= options.log_every or due
            # Several processes stop in the same update, one alone at once.
            stop = hosts.largest(jobs.asked()) if fetch or not hosts.several() else 0
            if fetch or stop:
                bar.set_postfix(epoch=_fetch(run, span, pending, bar), refresh=False)
                pending = []
            bar.update()
            if due or stop:
                _save(run, state, stop)
            if stop:
                raise jobs.Stopped(stop, agreed=True)
            if fetch:
                _look(run, span, state, bar)
    return state


def _fetch(run, span, pending, bar):
    """Writes the metrics of some updates; returns the epoch, raises Diverged."""
    epoch = math.ceil(sum(len(part.rows) for part in run.parts) / run.options.batch)
    records = []
    for step, metrics in jax.device_get(pending):
        place = {"phase": span.phase.step, "epoch": (step - span.begin - 1) // epoch + 1}
        values = {name: float(value) for name, value in metrics.items()}
        records.append({**place, "step": step, **values})
    good = list(itertools.takewhile(_finite, records))
    run.journal.write(good)
    if len(good) < len(records):
        if run.manager:
            checkpoint.finish(run.manager)
        _diverged(run, span, records[len(good)])
    for line in run.journal.notes(records, over=records[-1]["step"] == span.end):
        bar.write(line)
    return records[-1]["epoch"]


def _save(run, state, stop):
    if not run.manager:
        return
    for step in run.manager.all_steps():  # of an earlier stop: the end is as without it
        if step % run.options.save_every and step not in run.ends and step < int(state.step):
            run.manager.delete(step)
    checkpoint.save(run.manager, state)
    if stop:
        checkpoint.finish(run.manager)
        print(f"\na checkpoint of update {int(state.step)} is written in {run.place.folder}")


def _look(run, span, state, bar):
    for record in run.watch(state, span.phase.step) if run.watch and hosts.lead() else ():
        run.journal.board([record])
        bar.write(record["says"])


class _Journal:
    """What is written and said of the updates: the log, TensorBoard, the model's notes."""

    def __init__(self, model, log, board, recent):
        self.model, self.log, self.board = model, log, board
        self.recent, self.said = recent, set()  # recent: records of the epoch in progress

    def write(self, records):
        if hosts.lead():
            logs.append(self.log, records)
        self.board(records)

    def notes(self, records, over):
        """The model's lines on the epochs that end with these records, each once; over: a phase."""
        *whole, last = epochs([*self.recent, *records])
        self.recent = [] if over else last
        lines = [x for x in notes(self.model, whole) if x.startswith("warning: ")]
        lines += notes(self.model, [last]) if over else []
        new = [line for line in dict.fromkeys(lines) if line not in self.said]
        self.said.update(new)
        return new


def epochs(records: list[logs.Record]) -> list[list[logs.Record]]:
    """The records of a log by epoch, in order."""
    key = operator.itemgetter("phase", "epoch")
    return [list(group) for _, group in itertools.groupby(records, key)]


def notes(model: Model, groups: list[list[logs.Record]]) -> list[str]:
    """What `model.notes` says of some epochs' records, each line once, in order."""
    if model.notes is None:
        return []
    return list(dict.fromkeys(line for group in groups for line in model.notes(group)))


def _finite(record):
    return all(np.isfinite(value) for value in record.values() if isinstance(value, float))


def _diverged(run, span, record):
    """Writes which batches an update took beside the log, and raises Diverged."""
    log, folder = run.place.log, run.place.folder
    name, value = next(
        (name, value)
        for name, value in record.items()
        if isinstance(value, float) and not np.isfinite(value)
    )
    batches = _named(run.parts, _draw(run, span, record["step"] - 1))
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


def _named(parts, index):
    """The pairs of a draw [batches, size]: a list of [store, row] for each batch."""

    def name(row):
        number, row = _owner(parts, row)
        return [str(parts[number].store.path), int(parts[number].rows[row])]

    return [[name(row) for row in batch] for batch in index]


# --- Batches -------------------------------------------------------------------------------------


def _draw(run, span, update):
    """Rows [batches, size], counted through all parts, of the update after `update` of them."""
    place = store.Place(run.options.seed, span.number, update - span.begin)
    counts = [len(part.rows) for part in run.parts]
    return store.batch_rows(counts, run.options.batch, place, span.phase.batches)


def _owner(parts, rows):
    """The part that each row, counted through all, is of, and its place there."""
    starts = np.cumsum([0, *(len(part.rows) for part in parts)])
    number = np.searchsorted(starts, rows, side="right") - 1
    return number, rows - starts[number]


def _batches(run, span, first) -> Iterator[Batch]:
    """The batches of the updates from `first` on: resident where they fit, else streamed."""
    draws = (_draw(run, span, update) for update in range(first, span.end))
    counts, size = [len(part.rows) for part in run.parts], run.parts[0].store.size
    small = sum(counts) * size**3 * 2 // 8 <= run.options.budget_mb * 2**20
    if small and jax.process_count() == 1:
        bits = np.concatenate([part.store.load(part.rows) for part in run.parts])
        data = parallel.resident(bits)
        for index in draws:
            yield Batch(data, index)
        return
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ahead = []
        for index in draws:
            ahead.append(pool.submit(_read, run.parts, index))
            if len(ahead) > 4:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def _read(parts, index: Shaped[np.ndarray, "batches size"]) -> Batch:
    """The pairs of one draw; of several processes, each reads only its own columns of it."""
    mine = hosts.columns(index.shape[1])
    owner, rows = _owner(parts, index[:, mine].ravel())
    bits = np.empty((len(rows), parts[0].store.size ** 3 * 2 // 8), np.uint8)
    for number, part in enumerate(parts):
        its = owner == number
        bits[its] = part.store.load(part.rows[rows[its]])
    local = np.zeros_like(index)
    local[:, mine] = np.arange(len(rows)).reshape(len(index), -1)
    return Batch(bits, local)
