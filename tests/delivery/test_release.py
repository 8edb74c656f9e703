"""Weights to hand on: they draw, encode and predict as their run does, and hold no more."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

import skullgen
from experiments import vae_wgan
from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.delivery import predict, release
from skullgen.run import workdir
from skullgen.training import checkpoint, loop, trained
from tests.test_api import SIZE, hybrid


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that has a `release`: its work directory, config, generator's model and state."""
    path = tmp_path_factory.mktemp("release") / "run"
    config, model, state = hybrid(path, "generate,segment,release")
    return path, config, model, state


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0] / "release", tmp_path / "weights")


def _without(path, stages="generate", **fields):
    """Runs the same experiment by weights in a new work directory; returns it."""
    config = vae_wgan.get_config("smoke")
    config.workers, config.stages = 1, stages
    config.model.update(resolution=SIZE, occupancy=(0.4, 0.3), latents="prior")
    config.generate.update(count=12, batch_size=4, dust_mm3=50_000.0)
    config.update_from_flattened_dict(fields)
    workdir.run(config, path)
    return path


def test_what_nothing_reads_is_found_by_tracing(made):
    _, _, model, state = made
    found = release.reads(model, SIZE)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.nets)]
    read = {path for path, yes in zip(paths, found, strict=True) if yes}
    assert read == {
        path
        for path in paths
        if "['generator'].params" in path or "['vae'].params['encoder']" in path
    }
    aggregate = loop.load_model("vae_wgan", _aggregate(made[1].model))
    more = [p for p, yes in zip(paths, release.reads(aggregate, SIZE), strict=True) if yes]
    assert len(more) == len(read) + 3 and {"['vae'].stats['mean']"} < set(more) - read


def _aggregate(model):
    model = model.copy_and_resolve_references()
    model.latents = "aggregate"
    return model


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


def test_it_is_small_and_tells_no_path(made):
    path, _, model, state = made
    pairs = zip(jax.tree.leaves(state.nets), release.reads(model, SIZE), strict=True)
    needed = sum(leaf.nbytes for leaf, read in pairs if read)
    files = [file for file in (path / "release").rglob("*") if file.is_file()]
    weights = sum(file.stat().st_size for file in files if "vae_wgan" in file.parts)
    assert weights < needed + 50_000 and needed > 100_000
    for file in files:
        assert str(path).encode() not in file.read_bytes(), file


def test_paths_and_names_of_skulls_stay_at_home(made, tmp_path):
    path, config, *_ = made
    config = config.copy_and_resolve_references()
    config.data.update(root="/home/patient_7/skulls", test="patient_7,patient_8")
    config.segment.stores = "/home/patient_7/a.zarr:all:all"
    public = release._public(config, path)
    assert "patient_7" not in str(public) and public["model"]["latent"] == config.model.latent


def test_generate_by_weights_in_an_empty_folder_makes_the_runs_pairs(made, copy, tmp_path, capsys):
    whole = store.Store(made[0] / "generated.zarr").load(range(12))
    fields = {"generate.weights": str(copy)}
    work = _without(tmp_path / "new", "generate,report", **fields)
    np.testing.assert_array_equal(store.Store(work / "generated.zarr").load(range(12)), whole)
    attrs = store.Store(work / "generated.zarr").attrs
    assert attrs["licence"] == "as of the pairs that it was trained on: Apache-2.0"
    assert attrs["voxel_mm"] == 25.6 and attrs["recipe"]["step"] == 7
    assert (work / "report.html").exists()
    loaded = skullgen.load(work)  # nothing is trained there: by the same weights
    np.testing.assert_array_equal(loaded.sample(count=12), store.unpack(whole, SIZE))
    assert loaded.about["licence"] == "Apache-2.0"
    moved = copy.rename(tmp_path / "moved")  # the same weights, wherever they are
    capsys.readouterr()
    _without(work, **{"generate.weights": str(moved)})
    assert "all 12 pairs are there" in capsys.readouterr().out
    _without(work, **{"generate.weights": str(made[0]), "generate.count": 3})  # a run's, too
    assert (store.Store(work / "generated.zarr").load(range(3)) == whole[:3]).all()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.latent", 5, "config.model.latent is 5, and generate.weights=.* trained with 8"),
        ("model.widths", (8, 8), r"config.model.widths is \[8, 8\]"),
        ("model_name", "wgan_gp", "config.model_name is 'wgan_gp'"),
        ("generate.weights", "nowhere", "nowhere: no such folder"),
    ],
)
def test_a_contradiction_is_refused_by_name_before_anything_is_written(
    copy, tmp_path, field, value, words
):
    with pytest.raises(UserError, match=words):
        _without(tmp_path / "new", **{"generate.weights": str(copy), field: value})
    assert not (tmp_path / "new").exists()


