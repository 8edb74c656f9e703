"""The list of pairs to leave out: honoured wherever pairs are used; no training changes hands."""

import pytest

from skullgen.core import files, provenance
from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import fidelity, judges
from skullgen.generation import generate
from skullgen.run import workdir
from skullgen.training import loop
from tests import toy_config
from tests.data.test_store import LISTED, create, fill


def _toy(*stages, **fields):
    config = toy_config.get_config()
    config.stages = stages
    config.data.skulls = 4
    config.generate.count = 6
    config.workers = 1
    config.phases = [dict(step="toy", updates=4)]
    config.update_from_flattened_dict(fields)
    return config


def _list(path, text):
    (path / "leave_out.txt").write_text(text, "utf-8")


def test_numbers_are_of_the_pairs_that_are_used(tmp_path):
    real = fill(create(tmp_path / "real.zarr", 8), LISTED)
    generated = fill(create(tmp_path / "generated.zarr", 4), [-1] * 4)
    _list(generated.path, "0\n")
    _list(real.path, "1\n")
    assert generate.removed(generated)["pairs"] == 3
    result = fidelity.fidelity(real, generated)
    assert result["compared"] == 3
    closest = result["copies"]["pair"]["closest"]
    assert sorted(row["generated"] for row in closest) == [1, 2, 3]  # rows, as the list has them
    # Equal draws: pair 2 of one store is pair 2 of the other, which is second of those used.
    twin = next(row for row in closest if row["generated"] == 2)
    assert twin["training"] == 2 and twin["dice"] == 1


def test_training_goes_on_only_with_its_list_and_pairs_are_compared_with_what_was_learnt(tmp_path):
    workdir.run(_toy("ingest"), tmp_path)
    real = store.Store(tmp_path / "real.zarr")
    train = real.rows("train").tolist()
    _list(real.path, f"{train[0]}\n")
    workdir.run(_toy("train"), tmp_path)
    assert loop.training_rows(tmp_path, "tests.toy").tolist() == train[1:]
    longer = _toy("train", phases=[dict(step="toy", updates=8)])
    for text in ("", f"{train[0]}\n{train[1]}\n"):
        _list(real.path, text)
        with pytest.raises(UserError, match=r"tests.toy: made with stores\.0\.rows \[\[.*, now"):
            workdir.run(longer, tmp_path)
    workdir.run(_toy("generate", "evaluate"), tmp_path)  # of what was learnt
    metrics = tmp_path / "metrics.json"
    quality = files.read_json(metrics)["quality"]
    _list(real.path, "\n".join(map(str, train[:12])))
    workdir.run(_toy("evaluate"), tmp_path)  # beside all that was learnt
    assert files.read_json(metrics)["quality"] == quality
    assert fidelity.fidelity(real, store.Store(tmp_path / "generated.zarr")) != quality
    _list(real.path, f"{train[0]}\n{real.every('test')[0]}\n")  # the second is in no batch
    workdir.run(longer, tmp_path)
    assert (tmp_path / "checkpoints" / "tests.toy" / "8").exists()


def test_a_store_that_grows_keeps_its_list_and_a_net_of_other_pairs_is_refused(tmp_path, capsys):
    fields = {"segment.updates": 2, "segment.controls": (), "segment.batch_size": 2}
    workdir.run(_toy("ingest", "train", "generate", "segment", **fields), tmp_path)
    generated = tmp_path / "generated.zarr"
    _list(generated, "1\n4\n")
    fields["generate.count"] = 9
    workdir.run(_toy("generate", **fields), tmp_path)
    assert store.Store(generated).rows().tolist() == [0, 2, 3, 5, 6, 7, 8]
    config = _toy("segment", **fields)
    with pytest.raises(UserError, match=r"made with stores\.0\.rows \[\[0, 6\]\], now \[\[0, 1\]"):
        workdir.run(config, tmp_path)
    with pytest.raises(UserError, match=r"trained with another stores\.0\.rows"):
        judges.load(config.segment, 8, tmp_path)
    learnt = provenance.read(tmp_path / "checkpoints" / "vnet")["stores"]["0"]["rows"]
    assert learnt == [[0, 6]]
