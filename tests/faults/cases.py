"""What a case of bad input is: one row of the table in test_inputs.py."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict


class Case(NamedTuple):
    """`make(folder, config)` writes the bad input under folder and points the config at it.

    The config is the VAE's smoke config with `stages=("ingest",)`; make changes it in place.
    `line` is a regular expression that the whole one-line error has to match.
    """

    name: str
    make: Callable[[Path, ConfigDict], None]
    line: str
