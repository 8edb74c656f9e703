"""The list of pairs to leave out: honoured wherever pairs are used; no training changes hands."""

import re
import shutil

import numpy as np
import pytest

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import mixture, store
from skullgen.evaluation import fidelity, judges
from skullgen.generation import generate
from skullgen.run import workdir
from skullgen.training import checkpoint, loop
from tests import toy_config

SIZE = 8


def _toy(stages, **fields):
    config = toy_config.get_config()
    config.stages = tuple(stages.split(","))
    config.data.skulls = 4
    config.generate.count = 6
    config.workers = 1
    config.phases = [dict(step="toy", updates=4)]
    config.update_from_flattened_dict(fields)
    return config


def _store(path, count=8, split=(0, 0, 0, 0, 1, 2, 2, -2)):
    opened = store.create(path, store.Shape(count, SIZE, 4), {"names": []}, {})
    for start in range(0, count, 4):
        draw = np.random.default_rng(start).random((4, SIZE, SIZE, SIZE, 2)) < 0.3
        columns = {"split": np.array(split[start : start + 4]), "removed": np.zeros((4, 3))}
        opened.write(start, store.pack(draw), columns)
    return path


def _list(path, text):
    (path / "leave_out.txt").write_text(text)


def test_listed_rows_are_not_used(tmp_path):
    path = _store(tmp_path / "a.zarr")
    _list(path, "# copies of one patient\n3\n\n 0 # a hole in its base\r\n3\n5\n7\n")
    assert store.Store(path).rows().tolist() == [1, 2, 4, 6]
    assert store.Store(path).rows("train").tolist() == [1, 2]
    assert store.Store(path).rows("test").tolist() == [6]
    assert store.Store(path).every().tolist() == [0, 1, 2, 3, 4, 5, 6]
    (whole,) = mixture.parts("a.zarr:train:all", tmp_path, 0)
    assert whole.rows.tolist() == [1, 2]
    with pytest.raises(UserError, match="2 pairs of split train, not 3"):
        mixture.parts("a.zarr:train:3", tmp_path, 0)
    _list(path, "\ufeff1\n")  # as an editor on Windows may begin it
    assert store.Store(path).rows("train").tolist() == [0, 2, 3]


@pytest.mark.parametrize("word", ["8", "-1", "1.0", "1 2", "1,2", "\u0661", "9" * 5000, "pair 3"])
def test_a_line_that_is_no_index_is_named(word, tmp_path):
    path = _store(tmp_path / "a.zarr")
    _list(path, f"# a list\n{word}\n")
    with pytest.raises(
        UserError, match=r"leave_out.txt: line 2 is .*index of one pair a line, 0 to 7"
    ):
        store.Store(path).rows()


def test_a_list_that_leaves_nothing_is_refused(tmp_path):
    path = _store(tmp_path / "a.zarr")
    _list(path, "5\n6\n")
    with pytest.raises(UserError, match=r"leave_out.txt: it leaves no pair of split test"):
        store.Store(path).rows("test")
    assert len(store.Store(path).rows()) == 5


def test_numbers_are_of_the_pairs_that_are_used(tmp_path):
    real, made = _store(tmp_path / "real.zarr"), _store(tmp_path / "made.zarr", 4, [-1] * 4)
    _list(made, "0\n")
    _list(real, "1\n")
    assert generate.removed(store.Store(made))["pairs"] == 3
    found = fidelity.fidelity(store.Store(real), store.Store(made))
    assert found["compared"] == 3
    closest = found["copies"]["pair"]["closest"]
    assert sorted(row["generated"] for row in closest) == [1, 2, 3]  # rows, as the list has them
    # Equal draws: pair 2 of one store is pair 2 of the other, which is second of those left.
    twin = next(row for row in closest if row["generated"] == 2)
    assert twin["training"] == 2 and twin["dice"] == 1


