"""Work directories: what is locked, what is free, what is set aside."""

import contextlib
import json
import os
import shutil
import sys

import nibabel
import numpy as np
import pytest

from experiments import common, vae, wgan_gp
from skullgen.core.errors import UserError
from skullgen.data import phantom, store
from skullgen.run import fields, stages, workdir
from skullgen.training import loop
from tests import toy, toy_config


def _toy(stages, **fields):
    config = toy_config.get_config()
    config.workers = 1
    config.stages = stages
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("work")
    workdir.run(_toy("ingest,train,generate"), path)
    return path


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 2}, "batch_size"),
        ({"data.threshold": 0.4}, "data.threshold"),
        ({"data.test": "phantom_0001"}, "data.test"),
        ({"model.resolution": 16}, "model.resolution"),
        ({"model.learning_rate": 1.0}, "model.learning_rate"),
        ({"model_name": "tests.twin"}, "model_name"),
    ],
)
def test_fields_of_work_done_are_locked_by_name(work, fields, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tests.twin", toy)
    with pytest.raises(UserError, match=rf"config\.{name} was .* and is now"):
        workdir.run(_toy("train", **fields), work)


def test_finished_phases_are_locked_and_the_last_may_grow(work):
    def phases(*pairs):
        config = _toy("train")
        for number, (field, value) in pairs:
            config.phases[number][field] = value
        return config

    for wrong in ((0, ("updates", 31)), (0, ("step", "more")), (1, ("batches", 1))):
        with pytest.raises(UserError, match=rf"config\.phases\[{wrong[0]}\]"):
            workdir.prepare(phases(wrong), work)
    with pytest.raises(UserError, match=r"config\.phases\[1\]"):
        workdir.prepare(phases((1, ("updates", 39))), work)
    workdir.prepare(phases((1, ("updates", 50))), work)
    workdir.prepare(_toy("train"), work)


def test_what_determines_no_work_done_is_free(work):
    free = {"log_every": 7, "keep": 3, "generate.count": 301, "workers": 2, "evaluate.pairs": 3}
    workdir.prepare(_toy("generate", **free), work)


def test_pairs_of_other_settings_are_set_aside_not_lost(work, capsys):
    before = store.Store(work / "generated.zarr").load(range(4))
    workdir.run(_toy("generate", **{"generate.seed": 9, "generate.count": 6}), work)
    aside = work / "generated-step70-0.zarr"
    assert (store.Store(aside).load(range(4)) == before).all()
    assert len(store.Store(work / "generated.zarr").rows()) == 6
    assert "is now" in capsys.readouterr().out


def test_more_pairs_are_added_to_those_there(work):
    fields = {"generate.seed": 9, "generate.count": 70}
    workdir.run(_toy("generate", **{**fields, "generate.count": 6}), work)
    before = store.Store(work / "generated.zarr").load(range(6))
    workdir.run(_toy("generate", **fields), work)
    assert (store.Store(work / "generated.zarr").load(range(6)) == before).all()
    assert len(store.Store(work / "generated.zarr").rows()) == 70


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("ingest,trian", "stages is 'ingest,trian': name some of ingest, train, generate"),
        ("", "stages is ''"),
        ("train", "real.zarr: no store of pairs here; run the stage that makes it"),
        ("generate", "no checkpoint; run the stage `train` first"),
        ("evaluate", "nothing to evaluate"),
        ("generate,evaluate", "real.zarr: no store of pairs here, which `evaluate` needs"),
        ("train,ingest", "real.zarr: no store of pairs here, which `train` needs"),
    ],
)
def test_stages_out_of_order_are_named(stages, words, tmp_path):
    with pytest.raises(UserError, match=words):
        workdir.run(_toy(stages), tmp_path / "new")


