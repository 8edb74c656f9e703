"""Weights to hand on: they draw, encode and predict as their run does, and hold no more."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import skullgen
from experiments import vae_wgan
from skullgen.core import files, provenance
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.delivery import predict, release
from skullgen.run import workdir
from skullgen.training import checkpoint, methods
from tests.delivery.test_api import SIZE, hybrid, hybrid_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that has a `release`: its work directory, config, and generator."""
    path = tmp_path_factory.mktemp("release") / "run"
    return path, *hybrid(path, "generate,segment,release")


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0] / "release", tmp_path / "weights")


def _without(path, stages="generate", **fields):
    """Runs the same experiment by weights in a new work directory; returns it."""
    workdir.run(hybrid_config(stages, **fields), path)
    return path


def test_a_release_draws_encodes_and_predicts_as_its_run_does(made, copy):
    path = made[0]
    ours, theirs = skullgen.load(path), skullgen.load(copy)
    pairs = ours.sample(count=5, first=2)
    np.testing.assert_array_equal(theirs.sample(count=5, first=2), pairs)
    np.testing.assert_array_equal(theirs.encode(pairs), ours.encode(pairs))
    assert theirs.about == ours.about
    assert theirs.about["trained_on"] == {"source": "phantom", "pairs": 4, "skulls": 2}
    nets = [predict.designer(x.config, x.folder).net for x in (ours, theirs)]
    bits = store.pack(pairs)
    np.testing.assert_array_equal(nets[0](bits), nets[1](bits))


def test_the_v_net_of_a_run_is_that_of_its_pairs(made):
    path, config, _ = made
    config = config.copy_and_resolve_references()
    threshold, config.data.threshold = config.data.threshold, 0.9
    net = predict.designer(config, path)
    assert (net.size, net.threshold, net.reframe) == (SIZE, threshold, True)  # as the pairs' own
    about = {"source": "phantom", "voxel_mm": 25.6, "updates": 3}
    assert about.items() <= net.about.items()


def test_it_holds_weights_without_optimisers_and_tells_no_path_and_no_skull(made):
    path, config, net = made
    state = checkpoint.read(path / "release" / "checkpoints" / "vae_wgan", net.model, 7)
    assert checkpoint.fingerprint(state) == checkpoint.fingerprint(net.state)
    assert all(net.opt == {} for net in state.nets.values())
    for file in (path / "release").rglob("*"):
        assert not file.is_file() or str(path).encode() not in file.read_bytes(), file
    config = config.copy_and_resolve_references()
    config.data.update(root="/home/patient_7/skulls", test="patient_7,patient_8")
    config.segment.stores = "/home/patient_7/a.zarr:all:all"
    config.init_from = config.segment.init_from = "/home/patient_7/run"
    assert "patient_7" not in str(release._public(config, path))


def test_generate_by_weights_in_an_empty_folder_makes_the_runs_pairs(made, copy, tmp_path, capsys):
    whole = store.Store(made[0] / "generated.zarr").load(list(range(12)))
    fields = {"generate.weights": str(copy)}
    work = _without(tmp_path / "new", "generate,report", **fields)
    np.testing.assert_array_equal(store.Store(work / "generated.zarr").load(list(range(12))), whole)
    attrs = store.Store(work / "generated.zarr").attrs
    assert attrs["licence"] == "as of the pairs that it was trained on: Apache-2.0"
    assert attrs["voxel_mm"] == 25.6
    assert store.Store(work / "generated.zarr").recipe["step"] == 7
    assert (work / "report.html").exists()
    loaded = skullgen.load(work)  # nothing is trained there: by the same weights
    np.testing.assert_array_equal(loaded.sample(count=12), store.unpack(whole, SIZE))
    assert loaded.about["licence"] == "Apache-2.0"
    moved = copy.rename(tmp_path / "moved")  # the same weights, wherever they are
    capsys.readouterr()
    _without(work, **{"generate.weights": str(moved)})
    assert "all 12 pairs are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.latent", 5, "config.model.latent is 5, and generate.weights=.* trained with 8"),
        ("model_name", "wgan_gp", "config.model_name is 'wgan_gp'"),
        ("generate.weights", "nowhere", "nowhere: no such folder"),
    ],
)
def test_a_contradiction_is_refused_by_name_before_anything_is_written(
    copy, tmp_path, field, value, words
):
    with pytest.raises(UserError, match=words):
        _without(tmp_path / "new", **{"generate.weights": str(copy), field: value})
    assert not (tmp_path / "new" / "generated.zarr").exists()


def test_a_change_of_a_file_is_seen(copy):
    def check():
        command = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True).stdout

    assert check() == ""
    sums = (copy / "SHA256SUMS").read_text("utf-8")
    inside = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    assert {line.split("  ")[1] for line in sums.splitlines()} == inside - {"SHA256SUMS"}
    (copy / "config.json").write_bytes(b"{}")
    assert "config.json: FAILED" in check()


def test_a_release_of_v_nets_alone_promises_no_samples(made, tmp_path):
    work = shutil.copytree(made[0], tmp_path / "run")
    shutil.rmtree(work / "checkpoints" / "vae_wgan")
    shutil.rmtree(work / "release")
    config = made[1].copy_and_resolve_references()
    config.model_name = ""
    files.write_json(work / "config.json", json.loads(config.to_json_best_effort()))
    release.run(config, work)
    words, both = ((path / "release" / "README.md").read_text("utf-8") for path in (work, made[0]))
    assert "run.predict(" in words and "run.sample(" not in words and "generate" not in words
    for word in ("run.predict(", "run.sample(", "`vae_wgan` makes pairs", "`vnet` designs"):
        assert word in both
    with pytest.raises(UserError, match="model_name is ''"):
        skullgen.load(work / "release").sample()


def test_weights_that_started_from_others_have_their_licence_too(made, tmp_path):
    work = shutil.copytree(made[0], tmp_path / "run")
    before = release.about(work, "vae_wgan")
    recipe = provenance.read(work / "checkpoints" / "vae_wgan")
    provenance.write(work / "checkpoints" / "vae_wgan", {**recipe, "init_from": "a sum"})
    after = release.about(work, "vae_wgan")
    assert (
        after["licence"] == "Apache-2.0; and that of the weights that it started from (init_from)"
    )
    assert before == {**after, "licence": "Apache-2.0"}


def test_a_second_release_is_the_first_or_is_refused(made, tmp_path, capsys):
    work, config = shutil.copytree(made[0], tmp_path / "run"), made[1]
    release.run(config, work)
    assert "these weights are there" in capsys.readouterr().out
    recipe = files.read_json(work / "release" / "recipe.json")
    files.write_json(work / "release" / "recipe.json", {**recipe, "updates": {"vae_wgan": 6}})
    with pytest.raises(UserError, match=r"release: made with updates\.vae_wgan 6, now 7"):
        release.run(config, work)


def test_the_packaged_demo_is_of_the_default_experiment():
    config = vae_wgan.get_config()
    config.generate.weights = "demo"
    mine, folder = release.chosen(config, Path())
    pairs = skullgen.load("demo").sample(seed=0, count=2)
    assert pairs.shape == (2, 32, 32, 32, 2) and pairs.any((1, 2, 3)).all()
    assert not pairs.all(axis=-1).any()  # no defect lies in its skull
    assert release.about(folder)["licence"] == "Apache-2.0"
    assert mine.model == methods.load_config(folder).model
