"""The list of pairs to leave out: honoured wherever pairs are used; no training changes hands."""

import re
import shutil

import pytest

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import fidelity, judges
from skullgen.run import workdir
from skullgen.training import checkpoint, loop
from tests import toy_config
from tests.data.test_store import create, fill

SIZE = 8


def _toy(stages, **fields):
    config = toy_config.get_config()
    config.stages = stages
    config.data.skulls = 4
    config.generate.count = 6
    config.workers = 1
    config.phases = [dict(step="toy", updates=4)]
    config.update_from_flattened_dict(fields)
    return config


def _list(path, text):
    (path / "leave_out.txt").write_text(text)


def test_numbers_are_of_the_pairs_that_are_used(tmp_path):
    real = fill(create(tmp_path / "real.zarr", 8, size=SIZE), [0, 0, 0, 0, 1, 2, 2, -2])
    made = fill(create(tmp_path / "made.zarr", 4, size=SIZE))
    _list(made.path, "0\n")
    _list(real.path, "1\n")
    found = fidelity.fidelity(real, made)
    closest = found["copies"]["pair"]["closest"]
    assert found["compared"] == 3
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


def test_a_run_made_again_says_what_its_first_one_left_out(tmp_path, capsys):
    workdir.run(_toy("ingest"), tmp_path)
    workdir.tell_versions(tmp_path)
    assert "leave_out" not in capsys.readouterr().err
    _list(tmp_path / "real.zarr", "0\n")
    workdir.tell_versions(tmp_path)
    assert "real.zarr/leave_out.txt lists pairs, which are used here" in capsys.readouterr().err


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
