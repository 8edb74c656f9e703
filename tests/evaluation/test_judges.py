"""The networks that judge: mixtures, resuming, and what is refused."""

import functools
import shutil

import ml_collections
import numpy as np
import pytest

from skullgen.core import provenance
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import judges, metrics
from skullgen.training import logs, loop, methods
from tests.models.common import assert_close

SIZE = 8
OPTIONS = loop.Options(seed=7, batch=7, log_every=5, save_every=7, budget_mb=16)


def _settings(**fields):
    base = dict(
        model_name="tests.toy_net",
        stores="",
        controls=("real",),
        control_pairs=8,
        seed=0,
        updates=10,
    )
    base |= dict(batch_size=4, save_every=5, model=dict(learning_rate=0.1, augment=False))
    settings = ml_collections.ConfigDict(base)
    settings.update_from_flattened_dict(fields)
    return settings


def _store(path, corner, split, recipe=None):
    """Pairs whose defect is one cube at a corner."""
    pairs = np.zeros((len(split), SIZE, SIZE, SIZE, 2), bool)
    pairs[:, 2:6, 2:6, 2:6, 0] = True
    pairs[(slice(None), *[slice(c, c + 2) for c in corner], 1)] = True
    opened = store.create(path, store.Shape(len(split), SIZE, 64), {}, recipe or {})
    columns = {"split": np.array(split), "removed": np.zeros((len(split), 3))}
    opened.write(0, store.pack(pairs), columns)


@pytest.fixture
def work(tmp_path):
    _store(tmp_path / "real.zarr", (0, 0, 0), [0] * 8 + [2] * 2)
    _store(tmp_path / "generated.zarr", (6, 6, 6), [-1] * 12)
    return tmp_path


def test_the_net_and_its_yardstick_learn_their_own_pairs(work):
    settings = _settings(updates=40)
    judges.train(settings, SIZE, work, OPTIONS)
    nets = judges.load(settings, SIZE, work)
    assert list(nets) == ["vnet", "vnet_real"]
    for name, corner, pairs in (("vnet", 7, 12), ("vnet_real", 0, 8)):
        assert [len(part.rows) for part in nets[name].parts] == [pairs]
        assert _corner(nets[name], corner) > 0.9 and _corner(nets[name], 7 - corner) < 0.1
    assert len(logs.read(work / "segment-vnet.jsonl")) == 40


def _corner(net, at):
    """What a net predicts at a corner, which it learns whatever the skull."""
    return net.model.predict(net.state, np.zeros((1, SIZE, SIZE, SIZE)))[0, at, at, at]


def test_a_mixture_sees_both_stores_equally(work):
    stores = "real.zarr:train:2,generated.zarr:all:all"
    settings = _settings(stores=stores, controls=(), updates=60)
    judges.train(settings, SIZE, work, OPTIONS)
    (net,) = judges.load(settings, SIZE, work).values()
    assert [len(part.rows) for part in net.parts] == [2, 12]
    assert [float(_corner(net, at)) for at in (0, 7)] == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_second_run_does_nothing_and_a_longer_one_goes_on(work, capsys):
    judges.train(_settings(), SIZE, work, OPTIONS)
    capsys.readouterr()
    judges.train(_settings(), SIZE, work, OPTIONS)
    assert "vnet: 10 updates on 12 pairs are done" in capsys.readouterr().out
    judges.train(_settings(updates=20), SIZE, work, OPTIONS)
    assert "goes on from the checkpoint of update 10" in capsys.readouterr().out
    longer = judges.load(_settings(updates=20), SIZE, work)["vnet"].state.nets
    (work / "checkpoints").rename(work / "others")
    judges.train(_settings(updates=20), SIZE, work, OPTIONS)
    at_once = judges.load(_settings(updates=20), SIZE, work)["vnet"].state.nets
    assert_close(longer, at_once, rtol=0, atol=0)


def test_a_net_of_other_pairs_or_settings_is_refused(work):
    settings = _settings(controls=())
    judges.train(settings, SIZE, work, OPTIONS)
    for fields, words in (
        ({"model.learning_rate": 0.2}, r"made with segment\.model\.learning_rate 0\.1, now 0\.2"),
        ({"updates": 5}, r"phases\.0 \['segment', 1, 10\], now \['segment', 1, 5\]"),
        ({"stores": "generated.zarr:all:7"}, r"made with stores\.0\.rows"),
    ):
        other = _settings(controls=(), **fields)
        with pytest.raises(judges.Unfinished, match="vnet: trained with another "):
            judges.load(other, SIZE, work)
        with pytest.raises(UserError, match=words):
            judges.train(other, SIZE, work, OPTIONS)
        assert len(logs.read(work / "segment-vnet.jsonl")) == 10
    judges.load(settings, SIZE, work)
    # Pairs made again from other weights are other pairs.
    (work / "generated.zarr").rename(work / "old.zarr")
    _store(work / "generated.zarr", (6, 6, 6), [-1] * 12, recipe={"weights": "others"})
    with pytest.raises(judges.Unfinished, match=r"vnet: trained with another stores\.0\.recipe"):
        judges.load(settings, SIZE, work)
    assert int(judges.newest(settings, SIZE, work, "vnet").state.step) == 10
    with pytest.raises(UserError, match=r"made with segment\.model\.learning_rate 0\.1, now 0\.2"):
        judges.newest(_settings(**{"model.learning_rate": 0.2}), SIZE, work, "vnet")


