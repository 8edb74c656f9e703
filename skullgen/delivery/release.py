"""Weights to hand on: what generation, encoding and prediction read of a trained run, and no more.

A release is laid out as a work directory without its stores: `config.json` (without paths and names
of skulls) and `checkpoints/`, without optimisers. `recipe.json` tells the weights and what
pairs they learnt from; `sha256sum -c SHA256SUMS` checks all files.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, jobs, provenance
from skullgen.core.errors import UserError, plain
from skullgen.data import store
from skullgen.evaluation import judges
from skullgen.training import checkpoint, loop, methods

PACKAGED = Path(__file__).parent / "weights"
ABOUT = ("voxel_mm", "kinds", "licence", "trained_on")
PRIVATE = (
    *("data.root", "data.test", "data.validation", "generate.weights", "segment.stores"),
    *("explore.stores", "gallery.stores", "export.store", "export.folder"),
    *("predict.file", "predict.folder", "predict.weights"),
)
README = """# Weights: {nets}

Trained by skullgen on {pairs} pairs of {skulls} skulls ({source}). Licence: {licence}.
**Research only, not a medical device.**

```python
import skullgen

run = skullgen.load("FOLDER")  # this folder
```
"""
PAIRS = """
`{name}` makes pairs: bool [n, {size}, {size}, {size}, 2], RAS, {voxel_mm:.4g} mm. What they are
worth, and what they are not: `DATA_CARD.md`, where it is here.

```python
pairs = run.sample(seed=0, count=8)
```

```bash
python launch.py --config FOLDER/config.json --workdir runs/made \\
    --config.stages=generate --config.generate.weights=FOLDER
```
"""
IMPLANTS = """
`{name}` designs implants, on the voxels of a defective skull's file.

```python
implant = run.predict("skull.nrrd").mask
```

```bash
python launch.py --config FOLDER/config.json --workdir runs/made \\
    --config.stages=predict --config.predict.weights=FOLDER --config.predict.file=skull.nrrd
```
"""


def place(where: str | Path) -> Path:
    """The folder that `where` means: packaged weights by their name, a work directory, a release.

    Raises UserError where there is none.
    """
    names = sorted(path.name for path in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
    folder = PACKAGED / where if str(where) in names else Path(os.path.expanduser(where))
    if not (folder / "config.json").exists():
        what = "no run and no weights in it" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{where}: {what} (packaged weights: {', '.join(names) or 'none'}): name a work "
            "directory, or a folder that the stage `release` made"
        )
    return folder


def about(folder: Path, name: str = "") -> dict[str, Any]:
    """What the weights in a folder (`place`) learnt from: `voxel_mm`, `kinds`, `licence`, ...

    name: the generator's; "": the V-Nets. Of a release, its recipe tells; of a run, its real pairs.
    """
    recipe = provenance.read(folder) or {}
    if "trained_on" in recipe:
        return {name: recipe[name] for name in ABOUT}
    real = store.Store(folder / "real.zarr")
    rows = loop.learnt(folder, name)
    learnt = {
        "source": real.recipe.get("config", {}).get("source", "unknown"),
        "pairs": len(rows),
        "skulls": len(np.unique(real.column("skull")[rows])),
    }
    return {**{name: real.attrs[name] for name in ABOUT[:-1]}, "trained_on": learnt}


def chosen(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Path]:
    """Whose checkpoints make pairs: a config and a folder, this run's or of `generate.weights`.

    The config is `config` with the weights' own `model`. Raises UserError for a field of the model
    that is not as the weights have it.
    """
    weights = config.generate.get("weights", "")
    if not weights:
        return config, workdir
    folder = place(weights)
    theirs, mine = methods.load_config(folder), config.copy_and_resolve_references()
    fields = [{"model_name": c.model_name, "model": c.model.to_dict()} for c in (mine, theirs)]
    for field, (value, wanted) in provenance.differences(*fields).items():
        if value is not None and not any(
            isinstance(x, provenance.Missing) for x in (value, wanted)
        ):
            raise UserError(
                f"config.{field} is {value!r}, and generate.weights={weights} were trained "
                f"with {wanted!r}: leave it, or take --config {folder / 'config.json'}"
            )
    mine.model = theirs.model
    return mine, folder


def run(config: ConfigDict, workdir: Path) -> None:
    """The stage: writes `release/` from what is trained in the work directory, whole or not at all.

    Raises UserError where nothing is trained, or there is a release of other weights.
    """
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
        own = provenance.read(workdir / place)
        if own:
            own = {field: own[field] for field in ("model_name", "model", "code")}
            provenance.write(partial / place, own)
    provenance.write(partial, recipe)
    files.write_json(partial / "config.json", _public(config, workdir))
    files.replace(partial / "README.md", _readme(config, recipe).encode())
    pairs = workdir / "generated.zarr"
    if (pairs / "README.md").exists():
        by = store.Store(pairs).recipe.get("weights")
        if by == recipe["weights"].get(config.model_name):
            shutil.copyfile(pairs / "README.md", partial / "DATA_CARD.md")
    files.replace(partial / "SHA256SUMS", _sums(partial).encode())
    partial.rename(folder)
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    print(f"{folder}: {', '.join(states)}; {megabytes:.1f} MB")


def _trained(config, workdir):
    """The states to hand on by name: the generator's, and that of a V-Net."""
    states = {}
    if config.model_name:
        states[config.model_name] = methods.generator(config, workdir).state
    if any(checkpoint.newest(workdir / "checkpoints" / name) for name in judges.NETS):
        name = judges.choose(workdir, config.predict.net)
        size = config.model.resolution
        states[name] = judges.newest(config.segment, size, workdir, name).state
    if not states:
        raise UserError(f"{workdir}: nothing is trained here; run `train` or `segment` first")
    return states


def _public(config, workdir):
    """The config, with how its pairs were truly made, and without paths and names of skulls."""
    fields = json.loads(config.to_json_best_effort())
    fields["data"].update(store.Store(workdir / "real.zarr").recipe.get("config", {}))
    for section, name in (field.split(".") for field in PRIVATE):
        if name in fields.get(section, {}):
            fields[section][name] = type(fields[section][name])()
    return fields


def _readme(config, recipe):
    words = {"size": config.model.resolution, "voxel_mm": recipe["voxel_mm"]}
    nets = ", ".join(f"{name}, update {step}" for name, step in recipe["updates"].items())
    licence = plain(recipe["licence"])
    parts = [README.format(nets=nets, licence=licence, **recipe["trained_on"])]
    for name in recipe["updates"]:
        parts.append((PAIRS if name == config.model_name else IMPLANTS).format(name=name, **words))
    return "".join(parts)


def _sums(folder):
    """SHA-256 of all files, as `sha256sum` writes them."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines)
