"""Methods by name, phases, and what a model's functions must return."""

import importlib
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from skullgen.core import provenance
from skullgen.core.errors import UserError
from skullgen.training import methods

TOY = (Path(__file__).parents[1] / "toy.py").read_text("utf-8")


def _config(**fields):
    return ConfigDict({"learning_rate": 0.1, "breaks_at": -1, "resolution": 8, **fields})


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Writes a module of a package of the user's own, and returns its dotted name."""
    (tmp_path / "lab").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / "lab" / f"{name}.py").write_text(text, "utf-8")
        return f"lab.{name}"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]


def test_a_mistake_in_a_users_model_keeps_its_traceback(lab):
    """A misspelt function of jnp is no field that the config lacks."""
    text = TOY.replace('"logit": jax.random', '"logit": jnp.sofplus() + jax.random')
    with pytest.raises(AttributeError, match="sofplus") as error:
        methods.load_model(lab("misspelt", text), _config())
    assert any(entry.path.name == "misspelt.py" for entry in error.traceback)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        methods.load_model(lab("own", "import not_installed_anywhere\n"), _config())


@pytest.mark.parametrize("old", ["config.learning_rate", "config.breaks_at", "config.resolution"])
def test_a_field_that_the_config_lacks_is_one_line_wherever_it_is_read(old, lab):
    """In make, in a step, in decode."""
    name = lab("fields", TOY.replace(old, "config.lerning"))
    for section in ("", "segment."):
        with pytest.raises(UserError) as error:
            methods.check(name, _config(), section=section)
        words = f"config.{section}model lacks the field lerning, which lab.fields reads"
        assert str(error.value) == words


def _step(change):
    """The toy's step, whose answer is changed."""
    model = methods.load_model("tests.toy", _config())
    return {"steps": {"toy": lambda state, batch: change(*model.steps["toy"](state, batch))}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (_step(lambda s, m: (s, {"loss": jnp.zeros(3)})), "[1]['loss'] is float32 [3]: it must"),
        (
            _step(lambda s, m: (s.replace(nets={}), m)),
            "[0].nets['toy'].params['logit'] is nothing: it must be float32 [2]",
        ),
        (
            _step(lambda s, m: (s.replace(step=s.step.astype(float)), m)),
            "[0].step is float32 []: it must be int32 []",
        ),
        (_step(lambda s, m: s), "step `toy` must return (State, metrics by name)"),
        (
            {"decode": lambda state, z: jnp.zeros((len(z), 8, 8, 8, 3))},
            "decode is float32 [2, 8, 8, 8, 3]: it must be float32 [2, 8, 8, 8, 2]",
        ),
        ({"decode": lambda state, z: jnp.zeros((len(z), 8, 8, 8, 2), bool)}, "decode is bool"),
        ({"latents": lambda state, keys: jnp.zeros(4)}, "latents is float32 [4]"),
        ({"encode": lambda state, pairs: jnp.zeros((2, 7))}, "encode is float32 [2, 7]"),
        ({"predict": lambda state, skulls: skulls[0]}, "predict is float32 [8, 8, 8]: it must"),
        ({"features": lambda state, pairs: pairs}, "features is float32 [2, 8, 8, 8, 2]"),
        ({"init": lambda key: {"a": 1}}, "init must return a State whose step is int32 []"),
    ],
)
def test_a_wrong_shape_names_model_and_function_before_any_work(fields, words):
    model = methods.load_model("tests.toy", _config())._replace(**fields)
    with pytest.raises(UserError, match=r"^mylab\.wrong: ") as error:
        methods.check_shapes(model, "mylab.wrong", 8, {"more": 2})
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["vae", "introvae"])
def test_our_own_models_hold_the_contract_and_name_a_wrong_size(name):
    config = importlib.import_module(f"experiments.{name}").get_config("smoke").model
    methods.check_shapes(methods.load_model(name, config), name, config.resolution, {})
    config.resolution = 10  # three layers halve it
    words = rf"config\.model does not fit skullgen\.models\.{name}: resolution 10 cannot be halved"
    with pytest.raises(UserError, match=words):
        methods.load_model(name, config)


def test_weights_of_another_model_or_another_file_of_it_are_refused(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(methods.checkpoint, "read", lambda folder, model, step: step)
    name = lab("mine", TOY)
    model = methods.load_model(name, _config())
    provenance.write(tmp_path, methods.recipe(name, _config()))

    def read(folder=tmp_path, **fields):
        return methods.restore(folder, model, methods.recipe(name, _config(**fields)), 5).state

    assert read() == read(tmp_path / "none") == 5
    with pytest.raises(UserError, match=r"made with model\.learning_rate 0\.1, now 0\.2"):
        read(learning_rate=0.2)
    lab("mine", TOY + "# changed\n")
    with pytest.raises(UserError, match=r"made with code\.lab\.mine\.py '.*, now '"):
        read()
