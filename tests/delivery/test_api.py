"""A run from Python: the same pairs as the stage writes, one at a time, ahead, or between two."""

import contextlib
import functools
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import skullgen
from experiments import common, vae_wgan
from skullgen.core import files, provenance
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.data.measures import KINDS, LABELS
from skullgen.delivery import api
from skullgen.evaluation import explore
from skullgen.generation import generate
from skullgen.models import labels
from skullgen.networks import modules
from skullgen.run import workdir
from skullgen.training import checkpoint, methods
from skullgen.training.methods import Trained
from tests import toy_config

SIZE = 8


def real_store(folder):
    """`real.zarr` of 8 random pairs of 4 skulls, in the new work directory `folder`."""
    folder.mkdir()
    attributes = {"names": list("abcd"), "kinds": ["left", "right"], "voxel_mm": 25.6}
    attributes["licence"] = "Apache-2.0"
    recipe = {"data": common.defaults("smoke").data.to_dict()}
    real = store.create(folder / "real.zarr", store.Shape(8, SIZE, 8), attributes, recipe)
    pairs = np.random.default_rng(0).random((8, SIZE, SIZE, SIZE, 2)) < 0.3
    columns = {"split": [0, 0, 0, 0, 1, 1, 2, 2], "skull": np.arange(8) // 2, "kind": [0, 1] * 4}
    columns = {name: np.array(column) for name, column in columns.items()}
    real.write(0, store.pack(pairs), columns)


def hybrid_config(stages, **fields):
    config = vae_wgan.get_config("smoke")
    config.workers, config.stages = 1, (stages,)
    config.model.update(resolution=SIZE, occupancy=(0.4, 0.3), latents="prior")
    config.generate.update(count=12, batch_size=4, dust_mm3=50_000.0)
    config.update_from_flattened_dict(fields)
    return config


def hybrid(folder, stages="generate", **fields):
    """A work directory of the VAE/WGAN-GP with random weights that make pairs of many voxels."""
    config = hybrid_config(stages, **fields)
    config.segment.model_name, config.segment.updates = "tests.toy_net", 3
    config.segment.model = ConfigDict({"learning_rate": 0.1, "augment": False})
    real_store(folder)
    model = methods.load_model(config.model_name, config.model)
    state = jax.jit(model.init)(jax.random.key(3))
    state = state.replace(step=state.step + 7, key=jax.random.key(3))
    with contextlib.closing(checkpoint.manager(folder / "checkpoints" / "vae_wgan")) as manager:
        checkpoint.save(manager, state)
        checkpoint.finish(manager)
    recipe = methods.recipe(config.model_name, config.model)
    learnt = provenance.digest(provenance.read(folder / "real.zarr"))
    rows = {"stores": {"0": {"recipe": learnt, "rows": [[0, 4]]}}}
    provenance.write(folder / "checkpoints" / "vae_wgan", {**recipe, **rows})
    files.write_json(folder / "config.json", json.loads(config.to_json_best_effort()))
    workdir.run(config, folder)
    return config, Trained(model, state)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    path, config = tmp_path_factory.mktemp("runs") / "toy", toy_config.get_config()
    config.workers, config.stages = 1, ("train,generate",)
    config.generate.update(count=30, batch_size=4, dust_mm3=50_000.0)  # three voxels
    real_store(path)
    workdir.run(config, path)
    return path


@pytest.fixture(scope="module")
def hybrid_run(toy_run):
    path = toy_run.parent / "hybrid"
    return path, *hybrid(path)


def _written(path):
    return store.unpack(store.Store(path / "generated.zarr").load(list(range(12))), SIZE)


@pytest.mark.parametrize("name", ["toy", "hybrid"])
def test_sample_is_bit_equal_to_what_the_stage_writes(toy_run, hybrid_run, name):
    path = toy_run.parent / name
    written, loaded = _written(path), skullgen.load(path)
    assert written.any((1, 2, 3)).all(axis=0).all() and len(np.unique(written, axis=0)) > 2
    np.testing.assert_array_equal(loaded.sample(seed=0, count=12), written)
    np.testing.assert_array_equal(loaded.sample(seed=0, count=5, first=6), written[6:11])
    assert (loaded.sample(seed=1, count=12) != written).any()
    removed = store.Store(path / "generated.zarr").column("removed")
    assert name == "toy" or removed[:, 1:].any()  # dust had a say in it


def test_a_stream_is_the_samples_in_order(toy_run):
    loaded, before = skullgen.load(toy_run), threading.active_count()
    whole = loaded.sample(seed=2, count=40)
    for batch in (3, 11):  # less than a block, and more
        stream = loaded.stream(seed=2, batch=batch)
        pairs = np.concatenate(list(itertools.islice(stream, 3)))
        np.testing.assert_array_equal(pairs, whole[: 3 * batch])
        assert threading.active_count() > before
        stream.close()
        assert threading.active_count() == before


def test_a_fork_says_that_it_would_hang(toy_run, monkeypatch):
    loaded, here = skullgen.load(toy_run), os.getpid()
    loaded.sample()
    monkeypatch.setattr(api.os, "getpid", lambda: here + 1)
    for ask in (loaded.sample, lambda: next(loaded.stream()), lambda: loaded.decode([[0.0]])):
        with pytest.raises(UserError, match="multiprocessing_context='spawn'"):
            ask()
    with pytest.raises(UserError, match="num_workers=0"):
        skullgen.load(toy_run)


def test_a_used_run_can_be_pickled(toy_run):
    loaded = skullgen.load(toy_run)
    pairs = loaded.sample(count=4)
    again = pickle.loads(pickle.dumps(loaded))
    assert vars(again).keys() == {"folder", "config"}
    np.testing.assert_array_equal(again.sample(count=4), pairs)


def test_a_latent_decodes_to_its_sample_while_another_process_trains(hybrid_run):
    path, config, (model, state, _) = hybrid_run
    saving = path / "checkpoints" / "vae_wgan" / "9.orbax-checkpoint-tmp"
    saving.mkdir()
    loaded = skullgen.load(path)
    draw = jax.jit(functools.partial(generate.latents, model))
    z = np.asarray(draw(state, np.uint32(0), np.arange(4)))  # a device's batch: rbg keys
    pairs = loaded.decode(z)
    np.testing.assert_array_equal(pairs, _written(path)[:4])
    share = jax.jit(model.decode)(state, z)
    binary = np.array(modules.binarise(share, "exclusive", config.generate.threshold))
    assert (pairs <= binary).all() and (pairs < binary).any()  # dust
    saving.rmdir()  # and was left alone


def test_encode_is_the_models_and_interpolation_ends_at_its_ends(hybrid_run):
    path, _, (model, state, _) = hybrid_run
    loaded, pairs = skullgen.load(path), _written(path)[:10]
    z = loaded.encode(pairs)
    np.testing.assert_allclose(z, jax.jit(model.encode)(state, pairs), atol=1e-5)
    way = loaded.interpolate(pairs[0], pairs[1], steps=5)
    np.testing.assert_array_equal(way[[0, -1]], loaded.decode(z[:2]))
    middle = explore.spherical(z[0], z[1], np.array([0.5]))
    np.testing.assert_array_equal(way[2:3], loaded.decode(middle))


def test_a_folder_without_a_run_is_one_line(toy_run, tmp_path):
    def refused(words, **fields):
        files.write_json(tmp_path / "config.json", {**config, **fields})
        with pytest.raises(UserError, match=words):
            skullgen.load(tmp_path)

    with pytest.raises(UserError, match=r"nowhere: no such folder .*packaged weights"):
        skullgen.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no run and no weights in it"):
        skullgen.load(tmp_path)
    config = files.read_json(toy_run / "config.json")
    refused("no checkpoint; run the stage `train`")
    refused("no config that skullgen wrote", model=3)


def test_mistakes_are_one_line(toy_run, hybrid_run):
    toy, loaded = skullgen.load(toy_run), skullgen.load(hybrid_run[0])
    judge = skullgen.Run(toy_run, ConfigDict({"model_name": "", "model": {}}))
    some, z = np.zeros((2, SIZE, SIZE, SIZE, 2)), np.zeros(8)
    shape = r"z are float64 of shape \[2, 3\]: they must be numbers \[n, 8\]"
    for words, do, *arguments in (
        ("model_name is ''", judge.decode, z),
        ("'tests.toy': it has no encode", toy.encode, some),
        (r"pairs are float64 of shape \[8, 8, 8, 2\]", loaded.encode, some[0]),
        (shape, loaded.decode, np.zeros((2, 3))),
        ("other values than 0 and 1", loaded.encode, some + 0.4),
        ("z holds a number that is not finite", loaded.decode, [z + 1e300]),
        (r"z are float64 of shape \[1, 3\]", loaded.interpolate, z, z[:3]),
        ("steps is 0", loaded.interpolate, z, z, 0),
        ("seed is -1.* 0 to 2.31 - 1", loaded.sample, -1),
        ("count is 0", loaded.sample, 0, 0),
        ("batch is 0", lambda: next(loaded.stream(batch=0))),
    ):
        with pytest.raises(UserError, match=words):
            do(*arguments)
    with pytest.raises(UserError, match="the setting is 'bone'"):
        toy.predict("a.nrrd", bone=300)


def test_jax_is_not_imported_before_it_is_used():
    code = "import sys, skullgen; skullgen.Pairs; skullgen.__version__; print('jax' in sys.modules)"
    ask = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ask.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = skullgen.lode


def test_a_conditional_model_is_asked_by_name(tmp_path):
    config, _ = hybrid(tmp_path / "run", **{"model.condition": True})
    run = skullgen.load(tmp_path / "run")
    model, state, _ = run._generator
    bank = np.zeros((labels.BANK, LABELS), np.float32)
    bank[:2, 1], bank[:2, -1] = 1, np.log([40 / 50, 90 / 50])
    seen = state.nets["labels"].replace(stats={"bank": jnp.asarray(bank), "seen": jnp.float32(2)})
    state = state.replace(nets={**state.nets, "labels": seen})
    vars(run)["_generator"] = Trained(model, state)
    asked = labels.Asked(np.float32(np.arange(KINDS) == 1), -1.0, float(np.log(60 / 50)))
    draw = jax.jit(functools.partial(generate.latents, model))
    z = draw(state, 0, np.arange(config.generate.batch_size), asked)
    np.testing.assert_allclose(z[:, -LABELS:][:, [1, KINDS]], [[1, -1]] * 4)
    pairs = run.sample(count=4, kind="right", side="left", area_cm2=60)
    made = generate.pairs(jax.jit(model.decode)(state, z), run._rules)
    np.testing.assert_array_equal(pairs, made)
    assert not np.array_equal(pairs, run.sample(count=4))
    made = store.Store(tmp_path / "run" / "generated.zarr")
    assert made.column("sample").tolist() == list(range(12))
    assert made.column("asked").shape == (12, LABELS)
    with pytest.raises(UserError, match="kind is 'top'"):
        run.sample(kind="top")
    for area in (0.001, True, 120.0, float("nan")):
        with pytest.raises(UserError, match=r"area_cm2 is .*: it must be a number, 40 to 90"):
            run.sample(area_cm2=area)
    with pytest.raises(UserError, match="kind is ''"):
        run.sample(kind="")


def test_a_model_without_labels_is_asked_in_vain(hybrid_run):
    with pytest.raises(UserError, match="kind, side: this model was trained without labels"):
        skullgen.load(hybrid_run[0]).sample(kind="left", side="left")
