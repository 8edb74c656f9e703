"""Several processes of one run, on one machine or many: JAX's own distributed runtime.

They share the work directory. Process 0 leads: it alone writes logs, checkpoints and what the
later stages make. Every process sees the same metrics, and so ends in the same update.
"""

import re
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from skullgen.core.errors import UserError


def join(text: str) -> None:
    """Becomes one of the processes of a run; call it before anything asks JAX for its devices.

    text: `auto`, where SLURM, Open MPI or Kubernetes tell JAX who takes part, or, by hand,
    `K/N@HOST:PORT`: process K of N, with a free port of process 0's host.
    """
    place = {}
    if by_hand := re.fullmatch(r"(\d+)/(\d+)@([^@]+:\d+)", text):
        index, count, address = by_hand.groups()
        place = dict(process_id=int(index), num_processes=int(count), coordinator_address=address)
        print(f"process {index} of {count}: process 0 is at {address}", file=sys.stderr)
    elif text != "auto":
        raise UserError(f"--distributed is {text!r}: auto, or K/N@HOST:PORT (process K of N)")
    try:
        jax.distributed.initialize(**place)
    except ValueError as error:
        what = f"--distributed={text}: JAX finds no such cluster ({error})"
        raise UserError(f"{what}: start it by srun or mpirun, or by K/N@HOST:PORT") from None
    # Both groups of devices meet now: later a process may be long behind another, here it may not.
    largest(0)
    jax.pmap(lambda x: jax.lax.psum(x, "all"), "all")(np.zeros(jax.local_device_count()))


def leave() -> None:
    """Ends the run of several processes, once all have come here; process 0 may go on alone."""
    if several():
        jax.distributed.shutdown()


def several() -> bool:
    """Whether this is one of several processes, which have not left each other yet."""
    return jax.distributed.is_initialized()


def lead() -> bool:
    """Whether this is process 0, which alone writes."""
    return jax.process_index() == 0


def columns(count: int) -> Int[np.ndarray, " n"]:
    """Which of `count` samples, split over all devices, are those of this process."""
    mine = [d.process_index == jax.process_index() for d in jax.devices()]
    return np.flatnonzero(np.repeat(mine, count // len(mine)))


def first(value: Any) -> Any:
    """Process 0's `value` (a tree of arrays) in every process, which wait for process 0 here."""
    return multihost_utils.broadcast_one_to_all(value) if several() else value


def largest(number: int) -> int:
    """The largest of all processes' numbers; no process goes on before all have come here."""
    return int(multihost_utils.process_allgather(np.int32(number)).max()) if several() else number
