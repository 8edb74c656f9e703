"""IntroVAE: equations 4 and 5 by hand, what each gradient reaches, the VAE at alpha = 0, notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import introvae, vae
from skullgen.data import store
from skullgen.models import introvae as introvae_model
from skullgen.models import steps
from skullgen.networks import losses
from skullgen.networks.modules import AXIS
from tests.models import common
from tests.models.common import SIZE

pytestmark = pytest.mark.usefixtures("lax")
ENCODER, DECODER = 0, 1  # the losses' arguments


def _config(module=introvae, **fields):
    return common.config_of(module, widths=(8,), **fields)


def _start(config):
    return common.start(config.model_name, config.model)


@pytest.fixture(scope="module")
def arguments(data):
    """Of both losses, but alpha: encoder, decoder, (pairs, labels), noise, prior."""
    _, state = _start(_config())
    noise, prior = (jax.random.normal(jax.random.key(number), (4, 4)) for number in (2, 3))
    pairs = jnp.asarray(store.unpack(data[:4], SIZE), jnp.float32)
    given = pairs, jnp.zeros((4, 0))
    return (*(state.nets[role].params for role in ("encoder", "decoder")), given, noise, prior)


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


def test_both_losses_are_made_of_the_networks_outputs_as_equations_4_and_5_say(arguments):
    """From the modules' own outputs, sample by sample, in numpy."""
    encoder, decoder, (pairs, _), noise, prior = arguments
    module = introvae_model.vae.autoencoder(_config().model)
    encode, decode = (jax.jit(part.apply) for part in (module.encoder, module.decoder))
    pairs, noise = np.asarray(pairs), np.asarray(noise)

    def kl(x):
        mean, log_variance = map(np.asarray, encode({"params": encoder}, jnp.asarray(x)))
        terms = mean**2 + np.exp(log_variance) - 1 - log_variance
        return mean + np.exp(log_variance / 2) * noise, 0.5 * terms.sum(-1)

    z, kl_real = kl(pairs)
    rebuilt, new = (np.asarray(decode({"params": decoder}, v)) for v in (jnp.asarray(z), prior))
    (_, kl_rebuilt), (_, kl_new) = kl(rebuilt), kl(new)
    error = (np.array([1, 3]) * (rebuilt - pairs) ** 2).sum((1, 2, 3, 4)) / SIZE
    margin = float(np.sort([*kl_rebuilt, *kl_new])[3:5].mean())  # some hinges act, and some do not
    hinge = np.maximum(0, margin - kl_rebuilt) + np.maximum(0, margin - kl_new)
    fields = dict(beta=0.5, margin=margin, channel_weights=(1.0, 3.0))
    encoder_loss, decoder_loss = (jax.jit(f, static_argnums=5) for f in _losses(**fields))
    loss, (_, metrics) = encoder_loss(*arguments, 0.25)
    assert float(loss) == pytest.approx(np.mean(kl_real + 0.25 * hinge + 0.5 * error), rel=1e-5)
    by_hand = np.mean(0.25 * (kl_rebuilt + kl_new) + 0.5 * error)
    assert float(decoder_loss(*arguments, 0.25)) == pytest.approx(by_hand, rel=1e-5)
    expected = {
        "reconstruction": error.mean(),
        "kl_real": kl_real.mean(),
        "kl_reconstruction": kl_rebuilt.mean(),
        "kl_prior": kl_new.mean(),
        "hinge_active_reconstruction": np.mean(kl_rebuilt < margin),
        "hinge_active_prior": np.mean(kl_new < margin),
        "occupancy_skull": np.clip(rebuilt, 0, 1)[..., 0].mean(),
        "occupancy_defect": np.clip(rebuilt, 0, 1)[..., 1].mean(),
    }
    assert jax.tree.map(float, metrics) == pytest.approx(expected, rel=1e-4)


