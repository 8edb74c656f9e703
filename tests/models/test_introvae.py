"""IntroVAE: equations 4 and 5 by hand, what each gradient reaches, the VAE at alpha = 0, notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import introvae, vae
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.models import introvae as introvae_model
from skullgen.models import steps
from skullgen.networks import losses
from skullgen.training import methods

SIZE = 8
ENCODER, DECODER = 0, 1  # the losses' arguments


def _config(module=introvae, **fields):
    config = module.get_config("smoke")
    config.model.update(resolution=SIZE, widths=(8,), latent=4, **fields)
    return config


def _start(config):
    """The model and its state; threefry, since rbg under vmap is not per key."""
    model = methods.load_model(config.model_name, config.model)
    state = jax.jit(model.init)(jax.random.key(0))
    return model, state.replace(key=jax.random.key(1, impl="threefry2x32"))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    pairs = np.zeros((12, SIZE, SIZE, SIZE, 2), bool)
    pairs[:, 2:6, 2:6, 2:6, 0] = True
    pairs[..., 0] ^= rng.random(pairs.shape[:-1]) < 0.1
    pairs[:, 3:5, 3:5, 6:, 1] = rng.random((12, 2, 2, 2)) < 0.7
    return store.pack(pairs)


@pytest.fixture(scope="module")
def arguments(data):
    """Of both losses, but alpha: encoder, decoder, pairs, noise, prior."""
    _, state = _start(_config())
    noise, prior = (jax.random.normal(jax.random.key(number), (4, 4)) for number in (2, 3))
    pairs = jnp.asarray(store.unpack(data[:4], SIZE), jnp.float32)
    return (*(state.nets[role].params for role in ("encoder", "decoder")), pairs, noise, prior)


def _losses(**fields):
    return introvae_model.objectives(_config(**fields).model)


def _gradient(loss, arguments, alpha, which):
    """The gradient of one of the losses with respect to both networks, or to `which`."""

    def total(*arguments):
        value = loss(*arguments, alpha)
        return value[0] if isinstance(value, tuple) else value

    return jax.jit(jax.grad(total, which))(*arguments)


def _norm(tree):
    return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def _run(model, name, state, data, devices=1, updates=1):
    run = steps.data_parallel(model.steps[name], SIZE, jax.local_devices()[:devices])
    for update in range(updates):
        index = store.batch_rows(12, 4, seed=0, phase=0, update=update, batches=1)
        state, metrics = run(state, data, index)
    return state, metrics


def test_both_losses_are_made_of_the_networks_outputs_as_equations_4_and_5_say(arguments):
    """From the modules' own outputs, sample by sample, in numpy."""
    encoder, decoder, pairs, noise, prior = arguments
    module = introvae_model.vae.autoencoder(_config().model)
    encode, decode = (jax.jit(part.apply) for part in (module.encoder, module.decoder))
    pairs, noise = np.asarray(pairs), np.asarray(noise)

    def kl(x):
        mean, log_variance = map(np.asarray, encode({"params": encoder}, x))
        terms = mean**2 + np.exp(log_variance) - 1 - log_variance
        return mean + np.exp(log_variance / 2) * noise, 0.5 * terms.sum(-1)

    z, kl_real = kl(pairs)
    made, new = (np.asarray(decode({"params": decoder}, v)) for v in (z, prior))
    (_, kl_made), (_, kl_new) = kl(made), kl(new)
    error = (np.array([1, 3]) * (made - pairs) ** 2).sum((1, 2, 3, 4)) / SIZE
    margin = float(np.sort([*kl_made, *kl_new])[3:5].mean())  # some hinges act, and some do not
    hinge = np.maximum(0, margin - kl_made) + np.maximum(0, margin - kl_new)
    fields = dict(beta=0.5, margin=margin, channel_weights=(1.0, 3.0))
    encoder_loss, decoder_loss = (jax.jit(f, static_argnums=5) for f in _losses(**fields))
    loss, (_, metrics) = encoder_loss(*arguments, 0.25)
    assert float(loss) == pytest.approx(np.mean(kl_real + 0.25 * hinge + 0.5 * error), rel=1e-5)
    by_hand = np.mean(0.25 * (kl_made + kl_new) + 0.5 * error)
    assert float(decoder_loss(*arguments, 0.25)) == pytest.approx(by_hand, rel=1e-5)
    expected = {
        "reconstruction": error.mean(),
        "kl_real": kl_real.mean(),
        "kl_reconstruction": kl_made.mean(),
        "kl_prior": kl_new.mean(),
        "hinge_active_reconstruction": np.mean(kl_made < margin),
        "hinge_active_prior": np.mean(kl_new < margin),
        "occupancy_skull": np.clip(made, 0, 1)[..., 0].mean(),
        "occupancy_defect": np.clip(made, 0, 1)[..., 1].mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_margin_term_has_no_gradient_for_the_decoder_nor_through_the_fakes(arguments):
    """With beta = 0 the decoder enters equation 4 by the margin term alone. The encoder's gradient
    is that of its judgement of fixed fakes: not of the z that one of them was made from."""
    encoder, decoder, pairs, noise, prior = arguments
    encoder_loss, _ = _losses(beta=0.0, margin=1e3)
    module = introvae_model.vae.autoencoder(_config().model)

    @jax.jit
    def fakes():
        mean, log_variance = module.encoder.apply({"params": encoder}, pairs)
        latents = (mean + jnp.exp(log_variance / 2) * noise, prior)
        return [module.decoder.apply({"params": decoder}, z) for z in latents]

    fixed = fakes()

    def by_hand(encoder):
        kl = [losses.kl(*module.encoder.apply({"params": encoder}, x)) for x in (pairs, *fixed)]
        return jnp.mean(kl[0] + 0.25 * (1e3 - kl[1]) + 0.25 * (1e3 - kl[2]))

    for_encoder, for_decoder = _gradient(encoder_loss, arguments, 0.25, (ENCODER, DECODER))
    assert _norm(for_decoder) == 0
    both = for_encoder, jax.jit(jax.grad(by_hand))(encoder)
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_generators_loss_has_no_gradient_for_the_encoder(beta, arguments):
    _, decoder_loss = _losses(beta=beta)
    encoder, decoder = _gradient(decoder_loss, arguments, 0.25, (ENCODER, DECODER))
    assert _norm(encoder) == 0
    assert _norm(decoder) > 1e-3  # through the fixed encoder where beta is 0


def test_with_alpha_0_the_gradients_are_the_vaes_with_squared_error(data):
    """From equal weights and draws. A learning rate of 0 keeps the recomputed outputs equal, and
    Adam's first moment after one update is (1 - b1) of the gradient."""
    fields = dict(head="linear", channel_weights=(1.0, 3.0))
    judge, state = _start(_config(learning_rate=0.0, beta=1.0, **fields))
    whole, other = _start(_config(vae, kl_weight=1.0, **fields))
    weights = {role: net.params for role, net in state.nets.items()}
    other = other.replace(nets={"vae": other.nets["vae"].replace(params=weights)})
    moments, logged = [], []
    for model, start in ((judge, state), (whole, other)):
        found, metrics = _run(model, "vae", jax.tree.map(jnp.copy, start), data)
        moments.append({role: net.opt[0].mu for role, net in found.nets.items()})
        logged.append([metrics[name] for name in ("reconstruction", "occupancy_defect")])
    moments[1] = moments[1]["vae"]
    for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert _norm(moments[0]["encoder"]) > 1e-3 and _norm(moments[0]["decoder"]) > 1e-3
    np.testing.assert_allclose(*logged, rtol=1e-5)


def test_decoder_is_updated_on_outputs_of_the_new_encoder(data):
    """Its gradient is that of equation 5 at the encoder that the step returns."""
    config = _config(learning_rate=0.01)
    model, state = _start(config)
    before = jax.tree.map(jnp.copy, state)
    after, _ = _run(model, "intro", state, data)
    index = store.batch_rows(12, 4, seed=0, phase=0, update=0, batches=1)[0]
    pairs = jnp.asarray(store.unpack(data[index], SIZE), jnp.float32)
    noise, prior = jax.vmap(
        lambda _: tuple(steps.normal(steps.keys(before, stream, 4), 4) for stream in (2, 0)),
        axis_name=introvae_model.vae.nets.AXIS,
    )(jnp.zeros(1))
    _, decoder_loss = introvae_model.objectives(config.model)
    gradients = [
        _gradient(
            decoder_loss,
            (encoder, before.nets["decoder"].params, pairs, noise[0], prior[0]),
            config.model.alpha,
            DECODER,
        )
        for encoder in (after.nets["encoder"].params, before.nets["encoder"].params)
    ]
    moment = jax.tree.map(lambda m: m / 0.1, after.nets["decoder"].opt[0].mu)
    fresh, stale = (_norm(jax.tree.map(jnp.subtract, g, moment)) for g in gradients)
    assert fresh < 1e-3 * _norm(moment) < stale


def test_two_devices_with_half_a_batch_equal_one(data):
    results = []
    for devices in (1, 2):
        model, state = _start(_config())
        state, metrics = _run(model, "intro", state, data, devices, updates=2)
        nets = {role: (net.params, net.stats) for role, net in state.nets.items()}
        results.append((nets, metrics))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        # Adam's first updates divide by the gradient's size: compare to its step, not to 0.
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_decode_is_the_clipped_output_and_latents_may_be_the_aggregate_posterior(data):
    model, state = _start(_config(latents="aggregate"))
    state, _ = _run(model, "intro", state, data, updates=2)
    net = state.nets["decoder"]
    output = introvae_model.vae.autoencoder(_config().model).decoder
    z = 30 * jax.random.normal(jax.random.key(2), (4, 4))
    raw = np.asarray(output.apply({"params": net.params}, z))
    assert raw.min() < 0
    np.testing.assert_allclose(model.decode(state, z), np.clip(raw, 0, 1), atol=1e-5)
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), 4)
    expected = introvae_model.vae.aggregate(state.nets["encoder"].stats, keys)
    np.testing.assert_array_equal(model.latents(state, keys), expected)
    assert model.encode(state, jnp.ones((2, *(SIZE,) * 3, 2), bool)).shape == (2, 4)


