"""Checkpoints: damage is named, nothing of ours is renamed or deleted, releases."""

import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from skullgen.core.errors import UserError
from skullgen.training import checkpoint, methods
from tests.training.test_loop import TOY, end_of, same, train


def _model():
    return methods.load_model("tests.toy", ConfigDict(TOY))


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        AttributeError("module 'tensorstore' has no attribute 'KvStore'"),
        ValueError("the checkpoint format 9 is not known"),
    ],
)
def test_no_error_of_reading_renames_deletes_or_begins_anew(error, trained, monkeypatch):
    """Too many open files, or a changed tensorstore call, once cost every good checkpoint."""
    before = _files(trained)

    def restore(*_, **__):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", restore)
    with pytest.raises(type(error)) as raised:
        train(trained)
    assert raised.value is error and _files(trained) == before


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _other_sum(path):
    """As if orbax had restored other bits without a word."""
    content = json.loads(path.read_text("utf-8"))
    content["custom_metadata"]["crc32"] ^= 1
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("file", "how"),
    [
        *itertools.product(("default/manifest.ocdbt", "default/d/*"), (_cut, _flip, Path.unlink)),
        *itertools.product(("_CHECKPOINT_METADATA",), (_cut, _other_sum, Path.unlink)),
    ],
)
def test_a_damaged_checkpoint_is_named(file, how, trained):
    step = trained / "ck" / "9"
    how(min(step.glob(file)))
    before = _files(trained)
    with pytest.raises(UserError, match=rf"{step}.*delete it"):
        checkpoint.begin(trained / "ck", _model(), 3)
    assert _files(trained) == before


def test_unfinished_and_half_deleted_steps_are_not_listed(trained, whole):
    """As a kill leaves them; the next run clears them."""
    shutil.copytree(trained / "ck" / "9", trained / "ck" / "12.orbax-checkpoint-tmp")
    shutil.copytree(trained / "ck" / "9", trained / "ck" / checkpoint.DELETED / "5")
    assert checkpoint.newest(trained / "ck") == 9
    same(train(trained), end_of(whole))
    assert not (trained / "ck" / checkpoint.DELETED).exists()
    assert not list((trained / "ck").glob("*tmp*"))


def test_a_release_is_read_and_not_trained_from(trained, tmp_path):
    model = _model()
    state = end_of(trained)
    checkpoint.release(tmp_path / "release", state)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    back = checkpoint.read(tmp_path / "release", model, 9)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert back.nets["toy"].opt == {} and int(back.step) == 9
    assert checkpoint.fingerprint(back) == checkpoint.fingerprint(state)
    z = model.latents(back, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(model.decode(back, z), model.decode(state, z))
    shutil.rmtree(trained / "ck" / "9")
    shutil.copytree(tmp_path / "release" / "9", trained / "ck" / "9")
    with pytest.raises(UserError, match="of a release: training cannot go on from it"):
        train(trained)


def test_the_packaged_weights_are_read():
    from skullgen import delivery

    demo = Path(delivery.__file__).parent / "weights" / "demo"
    net = methods.generator(methods.load_config(demo), demo)
    assert int(net.state.step) == 860 and net.state.nets["generator"].opt == {}
