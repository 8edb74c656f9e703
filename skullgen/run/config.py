"""The config that a command line names, and mistakes in either, in one line."""

import copy
import hashlib
import json
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from skullgen.core import files, jobs, plugins
from skullgen.core.errors import UserError, plain

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
AGAIN = Path(__file__).resolve().parents[2] / "experiments" / "again.py"
# What a run is, these do not change.
UNNAMED = ("stages=", "data.root=", "data.triplets.", "explore.", "export.", "predict.", "gallery.")


def parse(argv: Sequence[str]) -> list[str]:
    """Flags from the command line; a mistake in them or in the config file ends us with code 2."""
    logging.set_verbosity(logging.ERROR)
    file = config_file(argv)
    if file and not Path(file).is_file():
        _fail(f"{file}: no such config file")
    if file.endswith(".json"):
        reader = f"{AGAIN}:{file}"
        words = {file: reader, f"--config={file}": f"--config={reader}"}
        argv = [words.get(word, word) for word in argv]
    try:
        rest = flags.FLAGS(argv)
        config = CONFIG.value
        if not file:
            _fail("which experiment? For example --config experiments/vae_wgan.py")
        _ = config.stages  # a config that could not be loaded raises only when it is used
        if not isinstance(config, ConfigDict):
            raise TypeError
    except Exception as error:  # of the config file's own code, any
        _fail(_mistake(error, argv))
    if rest[1:]:
        _fail(f"{rest[1]!r} is no flag: fields are set by --config.FIELD=VALUE")
    return rest


def config_file(argv: Sequence[str]) -> str:
    """The config file that a command line names, or ""."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    named = [one.partition("=")[2] or two for one, two in pairs if re.match("--?config(=|$)", one)]
    return named[-1].partition(":")[0] if named else ""


class Named(NamedTuple):
    """The config that a command line names: its file, what follows the colon, what it sets."""

    file: Path
    word: str
    overrides: dict[str, Any]

    def folder(self, sweeping: bool) -> Path:
        """`runs/<config>[-<size>][-<overrides>][-sweep]`, or the folder of a `config.json`."""
        if self.file == AGAIN:
            return Path(self.word).parent
        fields = [f"{name}={as_text(value)}" for name, value in self.overrides.items()]
        parts = [self.file.stem, self.word, *fields, "sweep" * sweeping]
        return Path("runs") / folder_name(p for p in parts if p and not p.startswith(UNNAMED))

    def sweep(self) -> Callable | None:
        """The function `sweep(add)` of the config file, or None."""
        return runpy.run_path(str(self.file)).get("sweep")


def named(flag: Any = None) -> Named:
    """The config of the flag `config`."""
    flag = flags.FLAGS["config"] if flag is None else flag
    file, _, word = flag.config_filename.partition(":")
    return Named(Path(file), word, config_flags.get_override_values(flag))


def as_text(value: Any) -> str:
    """A field's value in a name: a list's items with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def folder_name(parts: Iterable[str]) -> str:
    """The words of a folder's name, joined: without a slash or a comma, of 120 bytes at most."""
    name = "-".join(parts).replace("/", "_").replace(",", "+")
    if len(name.encode()) > 120:  # a file system's names have 255 bytes
        name = f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def at_home(config: ConfigDict) -> ConfigDict:
    """A copy: `~` in a section's text is the home folder, a tuple set to `a,b` has two words."""
    config = copy.deepcopy(config)
    sections = [value for value in config.values() if isinstance(value, ConfigDict)]
    for part in [config, *sections]:
        for name, value in part.items():
            if isinstance(value, tuple) and value and all(isinstance(word, str) for word in value):
                part[name] = tuple(plugins.listed(value))
            elif part is not config and isinstance(value, str) and "~" in value:
                words = re.split(r"(,\s*)", value)
                part[name] = "".join(map(os.path.expanduser, words))
    return config


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON has it: its references resolved, its tuples lists."""
    return json.loads(config.to_json_best_effort())


def _mistake(error, argv):
    """What is wrong with the command line, or with the config file that it names, in one line."""
    file = config_file(argv)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    if lines := [frame.lineno for frame in frames if frame.filename == os.path.realpath(file)]:
        return f"{file}, line {lines[-1]}: {type(error).__name__}: {error}"
    if isinstance(error, flags.Error):  # it may hold a traceback
        return re.sub(r".*\b\w+Error: ", "", " ".join(str(error).split()))
    if fields := [part for part in argv if part.startswith("--config.")]:
        while isinstance(error.args[0], Exception):
            error = error.args[0]
        return f"{' '.join(fields)}: no such field? {' '.join(str(error.args[0]).split())}"
    return f"{file}: it needs a function get_config() that returns a ConfigDict with `stages`"


def report(error: Exception) -> int | None:
    """Prints what a person can use of an error; returns the exit code, or None to raise it."""
    if isinstance(error, jobs.Stopped):
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + error.signum
    if not isinstance(error, UserError):
        place = getattr(error, "filename", None)
        if files.is_full(error):
            error = files.no_room(Path(place or "."), 0)
        elif isinstance(error, OSError) and place:
            error = UserError(f"{place}: {error.strerror}")
        else:
            return None
    print(f"error: {error}", file=sys.stderr)
    return error.code


def _fail(text):
    print(f"error: {plain(text)}", file=sys.stderr)
    sys.exit(2)
