"""What a user wrote in a package of their own, by the dotted name that a field of the config holds.

A model, a kind of defect, a source of data, a metric: whatever `python -c "import mylab"` finds.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from skullgen.core.errors import UserError


def module(field: str, name: str, path: str) -> Any:  # a module, or what stands for one
    """The module `path` that the value `name` of a field stands for; UserError where none is."""
    try:
        if not all(map(str.isidentifier, path.split("."))):
            raise ModuleNotFoundError(name=path)
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not (error.name and f"{path}.".startswith(f"{error.name}.")):
            raise  # what that module itself imports and does not find
        ours = "a file of skullgen/models, or " * field.endswith("model_name")
        what = f"{field} is {name!r}: no module {path} that can be imported"
        raise UserError(f"{what} ({ours}package.module on PYTHONPATH)") from None


def attribute(field: str, name: str, path: str, needed: str, form: str) -> Callable[..., Any]:
    """The function `needed` of the module `path`; UserError, which tells its form, without it."""
    value = getattr(module(field, name, path), needed, None)
    if not callable(value):
        raise UserError(f"{field} is {name!r}: {path} has no function {needed}{form}")
    return value


def function(field: str, name: str, form: str) -> Callable[..., Any]:
    """The function `package.module.function`; UserError, which tells its form, where none is."""
    path, _, needed = name.rpartition(".")
    return attribute(field, name, path, needed, form)


def listed(names: str | Iterable, fits: Callable[[str], Any] | None = None) -> list[str]:
    """The names in a field, a tuple or comma-separated text (as a command line sets it).

    fits: whether there is something of a name; the longest text that fits is one, commas and all.
    """
    parts = [part.split(",") for part in ([names] if isinstance(names, str) else map(str, names))]
    return [name for words in parts for name in _joined(words, fits) if name]


def _joined(words, fits):
    while words:
        ends = range(len(words), 1, -1) if fits else ()
        texts = {end: ",".join(words[:end]).strip() for end in ends}
        end = next((end for end, text in texts.items() if text and fits(text)), 1)
        yield ",".join(words[:end]).strip()
        words = words[end:]


def sums(names: Iterable[str]) -> dict[str, str]:
    """Module file -> SHA-256, of those of the given functions or modules that were imported."""
    digests = {}
    for name in names:
        owner = sys.modules.get(name) or sys.modules.get(name.rpartition(".")[0])
        if "." in name and getattr(owner, "__file__", None):
            content = Path(owner.__file__).read_bytes()
            digests[f"{owner.__name__}.py"] = hashlib.sha256(content).hexdigest()
    return digests
