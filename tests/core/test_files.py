"""Files are whole or not there, a full disk is one line, a work directory is one run's."""

import errno
import os
import subprocess
import sys
import uuid

import pytest

from skullgen.core import files
from skullgen.core.errors import UserError


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_while_writing_leaves_the_old_file_alone(step, tmp_path, monkeypatch):
    files.replace(tmp_path / "a", b"old")

    def fail(*arguments):
        raise InterruptedError

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InterruptedError):
        files.replace(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_kill_while_writing_leaves_the_old_file_and_what_clear_removes(tmp_path):
    files.replace(tmp_path / "a", b"old")
    kill = (
        "import os, pathlib, sys; from skullgen.core import files;"
        "os.replace = lambda *names: os.kill(os.getpid(), 9);"
        "files.replace(pathlib.Path(sys.argv[1]), b'new')"
    )
    done = subprocess.run([sys.executable, "-c", kill, tmp_path / "a"])
    assert done.returncode == -9 and (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    files.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_our_own_half_made_files_are_cleared(tmp_path):
    number, work, outside = uuid.uuid4().hex, tmp_path / "run", tmp_path / "outside"
    mine = [work / "patient.partial.nrrd", work / "x.partials" / "a", work / "x.partial"]
    mine += [work / "x.partial-1", outside / f"x.partial-{number}"]
    half = [work / f"m.json.partial-{number}", work / "a.zarr" / f"0.{number}.partial"]
    for path in mine + half:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("")
    (files.partial_of(work / "b.zarr") / "pairs").mkdir(parents=True)
    (work / "deleted.partial" / "10").mkdir(parents=True)
    (work / "link").symlink_to(outside)
    files.partial_of(work / "link").symlink_to(outside)
    files.clear(work)
    assert all(path.exists() for path in mine) and not any(path.exists() for path in half)
    assert len(list(work.iterdir())) == 6 and len(list(outside.iterdir())) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "over"),
        ValueError("write: No space left on device [source locations]"),  # as tensorstore's
    ],
)
def test_a_full_disk_is_one_line(error, tmp_path):
    with pytest.raises(UserError, match=r"/x: no room left.* 3 MB are needed and .* MB free"):
        with files.room(tmp_path / "none" / "x", 3 * 2**20):
            raise error


HOLD = (
    "import pathlib, sys; from skullgen.core import files\n"
    "with files.alone(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
)


def test_a_work_directory_is_one_runs_until_it_ends(tmp_path):
    lock = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, lock]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "in\n"
        words = rf"another run works here \(process {first.pid} on .*choose another --workdir"
        with pytest.raises(UserError, match=words), files.alone(lock):
            pass
        first.kill()
    with files.alone(lock):
        assert str(os.getpid()) in lock.read_text()
    with pytest.raises(ValueError), files.alone(lock):
        raise ValueError
    with files.alone(lock):
        pass
