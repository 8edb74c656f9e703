"""What the methods' tests share: small configs, a start, updates on a few pairs."""

import jax
import numpy as np

from experiments import vnet
from skullgen.data import measures, mixture, store
from skullgen.training import methods, parallel

SIZE = 8


def threefry():
    """A key, since rbg under vmap is not per key; a new one, since a state is donated."""
    return jax.random.key(1, impl="threefry2x32")


def config_of(module, **fields):
    config = module.get_config("smoke")
    config.model.update(resolution=SIZE, widths=(8, 8), latent=4)
    config.model.update(fields)
    return config


def vnet_of(**fields):
    """`config.segment.model`."""
    settings = vnet.get_config("smoke").segment.model
    with settings.unlocked():
        settings.update({"resolution": SIZE, **fields})
    return settings


def start(name, settings):
    """The model and its state at the start."""
    model = methods.load_model(name, settings)
    return model, jax.jit(model.init)(jax.random.key(0)).replace(key=threefry())


def packed_pairs():
    rng = np.random.default_rng(0)
    pairs = np.zeros((12, SIZE, SIZE, SIZE, 2), bool)
    pairs[:, 2:6, 2:6, 2:6, 0] = True
    pairs[..., 0] ^= rng.random(pairs.shape[:-1]) < 0.1
    pairs[:, 3:5, 3:5, 6:, 1] = rng.random((12, 2, 2, 2)) < 0.7
    return store.pack(pairs)


def labels():
    """Of `packed_pairs`: two kinds on two sides, areas rising."""
    number = np.arange(12)
    values = np.full((12, len(measures.NAMES)), np.nan, np.float32)
    values[:, measures.NAMES.index("side")] = 2 * (number % 2)
    values[:, measures.NAMES.index("area_cm2")] = 20 + 5 * number
    return measures.labels(number % 2, values)


def index(update=0, batches=1):
    """Rows of `packed_pairs` for an update: batches of 4."""
    return mixture.batch_rows([12], 4, mixture.Place(0, 0, update), batches)


def train(step, state, data, *, batches=1, devices=1, updates=1):
    """The state after some updates, and the metrics of each."""
    run = parallel.data_parallel(step, SIZE, jax.local_devices()[:devices])
    data, metrics = (data, labels()), []
    for update in range(updates):
        state, values = run(state, data, index(update, batches))
        metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics


def assert_close(a, b, rtol, atol):
    """Two trees of one form, leaf by leaf."""
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, two, rtol=rtol, atol=atol)


def weights(state):
    return {role: (net.params, net.stats) for role, net in state.nets.items()}
