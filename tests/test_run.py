"""Work directories: what is locked, what is free, what is set aside."""

import pytest

from experiments import common
from skullgen import run, store
from skullgen.errors import UserError
from tests import toy_config


def _toy(stages, **fields):
    config = toy_config.get_config()
    config.workers = 1
    config.stages = stages
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("work")
    run.run(_toy("ingest,train,generate"), path)
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
        ({"model_name": "vae"}, "model_name"),
    ],
)
def test_fields_of_work_done_are_locked_by_name(work, fields, name):
    with pytest.raises(UserError, match=rf"config\.{name} was .* and is now"):
        run.run(_toy("train", **fields), work)


def test_finished_phases_are_locked_and_the_last_may_grow(work):
    def phases(*pairs):
        config = _toy("train")
        for number, (field, value) in pairs:
            config.phases[number][field] = value
        return config

    for wrong in ((0, ("updates", 31)), (0, ("step", "more")), (1, ("batches", 1))):
        with pytest.raises(UserError, match=rf"config\.phases\[{wrong[0]}\]"):
            run.prepare(phases(wrong), work)
    with pytest.raises(UserError, match=r"config\.phases\[1\]"):
        run.prepare(phases((1, ("updates", 39))), work)
    run.prepare(phases((1, ("updates", 50))), work)
    run.prepare(_toy("train"), work)


def test_what_determines_no_work_done_is_free(work):
    free = {"log_every": 7, "keep": 3, "generate.count": 301, "workers": 2, "evaluate.pairs": 3}
    run.prepare(_toy("generate", **free), work)


def test_pairs_of_other_settings_are_set_aside_not_lost(work, capsys):
    before = store.load(work / "generated.zarr", range(4))
    run.run(_toy("generate", **{"generate.seed": 9, "generate.count": 6}), work)
    aside = work / "generated-step70-0.zarr"
    assert (store.load(aside, range(4)) == before).all()
    assert len(store.rows(work / "generated.zarr")) == 6
    assert "is now" in capsys.readouterr().out


def test_more_pairs_are_added_to_those_there(work):
    fields = {"generate.seed": 9, "generate.count": 70}
    run.run(_toy("generate", **{**fields, "generate.count": 6}), work)
    before = store.load(work / "generated.zarr", range(6))
    run.run(_toy("generate", **fields), work)
    assert (store.load(work / "generated.zarr", range(6)) == before).all()
    assert len(store.rows(work / "generated.zarr")) == 70


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("ingest,trian", "stages is 'ingest,trian': name some of ingest, train, generate"),
        ("", "stages is ''"),
        ("train", "real.zarr: no store of pairs here; run the stage that makes it"),
        ("generate", "no checkpoint; run the stage `train` first"),
        ("evaluate", "no store of pairs here"),
    ],
)
def test_stages_out_of_order_are_named(stages, words, tmp_path):
    with pytest.raises(UserError, match=words):
        run.run(_toy(stages), tmp_path / "new")


def test_every_size_has_the_same_fields():
    def fields(config):
        return {
            name: fields(value) if hasattr(value, "keys") else None
            for name, value in config.items()
        }

    sizes = [fields(common.defaults(size)) for size in common.SIZES]
    assert sizes[0] == sizes[1] == sizes[2]
