"""Checkpoints of a State: the only orbax import.

States are saved from the host, as numpy arrays (the key as its data): a checkpoint restores on
any number and kind of devices. Saving is asynchronous; an unfinished step is never listed. Orbax
does not see every flipped bit, so each step holds a sum of its own.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging
from isal import isal_zlib

from skullgen.core import files, hosts, jobs
from skullgen.core.errors import UserError, plain
from skullgen.core.types import Net, State
from skullgen.data import schema

_AGAIN = "the stage that trains it goes on from the one before"
DELETED = "deleted.partial"  # `jobs.clear` knows it by its ending
# What orbax and tensorstore raise for a damaged one; RecursionError is a RuntimeError.
_BROKEN = (ArithmeticError, AttributeError, LookupError, OSError)
_BROKEN += (RuntimeError, TypeError, ValueError)


class Damaged(UserError):
    """A checkpoint that is not what was written."""


def manager(folder, keep=2, always=(), mend=False, reading=False):
    """A checkpoint manager on `folder`, which is made: the last `keep` and the steps `always`.

    It is this process's alone: of several processes one saves. mend: what is no whole checkpoint
    is set aside, with a warning; else it raises Damaged. reading: nothing is written, so that
    another process may be saving there, and the folder may be read-only.
    """
    if not reading:
        folder.mkdir(parents=True, exist_ok=True)
    for place in [place for place in folder.iterdir() if place.name.isdigit()]:
        try:
            _check(place)
        except Damaged as error:  # orbax would fail at once, whichever step is wanted
            if not mend:
                raise
            _set_aside(place, error)
    policies, me = ocp.checkpoint_managers, jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), policies.CustomSteps(list(always))]
            ),
            create=False,
            read_only=reading,
            save_interval_steps=0 if reading else 1,
            cleanup_tmp_directories=not reading,
            # Moved there at once: a kill leaves no step half deleted.
            todelete_subdir=None if reading else DELETED,
            multiprocessing_options=alone,
        ),
    )


def _set_aside(place, error):
    aside = jobs.set_aside(place, "-damaged")
    print(plain(f"warning: {error}; it is now {aside.name}"), file=sys.stderr)


def _check(place):
    """Damaged unless a step holds its own plain files, and orbax's note of it is one."""
    root, kinds = os.path.realpath(place), ("item_handlers", "metrics", "custom_metadata")
    try:
        for file in place.rglob("*"):
            if file.is_symlink() or not file.is_dir():
                schema.plain_file(file, root, 2**40)
        about = schema.read_json(place / "_CHECKPOINT_METADATA", root)
        told = about.get("performance_metrics", {}), *map(about.get, kinds)
        whole = all(isinstance(value, dict) for value in told)
        times = [about.get(f"{what}_timestamp_nsecs", 0) for what in ("init", "commit")]
        if not whole or not all(type(time) is int for time in times):
            raise UserError(f"{place / '_CHECKPOINT_METADATA'}: not as orbax writes it")
    except UserError as error:
        raise Damaged(f"{place}: damaged ({error}); {_AGAIN}") from None


def _check_claims(place, target):
    """ValueError where a step claims arrays larger than `target`: tensorstore would end us."""
    base = {"driver": "file", "path": f"{place / 'default'}/"}
    files = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    claimed = 0
    for key in files.list().result():
        if key.endswith(b"/.zarray"):
            about = json.loads(files.read(key).result().value)
            claimed += math.prod(map(max, about["shape"], about["chunks"]))
    if claimed > 2 * sum(x.size for x in jax.tree.leaves(target)):
        raise ValueError(f"its arrays claim {claimed} numbers, more than the model has")


def newest(folder):
    """The newest whole step in `folder`, or 0 where there is none."""
    if not folder.is_dir():
        return 0
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)


def fingerprint(state):
    """SHA-256 of all weights and running values of a State: what its samples depend on."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves({role: (n.params, n.stats) for role, n in state.nets.items()}):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def save(manager, state):
    """Starts to save `state` under its step, unless that step is there; copies it first.

    The state may be donated at once afterwards. Raises UserError where the disk has no room for it.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    state = state.replace(key=jax.random.key_data(state.key))
    copy = jax.tree.map(lambda x: np.array(x, copy=True), state)
    place = Path(manager.directory) / str(step)
    needed = sum(x.nbytes for x in jax.tree.leaves(copy)) + 2**20  # and orbax's own files
    finish(manager)
    if files.free_bytes(place) < needed:  # orbax would find out in a thread of its own
        raise files.no_room(place, needed)
    manager.save(step, args=ocp.args.StandardSave(copy), custom_metadata=_sums(copy))


