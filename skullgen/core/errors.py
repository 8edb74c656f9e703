"""The exceptions that speak to people: `launch.py` prints their one line, without a traceback."""

import math
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend, in one plain line: what, where, the cure. Exit code 2."""

    code = 2

    def __init__(self, text: str) -> None:
        super().__init__(plain(text))


class Diverged(UserError):
    """A metric of training is not finite: no one's mistake. Exit code 1."""

    code = 1


def one_of(field: str, value: Any, options: Iterable[Any]) -> Any:
    """Returns `value` where it is one of `options`, else raises UserError that names the field."""
    if value not in options:
        raise UserError(f"{field} is {value!r}: choose one of {', '.join(map(str, options))}")
    return value


def plain(text: str) -> str:
    """The text in one line that is safe in a terminal: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_range(field: str, value: Any, low: float | int, high: float | int = math.inf) -> None:
    """UserError that names `field` unless `value` is a number from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        bounds = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
        raise UserError(f"config.{field} is {value!r}: it must be {bounds}")
