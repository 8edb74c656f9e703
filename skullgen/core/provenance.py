"""What an artifact is made of, kept beside it: one recipe, one comparison, one refusal.

Whatever a stage makes (a store, checkpoints, an export) is a folder with a `recipe.json`: a dict of
all that determines it. Absent is made, the same goes on, another is refused. Lengths and counts
that only grow are no part of a recipe.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from skullgen.core import files
from skullgen.core.errors import UserError

FILE = "recipe.json"
PACKAGES = "skullgen jax jaxlib flax optax orbax-checkpoint numpy scipy zarr".split()
Recipe = dict[str, Any]


def read(folder: Path) -> Recipe | None:
    """The recipe of the artifact in `folder`, or None where there is none."""
    return files.read_json(folder / FILE)


def write(folder: Path, recipe: Recipe) -> None:
    """Writes the recipe of an artifact, and makes its folder; equal recipes, equal bytes."""
    plain = json.loads(json.dumps(recipe, sort_keys=True))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / FILE, plain)


def require_same(folder: Path, before: Recipe | None, now: Recipe) -> None:
    """UserError, with the fields that differ, unless `before` is None or equals `now`."""
    changes = {} if before is None else differences(before, now)
    if changes:
        fields = [f"{name} {a:.60}, now {b:.60}" for name, (a, b) in changes.items()]
        more = f" and {len(fields) - 4} more" if len(fields) > 4 else ""
        cure = "choose another --workdir (or delete this folder: it is made anew)"
        what = f"{folder}: made with {'; '.join(fields[:4])}{more}"
        raise UserError(f"{what}: set it back, or {cure}")


def differences(before: Recipe, now: Recipe) -> dict[str, tuple[str, str]]:
    """Dotted name -> both values in words, of the fields in which two recipes differ.

    A field that is missing differs from one that is None, 0 or empty; 0 differs from False.
    """
    plain = (json.loads(json.dumps(recipe, sort_keys=True)) for recipe in (before, now))
    old, new = ({name: repr(value) for name, value in leaves(part).items()} for part in plain)
    both = {name: (old.get(name, "missing"), new.get(name, "missing")) for name in {**old, **new}}
    return {name: (a, b) for name, (a, b) in both.items() if a != b}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, for recipes that hold another one's."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on, and the commit of skullgen."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "commit": commit()}


def commit() -> str:
    """The commit of the source tree that this package runs from, `+` where it is changed."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        answer = subprocess.run([*ask, "--abbrev=12"], capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every value of nested dicts by its dotted name; an empty dict is a value."""
    if not isinstance(value, dict) or (name and not value):
        return {name: value}
    dot = f"{name}." if name else ""
    return {k: v for key, item in value.items() for k, v in leaves(item, f"{dot}{key}").items()}
