"""Weights to hand on: what generation, encoding and prediction read of a trained run, and no more.

A release is laid out as a work directory without its stores: `config.json` (without paths and names
of skulls) and `checkpoints/`, without optimisers. `sha256sum -c SHA256SUMS` checks all files.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, jobs, provenance
from skullgen.core.errors import UserError, plain
from skullgen.data import store
from skullgen.evaluation import judges
from skullgen.training import checkpoint, loop, methods

PACKAGED = Path(__file__).parent / "weights"
README = Path(__file__).parent / "release.md"  # a template
ABOUT = ("voxel_mm", "kinds", "licence", "trained_on")
PRIVATE = (
    "data.root data.test data.validation stores init_from generate.weights segment.stores "
    "segment.init_from evaluate.stores explore.stores export.store export.folder predict.file "
    "predict.folder predict.weights"
).split()


def place(where: str | Path) -> Path:
    """The folder that `where` means: a work directory, a release, packaged weights by name."""
    names = sorted(path.name for path in PACKAGED.glob("*"))
    folder = PACKAGED / where if str(where) in names else Path(os.path.expanduser(where))
    if not (folder / "config.json").exists():
        what = "no run and no weights in it" if folder.is_dir() else "no such folder"
        cure = "name a run's work directory, or a release"
        raise UserError(f"{where}: {what} (packaged weights: {', '.join(names)}): {cure}")
    return folder


def about(folder: Path, name: str = "") -> dict[str, Any]:
    """What the weights in a folder (`place`) learnt from: `voxel_mm`, `kinds`, `licence`, ...

    name: the generator's; "": the V-Nets. Of a release, its recipe tells; of a run, its real pairs.
    """
    recipe = provenance.read(folder) or {}
    if "trained_on" in recipe:
        return {name: recipe[name] for name in ABOUT}
    real, rows = store.Store(folder / "real.zarr"), loop.training_rows(folder, name)
    source = real.recipe.get("data", {}).get("source", "unknown")
    skulls = len(np.unique(real.column("skull")[rows]))
    origin = {"source": source, "pairs": len(rows), "skulls": skulls}
    result = {**{name: real.attrs[name] for name in ABOUT[:-1]}, "trained_on": origin}
    if any("init_from" in (provenance.read(net) or {}) for net in folder.glob("checkpoints/*")):
        result["licence"] += "; and that of the weights that it started from (init_from)"
    return result


def chosen(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Path]:
    """Whose checkpoints make pairs: a config and a folder, this run's or of `generate.weights`.

    The config is `config` with the weights' own `model`; a field that contradicts it is refused.
    """
    weights = config.generate.get("weights", "")
    if not weights:
        return config, workdir
    folder = place(weights)
    theirs, mine = methods.load_config(folder), config.copy_and_resolve_references()
    fields = [{"model_name": c.model_name, "model": c.model.to_dict()} for c in (mine, theirs)]
    for field, (value, wanted) in provenance.differences(*fields).items():
        if value not in ("None", "missing") and wanted != "missing":
            what = f"config.{field} is {value}, and generate.weights={weights} were trained with"
            raise UserError(f"{what} {wanted}: leave it, or --config {folder / 'config.json'}")
    mine.model = theirs.model
    return mine, folder


def run(config: ConfigDict, workdir: Path) -> None:
    """The stage: writes `release/` from what is trained in the work directory, whole or not."""
    folder, states = workdir / "release", _trained(config, workdir)
    recipe = {
        **about(workdir, config.model_name),
        "updates": {name: int(state.step) for name, state in states.items()},
        "weights": {name: checkpoint.fingerprint(state) for name, state in states.items()},
    }
    before = provenance.read(folder)
    provenance.require_same(folder, before, recipe)
    if before:
        print(f"{folder}: these weights are there (delete it, and it is made anew)")
        return
    partial = files.partial_of(folder)
    for name, state in states.items():
        jobs.check()
        place = Path("checkpoints", name)
        checkpoint.release(partial / place, state)
        own = provenance.read(workdir / place).items()
        own = {field: value for field, value in own if field not in ("stores", "phases")}
        provenance.write(partial / place, own)
    provenance.write(partial, recipe)
    files.write_json(partial / "config.json", _public(config, workdir))
    template = jinja2.Template(README.read_text("utf-8"), keep_trailing_newline=True)
    words = {"generator": config.model_name, "size": config.model.resolution, **recipe}
    words["licence"] = plain(recipe["licence"])
    files.replace(partial / "README.md", template.render(words).encode())
    inside = sorted(path for path in partial.rglob("*") if path.is_file())
    contents = {path.relative_to(partial): path.read_bytes() for path in inside}
    sums = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in contents.items()]
    files.replace(partial / "SHA256SUMS", "".join(sums).encode())
    partial.rename(folder)
    print(f"{folder}: {', '.join(states)}; {sum(map(len, contents.values())) / 2**20:.1f} MB")


def _trained(config, workdir):
    """The states to hand on by name: the generator's, and that of a V-Net."""
    states = {}
    if config.model_name:
        states[config.model_name] = methods.generator(config, workdir).state
    if not states or any(checkpoint.newest(workdir / "checkpoints" / name) for name in judges.NETS):
        name, size = judges.choose(workdir, config.predict.net), config.model.resolution
        states[name] = judges.newest(config.segment, size, workdir, name).state
    return states


def _public(config, workdir):
    """The config, with how its pairs were truly made, and without paths and names of skulls."""
    fields = json.loads(config.to_json_best_effort())
    fields["data"].update(store.Store(workdir / "real.zarr").recipe.get("data", {}))
    for field in PRIVATE:
        section, _, name = field.rpartition(".")
        part = fields.get(section, {}) if section else fields
        if name in part:
            part[name] = type(part[name])()
    return fields
