"""JSON files whole, metrics as JSON lines, and TensorBoard where it is asked for.

Every file and every line ends with `crc32`, of its other fields: what a disk, a kill or a hand has
changed is found when it is read.
"""

import contextlib
import json
import sys
import zlib

from skullgen.core import files, jobs
from skullgen.core.errors import UserError, plain


def read(path):
    """The whole records of a log, in order: a list of dicts; [] where there is none.

    A last line that a kill cut short is left out. A damaged or missing line too, with a warning.
    """
    return _read(path)[0]


def _read(path):
    """The whole records of a log, and the words for what is damaged in it."""
    if not path.exists():
        return [], []
    lines = path.read_bytes().splitlines(keepends=True)
    lines = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
    held = [record if _placed(record) else None for record in map(_opened, lines)]
    records = [record for record in held if record is not None]
    bad = [f"line {number} is damaged" for number, one in enumerate(held, 1) if one is None]
    for before, after in zip([{"step": 0}, *records], records, strict=False):
        if after["step"] > before["step"] + 1:
            bad.append(f"updates {before['step'] + 1} to {after['step'] - 1} are not in it")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        words = f"{'; '.join(bad[:3])}{more}: left out of curves, no other result depends on it"
        print(plain(f"warning: {path}: {words}"), file=sys.stderr)
    return records, bad


def _placed(record):
    kinds = {"phase": str, "epoch": int, "step": int}
    return record and all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def rewind(path, step):
    """Drops the records after `step`, which a resumed run will write again; returns the others.

    A damaged log is kept beside it as `<stem>-damaged-<number>`.
    """
    records, bad = _read(path)
    kept = [record for record in records if record["step"] <= step]
    if bad:
        jobs.set_aside(path, "-damaged")
    if bad or path.exists():
        files.replace(path, "".join(map(_line, kept)).encode())
    last = kept[-1]["step"] if kept else 0
    if last < step and not bad:
        what = f"updates {last + 1} to {step} are not in it, though their checkpoint is here"
        print(plain(f"warning: {path}: {what}"), file=sys.stderr)
    return kept


def append(path, records):
    """Writes records in one call, so that a line is whole or absent.

    path: a log that was rewound when this run began, which drops a line that a kill cut short.
    """
    lines = "".join(map(_line, records)).encode()
    with files.room(path, len(lines)), open(path, "ab") as file:
        file.write(lines)


def read_json(path):
    """What `write_json` wrote; UserError where it is damaged, None where there is no such file."""
    if not path.exists():
        return None
    value = _opened(path.read_bytes())
    if value is None:
        raise UserError(
            f"{path}: damaged, or changed by hand: put a copy back, or move it away and run "
            "the stage that writes it again"
        )
    return value


@contextlib.contextmanager
def as_written(folder):
    """UserError where what is read within, of `folder`, is not of the kind that skullgen writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"a file of it holds what skullgen does not write ({type(error).__name__}: {error})"
        raise UserError(f"{folder}: {what}: run the stages that write it again") from error


def write_json(path, value):
    """Replaces a JSON file of a dict whole, also where several processes do so at once."""
    files.replace(path, (json.dumps(_sealed(value), indent=2) + "\n").encode())


def _line(record):
    return json.dumps(_sealed(record)) + "\n"


def _sealed(record):
    return {**record, "crc32": zlib.crc32(json.dumps(record).encode())}


def _opened(text):
    """The record that `_sealed` closed, without its sum; None where it is not what was written."""
    try:
        record = json.loads(text)
        told = record.pop("crc32")
        return record if _sealed(record)["crc32"] == told else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


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
                where = f"{record['phase']}/{name}", value, record["step"]
                if isinstance(value, float):
                    writer.add_scalar(*where)
                elif hasattr(value, "shape"):  # a picture, uint8 [H, W, 3]
                    writer.add_image(*where, dataformats="HWC")
        writer.flush()

    return write
