"""Weights to start from: what is taken, what is not, and runs that go on."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import vae, vae_wgan
from skullgen.core import jobs, provenance
from skullgen.core.errors import UserError
from skullgen.core.types import Phase
from skullgen.delivery import release
from skullgen.training import checkpoint, logs, methods
from tests.models.common import assert_close
from tests.training import test_loop
from tests.training.test_loop import TOY, same

PLAN = [Phase("toy", updates=6)]


def _model(name, config):
    return methods.load_model(name, config.model)


@pytest.fixture(scope="module")
def source():
    """A VAE that is not as `init` makes it: its running values and step, too."""
    state = _model("vae", vae.get_config("smoke")).init(jax.random.key(7))
    nets = {"vae": jax.tree.map(lambda x: x + 1, state.nets["vae"])}
    return state.replace(step=state.step + 9, nets=nets)


def _begun(folder, model, start):
    return checkpoint.begin(folder, model, 3, start.put)


def test_what_fits_is_the_sources_and_the_rest_as_without_it(source, tmp_path):
    model = _model("vae_wgan", vae_wgan.get_config("smoke"))
    start = methods.fitting("init_from=x", source, model)
    now, plain = _begun(tmp_path, model, start), checkpoint.begin(tmp_path, model, 3)
    theirs, own = source.nets["vae"], now.nets["vae"]
    wanted = own.replace(params=theirs.params, stats=theirs.stats, opt=plain.nets["vae"].opt)
    twin = plain.nets["generator"].replace(params=theirs.params["decoder"])
    same(now, plain.replace(nets={**plain.nets, "vae": wanted, "generator": twin}))
    assert int(now.step) == 0 and (own.stats["mean"] == 1).all()
    assert "init_from=x: 33 of 41 arrays are taken, 8 begin anew" in start.line
    assert "(critic/params/Dense_0/bias [1], there nothing; " in start.line


def test_what_does_not_fit_is_named(source, tmp_path):
    config = vae.get_config("smoke")
    config.model.latent = 5
    model = _model("vae", config)
    start = methods.fitting("init_from=x", source, model)
    now, plain = _begun(tmp_path, model, start), checkpoint.begin(tmp_path, model, 3)
    kernel = now.nets["vae"].params["encoder"]["log_variance"]["kernel"]
    same_kernel = plain.nets["vae"].params["encoder"]["log_variance"]["kernel"]
    np.testing.assert_array_equal(kernel, same_kernel)
    words = "vae/params/decoder/Dense_0/kernel [5, 1024], there [8, 1024]"
    assert f"16 of 23 arrays are taken, 7 begin anew ({words}; " in start.line
    toy = methods.load_model("tests.toy", ConfigDict(TOY))
    with pytest.raises(
        UserError, match=r"0 of 1 arrays are taken, 1 begin anew \(toy/params/logit"
    ):
        methods.fitting("init_from=x", source, toy)


def test_an_array_of_another_type_is_not_taken(source):
    model = _model("vae", vae.get_config("smoke"))
    half = source.nets["vae"].replace(
        params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), source.nets["vae"].params)
    )
    start = methods.fitting("", source.replace(nets={"vae": half}), model)
    assert all("/stats/" in name for name in start.arrays)
    assert "there [1024] bfloat16; " in start.line


def _start(read):
    return functools.partial(methods.start, "init_from=whole", read)


def _train(work, whole, **more):
    return test_loop.train(work, PLAN, start=_start(lambda: test_loop.end_of(whole)), **more)


def _gone():
    raise UserError("whole: no such folder")


@pytest.fixture
def works(tmp_path):
    for name in ("stopped", "not"):
        test_loop.make_store(tmp_path / name / "real.zarr")
    return tmp_path / "stopped", tmp_path / "not"


def test_a_stopped_run_ends_as_one_that_was_not(works, whole, monkeypatch, capsys):
    stopped, other = works
    expected, calls = _train(other, whole), []
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "asked", lambda: calls.append(0) or signal.SIGTERM * (len(calls) >= 2))
        with pytest.raises(jobs.Stopped):
            _train(stopped, whole)
    assert "init_from=whole: 1 of 1 arrays are taken" in capsys.readouterr().out
    assert checkpoint.newest(stopped / "ck") == 2
    same(_train(stopped, whole), expected)
    assert "arrays are taken" not in capsys.readouterr().out
    for name in ("train.jsonl", "ck/recipe.json"):
        assert (stopped / name).read_text() == (other / name).read_text()


def test_it_begins_better_than_from_scratch_and_other_weights_are_refused(works, whole, capsys):
    warm, cold = works
    state = _train(warm, whole)
    test_loop.train(cold, PLAN)
    first = [logs.read(work / "train.jsonl")[0]["loss"] for work in works]
    assert first[0] < 0.5 * first[1]
    start = provenance.read(warm / "ck")["init_from"]
    assert len(start) == 64 and "init_from" not in provenance.read(cold / "ck")
    for other, words in (
        (lambda: state, f"made with init_from '{start[:50]}.*, now"),
        (lambda: test_loop.end_of(cold), "made with init_from"),
    ):
        with pytest.raises(UserError, match=words):
            test_loop.train(warm, PLAN, start=_start(other))
    with pytest.raises(UserError, match=r"made with init_from .*, now missing"):
        test_loop.train(warm, PLAN)
    with pytest.raises(UserError, match="made with init_from missing, now"):
        _train(cold, whole)
    # One that has begun needs its source no more; one that has not does.
    same(test_loop.train(warm, PLAN, start=_start(_gone)), state)
    assert "note: init_from=whole: whole: no such folder" in capsys.readouterr().out
    model = methods.load_model("tests.toy", ConfigDict(TOY))
    for folder in (warm / "none", cold / "ck"):
        with pytest.raises(UserError, match=r"^init_from=whole: whole: no such folder"):
            _start(_gone)(folder, model)


def test_zeros_of_an_older_release_are_not_taken_and_a_decoder_is_its_generator():
    """The packaged hybrid lacks its critic and its VAE's decoder, which learn nothing as 0."""
    demo = release.place("demo")
    source = methods.generator(methods.load_config(demo), demo).state
    assert not any(map(np.any, jax.tree.leaves(source.nets["vae"].params["decoder"])))
    model = _model("vae", vae.get_config())
    start = methods.fitting("init_from=demo", source, model)
    assert start.line == "init_from=demo: 29 of 29 arrays are taken"
    own = start.put(model.init(jax.random.key(0))).nets["vae"].params["decoder"]
    assert_close(own, source.nets["generator"].params, rtol=0, atol=0)
    hybrid = methods.fitting("", source, _model("vae_wgan", vae_wgan.get_config()))
    assert len(hybrid.arrays) == 42 and not any("critic" in name for name in hybrid.arrays)
