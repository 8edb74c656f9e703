"""The loop: phases, resuming, stopping, divergence, recipes; with a model from outside."""

import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from skullgen.core import jobs, provenance
from skullgen.core.errors import Diverged, UserError
from skullgen.core.types import Phase
from skullgen.data import mixture, store
from skullgen.training import checkpoint, logs, loop, methods

SIZE = 8
TOY = {"learning_rate": 0.1, "breaks_at": -1, "resolution": SIZE}
PLAN = [Phase("toy", epochs=2), Phase("more", updates=5, batches=3)]
OPTIONS = loop.Options(seed=3, batch=4, log_every=3, save_every=4, budget_mb=1)


def make_store(path, count=10, train_pairs=8):
    rng = np.random.default_rng(0)
    real = store.create(path, store.Shape(count, SIZE, 4), {}, {"name": path.name})
    split = np.where(np.arange(count) < train_pairs, 0, 2)
    for shard in real.missing():
        pairs = rng.random((len(shard), SIZE, SIZE, SIZE, 2)) < (0.3, 0.05)
        real.write(shard.start, store.pack(pairs), {"split": split[shard]})
    return real


def train(work, plan=PLAN, stores=("real.zarr",), change=lambda model: model, start=None, **fields):
    config = ConfigDict(TOY)
    config.update({name: fields.pop(name) for name in list(fields) if name in config})
    places = [work / name for name in stores]
    every = [store.Store(p) if p.exists() else make_store(p, len(p.name)) for p in places]
    network = methods.recipe("tests.toy", config)
    place = loop.Place(work / "train.jsonl", work / "ck", network, start=start)
    return loop.train(
        change(methods.load_model("tests.toy", config)),
        plan,
        [mixture.Part(each, each.rows("train")) for each in every],
        place,
        OPTIONS._replace(**fields),
    )


def end_of(work):
    """The State of the newest checkpoint."""
    model = methods.load_model("tests.toy", ConfigDict(TOY))
    return checkpoint.read(work / "ck", model, checkpoint.newest(work / "ck"))


def same(a, b):
    a, b = (s.replace(key=jax.random.key_data(s.key)) for s in (a, b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def work(tmp_path):
    make_store(tmp_path / "real.zarr")
    return tmp_path


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_phases_are_counted_in_epochs_or_updates(work):
    assert [span.end for span in loop.spans(PLAN, 8, 4)] == [4, 9]
    assert [span.end for span in loop.spans(PLAN, 9, 4)] == [6, 11]  # ceil(pairs / batch)
    state = train(work)
    records = logs.read(work / "train.jsonl")
    assert [r["step"] for r in records] == list(range(1, 10))
    assert [r["phase"] for r in records] == ["toy"] * 4 + ["more"] * 5
    assert [r["epoch"] for r in records] == [1, 1, 2, 2, 1, 1, 2, 2, 3]
    assert int(state.step) == 9
    assert steps(work / "ck") == [8, 9]  # the last two


@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_stopped_run_ends_as_one_that_was_not(work, whole, at, monkeypatch):
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "asked", lambda: calls.append(0) or signal.SIGTERM * (len(calls) >= at))
        with pytest.raises(jobs.Stopped):
            train(work)
    assert checkpoint.newest(work / "ck") == at
    assert [r["step"] for r in logs.read(work / "train.jsonl")] == list(range(1, at + 1))
    same(train(work), end_of(whole))
    assert steps(work / "ck") == steps(whole / "ck")
    assert (work / "train.jsonl").read_text() == (whole / "train.jsonl").read_text()


def test_records_after_the_checkpoint_are_written_again(trained, whole, tmp_path):
    path = trained / "train.jsonl"
    expected = path.read_text()
    for step in (8, 9):  # as if the run had been killed after update 7, before saving 8
        (trained / "ck" / str(step)).rename(tmp_path / str(step))
    path.write_text(expected[: expected.index('"step": 8')])
    same(train(trained), end_of(whole))
    assert path.read_text() == expected


def test_a_mixture_is_streamed_as_it_is_resident(tmp_path):
    works = tmp_path / "resident", tmp_path / "streamed"
    both = dict(stores=("real.zarr", "more.zarr"))
    states = [train(work, budget_mb=n, **both) for n, work in enumerate(reversed(works))]
    same(*states)
    assert logs.read(works[0] / "train.jsonl") == logs.read(works[1] / "train.jsonl")
    assert int(states[0].step) == 2 * 4 + 5  # an epoch counts the pairs of both


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learning_rate": 0.2}, r"made with model.learning_rate 0\.1, now 0\.2: set it back, or"),
        ({"seed": 4}, "made with seed 3, now 4"),
        ({"batch": 8}, r"made with batch_size 4, now 8.*phases\.0"),
        ({"stores": ("real.zarr", "more.zarr")}, r"stores\.1\.recipe missing, now"),
        ({"plan": [PLAN[0], PLAN[1]._replace(updates=4)]}, r"phases\.1 \['more', 3, 5\], now"),
        ({"plan": [PLAN[0]._replace(epochs=3), PLAN[1]]}, r"phases\.0 \['toy', 1, 4\], now"),
    ],
)
def test_what_was_trained_may_not_change(trained, fields, words):
    before = [(trained / name).read_bytes() for name in ("train.jsonl", "ck/recipe.json")]
    with pytest.raises(UserError, match=words) as error:
        train(trained, **fields)
    assert str(trained / "ck") in str(error.value)
    assert before == [(trained / name).read_bytes() for name in ("train.jsonl", "ck/recipe.json")]
    assert steps(trained / "ck") == [8, 9]


