"""The loop: phases, resuming, stopping, divergence; with a model from outside the package."""

import signal

import jax
import ml_collections
import numpy as np
import pytest

from skullgen.core import files, jobs
from skullgen.core.errors import Diverged, UserError
from skullgen.core.types import Phase
from skullgen.data import store
from skullgen.training import checkpoint, logs, loop

SIZE = 8


def _config(**fields):
    base = dict(learning_rate=0.1, breaks_at=-1, resolution=SIZE)
    return ml_collections.ConfigDict({**base, **fields})


def _store(path, count=10, train_pairs=8):
    rng = np.random.default_rng(0)
    store.create(path, count=count, size=SIZE, shard=4, attributes={"recipe": {}})
    split = np.where(np.arange(count) < train_pairs, 0, 2)
    for shard in store.Store(path).missing():
        pairs = rng.random((len(shard), SIZE, SIZE, SIZE, 2)) < (0.3, 0.05)
        store.Store(path).write(shard.start, store.pack(pairs), {"split": split[shard]})


@pytest.fixture
def work(tmp_path):
    _store(tmp_path / "real.zarr")
    return tmp_path


PLAN = [Phase("toy", epochs=2), Phase("more", updates=5, batches=3)]


def _train(work, plan=PLAN, config=None, **fields):
    model = loop.load_model("tests.toy", config or _config())
    options = dict(seed=3, batch=4, log_every=3, save_every=4, keep=2, budget_mb=1)
    parts = [store.Part(work / "real.zarr", store.Store(work / "real.zarr").rows("train"))]
    places = (work / "train.jsonl", work / "ck")
    return loop.train(model, plan, parts, *places, **{**options, **fields})


def _same(a, b):
    a, b = (s.replace(key=jax.random.key_data(s.key)) for s in (a, b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_phases_are_counted_in_epochs_or_updates(work):
    assert loop.schedule(PLAN, 8, 4) == [4, 9]
    assert loop.schedule(PLAN, 9, 4) == [6, 11]  # an epoch is ceil(pairs / batch) updates
    state = _train(work)
    records = logs.read(work / "train.jsonl")
    assert [r["step"] for r in records] == list(range(1, 10))
    assert [r["phase"] for r in records] == ["toy"] * 4 + ["more"] * 5
    assert [r["epoch"] for r in records] == [1, 1, 2, 2, 1, 1, 2, 2, 3]
    assert int(state.step) == 9
    # The last two, and every phase's end.
    assert sorted(checkpoint.manager(work / "ck").all_steps()) == [4, 8, 9]


@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_stopped_run_ends_as_one_that_was_not(work, tmp_path_factory, at, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    _store(other / "real.zarr")
    whole = _train(other)
    calls = []

    def asked():
        calls.append(None)
        return len(calls) >= at

    def check():
        raise jobs.Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "asked", asked)
        patch.setattr(jobs, "check", check)
        with pytest.raises(jobs.Stopped):
            _train(work)
    assert checkpoint.manager(work / "ck").latest_step() == at
    assert [r["step"] for r in logs.read(work / "train.jsonl")] == list(range(1, at + 1))
    _same(_train(work), whole)
    assert logs.read(work / "train.jsonl") == logs.read(other / "train.jsonl")


def test_records_after_the_checkpoint_are_written_again(work):
    whole = _train(work)
    path = work / "train.jsonl"
    expected = path.read_text()
    for step in (8, 9):  # as if the run had been killed after update 7, before saving 8
        checkpoint.manager(work / "ck").delete(step)
    path.write_text(expected[: expected.index('"step": 8')])
    _same(_train(work), whole)
    assert path.read_text() == expected


def test_streamed_pairs_train_as_resident_ones(work, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    _store(other / "real.zarr")
    _same(_train(work), _train(other, budget_mb=0))


def test_a_longer_last_phase_goes_on(work, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    _store(other / "real.zarr")
    longer = [PLAN[0], PLAN[1]._replace(updates=8)]
    _train(work)
    _same(_train(work, longer), _train(other, longer))


def test_seeds_differ_and_repeat(work, tmp_path_factory):
    places = [tmp_path_factory.mktemp("other") for _ in range(2)]
    for place in places:
        _store(place / "real.zarr")
    a, b = _train(work), _train(places[0])
    c = _train(places[1], seed=4)
    _same(a, b)
    assert not np.array_equal(a.nets["toy"].params["logit"], c.nets["toy"].params["logit"])


def test_a_loss_that_is_not_finite_stops_the_run(work):
    with pytest.raises(Diverged, match=r"loss is inf at update 7 \(phase more\).*update 4"):
        _train(work, config=_config(breaks_at=6))
    assert checkpoint.manager(work / "ck").latest_step() == 4
    assert [r["step"] for r in logs.read(work / "train.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_half_written_log_line_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"phase": "vae", "epoch": 1, "step": step, "loss": 0.5 / step} for step in (1, 2)]
    logs.append(path, records)
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')
    assert [r["step"] for r in logs.read(path)] == [1, 2]
    logs.rewind(path, 1)
    assert logs.read(path) == records[:1] and path.read_text().count("\n") == 1


def _log(path, steps):
    logs.append(path, [{"phase": "vae", "epoch": 1, "step": n, "loss": 0.1 * n} for n in steps])
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines[:2], lines[2].replace("0.3", "0.7"), lines[3]], "line 3 is damaged"),
        (lambda lines: [*lines[:2], lines[2][:20] + "\n", lines[3]], "line 3 is damaged"),
        (lambda lines: [lines[0], *lines[2:]], "updates 2 to 2 are not in it"),
        (lambda lines: lines[1:], "updates 1 to 1 are not in it"),
        (lambda lines: lines[:2], "updates 3 to 4 are not in it, though their checkpoint is here"),
    ],
)
def test_damaged_and_missing_lines_of_a_log_are_told(change, words, tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    damaged = "".join(change(_log(path, range(1, 5))))
    path.write_text(damaged)
    kept = logs.rewind(path, 4)
    assert words in capsys.readouterr().err
    assert all(record["loss"] == 0.1 * record["step"] for record in kept)
    assert [record["step"] for record in logs.read(path)] == [record["step"] for record in kept]
    aside = tmp_path / "train-damaged-0.jsonl"
    assert aside.read_text() == damaged if len(damaged.splitlines()) != 2 else not aside.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"a": 1}', '{"a": 2, "crc32": 3}', "[" * 10**5]
)
def test_damaged_json_files_are_refused(text, tmp_path):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"dice": [0.1, float("inf")], "name": "ä"})
    assert files.read_json(path) == {"dice": [0.1, float("inf")], "name": "ä"}
    assert files.read_json(tmp_path / "none.json") is None
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json: damaged, or changed by hand: put a copy"):
        files.read_json(path)


