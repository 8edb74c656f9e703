"""Metrics as JSON lines, and TensorBoard where it is asked for."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from skullgen.core import files
from skullgen.core.errors import UserError

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a log, [] without one; a last line that a kill cut short is left out."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = []
    try:
        for line in lines:
            records.append(json.loads(line))
    except ValueError:
        what = f"{path}: line {len(records) + 1} is damaged"
        raise UserError(f"{what}: delete it: curves lack it") from None
    return records


def cut(path: Path, step: int) -> list[Record]:
    """Drops the records after `step`, which a resumed run will write again; returns the others."""
    records = [record for record in read(path) if record["step"] <= step]
    if path.exists():
        files.replace(path, _lines(records))
    return records


def append(path: Path, records: list[Record]) -> None:
    """Writes records in one call, so that a line is whole or absent; `path` was `cut` before."""
    lines = _lines(records)
    with files.room(path, len(lines)), open(path, "ab") as file:
        file.write(lines)


def _lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@contextlib.contextmanager
def tensorboard(folder: Path | None) -> Iterator[Callable[[list[Record]], None]]:
    """`write(records)` to TensorBoard under `folder`; a function that does nothing where None."""
    if folder is None:
        yield lambda records: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        cure = "pip install 'skullgen[tensorboard]'"
        raise UserError(f"config.tensorboard needs tensorboardX: {cure}") from None

    def write(records):
        for record in records:
            for name, value in record.items():
                where = f"{record['phase']}/{name}", value, record["step"]
                if isinstance(value, float):
                    writer.add_scalar(*where)
                elif hasattr(value, "shape"):  # a picture, uint8 [H, W, 3]
                    writer.add_image(*where, dataformats="HWC")

    with SummaryWriter(str(folder), flush_secs=1) as writer:
        yield write
