"""Checkpoints of a State: the only orbax import.

States are saved from the host, as numpy arrays (the key as its data): a checkpoint restores on
any number and kind of devices. Saving is asynchronous; an unfinished step is never listed.
"""

import hashlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from skullgen import hosts


def manager(folder, keep=2, always=()):
    """A checkpoint manager on `folder`, which is made: the last `keep` and the steps `always`.

    It is this process's alone: of several processes one saves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    policies, me = ocp.checkpoint_managers, jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), policies.CustomSteps(list(always))]
            ),
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone,
        ),
    )


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

    The state may be donated at once afterwards.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    state = state.replace(key=jax.random.key_data(state.key))
    copy = jax.tree.map(lambda x: np.array(x, copy=True), state)
    manager.save(step, args=ocp.args.StandardSave(copy))


def begin(manager, model, seed):
    """The State to train from in every process: process 0's newest checkpoint, or a new one.

    manager: process 0's; None in the others.
    """
    state = restore(manager, model) if manager else None
    if state is None:
        # rbg for the weights: threefry takes XLA seconds to compile for every shape drawn.
        state = jax.jit(model.init)(jax.random.key(seed, impl="rbg"))
        state = state.replace(key=jax.random.key(seed))
    same = hosts.first(state.replace(key=jax.random.key_data(state.key)))
    same = jax.tree.map(jax.numpy.asarray, same)
    return same.replace(key=jax.random.wrap_key_data(same.key))


def restore(manager, model, step=None):
    """The State at `step` (None: the newest whole one), or None where there is none."""
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shapes = shapes.replace(key=jax.eval_shape(jax.random.key_data, shapes.key))
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = manager.restore(step, args=ocp.args.StandardRestore(target))
    state = jax.tree.map(jax.numpy.asarray, state)
    return state.replace(key=jax.random.wrap_key_data(state.key))
