"""Net, State, Phase, Model: the values that every method is made of.

Shapes: `B` samples of a batch, `D` voxels a side, `Z` latents. A pair is `[D, D, D, 2]`:
channel 0 the defective skull, channel 1 its defect (the implant).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

Metrics = Mapping[str, jax.Array]
Step = Callable[["State", jax.Array], tuple["State", Metrics]]


@struct.dataclass
class Net:
    """One network in training.

    params: its weights, float32, as flax made them.
    stats: running values that are not trained (`{}` where there are none).
    opt: the state of its optax optimiser.
    """

    params: Any
    stats: Any
    opt: Any


@struct.dataclass
class State:
    """All that a run needs to go on: saved, restored, donated and returned as one value.

    step: int32 [], optimiser updates taken over all phases.
    key: the run's typed PRNG key; never split, only folded (`skullgen.models.steps.keys`).
    nets: the networks by role, for example `{"generator": Net, "critic": Net}`.
    """

    step: jax.Array
    key: jax.Array
    nets: dict[str, Net]


class Phase(NamedTuple):
    """One line of a recipe: which step, for how long, on how many batches at a time.

    step: a name in `Model.steps`.
    epochs: length in epochs of `ceil(pairs / batch)` updates, or 0 where `updates` is given.
    updates: length in updates of the generator (or of the only network).
    batches: real batches that one update takes: 5 for WGAN-GP's five critic updates.
    """

    step: str
    epochs: int = 0
    updates: int = 0
    batches: int = 1


class Model(NamedTuple):
    """A method, as pure functions; those that it lacks are None.

    init: `(key) -> State`.
    steps: name -> `(State, batch bool [batches, B, D, D, D, 2]) -> (State, metrics)`. A step runs
        under `skullgen.models.steps.data_parallel`: `B` is one device's share of the batch.
    latents: `(State, keys [B]) -> z float32 [B, Z]`, one key a sample.
    decode: `(State, z [B, Z]) -> float32 [B, D, D, D, 2]`, the probability of each channel.
    encode: `(State, pairs [B, D, D, D, 2]) -> float32 [B, Z]`, the posterior's mean.
    predict: `(State, defective skulls [B, D, D, D]) -> float32 [B, D, D, D]`, the implant's
        probability.
    features: `(State, pairs [B, D, D, D, 2]) -> float32 [B, F]`, what maps are drawn from.
    drafts: step -> what is shown for `decode` while that step trains, where `decode` does not
        learn from it.
    notes: `(records) -> list of lines`: what a whole epoch's records of the log, all of one phase,
        say that its user should know: a number to set, a term that does nothing.
    """

    init: Callable[[jax.Array], State]
    steps: Mapping[str, Step]
    latents: Callable[[State, jax.Array], jax.Array] | None = None
    decode: Callable[[State, jax.Array], jax.Array] | None = None
    encode: Callable[[State, jax.Array], jax.Array] | None = None
    predict: Callable[[State, jax.Array], jax.Array] | None = None
    features: Callable[[State, jax.Array], jax.Array] | None = None
    notes: Callable[[list[dict]], list[str]] | None = None
    drafts: Mapping[str, Callable[[State, jax.Array], jax.Array]] | None = None
