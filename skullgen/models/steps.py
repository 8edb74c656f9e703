"""What every train step shares: one optimiser update, keys, and the only pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from skullgen.core.types import Net
from skullgen.networks.modules import AXIS


def descend(net, tx, loss, name):
    """One optimiser update of one network.

    net: `types.Net`. tx: its optax transformation. loss: `(params) -> (scalar, (stats, metrics))`,
        the mean over this device's samples.
    name: prefix of the metric `<name>_update_norm`, the global norm of the averaged gradient:
        where it is not finite the new weights are not either, and the run must stop.

    Returns the new Net and metrics; gradients and metrics are averaged over devices.
    """
    (_, (stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(net.params)
    gradient, metrics = _mean((gradient, metrics))
    updates, opt = tx.update(gradient, net.opt, net.params)
    metrics = {**metrics, f"{name}_update_norm": optax.tree.norm(gradient)}
    return Net(optax.apply_updates(net.params, updates), stats, opt), metrics


def _mean(tree):
    """Averages float32 values over devices."""
    if jax.process_count() == 1:
        return jax.lax.pmean(tree, AXIS)
    # As one array: between processes on CPUs each sum costs a millisecond.
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, AXIS))


def keys(state, stream, count, update=0):
    """Keys [count], one for each of this device's samples.

    A draw is keyed by (step, stream, critic update, global sample index), never by device: two
    devices with half a batch each draw what one device draws.
    """
    key = state.key
    for number in (state.step, stream, update):
        key = jax.random.fold_in(key, number)
    index = jax.lax.axis_index(AXIS) * count + jnp.arange(count)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def normal(keys, size):
    """Standard normal draws float32 [B, size], one key a sample."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def uniform(keys):
    """Draws from U(0, 1), float32 [B], one key a sample."""
    return jax.vmap(jax.random.uniform)(keys)


def unpack(bits, size):
    """uint8 [..., size^3 * 2 / 8], little-endian bits, -> bool [..., size, size, size, 2]."""
    bits = (bits[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    return bits.reshape(*bits.shape[:-2], size, size, size, 2).astype(bool)


def pack(pairs):
    """bool [B, D, D, D, 2] -> uint8 [B, D^3 * 2 / 8], the inverse of `unpack`."""
    bits = pairs.reshape(pairs.shape[0], -1, 8).astype(jnp.uint8)
    return (bits << jnp.arange(8, dtype=jnp.uint8)).sum(axis=-1, dtype=jnp.uint8)


def data_parallel(step, size, devices=None):
    """A model's step over `devices` (None: those of all processes).

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
        lambda state, data, index: step(state, unpack(data[index], size)),
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


def resident(array):
    """Puts an array on every local device, whole."""
    mesh = jax.make_mesh(
        (jax.local_device_count(),),
        (AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices(),
    )
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
