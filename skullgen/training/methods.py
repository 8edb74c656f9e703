"""The trained networks of a run."""

from typing import NamedTuple

from skullgen.core.types import Model, State
from skullgen.data import store


class Trained(NamedTuple):
    """A method with its weights, and the pairs that they were learnt from."""

    model: Model
    state: State
    parts: list[store.Part] = []