def test_a_net_is_chosen_by_its_name_or_because_it_is_the_only_one(work):
    assert not judges.begun(work)
    with pytest.raises(judges.Unfinished, match="run the stage `segment` first"):
        judges.choose(work)
    judges.train(_settings(controls=()), SIZE, work, OPTIONS)
    assert judges.begun(work) and judges.choose(work) == "vnet" == judges.choose(work, "vnet")
    with pytest.raises(judges.Unfinished, match="vnet_real: no checkpoint; here is vnet"):
        judges.choose(work, "vnet_real")


def test_a_generator_is_no_segmentation_network(work):
    settings = _settings(model_name="tests.toy")
    settings.model.breaks_at = -1
    with pytest.raises(UserError, match=r"lacks the step `segment` or predict"):
        judges.train(settings, SIZE, work, OPTIONS)


def test_learning_curves_have_eight_points_and_tell_who_has_not_converged(work):
    """On two devices; the last point is the net's own Dice on the split `validation`."""
    _store(work / "seen.zarr", (0, 0, 0), [0] * 4 + [1] * 3)
    (work / "real.zarr").rename(work / "old.zarr")
    (work / "seen.zarr").rename(work / "real.zarr")
    settings = _settings(updates=20, **{"model.learning_rate": 0.05})
    judges.train(settings, SIZE, work, OPTIONS)
    nets = judges.load(settings, SIZE, work)
    about = judges.about(settings, nets, work)
    for name, net in nets.items():
        curve = about[name]["curve"]
        assert [step for step, _ in curve] == [3, 5, 8, 10, 13, 15, 18, 20]
        pairs = store.unpack(store.Store(work / "real.zarr").load([4, 5, 6]), SIZE)
        masks = np.asarray(net.model.predict(net.state, pairs[..., 0])) >= 0.5
        dices = [
            metrics.dice(mask, truth) for mask, truth in zip(masks, pairs[..., 1], strict=True)
        ]
        assert curve[-1][1] == pytest.approx(np.mean(dices))
        assert about[name]["rise"] == curve[7][1] - curve[5][1]
        assert about[name]["converged"] == (about[name]["rise"] <= 0.01)
    assert about["vnet_real"]["curve"][-1][1] > about["vnet"]["curve"][-1][1]


def test_without_a_split_to_select_on_there_is_no_curve(work):
    settings = _settings(controls=())
    judges.train(settings, SIZE, work, OPTIONS)
    about = judges.about(settings, judges.load(settings, SIZE, work), work)["vnet"]
    assert (about["curve"], about["rise"], about["converged"]) == ([], None, None)


def test_all_nets_start_from_one_and_need_its_folder_no_more_once_they_have_begun(work, tmp_path):
    """Also `load`, which compares no source, and a net that never had one, or had another."""
    old_settings, source = _settings(stores="real.zarr:train:all"), tmp_path / "source"
    source.mkdir()
    (source / "real.zarr").symlink_to(work / "real.zarr")
    judges.train(old_settings, SIZE, source, OPTIONS)
    old = judges.load(old_settings, SIZE, source)["vnet"].state
    settings = _settings(init_from="source", updates=2)

    def read():
        if not source.exists():
            raise UserError("source: no such folder")
        return judges.newest(old_settings, SIZE, source, judges.choose(source)).state

    def train(settings):
        start = functools.partial(methods.start, "segment.init_from=source", read)
        judges.check(settings, SIZE, work, OPTIONS, start)
        judges.train(settings, SIZE, work, OPTIONS, start)

    train(settings)
    sums = {provenance.read(work / "checkpoints" / name)["init_from"] for name in judges.NETS[:2]}
    assert len(sums) == 1
    log = logs.read(work / "segment-vnet_real.jsonl")
    assert log[0]["loss"] < logs.read(source / "segment-vnet.jsonl")[-1]["loss"] + 0.01
    shutil.move(source, tmp_path / "moved")
    train(_settings(init_from="source", updates=3))
    nets = judges.load(_settings(init_from="elsewhere", updates=3), SIZE, work)
    assert judges.about(settings, nets, work)["vnet_real"]["init_from"] == "source"
    for net in nets.values():
        assert int(net.state.step) == 3 and not np.array_equal(
            net.state.nets["toy"].params["logit"], old.nets["toy"].params["logit"]
        )
    with pytest.raises(judges.Unfinished, match="trained with another init_from"):
        judges.load(_settings(updates=3), SIZE, work)
    shutil.rmtree(work / "checkpoints")
    with pytest.raises(UserError, match=r"^segment\.init_from=source: "):
        train(settings)