def test_a_phase_in_progress_or_not_begun_may_change(trained, work):
    """The checkpoint of update 8 is in the second phase."""
    (trained / "ck" / "9").rename(work / "9")
    shorter = [PLAN[0], PLAN[1]._replace(updates=4), Phase("toy", updates=2)]
    same(train(trained, shorter), train(work, shorter))
    phases = provenance.read(trained / "ck")["phases"]
    assert phases == {"0": ["toy", 1, 4], "1": ["more", 3, 4], "2": ["toy", 1, 2]}


def test_nothing_trained_is_nothing_to_refuse_and_seeds_differ(work, whole):
    with pytest.raises(Diverged):
        train(work, breaks_at=1)
    logits = [state.nets["toy"].params["logit"] for state in (train(work, seed=4), end_of(whole))]
    assert not np.array_equal(*logits)


def test_the_rows_that_were_learnt_are_those_of_then(work):
    (work / "real.zarr" / "leave_out.txt").write_text("3\n")
    train(work)
    (work / "checkpoints").mkdir()
    (work / "ck").rename(work / "checkpoints" / "toy")
    assert provenance.read(work / "checkpoints/toy")["stores"]["0"]["rows"] == [[0, 3], [4, 8]]
    (work / "real.zarr" / "leave_out.txt").write_text("1\n")
    assert loop.training_rows(work, "toy").tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert loop.training_rows(work, "").tolist() == [0, 2, 3, 4, 5, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_run(work):
    for _ in range(2):  # the second call begins at the checkpoint
        with pytest.raises(Diverged, match=r"loss is inf at update 7 \(phase more\).*update 4"):
            train(work, breaks_at=6)
    assert checkpoint.newest(work / "ck") == 4
    assert [r["step"] for r in logs.read(work / "train.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_notes_are_told_at_the_end_of_epochs_and_phases(work, capsys):
    def notes(records):
        where = f"{records[0]['phase']} {records[0]['epoch']}"
        return [f"warning: {where}", f"note {where} of {len(records)}"]

    train(work, change=lambda model: model._replace(notes=notes))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[-1] for line in lines if line.startswith(("warning", "note"))] == (
        ["toy 1", "toy 2", "note toy 2 of 2", "more 1", "more 2", "more 3", "note more 3 of 1"]
    )  # five updates are two epochs and a half


def test_a_batch_that_devices_cannot_share_equally_is_trained_on_fewer(work):
    assert jax.device_count() == 2
    assert int(train(work, batch=3).step) == 3 * 2 + 5  # epochs of 3 updates


@pytest.mark.parametrize("stores", [("transplants.zarr",), ("transplants.zarr", "real.zarr")])
def test_who_learnt_from_what_was_made_of_all_training_pairs_learnt_from_them(work, stores):
    train(work, stores=stores)
    (work / "checkpoints").mkdir()
    (work / "ck").rename(work / "checkpoints" / "toy")
    real = (
        store.Store(work / "real.zarr") if "real.zarr" in stores else make_store(work / "real.zarr")
    )
    assert loop.training_rows(work, "toy").tolist() == real.rows("train").tolist()
