"""Checkpoints: damage is named, nothing of ours is renamed or deleted, releases."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from skullgen.core.errors import UserError
from skullgen.training import checkpoint, methods
from tests.training.test_loop import make_store, same, steps, train


def _model():
    fields = {"learning_rate": 0.1, "breaks_at": -1, "resolution": 8}
    return methods.load_model("tests.toy", ConfigDict(fields))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("whole")
    make_store(work / "real.zarr")
    train(work)
    return work


@pytest.fixture
def work(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        RuntimeError("RESOURCE_EXHAUSTED"),
        TypeError("restore() got an unexpected keyword argument"),
        AttributeError("module 'tensorstore' has no attribute 'KvStore'"),
        ValueError("the checkpoint format 9 is not known"),
    ],
)
def test_no_error_of_reading_renames_deletes_or_begins_anew(error, work, monkeypatch):
    """Too many open files, or a changed tensorstore call, once cost every good checkpoint."""
    before = _files(work)

    def restore(*_, **__):
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", restore)
    with pytest.raises(type(error)) as raised:
        train(work)
    assert raised.value is error and _files(work) == before
    monkeypatch.undo()
    train(work)
    assert _files(work) == before


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _remove(path):
    path.unlink()


def _damage(step, file, how):
    data = sorted((step / "default" / "d").iterdir())[0]
    how(data if file == "data" else step / file)


@pytest.mark.parametrize("how", [_cut, _flip, _remove])
@pytest.mark.parametrize("file", ["default/manifest.ocdbt", "data", "_CHECKPOINT_METADATA"])
def test_a_damaged_checkpoint_is_named_and_training_goes_on_without_it(file, how, work, whole):
    step = work / "ck" / "9"
    _damage(step, file, how)
    before = _files(work)
    if file == "_CHECKPOINT_METADATA" and how is _flip:  # a bit that no number depends on
        checkpoint.read(work / "ck", _model(), 9)
    else:
        with pytest.raises(UserError, match=rf"{step}.*delete it"):
            train(work)
        assert _files(work) == before
    shutil.rmtree(step)
    state = train(work)
    same(state, checkpoint.read(whole / "ck", _model(), 9))
    assert (work / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()


def test_bits_that_orbax_restores_without_a_word_are_found(work):
    about = work / "ck" / "9" / "_CHECKPOINT_METADATA"
    held = json.loads(about.read_text())
    assert held["custom_metadata"].keys() == {"crc32"}
    held["custom_metadata"]["crc32"] ^= 1
    about.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"ck/9: damaged \(not what was saved.*one before"):
        checkpoint.read(work / "ck", _model(), 9)


def test_unfinished_and_half_deleted_steps_are_not_listed(work, whole):
    """As a kill leaves them; the next run clears them."""
    shutil.copytree(work / "ck" / "9", work / "ck" / "12.orbax-checkpoint-tmp")
    shutil.copytree(work / "ck" / "9", work / "ck" / checkpoint.DELETED / "5")
    assert checkpoint.newest(work / "ck") == 9
    same(train(work), checkpoint.read(whole / "ck", _model(), 9))
    assert not (work / "ck" / checkpoint.DELETED).exists()
    assert not list((work / "ck").glob("*tmp*"))


def test_reading_writes_nothing(work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    checkpoint.read(work / "ck", _model(), 9)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_a_release_is_read_and_not_trained_from(work, tmp_path):
    model = _model()
    state = checkpoint.read(work / "ck", model, 9)
    checkpoint.release(tmp_path / "release", state)
    back = checkpoint.read(tmp_path / "release", model, 9)
    assert back.nets["toy"].opt == {} and int(back.step) == 9
    assert checkpoint.fingerprint(back) == checkpoint.fingerprint(state)
    z = model.latents(back, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(model.decode(back, z), model.decode(state, z))
    about = json.loads((tmp_path / "release" / "9" / "_CHECKPOINT_METADATA").read_text())
    assert about["custom_metadata"]["release"]
    shutil.rmtree(work / "ck" / "9")
    shutil.copytree(tmp_path / "release" / "9", work / "ck" / "9")
    with pytest.raises(UserError, match="of a release: training cannot go on from it"):
        train(work)
    assert steps(work / "ck") == [4, 8, 9]


def test_the_packaged_weights_are_read():
    from skullgen import delivery

    demo = methods.Path(delivery.__file__).parent / "weights" / "demo"
    net = methods.generator(methods.load_config(demo), demo)
    assert int(net.state.step) == 860 and net.state.nets["generator"].opt == {}
