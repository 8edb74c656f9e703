"""The one loop, for every model: phases in order, position = `state.step`.

Everything that an update does follows from the store, the seed and its number, so a run that was
stopped goes on from its newest checkpoint and on one device kind ends as if it never had been.
"""

import concurrent.futures
import importlib
import math

import jax
import numpy as np

from skullgen import checkpoint, jobs, logs, steps, store
from skullgen.errors import Diverged, UserError
from skullgen.types import Phase


def load_model(name, config):
    """The Model that `make(config)` returns in `skullgen.models.<name>` or in `package.module`.

    config: an experiment's `config.model`. Raises UserError where there is no such module.
    """
    path = name if "." in name else f"skullgen.models.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not (error.name and f"{path}.".startswith(f"{error.name}.")):
            raise
        raise UserError(
            f"model_name is {name!r}: no module {path} that can be imported "
            "(a file of skullgen/models, or package.module on PYTHONPATH)"
        ) from None
    if not hasattr(module, "make"):
        raise UserError(f"model_name is {name!r}: {path} has no function make(config) -> Model")
    try:
        return module.make(config)
    except (AttributeError, ValueError) as error:
        raise UserError(f"config.model does not fit {path}: {error}") from error


def phases(specs, model):
    """`config.phases` as a list of Phase; UserError for a wrong field, step or length."""
    result = []
    for number, spec in enumerate(specs):
        where = f"phases[{number}]"
        try:
            phase = Phase(**spec)
        except TypeError:
            raise UserError(
                f"{where} is {dict(spec)}: its fields are {', '.join(Phase._fields)}"
            ) from None
        if phase.step not in model.steps:
            known = ", ".join(model.steps)
            raise UserError(f"{where}.step is {phase.step!r}: the model's steps are {known}")
        if (phase.epochs > 0) == (phase.updates > 0) or phase.batches < 1:
            raise UserError(
                f"{where} needs a positive `epochs` or a positive `updates`, not both, "
                "and `batches` of 1 or more"
            )
        result.append(phase)
    return result


def schedule(phases, pairs, batch):
    """The update at which each phase ends: an epoch is `ceil(pairs / batch)` updates."""
    lengths = [phase.updates or phase.epochs * math.ceil(pairs / batch) for phase in phases]
    return np.cumsum(lengths).tolist()


def train(
    model,
    plan,
    workdir,
    folder,
    *,
    seed,
    batch,
    log_every,
    save_every,
    keep,
    budget_mb,
    tensorboard=False,
):
    """Trains `model` through `plan` (a list of Phase) on `workdir/real.zarr`, or goes on.

    folder: of the checkpoints. batch: pairs of an update, over all devices. log_every,
    save_every: updates between fetches of the metrics and between checkpoints. keep: newest
    checkpoints kept, beside those at the phases' ends. budget_mb: packed pairs of up to this size
    stay on the device, more are streamed.

    Returns the State. Raises Diverged for a metric that is not finite, jobs.Stopped after
    a checkpoint where a signal came.
    """
    devices = jax.local_device_count()
    if batch % devices:
        raise UserError(f"batch_size is {batch}: not a multiple of the {devices} devices here")
    path = workdir / "real.zarr"
    size = store.open_store(path)["pairs"].shape[1]
    rows = store.rows(path, "train")
    ends = schedule(plan, len(rows), batch)
    manager = checkpoint.manager(folder, keep, ends)
    state = checkpoint.restore(manager, model)
    if state is None:
        # rbg for the weights: threefry takes XLA seconds to compile for every shape drawn.
        state = jax.jit(model.init)(jax.random.key(seed, impl="rbg"))
        state = state.replace(key=jax.random.key(seed))
    elif int(state.step) > 0:
        print(f"training: goes on from the checkpoint of update {int(state.step)} of {ends[-1]}")
    log = workdir / "train.jsonl"
    logs.rewind(log, int(state.step))
    write = logs.tensorboard(workdir / "tensorboard", tensorboard)
    budget = budget_mb * 2**20
    for number, (phase, end) in enumerate(zip(plan, ends, strict=True)):
        begin = ends[number - 1] if number else 0
        first = int(state.step)
        if first >= end:
            continue
        numbers = dict(seed=seed, phase=number, batches=phase.batches)
        draws = (
            store.batch_rows(len(rows), batch, update=update - begin, **numbers)
            for update in range(first, end)
        )
        run = steps.data_parallel(model.steps[phase.step], size)
        epoch = math.ceil(len(rows) / batch)
        pending = []

        def flush(pending=pending, phase=phase, begin=begin, epoch=epoch):
            records = [
                {
                    "phase": phase.step,
                    "epoch": (step - begin - 1) // epoch + 1,
                    "step": step,
                    **{name: float(value) for name, value in metrics.items()},
                }
                for step, metrics in jax.device_get(pending)
            ]
            pending.clear()
            good = _finite(records)
            logs.append(log, good)
            write(good)
            if len(good) < len(records):
                _diverged(records[len(good)], manager)

        name = f"train {phase.step}"
        with jobs.progress(end - begin, first - begin, name, "update") as bar:
            for data, index in _batches(path, rows, draws, budget):
                state, metrics = run(state, data, index)
                if bar.n == bar.initial:  # it compiled: the bar's rate begins now
                    jax.block_until_ready(metrics)
                    bar.unpause()
                first += 1
                pending.append((first, metrics))
                asked = jobs.asked()
                if len(pending) >= log_every or first % save_every == 0 or first == end or asked:
                    flush()
                    bar.set_postfix(epoch=(first - begin - 1) // epoch + 1, refresh=False)
                bar.update()
                if first % save_every == 0 or first == end or asked:
                    checkpoint.save(manager, state)
                if asked:
                    manager.wait_until_finished()
                    print(f"\na checkpoint of update {first} is written in {folder}")
                    jobs.check()
    manager.wait_until_finished()
    return state


def _finite(records):
    """The records before the first that holds a value that is not finite."""
    for number, record in enumerate(records):
        if not all(np.isfinite(v) for v in record.values() if isinstance(v, float)):
            return records[:number]
    return records


def _diverged(record, manager):
    manager.wait_until_finished()
    name, value = next(
        (name, value)
        for name, value in record.items()
        if isinstance(value, float) and not np.isfinite(value)
    )
    raise Diverged(
        f"training stopped: {name} is {value} at update {record['step']} (phase "
        f"{record['phase']}); the last good checkpoint is of update {manager.latest_step()}: "
        "lower the learning rate or the penalty, or compute in float32, in a new --workdir"
    )


def _batches(path, rows, draws, budget):
    """(packed pairs, rows of them) for each draw: resident where they fit, else streamed."""
    size = int(np.prod(store.open_store(path)["pairs"].shape[1:])) // 8
    if len(rows) * size <= budget:
        data = steps.resident(store.load(path, rows))
        for index in draws:
            yield data, index
        return

    def fetch(index):
        return store.load(path, rows[index.ravel()]), np.arange(index.size).reshape(index.shape)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ahead = []
        for index in draws:
            ahead.append(pool.submit(fetch, index))
            if len(ahead) > 4:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()