def test_margin_term_has_no_gradient_for_the_decoder_nor_through_the_fakes(arguments):
    """With beta = 0 the decoder enters equation 4 by the margin term alone. The encoder's gradient
    is that of its judgement of fixed fakes: not of the z that one of them was made from."""
    encoder, decoder, (pairs, _), noise, prior = arguments
    encoder_loss, _ = _losses(beta=0.0, margin=1e3)
    module = introvae_model.vae.autoencoder(_config().model)

    mean, log_variance = module.encoder.apply({"params": encoder}, pairs)
    latents = mean + jnp.exp(log_variance / 2) * noise, prior
    fixed = [module.decoder.apply({"params": decoder}, z) for z in latents]

    def by_hand(encoder):
        kl = [losses.kl(*module.encoder.apply({"params": encoder}, x)) for x in (pairs, *fixed)]
        return jnp.mean(kl[0] + 0.25 * (1e3 - kl[1]) + 0.25 * (1e3 - kl[2]))

    for_encoder, for_decoder = _gradient(encoder_loss, arguments, 0.25, (ENCODER, DECODER))
    assert _norm(for_decoder) == 0
    expected = jax.jit(jax.grad(by_hand))(encoder)
    common.assert_close(for_encoder, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_generators_loss_has_no_gradient_for_the_encoder(beta, arguments):
    _, decoder_loss = _losses(beta=beta)
    encoder, decoder = _gradient(decoder_loss, arguments, 0.25, (ENCODER, DECODER))
    assert _norm(encoder) == 0
    assert _norm(decoder) > 1e-3  # through the fixed encoder where beta is 0


def test_with_alpha_0_the_gradients_are_the_vaes_with_squared_error(data):
    """A learning rate of 0 keeps the recomputed outputs equal, and Adam's first moment after one
    update is (1 - b1) of the gradient."""
    fields = dict(head="linear", channel_weights=(1.0, 3.0))
    judge, state = _start(_config(learning_rate=0.0, beta=1.0, **fields))
    whole, other = _start(_config(vae, kl_weight=1.0, **fields))
    weights = {role: jax.tree.map(jnp.copy, net.params) for role, net in state.nets.items()}
    other = other.replace(nets={"vae": other.nets["vae"].replace(params=weights)})
    one, [logged] = common.train(judge.steps["vae"], state, data)
    two, [expected] = common.train(whole.steps["vae"], other, data)
    moments = {role: net.opt[0].mu for role, net in one.nets.items()}
    common.assert_close(moments, two.nets["vae"].opt[0].mu, rtol=1e-3, atol=1e-5)
    assert _norm(moments["encoder"]) > 1e-3 and _norm(moments["decoder"]) > 1e-3
    for name in ("reconstruction", "occupancy_defect"):
        assert logged[name] == pytest.approx(expected[name], rel=1e-5)


def test_decoder_is_updated_on_outputs_of_the_new_encoder(data):
    """Its gradient is that of equation 5 at the encoder that the step returns."""
    config = _config(learning_rate=0.01)
    model, state = _start(config)
    before = jax.tree.map(jnp.copy, state)
    after, _ = common.train(model.steps["intro"], state, data)
    pairs = jnp.asarray(store.unpack(data[common.index()[0]], SIZE), jnp.float32)

    def draw(stream):
        one = jax.vmap(lambda _: steps.normal(steps.keys(before, stream, 4), 4), axis_name=AXIS)
        return one(jnp.zeros(1))[0]

    _, decoder_loss = introvae_model.objectives(config.model)
    given = pairs, jnp.zeros((len(pairs), 0))
    rest = before.nets["decoder"].params, given, draw(steps.NOISE), draw(steps.Z)
    moment = jax.tree.map(lambda m: m / 0.1, after.nets["decoder"].opt[0].mu)
    errors = []
    for state in (after, before):
        arguments = state.nets["encoder"].params, *rest
        gradient = _gradient(decoder_loss, arguments, config.model.alpha, DECODER)
        errors.append(_norm(jax.tree.map(jnp.subtract, gradient, moment)))
    assert errors[0] < 1e-3 * _norm(moment) < errors[1]


def test_decode_is_the_clipped_output_and_latents_may_be_the_aggregate_posterior(data):
    model, state = _start(_config(latents="aggregate"))
    state, _ = common.train(model.steps["intro"], state, data, updates=2)
    output = introvae_model.vae.autoencoder(_config().model).decoder
    z = 30 * jax.random.normal(jax.random.key(2), (4, 4))
    raw = np.asarray(output.apply({"params": state.nets["decoder"].params}, z))
    assert raw.min() < 0
    np.testing.assert_allclose(model.decode(state, z), np.clip(raw, 0, 1), atol=1e-5)
    keys = jax.random.split(common.threefry(), 4)
    expected = introvae_model.vae.aggregate(
        state.nets["encoder"].stats, keys, jnp.zeros((len(keys), 0))
    )
    np.testing.assert_array_equal(model.latents(state, keys), expected)


@pytest.mark.parametrize(
    ("phase", "rebuilt", "new", "words"),
    [
        ("vae", (1.0, 1.0), (0.0, 0.0), ["KL(real) is 9: set config.model.margin (7) a little"]),
        ("intro", (0.0, 0.1), (1.0, 0.9), []),
        ("intro", (0.0, 0.0), (0.5, 1.0), ["warning: the reconstruction's hinge was idle"]),
        ("intro", (0.5, 1.0), (1.0, 1.0), ["warning: the prior's hinge was saturated"]),
    ],
)
def test_notes_print_the_kl_and_name_the_field_that_mends_a_hinge(phase, rebuilt, new, words):
    records = [
        {"phase": phase, "kl_real": kl, "kl_reconstruction": 5.0, "kl_prior": 4.0}
        | {"hinge_active_reconstruction": a, "hinge_active_prior": b}
        for kl, a, b in zip((10.0, 8.0), rebuilt, new, strict=True)
    ]
    model, _ = _start(_config(margin=7.0))
    notes = model.notes(records)
    assert [note[: len(start)] for note, start in zip(notes, words, strict=True)] == words
    cures = {"idle": "KL(real) is 9: raise config.model.margin (7)"}
    cures["saturated"] = "lower config.model.margin (7)"
    assert all(cure in note for note in notes for state, cure in cures.items() if state in note)