def test_training_goes_on_only_with_the_list_that_it_began_with(tmp_path):
    work = tmp_path / "run"
    workdir.run(_toy("ingest"), work)
    train = store.Store(work / "real.zarr").rows("train").tolist()
    _list(work / "real.zarr", f"{train[0]}\n")
    workdir.run(_toy("train"), work)
    longer = _toy("train", **{"phases": [dict(step="toy", updates=8)]})
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    for text in ("", f"{train[0]}\n{train[1]}\n"):
        _list(work / "real.zarr", text)
        with pytest.raises(UserError, match=r"tests\.toy: made with stores\.0\.rows \[\["):
            workdir.run(longer, work)
    held_out = store.Store(work / "real.zarr").every("test")[0]  # no batch holds it
    _list(work / "real.zarr", f"{train[0]}\n{held_out}\n")
    after = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    assert {p for p in after if before.get(p) != after[p]} == {work / "real.zarr" / "leave_out.txt"}
    workdir.run(longer, work)
    assert (work / "checkpoints" / "tests.toy" / "8").exists()


def test_a_list_that_comes_after_training_is_refused_too(tmp_path):
    workdir.run(_toy("ingest,train"), tmp_path)
    real = tmp_path / "real.zarr"
    _list(real, f"{store.Store(real).rows('train')[0]}\n")
    with pytest.raises(UserError, match=r"tests\.toy: made with stores\.0\.rows \[\["):
        workdir.run(_toy("train"), tmp_path)
    workdir.run(_toy("generate"), tmp_path)  # of what was learnt
    linked = {"data.source": "store", "data.root": str(real)}
    workdir.run(_toy("ingest,train", **linked), tmp_path / "anew")
    every = store.Store(real).every("train")
    assert loop.learnt(tmp_path / "anew", "tests.toy").tolist() == every[1:].tolist()


def test_pairs_are_compared_with_all_that_was_learnt(tmp_path):
    def judged():
        workdir.run(_toy("evaluate,gallery"), tmp_path)
        page = (tmp_path / "gallery" / "generated" / "index.html").read_text()
        near = re.findall(r'"near":\{.*?\}', page)
        return files.read_json(tmp_path / "metrics.json")["quality"], near

    workdir.run(_toy("ingest,train,generate"), tmp_path)
    before = judged()
    assert before[1]
    real = tmp_path / "real.zarr"
    _list(real, "\n".join(map(str, store.Store(real).rows("train")[:12])))
    assert judged() == before
    generated = store.Store(tmp_path / "generated.zarr")
    assert fidelity.fidelity(store.Store(real), generated) != before[0]


def test_a_phase_is_as_long_as_the_pairs_that_it_began_with_make_it(tmp_path):
    """One of epochs, halfway, may be made longer: of half the pairs it would be at its end."""
    fields = {"batch_size": 2, "save_every": 1, "keep": 100}
    phases = [dict(step="toy", epochs=2), dict(step="more", updates=4)]
    workdir.run(_toy("ingest,train", phases=phases, **fields), tmp_path)
    real, folder = tmp_path / "real.zarr", tmp_path / "checkpoints" / "tests.toy"
    train = store.Store(real).rows("train")
    halfway = -(-len(train) // 2)  # updates of an epoch
    for step in filter(lambda step: step.name.isdigit(), list(folder.iterdir())):
        if int(step.name) > halfway:
            shutil.rmtree(step)
    assert checkpoint.newest(folder) == halfway
    _list(real, "".join(f"{row}\n" for row in train[len(train) // 2 :]))
    phases[0]["epochs"] = 3
    workdir.run(_toy("generate", phases=phases, **fields), tmp_path)


def test_a_store_that_grows_keeps_its_list_and_a_net_of_other_pairs_is_refused(tmp_path):
    fields = {"segment.updates": 2, "segment.reference": False, "segment.batch_size": 2}
    workdir.run(_toy("ingest,train,generate,segment", **fields), tmp_path)
    made = tmp_path / "generated.zarr"
    _list(made, "1\n4\n")
    with pytest.raises(UserError, match=r"vnet: made with stores\.0\.rows \[\[0, 6\]\], now"):
        workdir.run(_toy("generate,segment", **{"generate.count": 9, **fields}), tmp_path)
    assert store.Store(made).rows().tolist() == [0, 2, 3, 5, 6, 7, 8]
    config = _toy("evaluate", **{"generate.count": 9, **fields})
    (parts,) = judges.mixtures(config.segment, tmp_path).values()
    assert parts[0].rows.tolist() == [0, 2, 3, 5, 6, 7, 8]
    with pytest.raises(UserError, match="not trained on these pairs"):
        judges.load(config.segment, SIZE, tmp_path)