def test_any_change_is_seen(copy, tmp_path):
    seal = (copy / "SHA256SUMS").read_bytes()
    file = max((copy / "checkpoints").rglob("d/*"), key=lambda file: file.stat().st_size)
    held = file.read_bytes()

    def refused(words):
        with pytest.raises(UserError, match=words):
            skullgen.load(copy)

    file.write_bytes(held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
    refused(f"{file.name}: not as SHA256SUMS says")
    file.unlink()
    refused(f"{file.name}: not as SHA256SUMS says")
    file.symlink_to(made_elsewhere(tmp_path, held))
    refused("a link that leads out of its folder")
    file.unlink()
    file.write_bytes(held)
    (copy / "checkpoints" / "vae_wgan" / "9").mkdir()
    (copy / "checkpoints" / "vae_wgan" / "9" / "new").write_bytes(b"")
    refused("9/new: not as SHA256SUMS says")
    shutil.rmtree(copy / "checkpoints" / "vae_wgan" / "9")
    (copy / "SHA256SUMS").unlink()
    refused("SHA256SUMS: cannot be read")
    (copy / "SHA256SUMS").write_bytes(seal)
    skullgen.load(copy)


def made_elsewhere(folder, content):
    (folder / "elsewhere").write_bytes(content)
    return folder / "elsewhere"


def _seal(folder):
    (folder / release.SEAL).write_text("".join(release._sealed(folder)))


def test_what_a_stranger_sealed_is_checked_too(copy):
    told = files.read_json(copy / "release.json")
    for name, value in (("voxel_mm", -1), ("kinds", 3), ("licence", None), ("trained_on", [])):
        files.write_json(copy / "release.json", {**told, name: value})
        _seal(copy)
        with pytest.raises(UserError, match=f"release.json.*{name}"):
            _ = skullgen.load(copy).about
    files.write_json(copy / "release.json", {"licence": "mine"})
    _seal(copy)
    with pytest.raises(UserError, match="no attribute 'voxel_mm'"):
        _ = skullgen.load(copy).about
    config = files.read_json(copy / "config.json")
    config["model"]["latent"] = 9
    files.write_json(copy / "config.json", config)
    _seal(copy)
    with pytest.raises(UserError, match="a checkpoint of another model or of other sizes"):
        skullgen.load(copy).sample(count=1)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "resolution", 4096),
        ("model", "latent", 10**12),
        ("model", "widths", [8, 10**9]),
        ("generate", "batch_size", 10**9),
        ("generate", "batch_size", 0),
        ("generate", "threshold", "x"),
    ],
)
def test_weights_are_held_to_the_bounds_of_a_run(copy, section, field, value):
    config = files.read_json(copy / "config.json")
    config[section][field] = value
    del config["gallery"], config["generate"]["weights"]  # of an earlier version
    files.write_json(copy / "config.json", config)
    _seal(copy)
    with pytest.raises(UserError, match=f"config.{section}.{field} is .*: it must be"):
        skullgen.load(copy)


def test_a_release_of_v_nets_alone_promises_no_samples(made, tmp_path):
    work = shutil.copytree(made[0], tmp_path / "run")
    shutil.rmtree(work / "checkpoints" / "vae_wgan")
    config = made[1].copy_and_resolve_references()
    config.model_name = ""
    files.write_json(work / "config.json", json.loads(config.to_json_best_effort()))
    release.run(config, work)
    words, both = ((path / "release" / "README.md").read_text() for path in (work, made[0]))
    assert "run.predict(" in words and "run.sample(" not in words and "generate" not in words
    assert all(f"run.{name}(" in both for name in ("predict", "sample"))
    assert "In it: `vnet`, which designs implants." in words and "predict.weights=FOLDER" in both
    assert "In it: `vae_wgan`, which makes pairs, `vnet`, which designs implants." in both
    assert "stages=generate" in both
    with pytest.raises(UserError, match="it has no generator, only V-Nets"):
        skullgen.load(work / "release").sample()


def test_training_does_not_go_on_from_a_release(made, copy):
    with contextlib.closing(checkpoint.manager(copy / "checkpoints" / "vae_wgan")) as manager:
        with pytest.raises(UserError, match="training cannot go on from it"):
            checkpoint.begin(manager, made[2], 0)


def test_a_second_release_sets_the_first_aside(made, tmp_path):
    work = shutil.copytree(made[0], tmp_path / "run")
    config = made[1].copy_and_resolve_references()
    config.stages = "release"
    workdir.run(config, work)
    assert (work / "release-0" / "SHA256SUMS").exists() and skullgen.load(work / "release")
    shutil.rmtree(work / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint; run the stage `train` first"):
        workdir.run(config, work)
    assert not list(work.glob("*.partial-*"))


def test_the_packaged_demo_is_of_the_default_experiment():
    config = vae_wgan.get_config()
    config.generate.weights = "demo"
    mine, folder = release.chosen(config, None)
    pairs = skullgen.load("demo").sample(seed=0, count=2)
    assert pairs.shape == (2, 32, 32, 32, 2) and pairs.any((1, 2, 3)).all()
    assert not pairs.all(axis=-1).any()  # no defect lies in its skull
    assert release.about(folder)["licence"] == "Apache-2.0"
    assert mine.model == trained.config(folder).model
