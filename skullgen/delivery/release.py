"""Weights to hand on: what generation, encoding and prediction read of a trained run, and no more.

A release is laid out as a work directory without its stores: `config.json` (without paths and names
of skulls), `versions.json`, `checkpoints/`. Beside them `release.json` says what pairs its weights
learnt from, and `SHA256SUMS` seals all files (`sha256sum -c` checks it, too).
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

import jax
import jax.numpy as jnp

from skullgen.core import files, jobs
from skullgen.core.errors import UserError
from skullgen.data import schema, store
from skullgen.evaluation import judges
from skullgen.report import card
from skullgen.training import checkpoint, loop, trained

PACKAGED = Path(__file__).parent / "weights"
SEAL = "SHA256SUMS"
PRIVATE = (
    *("data.root", "data.test", "data.validation", "generate.weights", "segment.stores"),
    *("explore.stores", "export.store", "export.folder", "predict.file", "predict.folder"),
)
README = """# {title}

Trained by skullgen on {trained_on}. Licence: {licence}. **Research only, not a medical device.**
In it: {nets}.

```python
import skullgen

run = skullgen.load("FOLDER")  # this folder
{uses}```
"""
DRAW = """\
pairs = run.sample(seed=0, count=8)  # bool [8, {size}, {size}, {size}, 2], RAS, {voxel_mm:.4g} mm
"""
DESIGN = """implant = run.predict("skull.nrrd").mask  # of a defective skull's file, on its voxels
"""
FILES = """
An implant as files, for a defective skull:

```bash
python launch.py --config FOLDER/config.json --workdir runs/made \\
    --config.stages=predict --config.predict.weights=FOLDER --config.predict.file=skull.nrrd
```
"""
STORE = """
A store of pairs, with the experiment that they were trained by:

```bash
python launch.py --config FOLDER/config.json --workdir runs/made \\
    --config.stages=generate --config.generate.weights=FOLDER
```