def test_the_settings_of_a_stage_are_those_by_which_it_ran_last(tmp_path):
    def kept(stages, **own):
        workdir.run(_toy(stages, **own), tmp_path / "work")
        return json.loads((tmp_path / "work" / "config.json").read_text())

    assert kept("ingest,train,generate", **{"generate.count": 7})["generate"]["count"] == 7
    held = kept("report", log_every=3)
    assert (held["generate"]["count"], held["log_every"]) == (7, 3)
    assert held["stages"] == "ingest,train,generate,report"
    assert kept("generate")["generate"]["count"] == _toy("generate").generate.count


def test_home_is_no_folder_called_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    workdir.run(_toy("ingest"), tmp_path / "work")
    own = {"export.store": "~/real.zarr", "export.folder": "~/out/../it", "export.voxel_mm": 6.4}
    (tmp_path / "me").mkdir()
    (tmp_path / "work" / "real.zarr").rename(tmp_path / "me" / "real.zarr")
    workdir.run(_toy("export", workers=1, **own), tmp_path / "work")
    assert (tmp_path / "me" / "it" / "pairs.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me", "work"]
    assert sorted(path.name for path in (tmp_path / "me").iterdir()) == ["it", "real.zarr"]
    config = _toy("segment", **{"segment.stores": "a~/b.zarr:all:2, ~/c.zarr:all:3,~/d.zarr:all:1"})
    home = f"{tmp_path}/me"
    assert fields.at_home(config).segment.stores == (
        f"a~/b.zarr:all:2, {home}/c.zarr:all:3,{home}/d.zarr:all:1"
    )


def test_every_stage_says_what_to_lower_where_memory_runs_out():
    assert workdir.MEMORY.keys() == stages.STAGES.keys()


def test_every_size_has_the_same_fields():
    def fields(config):
        return {
            name: fields(value) if hasattr(value, "keys") else None
            for name, value in config.items()
        }

    sizes = [fields(common.defaults(size)) for size in common.SIZES]
    assert sizes[0] == sizes[1] == sizes[2]


def test_every_field_is_checked():
    """By `fields.check`, or by what is named here."""
    elsewhere = {"stages", "deterministic", "compilation_cache"}  # workdir.run, launch.py
    elsewhere |= {f"model.{name}" for name in ("precision", "head", "latents")}  # models/vae.py
    elsewhere |= {f"segment.model.{name}" for name in ("precision", "kernel", "norm", "augment")}
    flat = common.defaults("smoke")
    every = {f"{a}.{b}" for a, held in flat.items() if hasattr(held, "keys") for b in held}
    every |= {f"segment.model.{name}" for name in flat.segment.model} | set(flat)
    sections = {name for name in every if any(one.startswith(f"{name}.") for one in every)}
    models = {f"{place}model.{name}" for place in ("", "segment.") for name in fields.MODEL}
    checked = {*fields.WORDS, *fields.SWITCHES, *fields.RANGES, *elsewhere}
    assert checked - every == {"model_name"}
    assert every - sections <= checked | models


def _unmark(path, shard=0):
    """As if killed before this shard was whole."""
    (path / "voxels" / "c" / str(shard) / "0").unlink()


@pytest.fixture
def copy(work, tmp_path):
    shutil.copytree(work, tmp_path / "copy")
    return tmp_path / "copy"


def test_half_made_stores_are_not_taken_for_whole(copy):
    _unmark(copy / "generated.zarr")
    with pytest.raises(UserError, match="pairs are not made yet: run the stage `generate`"):
        workdir.run(_toy("evaluate"), copy)
    _unmark(copy / "real.zarr")
    with pytest.raises(UserError, match="pairs are not made yet: run the stage `ingest`"):
        workdir.run(_toy("train"), copy)


def test_pairs_of_other_weights_are_set_aside_though_the_step_is_equal(copy):
    workdir.run(_toy("generate"), copy)
    shutil.rmtree(copy / "checkpoints")
    (copy / "train.jsonl").unlink()
    workdir.run(_toy("train,generate", seed=5), copy)
    assert (copy / "generated-step70-0.zarr").exists()


