"""What a user wrote in a package of their own, by the dotted name that a field of the config holds.

A model, a kind of defect, a source of data, a metric: whatever `python -c "import mylab"` finds.
"""

import hashlib
import importlib
import sys
from pathlib import Path

from skullgen.core.errors import UserError


def module(field, name, path):
    """The module `path` that the value `name` of a field stands for; UserError where none is.

    What that module itself imports and does not find is its own error, and raised as it is.
    """
    try:
        if not all(map(str.isidentifier, path.split("."))):
            raise ModuleNotFoundError(name=path)
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not (error.name and f"{path}.".startswith(f"{error.name}.")):
            raise
        ours = "a file of skullgen/models, or " * field.endswith("model_name")
        raise UserError(
            f"{field} is {name!r}: no module {path} that can be imported "
            f"({ours}package.module on PYTHONPATH)"
        ) from None


def attribute(field, name, path, needed, form):
    """The function `needed` of the module `path`; UserError, which tells its form, without it."""
    found = getattr(module(field, name, path), needed, None)
    if not callable(found):
        raise UserError(f"{field} is {name!r}: {path} has no function {needed}{form}")
    return found


def function(field, name, form):
    """The function `package.module.function`; UserError, which tells its form, where none is."""
    path, _, needed = name.rpartition(".")
    return attribute(field, name, path, needed, form)


def listed(text):
    """The comma-separated names of a field, in order."""
    return [name.strip() for name in text.split(",") if name.strip()]


def sums(names):
    """Module file -> SHA-256, of those of the given functions or modules that were imported."""
    found = {}
    for name in names:
        held = sys.modules.get(name) or sys.modules.get(name.rpartition(".")[0])
        if "." in name and getattr(held, "__file__", None):
            content = Path(held.__file__).read_bytes()
            found[f"{held.__name__}.py"] = hashlib.sha256(content).hexdigest()
    return found
