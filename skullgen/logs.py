"""JSON files whole, metrics as JSON lines, and TensorBoard where it is asked for."""

import json
import os
import uuid

from skullgen.errors import UserError


def read(path):
    """All records of a log, in order: a list of dicts; [] where there is none.

    A last line that a kill cut short is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def rewind(path, step):
    """Drops the records after `step`, which a resumed run will write again; returns the others."""
    records = read(path)
    kept = [record for record in records if record["step"] <= step]
    if path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(partial, path)
    return kept


def append(path, records):
    """Writes records in one call, so that a line is whole or absent."""
    with open(path, "a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def write_json(path, value):
    """Replaces a JSON file whole, also where several processes do so at once."""
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def tensorboard(folder):
    """`write(records)` to TensorBoard under `folder`; a function that does nothing where None."""
    if folder is None:
        return lambda records: None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "config.tensorboard needs tensorboardX: pip install 'skullgen[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder))

    def write(records):
        for record in records:
            for name, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{record['phase']}/{name}", value, record["step"])
        writer.flush()

    return write