def test_a_store_taken_away_is_made_again_from_the_same_data_only(copy):
    before = store.Store(copy / "real.zarr").load(range(4))
    shutil.rmtree(copy / "real.zarr")
    with pytest.raises(UserError, match=r"config\.data\.seed was 0 and is now 1"):
        workdir.run(_toy("ingest", **{"data.seed": 1}), copy)
    workdir.run(_toy("ingest,train"), copy)
    assert (store.Store(copy / "real.zarr").load(range(4)) == before).all()


def test_data_fields_are_free_until_a_pair_is_made(tmp_path):
    (tmp_path / "skulls").mkdir()
    for name in "abcd":
        hounsfield = np.where(phantom.skull(3, 48), 700, -900).astype(np.int16)
        image = nibabel.Nifti1Image(hounsfield, phantom.affine(48))
        nibabel.save(image, tmp_path / "skulls" / f"{name} ü.nii.gz")
    fields = {"data.source": "skulls", "data.root": str(tmp_path / "skulls")}
    with pytest.raises(UserError, match="bone_hu"):
        workdir.run(_toy("ingest", **fields), tmp_path / "run")
    workdir.run(_toy("ingest", **fields, **{"data.bone_hu": 300.0}), tmp_path / "run")
    assert store.Store(tmp_path / "run" / "real.zarr").attrs["names"][0] == "a ü"


def test_two_runs_in_one_work_directory_are_refused(copy):
    with workdir.alone(copy):
        with pytest.raises(UserError, match=rf"another run works here \(process {os.getpid()} on"):
            workdir.run(_toy("generate"), copy)
    workdir.run(_toy("generate"), copy)


