"""The methods' steps, each against an equivalence: devices, scan and loop, phases, warm start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import introvae, vae, vae_wgan, vnet, wgan_gp
from skullgen.core.errors import UserError
from skullgen.core.types import Batch, Net, State
from skullgen.data import store
from skullgen.models import steps
from skullgen.models import vae as vae_model
from skullgen.models import vae_wgan as vae_wgan_model
from skullgen.models import wgan_gp as wgan_gp_model
from skullgen.networks import losses, modules
from skullgen.networks.modules import AXIS
from tests.models import common
from tests.models.common import SIZE

pytestmark = pytest.mark.usefixtures("lax")
KEY, SLOW = jax.random.key(0), pytest.mark.slow
RECONSTRUCTION = ("reconstruction", "occupancy_skull")
WGAN = ("critic_distance", "penalty", "generator_loss")


def _start(module, **fields):
    if module is vnet:
        return common.start("vnet", common.vnet_of(**fields))
    config = common.config_of(module, **fields)
    return common.start(config.model_name, config.model)


@pytest.mark.parametrize(
    ("module", "name", "batches", "fields"),
    [
        (vae, "vae", 1, {}),
        pytest.param(wgan_gp, "wgan", 2, {}, marks=SLOW),  # `bridge` has the same step
        (vae_wgan, "bridge", 2, {"generator_norm": "batch", "warm_start": False}),
        (introvae, "intro", 1, {}),
        (vnet, "segment", 1, {"norm": "batch", "augment": True, "learning_rate": 2e-4}),
    ],
)
def test_two_devices_with_half_a_batch_equal_one(module, name, batches, fields, data):
    results = []
    for devices in (1, 2):
        model, state = _start(module, **fields)
        plan = dict(batches=batches, devices=devices)
        state, metrics = common.train(model.steps[name], state, data, **plan)
        results.append((common.weights(state), metrics[-1]))
    # Adam's first updates divide by the gradient's size: compare to its step, not to 0.
    common.assert_close(*results, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("module", "name", "batches", "watched"),
    [
        pytest.param(vae, "vae", 1, RECONSTRUCTION, marks=SLOW),
        pytest.param(wgan_gp, "wgan", 5, WGAN, marks=SLOW),
        pytest.param(introvae, "intro", 1, RECONSTRUCTION, marks=SLOW),
        (vnet, "segment", 1, ("loss",)),
    ],
)
def test_bfloat16_stays_within_a_fiftieth_of_float32(module, name, batches, watched, data):
    logs, size = {}, {} if module is vnet else {"widths": (8, 16), "latent": 8}
    for precision in ("float32", "bfloat16"):
        model, state = _start(module, precision=precision, **size)
        _, metrics = common.train(model.steps[name], state, data, batches=batches, updates=12)
        logs[precision] = [[values[key] for key in watched] for values in metrics]
    exact, rounded = (np.array(logs[precision]) for precision in ("float32", "bfloat16"))
    assert not np.array_equal(exact, rounded)  # it was computed in bfloat16
    assert (np.abs(rounded - exact).max(axis=0) < 0.02 * np.abs(exact).max(axis=0)).all()
    assert (np.ptp(exact, axis=0) > 0).all()


def test_scanned_critic_updates_equal_a_loop_by_hand(data):
    model, state = _start(wgan_gp)
    generator, critic = wgan_gp_model.networks(common.config_of(wgan_gp).model)
    tx = optax.adam(2e-4, b1=0.5, b2=0.9)
    net, judge = state.nets["generator"], state.nets["critic"]
    params, opt = judge.params, judge.opt

    def draw(function, stream, update):
        one = jax.vmap(lambda _: function(steps.keys(state, stream, 4, update)), axis_name=AXIS)
        return one(jnp.zeros(1))[0]

    @jax.jit
    def generate(update):
        z, variables = draw(lambda k: steps.normal(k, 4), 0, update), {"params": net.params}

        def one(z):
            logits, _ = generator.apply({**variables, "stats": net.stats}, z, mutable=["stats"])
            return modules.probabilities(logits)

        return jax.vmap(one, axis_name=AXIS)(z[None])[0], draw(steps.uniform, 1, update)

    @jax.jit
    def update_by_hand(params, opt, real, update):
        fake, u = generate(update)

        def loss(params):
            def score(x):
                return critic.apply({"params": params}, x)

            penalty, _ = losses.gradient_penalty(score, real, fake, u)
            return score(fake).mean() - score(real).mean() + 10 * penalty.mean()

        updates, opt = tx.update(jax.grad(loss)(params), opt)
        return optax.apply_updates(params, updates), opt

    for update, rows in enumerate(common.index(batches=3)):
        real = jnp.asarray(store.unpack(data[rows], SIZE), jnp.float32)
        params, opt = update_by_hand(params, opt, real, update)
    state, _ = common.train(model.steps["wgan"], state, data, batches=3)
    common.assert_close(state.nets["critic"].params, params, rtol=1e-3, atol=1e-5)


def test_critic_updates_leave_the_generators_running_averages_alone(data):
    """Only the generator's own update moves them, and by one batch's moments."""
    model, state = _start(wgan_gp, momentum=0.5)
    before = jax.tree.map(np.asarray, state.nets["generator"].stats)
    after, _ = common.train(model.steps["wgan"], state, data, batches=5)
    moved = after.nets["generator"].stats
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(moved), strict=True):
        assert not np.array_equal(old, new)
        if old.max() == 1:  # second moments begin at 1 and keep half of it after one update
            assert np.all(new >= 0.5) and np.all(new < 2.5)


def test_bridge_fed_by_a_standard_normal_posterior_equals_wgan(data):
    """An encoder that answers mean 0, log-variance 0 makes the two phases one."""
    results = []
    for name in ("bridge", "wgan"):
        model, state = _start(vae_wgan, latents="prior")
        net = state.nets["vae"]
        encoder = dict(net.params["encoder"])
        for dense in ("mean", "log_variance"):
            encoder[dense] = jax.tree.map(jnp.zeros_like, encoder[dense])
        net = net.replace(params={**net.params, "encoder": encoder})
        state = state.replace(nets={**state.nets, "vae": net})
        state, _ = common.train(model.steps[name], state, data, batches=2)
        results.append(state.nets["generator"])
    common.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_warm_start_makes_the_decoder_the_generator(data):
    model, state = _start(vae_wgan)
    state, _ = common.train(model.steps["vae"], state, data, updates=2)
    z = jax.random.normal(jax.random.key(2), (2, 4))
    alone = vae_model.make(common.config_of(vae).model).decode(state, z)
    np.testing.assert_array_equal(model.decode(state, z), alone)
    with pytest.raises(UserError, match=r"model\.generator_norm is 'batch'"):
        _start(vae_wgan, generator_norm="batch")


def _bridge_latents(batches, count):
    """What feeds each update: the number of the pair that it is the posterior of."""
    pairs = jnp.arange(float(batches * count)).reshape(batches, count, 1, 1, 1, 1)

    def posterior(params, pairs, known):  # the pair's number, without noise
        return pairs.mean((1, 2, 3)), jnp.full((len(pairs), 2), -jnp.inf)

    state = State(jnp.int32(0), KEY, {"vae": Net({}, {}, {})})
    latents = vae_wgan_model.from_posterior(posterior, 0)
    batch, keys = pairs * jnp.ones((1, 1, 1, 1, 1, 2)), jax.random.split(KEY, count)
    batch = Batch(batch, jnp.zeros((*batch.shape[:2], 10)))
    return [latents(state, batch, update, keys)[:, 0].tolist() for update in range(batches)]


def test_bridge_feeds_on_other_pairs_than_those_compared():
    assert _bridge_latents(3, 2) == [[2, 3], [4, 5], [0, 1]]  # the next batch, cyclic
    assert _bridge_latents(1, 3) == [[2, 0, 1]]  # of one batch, the next pair
    with pytest.raises(UserError, match=r"step `bridge`.* set `batches` to 2 or more"):
        _bridge_latents(1, 1)


def test_aggregate_posterior_has_the_mixtures_moments():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(16, 3)) @ rng.normal(size=(3, 3)) + 1
    log_variance = rng.normal(size=(16, 3)) * 0.2 - 1
    stats, keys = vae_model.unknown(3), jax.random.split(common.threefry(), 20000)
    # Before any update it is the prior.
    np.testing.assert_allclose(
        vae_model.aggregate(stats, keys[:4], jnp.zeros((4, 0))),
        steps.normal(keys[:4], 3),
        rtol=1e-5,
    )

    def follow(stats, mean, log_variance):
        return jax.vmap(
            lambda m, v: vae_model.follow(stats, m, v, 0.9), axis_name=AXIS, out_axes=None
        )(mean.reshape(2, 8, 3), log_variance.reshape(2, 8, 3))

    for _ in range(3):
        stats = follow(stats, jnp.asarray(mean), jnp.asarray(log_variance))
    z = np.asarray(vae_model.aggregate(stats, keys, jnp.zeros((len(keys), 0))))
    covariance = np.cov(mean.T, bias=True) + np.diag(np.exp(log_variance).mean(0))
    np.testing.assert_allclose(z.mean(0), mean.mean(0), atol=0.06)
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.15 * np.abs(covariance).max())