def keep(folder, state, reads):
    """Saves into `folder` only the leaves of `state.nets` that are read, for `restore` to read.

    reads: for each leaf, in order, whether it is. The others are restored as 0: training cannot
    go on from such a checkpoint.
    """
    kept = np.flatnonzero(reads).tolist()
    copy = jax.tree.map(np.asarray, _kept(state, kept))
    with contextlib.closing(manager(folder)) as place, files.room(folder):
        about = {**_sums(copy), "kept": kept}
        place.save(int(state.step), args=ocp.args.StandardSave(copy), custom_metadata=about)
        finish(place)
    for note in folder.rglob("commit_success.txt"):  # the folder's place on this machine
        note.unlink()


def _kept(state, kept):
    leaves = jax.tree.leaves(state.nets)
    params = {f"{number:06d}": leaves[number] for number in kept}
    return State(state.step, np.zeros(1, np.uint32), {"kept": Net(params, {}, {})})


def _widened(state, shapes):
    """The State that `_kept` was made of; 0 stands for its key and what nothing reads."""
    leaves, tree = jax.tree.flatten(shapes.nets)
    leaves = [np.zeros((), leaf.dtype) for leaf in leaves]
    for number, leaf in state.nets["kept"].params.items():
        leaves[int(number)] = leaf
    key = jax.random.key_data(jax.random.key(0))
    return State(state.step, key, jax.tree.unflatten(tree, leaves))


def finish(manager):
    """Waits until what was saved is written, and makes the room of what is no longer kept."""
    manager.wait_until_finished()
    shutil.rmtree(Path(manager.directory) / DELETED, ignore_errors=True)


def _sums(state):
    """What tells a State of this model (`tree`), and this very one (`crc32`)."""
    crc, places = 0, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        places.append(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}")
        crc = isal_zlib.crc32(np.ascontiguousarray(leaf), crc)
    tree = isal_zlib.crc32("\n".join(places).encode())
    return {"crc32": crc, "tree": tree, "both": _both(crc, tree)}


def _both(crc, tree):
    return isal_zlib.crc32(f"{crc} {tree}".encode())


def begin(manager, model, seed):
    """The State to train from in every process: process 0's newest whole checkpoint, or a new one.

    manager: process 0's; None in the others. A damaged checkpoint is set aside, with a warning.
    """
    state = _newest_whole(manager, model) if manager else None
    if state is None:
        # rbg for the weights: threefry takes XLA seconds to compile for every shape drawn.
        state = jax.jit(model.init)(jax.random.key(seed, impl="rbg"))
        state = state.replace(key=jax.random.key(seed))
    same = hosts.first(state.replace(key=jax.random.key_data(state.key)))
    same = jax.tree.map(jax.numpy.asarray, same)
    return same.replace(key=jax.random.wrap_key_data(same.key))


def _newest_whole(manager, model):
    while True:
        try:
            return restore(manager, model, whole=True)
        except Damaged as error:
            _set_aside(manager.directory / str(manager.latest_step()), error)
            manager.reload()


def restore(manager, model, step=None, whole=False):
    """The State at `step` (None: the newest), or None where there is none.

    whole: what `keep` saved is refused.
    Raises Damaged where it is not what was saved, UserError where it is of another model.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shapes = shapes.replace(key=jax.eval_shape(jax.random.key_data, shapes.key))
    place = manager.directory / str(step)
    try:
        told = dict(manager.metadata(step).custom_metadata or {})
        kept = told.pop("kept", None)
        if whole and kept is not None:
            raise UserError(f"{place}: of a release: training cannot go on from it")
        wanted = shapes if kept is None else _kept(shapes, kept)
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), wanted)
        same = told.get("tree") == _sums(target)["tree"]
        if not same and told.get("both") == _both(told.get("crc32"), told.get("tree")):
            raise UserError(f"{place}: a checkpoint of another model or of other sizes")
        _check_claims(place, target)
        state = manager.restore(step, args=ocp.args.StandardRestore(target))
        sums = _sums(state)
    except _BROKEN as error:
        raise Damaged(f"{place}: damaged ({_first_line(error)}); {_AGAIN}") from None
    if told != sums:
        raise Damaged(f"{place}: damaged (not what was saved); {_AGAIN}")
    state = state if kept is None else _widened(state, shapes)
    state = jax.tree.map(jax.numpy.asarray, state)
    return state.replace(key=jax.random.wrap_key_data(state.key))


def read(folder, model, step):
    """The State at `step` in `folder`, to which nothing is written; raises as `restore` does."""
    told = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns of a manager that only reads
    try:
        with contextlib.closing(manager(folder, reading=True)) as held:
            return restore(held, model, step)
    finally:
        logging.set_verbosity(told)


def _first_line(error):
    words = str(error).strip().splitlines()
    return words[0][:120] if words else type(error).__name__