def test_a_smaller_count_throws_nothing_away(copy, capsys):
    workdir.run(_toy("generate"), copy)
    workdir.run(_toy("generate", **{"generate.count": 5}), copy)
    assert "300 pairs (generate.count is 5; none is thrown away)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_size", 0, "batch_size is 0: it must be 1 or more"),
        ("segment.updates", 0, "segment.updates is 0: it must be 1 or more"),
        ("evaluate.threshold", 2.0, "evaluate.threshold is 2.0: it must be 0.001 to 1"),
        ("evaluate.upsampling", "cubic", "evaluate.upsampling is 'cubic': choose one of"),
        ("seed", -1, "seed is -1"),
        ("keep", 0, "keep is 0"),
        ("workers", -1, "workers is -1"),
        ("data.cuts", 0, "data.cuts is 0"),
        ("data.threshold", 0.0, "data.threshold is 0.0: it must be 0.001 to 1"),
        ("data.test_fraction", -0.5, "data.test_fraction is -0.5"),
        ("generate.count", 0, "generate.count is 0"),
        ("generate.first", -3, "generate.first is -3"),
        ("generate.connectivity", 7, "generate.connectivity is 7: choose one of 6, 18, 26"),
        ("generate.channels", "both", "generate.channels is 'both'"),
        ("evaluate.pairs", 0, "evaluate.pairs is 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(field, value, words, tmp_path):
    with pytest.raises(UserError, match=words):
        workdir.run(_toy("ingest", **{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stages", "field", "words"),
    [
        (
            "ingest,segment",
            "tensorboard",
            r"tensorboard is True: pip install 'skullgen\[tensorboard\]'",
        ),
        ("ingest,explore", "explore.umap", r"explore.umap is True: pip install 'skullgen\[umap\]'"),
        ("ingest", "explore.umap", None),
    ],
)
def test_an_extra_that_is_missing_is_asked_for_first(stages, field, words, monkeypatch):
    monkeypatch.setattr(fields.importlib.util, "find_spec", lambda name: None)
    config = _toy(stages, **{field: True})
    with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():
        fields.check(config, stages.split(","))


@pytest.mark.parametrize(
    ("module", "field", "value", "words"),
    [
        (vae, "head", "banana", "model.head is 'banana': choose one of independent, exclusive"),
        (vae, "precision", "float8", "model.precision is 'float8'"),
        (vae, "pool", "max", "model.pool is 'max'"),
        (vae, "latents", "foo", "model.latents is 'foo': choose one of prior, aggregate"),
        (vae, "resolution", 18, r"resolution 18 cannot be halved 2 times: .*model.widths"),
        (vae, "groups", 3, "config.model does not fit"),
        (vae, "widths", (), "config.model does not fit"),
        (wgan_gp, "generator_norm", "foo", "model.generator_norm is 'foo'"),
        (wgan_gp, "critic_norm", "batch", "model.critic_norm is 'batch'"),
        (wgan_gp, "latents", "aggregate", "model.latents is 'aggregate': choose one of prior"),
    ],
)
def test_models_that_cannot_be_made_are_refused(module, field, value, words):
    config = module.get_config("smoke")
    config.model.unlock()
    config.model[field] = value
    with pytest.raises(UserError, match=words):
        loop.load_model(config.model_name, config.model)


def test_another_runs_store_can_be_the_data(work, tmp_path):
    real = work / "real.zarr"
    fields = {"data.source": "store", "data.root": str(real)}
    workdir.run(_toy("ingest,train", **fields), tmp_path / "new")
    assert (tmp_path / "new" / "real.zarr").samefile(real)
    assert (tmp_path / "new" / "checkpoints" / "tests.toy" / "70").is_dir()
    shutil.copytree(real, tmp_path / "other.zarr")
    fields["data.root"] = str(tmp_path / "other.zarr")
    with pytest.raises(UserError, match=r"is not .*other\.zarr: choose another"):
        workdir.run(_toy("ingest", **fields), tmp_path / "new")
    for root, words in (
        (work / "generated.zarr", "no pair of split train"),
        (tmp_path / "none.zarr", "no store of pairs here"),
    ):
        fields["data.root"] = str(root)
        with pytest.raises(UserError, match=words):
            workdir.run(_toy("ingest", **fields), tmp_path / "third")
    fields |= {"data.root": str(real), "model.resolution": 16}
    with pytest.raises(UserError, match=r"not of config\.model\.resolution 16"):
        workdir.run(_toy("ingest", **fields), tmp_path / "fourth")


def test_fresh_pairs_are_made_and_remade_for_another_count(work, tmp_path, capsys):
    shutil.copytree(work / "real.zarr", tmp_path / "real.zarr")
    workdir.run(_toy("ingest", **{"segment.fresh": 10}), tmp_path)
    assert len(store.Store(tmp_path / "fresh.zarr").rows()) == 15  # 3 skulls, 5 kinds
    assert not (tmp_path / "fresh.zarr" / "native").exists()
    workdir.run(_toy("ingest", **{"segment.fresh": 16}), tmp_path)
    assert "held pairs of 1 cuts: it is now" in capsys.readouterr().out
    assert len(store.Store(tmp_path / "fresh.zarr").rows()) == 30
    fields = {"data.source": "store", "data.root": str(work / "real.zarr"), "segment.fresh": 5}
    with pytest.raises(UserError, match=r"which data\.source=store has not"):
        workdir.run(_toy("ingest", **fields), tmp_path / "linked")


def test_pairs_that_grew_are_described_though_no_net_judged_them(copy, capsys):
    workdir.run(_toy("segment,evaluate"), copy)
    workdir.run(_toy("generate", **{"generate.count": 310}), copy)
    capsys.readouterr()
    workdir.run(_toy("evaluate", **{"generate.count": 310}), copy)
    assert "no verdict: " in (out := capsys.readouterr().out)
    assert "run the stage `segment` first" in out
    found = json.loads((copy / "metrics.json").read_text())
    assert "verdict" not in found and found["quality"]["compared"] == 200


def test_maps_of_stores_of_other_sizes_are_refused(copy, tmp_path):
    attributes = {"recipe": {}, "names": [], "kinds": [], "voxel_mm": 1.0, "licence": ""}
    store.create(tmp_path / "b.zarr", count=4, size=4, shard=4, attributes=attributes)
    store.Store(tmp_path / "b.zarr").write(0, np.zeros((4, 16), np.uint8), {})
    with pytest.raises(UserError, match="the pairs of b are not of 8"):
        workdir.run(_toy("explore", **{"explore.stores": str(tmp_path / "b.zarr")}), copy)
