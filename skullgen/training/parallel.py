"""A step over many devices: the only pmap of training."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from skullgen.core.types import Metrics, State, Step
from skullgen.models import steps
from skullgen.networks.modules import AXIS


def data_parallel(
    step: Step, size: int, devices: Sequence[jax.Device] | None = None
) -> Callable[..., tuple[State, Metrics]]:
    """A model's step on pairs of `size` voxels a side, over `devices` (None: of all processes).

    Returns `run(state, data, index) -> (state, metrics)`.

    data: uint8 [N, bytes], packed pairs on every device: all of them (`resident`), or, where they
        are streamed, those of this update.
    index: int32 [batches, B], rows of `data`; the B samples are split over the devices. Of several
        processes, each reads its own columns only (`hosts.columns`).

    `state` is one unreplicated value, donated, and so is the state that comes back.
    """
    devices = devices or jax.devices()
    here = [device.process_index == jax.process_index() for device in devices]
    mapped = jax.pmap(
        lambda state, data, index: step(state, steps.unpack(data[index], size)),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )
    return lambda state, data, index: mapped(state, data, _split(index, len(devices))[here])


def _split(index, devices):
    """[batches, B] -> [devices, batches, B / devices]: each device has a run of samples."""
    return np.moveaxis(index.reshape(len(index), devices, -1), 1, 0)


def resident(tree: Any) -> Any:
    """Puts arrays on every local device, whole."""
    mesh = jax.make_mesh(
        (jax.local_device_count(),),
        (AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices(),
    )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