def test_other_heads_are_refused():
    with pytest.raises(UserError, match=r"model\.head is 'exclusive': choose one of linear"):
        methods.load_model("introvae", _config(head="exclusive").model)


def _records(phase, reconstruction=(0.5,), prior=(0.5,)):
    kls = {"kl_real": 9.0, "kl_reconstruction": 5.0, "kl_prior": 4.0}
    return [
        {"phase": phase, **kls, "hinge_active_reconstruction": a, "hinge_active_prior": b}
        for a, b in zip(reconstruction, prior, strict=True)
    ]


def test_notes_print_the_kl_and_name_the_field_that_mends_a_hinge():
    model, _ = _start(_config(margin=7.0))
    records = _records("vae", (1.0, 1.0), (0.0, 0.0))
    records[0]["kl_real"] = 10.0
    assert model.notes(records) == [
        "KL(real) is 9.5: set config.model.margin (7) a little above it"
    ]
    assert model.notes(_records("intro", (0.0, 0.1), (1.0, 0.9))) == []
    (idle,) = model.notes(_records("intro", (0.0, 0.0), (0.5, 1.0)))
    assert idle.startswith("warning: the reconstruction's hinge was idle")
    assert "KL(reconstruction) is 5" in idle and "raise config.model.margin (7)" in idle
    idle, saturated = model.notes(_records("intro", (0.0, 0.0), (1.0, 1.0)))
    assert saturated.startswith("warning: the prior's hinge was saturated")
    assert "lower config.model.margin (7), or raise config.model.alpha" in saturated
