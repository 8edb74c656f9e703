"""Files written whole, the disk's room, and the lock of a work directory."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skullgen.core.errors import UserError

# Names of what is half-written or half-deleted: ours, Zarr's, and where orbax moves old steps.
PARTIAL = re.compile(r".+\.(partial-[0-9a-f]{32}|[0-9a-f]{32}\.partial)|deleted\.partial")


def replace(path: Path, content: bytes) -> None:
    """Writes the file `path` whole or not at all; a power cut leaves the old or the new."""
    partial = partial_of(path)
    with room(path, len(content)):
        try:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """A name beside `path` for what is being written; `clear` removes what a kill leaves of it."""
    return path.with_name(f"{path.name}.partial-{uuid.uuid4().hex}")


def clear(folder: Path) -> None:
    """Removes what a kill left half-written under `folder`; links are not followed."""
    for path in [path for path in folder.rglob("*.partial*") if PARTIAL.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a JSON file."""
    replace(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file, or None without the file; UserError where it holds none."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        cure = "put a copy back, or delete it and run the stage that writes it again"
        raise UserError(f"{path}: cannot be read ({error}): {cure}") from None
    return value


@contextlib.contextmanager
def room(path: Path, needed: int = 0) -> Iterator[None]:
    """UserError that names `path` where the disk is full within; needed: bytes, at most."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise no_room(path, needed) from None


def is_full(error: BaseException) -> bool:
    """Whether an error, of tensorstore too, which has no numbers, is that of a full disk."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error)


def no_room(path: Path, needed: int) -> UserError:
    """The error of a disk that has no room for `needed` bytes more at `path`."""
    free = free_bytes(path) / 2**20
    what = f"up to {needed / 2**20:.3g} MB are needed and {free:.3g} MB free"
    cure = "make room and start again; what was written is whole"
    return UserError(f"{path}: no room left on its disk: {what}: {cure}")


def free_bytes(path: Path) -> int:
    """Bytes that this process may still write on the disk of `path`, which need not exist."""
    return shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the lock file `path` until the process ends; UserError where it is another's."""
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            what = f"another run works here ({file.read().strip()})"
            cure = "wait for its end, or choose another --workdir"
            raise UserError(f"{path.parent}: {what}: {cure}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