def test_tensorboard_gets_every_metric(work):
    pytest.importorskip("tensorboardX")
    _train(work, tensorboard=work / "tensorboard")
    files = list((work / "tensorboard").iterdir())
    content = b"".join(file.read_bytes() for file in files)
    assert b"toy/loss" in content and b"more/toy_update_norm" in content


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([dict(stepp="toy")], "its fields are step, epochs, updates, batches"),
        ([dict(step="tow", epochs=1)], "the model's steps are toy, more"),
        ([dict(step="toy")], "positive `epochs` or a positive `updates`"),
        ([dict(step="toy", epochs=1, updates=1)], "not both"),
        ([dict(step="toy", epochs=1, batches=0)], "`batches` of 1 or more"),
    ],
)
def test_wrong_phases_are_named(specs, words):
    model = loop.load_model("tests.toy", _config())
    with pytest.raises(UserError, match=words) as error:
        loop.phases([dict(step="toy", epochs=1), *specs], model)
    assert "phases[1]" in str(error.value)


def test_wrong_models_and_batches_are_named(work):
    with pytest.raises(UserError, match=r"no module skullgen\.models\.vea"):
        loop.load_model("vea", _config())
    with pytest.raises(UserError, match=r"tests\.test_train has no function make"):
        loop.load_model("tests.test_train", _config())
    with pytest.raises(UserError, match=r"config.model does not fit.*learning_rate"):
        loop.load_model("tests.toy", ml_collections.ConfigDict())
    with pytest.raises(UserError, match="batch_size is 3: not a multiple of the 2 devices"):
        _train(work, batch=3)


def test_load_model_does_not_hide_a_models_own_missing_import(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "model.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        loop.load_model("pack.model", _config())


def test_a_mixture_is_streamed_as_it_is_resident(work):
    """Two stores: what does not fit the budget gives the same training, bit for bit."""
    _store(work / "more.zarr", count=6, train_pairs=6)
    model = loop.load_model("tests.toy", _config())
    states = []
    for budget in (0, 1):
        parts = [
            store.Part(work / n, store.Store(work / n).rows("train"))
            for n in ("real.zarr", "more.zarr")
        ]
        options = dict(seed=3, batch=4, log_every=3, save_every=4, keep=2, budget_mb=budget)
        places = (work / f"log{budget}.jsonl", work / f"ck{budget}")
        states.append(loop.train(model, PLAN, parts, *places, **options))
    _same(*states)
    assert logs.read(work / "log0.jsonl") == logs.read(work / "log1.jsonl")
    assert int(states[0].step) == 2 * 4 + 5  # an epoch counts the pairs of both


def test_notes_are_told_at_the_end_of_epochs_and_phases(work, capsys):
    def notes(records):
        where = f"{records[0]['phase']} {records[0]['epoch']}"
        return [f"warning: {where}", f"note {where} of {len(records)}"]

    def run(**fields):
        model = loop.load_model("tests.toy", _config())._replace(notes=notes)
        parts = [store.Part(work / "real.zarr", store.Store(work / "real.zarr").rows("train"))]
        options = dict(seed=3, batch=4, log_every=3, save_every=4, keep=2, budget_mb=1)
        loop.train(model, PLAN, parts, work / "t.jsonl", work / "n", **{**options, **fields})
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith(("warning", "note"))]

    assert run() == [
        "warning: toy 1",
        "warning: toy 2",
        "note toy 2 of 2",
        "warning: more 1",
        "warning: more 2",
        "warning: more 3",
        "note more 3 of 1",  # five updates are two epochs and a half
    ]
    records = logs.read(work / "t.jsonl")
    assert [len(part) for part in loop.epochs(records)] == [2, 2, 2, 2, 1]
