"""A step over many devices: the only pmap of training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from skullgen.core.types import Batch, Metrics, State, Step
from skullgen.models import steps
from skullgen.networks.modules import AXIS


def data_parallel(
    step: Step, size: int, devices: Sequence[jax.Device] | None = None
) -> Callable[..., tuple[State, Metrics]]:
    """`run(state, data, index)`: a step on pairs of `size` voxels a side, over `devices` (or all).

    data: on every device, packed pairs, uint8 [N, bytes], and their labels, [N, labels]. index:
    int32 [batches, B], rows of them, split over the devices; each process reads its own
    (`hosts.columns`). `state` is donated.
    """

    def mapped(state, data, index):
        bits, labels = data
        return step(state, Batch(steps.unpack(bits[index], size), labels[index]))

    devices = devices or jax.devices()
    here = [device.process_index == jax.process_index() for device in devices]
    mapped = jax.pmap(
        mapped,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )

    def run(state, data, index):
        split = index.reshape(len(index), len(devices), -1)  # each device has a run of samples
        return mapped(state, data, np.moveaxis(split, 1, 0)[here])

    return run


def sharing(batch: int) -> list[jax.Device]:
    """The devices that a batch is split over: as many as have equal parts of it."""
    return jax.devices()[: math.gcd(batch, jax.device_count())]


def resident(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Puts arrays on every local one of some devices (or of all), whole."""
    here = jax.process_index()
    devices = [each for each in devices or jax.devices() if each.process_index == here]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=auto, devices=devices)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
