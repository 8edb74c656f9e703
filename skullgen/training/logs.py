"""Metrics as JSON lines."""

import json
from pathlib import Path
from typing import Any

from skullgen.core import files
from skullgen.core.errors import UserError

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a log, [] without one; a last line that a kill cut short is left out."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}: line {number} is damaged: delete it") from None
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
