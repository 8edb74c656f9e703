"""Net, State, Phase, Model: the values that every method is made of.

Shapes: `B` samples of a batch, `D` voxels a side, `Z` latents, `F` features. A pair is
`[D, D, D, 2]`: channel 0 the defective skull, channel 1 its defect (the implant).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

Metrics = Mapping[str, jax.Array]
Pairs = Shaped[Array, "B D D D 2"]  # bool or float, 0 or 1; generated ones between


class Batch(NamedTuple):
    """What an update takes; labels: `data.measures.labels`, of which most models see nothing."""

    pairs: Bool[Array, "batches B D D D 2"]
    labels: Float[Array, "batches B labels"]


@no_type_check  # jax fills trees with whatever it maps: shapes, shardings
@struct.dataclass
class Net:
    """One network: flax's weights in float32, running values (`{}` for none), optax's state."""

    params: Any
    stats: Any
    opt: Any


@no_type_check
@struct.dataclass
class State:
    """All that a run needs to go on: saved, restored, donated and returned as one value.

    step: updates taken over all phases. key: the run's; never split, only folded
    (`models.steps.keys`). nets: by role, for example `{"generator": Net, "critic": Net}`.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    nets: dict[str, Net]


class Phase(NamedTuple):
    """One line of a recipe: a name in `Model.steps`, and for how long it trains.

    epochs: of `ceil(pairs / batch)` updates, or 0 where `updates` (of the generator, or of the
    only network) is given. batches: real ones that one update takes: WGAN-GP's critic has 5.
    """

    step: str
    epochs: int = 0
    updates: int = 0
    batches: int = 1


Step = Callable[[State, Batch], tuple[State, Metrics]]
Decode = Callable[[State, Float[Array, "B Z"]], Float[Array, "B D D D 2"]]


class Model(NamedTuple):
    """A method, as pure functions; those that it lacks are None."""

    init: Callable[[Key[Array, ""]], State]
    steps: Mapping[str, Step]  # each runs under `training.parallel.data_parallel`: B is a share
    # From one key a sample what samples are made from, and from that each channel's probability.
    latents: Callable[[State, Key[Array, " B"]], Float[Array, "B Z"]] | None = None
    decode: Decode | None = None
    encode: Callable[[State, Pairs], Float[Array, "B Z"]] | None = None  # the posterior's mean
    # The implant's probability, from defective skulls.
    predict: Callable[[State, Shaped[Array, "B D D D"]], Float[Array, "B D D D"]] | None = None
    features: Callable[[State, Pairs], Float[Array, "B F"]] | None = None  # maps are drawn from
    notes: Callable[[list[dict]], list[str]] | None = None  # on an epoch's records of a phase
    # The last `data.measures.LABELS` of its latents are labels; `latents` takes, after the keys,
    # which are asked for (`models.labels.Asked`).
    conditional: bool = False
    drafts: Mapping[str, Decode] | None = None  # step -> shown for `decode` while that trains