What pairs of these weights are worth, and what they are not: `DATA_CARD.md`, where it is here.
"""


def place(where):
    """The folder that `where` means: packaged weights by their name, a work directory, a release.

    Raises UserError where there is none, and for a release that is not as it was sealed.
    """
    named = sorted(path.name for path in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
    if not isinstance(where, str | os.PathLike):
        raise UserError(f"{where!r} is no path: name a work directory, or packaged weights")
    folder = PACKAGED / where if str(where) in named else Path(os.path.expanduser(where))
    if not (folder / "config.json").exists():
        what = "no run and no weights in it" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{where}: {what} (packaged weights: {', '.join(named) or 'none'}): name a work "
            "directory, or a folder that the stage `release` made"
        )
    if (folder / "release.json").exists():
        _check_seal(folder)
    return folder


def _sealed(folder):
    """The SHA-256 of each file of a release, in order, as the lines of its seal."""
    root, lines = os.path.realpath(folder), []
    for file in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        if file.name != SEAL:
            content = schema.plain_file(file, root, 2**34).read_bytes()
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {file.relative_to(folder)}\n")
    return lines


def _check_seal(folder):
    seal = schema.plain_file(folder / SEAL, os.path.realpath(folder), schema.MAX_JSON)
    wrong = set(_sealed(folder)) ^ set(seal.read_text(errors="replace").splitlines(keepends=True))
    if wrong:
        name = sorted(line.strip().partition("  ")[2] for line in wrong)[0]
        raise UserError(f"{folder / name}: not as {SEAL} says: get these weights again")


def about(folder, name=""):
    """What the weights in a folder (`place`) learnt from: `voxel_mm`, `kinds`, `licence`, ...

    name: the model's. Read from a release's `release.json`, or from a run's `real.zarr`. Raises
    UserError where it is damaged or missing.
    """
    file = folder / "release.json"
    if not file.exists():
        attrs = store.Store(folder / "real.zarr").attrs
        told = {name: attrs[name] for name in ("voxel_mm", "kinds", "licence")}
        rows = loop.learnt(folder, name)
        return {**told, "trained_on": card.source(folder / "real.zarr", rows)}
    told = schema.Attributes(files.read_json(file))
    told.file = file
    schema.require_attributes(told, file)
    return {name: told[name] for name in ("voxel_mm", "kinds", "licence", "trained_on")}


def chosen(config, workdir):
    """Whose checkpoints make pairs: a config and a folder, this run's or of `generate.weights`.

    The config is `config` with the weights' own `model`. Raises UserError for a field of the model
    that is not as the weights have it.
    """
    named = config.generate.get("weights", "")
    if not named:
        return config, workdir
    folder = place(named)
    theirs, mine = trained.config(folder), config.copy_and_resolve_references()
    fields = {f"model.{name}": value for name, value in theirs.model.items()}
    for field, value in {"model_name": theirs.model_name, **fields}.items():
        held = mine.model.get(field.removeprefix("model.")) if field in fields else mine[field]
        if held is not None and _plain(held) != _plain(value):
            raise UserError(
                f"config.{field} is {_plain(held)!r}, and generate.weights={named} were trained "
                f"with {_plain(value)!r}: leave it, or take --config {folder / 'config.json'}"
            )
    mine.model = theirs.model
    return mine, folder


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def reads(model, size):
    """For each leaf of a State's nets whether drawing, decoding, encoding or predicting reads it.

    size: `D`, voxels a side. Found by tracing the model's functions, not by what its networks are
    called: bool [leaves], in jax's order.
    """
    key = jax.random.key(0)
    state = jax.eval_shape(model.init, key)
    pairs = jax.ShapeDtypeStruct((1, size, size, size, 2), jnp.float32)

    def use(nets, keys, pairs):
        its, out = state.replace(nets=nets), []
        if model.decode is not None and model.latents is not None:
            out.append(model.decode(its, model.latents(its, keys)))
        if model.encode is not None:
            out.append(model.encode(its, pairs))
        if model.predict is not None:
            out.append(model.predict(its, pairs[..., 0]))
        return out

    traced = jax.make_jaxpr(use)(state.nets, jax.eval_shape(lambda: key[None]), pairs).jaxpr
    used = {id(var) for line in traced.eqns for var in line.invars} | set(map(id, traced.outvars))
    return [id(var) in used for var in traced.invars[: len(jax.tree.leaves(state.nets))]]


def run(config, workdir):
    """The stage: writes `release/` from what is trained in the work directory, whole or not at all.

    Raises UserError where nothing is trained.
    """
    made, partial = workdir / "release", workdir / f"release.partial-{uuid.uuid4().hex}"
    told, size = about(workdir, config.model_name), config.model.resolution
    nets = {config.model_name: trained.generator(config, workdir)} if config.model_name else {}
    if any(checkpoint.newest(workdir / "checkpoints" / name) for name in judges.NETS):
        name = judges.choose(workdir, config.predict.net)
        nets[name] = judges.newest(config.segment, size, workdir, name)
    if not nets:
        raise UserError(f"{workdir}: nothing is trained here; run `train` or `segment` first")
    partial.mkdir()
    for name, (model, state) in nets.items():
        jobs.check()
        folder = partial / "checkpoints" / name
        checkpoint.keep(folder, state, reads(model, size))
        for note in ("net.json", loop.CODE):
            if (workdir / "checkpoints" / name / note).exists():
                shutil.copyfile(workdir / "checkpoints" / name / note, folder / note)
    updates = {name: int(state.step) for name, (_, state) in nets.items()}
    weights = {name: checkpoint.fingerprint(state) for name, (_, state) in nets.items()}
    versions = files.read_json(workdir / "versions.json") or {}
    versions.pop("config", None)
    files.write_json(partial / "versions.json", versions)
    made_of = {**told, "updates": updates, "weights": weights}
    files.write_json(partial / "release.json", made_of)
    files.write_json(partial / "config.json", _public(config, workdir))
    learnt, draws = told["trained_on"], config.model_name in nets
    listed = ", ".join(f"{name}, update {step}" for name, step in updates.items())
    words = {
        "title": f"Weights: {listed}",
        "trained_on": f"{learnt['pairs']} pairs of {learnt['skulls']} skulls ({learnt['source']})",
        **{"licence": card.text(told["licence"]), "voxel_mm": told["voxel_mm"], "size": size},
    }
    does = {name: "designs implants" for name in nets} | {config.model_name: "makes pairs"}
    words["nets"] = ", ".join(f"`{name}`, which {does[name]}" for name in nets)
    words["uses"] = DRAW.format(**words) * draws + DESIGN * (len(nets) > draws)
    more = FILES * (len(nets) > draws) + STORE * draws
    files.replace(partial / "README.md", (README.format(**words) + more).encode())
    pairs = workdir / "generated.zarr"
    made_by = (store.Store(pairs).recipe or {}).get("weights")
    if made_by == weights.get(config.model_name, "") and (pairs / "README.md").exists():
        shutil.copyfile(pairs / "README.md", partial / "DATA_CARD.md")
    files.replace(partial / SEAL, "".join(_sealed(partial)).encode())
    if made.exists():
        print(f"{made} is of an earlier call: it is now {jobs.set_aside(made)}")
    partial.rename(made)
    megabytes = sum(file.stat().st_size for file in made.rglob("*") if file.is_file()) / 2**20
    print(f"{made}: {', '.join(nets)}; {megabytes:.1f} MB")


def _public(config, workdir):
    """The config, with how its pairs were truly made, and without paths and names of skulls."""
    fields = json.loads(config.to_json_best_effort())
    fields["data"].update(store.Store(workdir / "real.zarr").recipe.get("config", {}))
    for field in PRIVATE:
        section, name = field.split(".")
        if section in fields:
            fields[section][name] = ""
    return fields
