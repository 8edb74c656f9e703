"""A source of skulls (`sources.PLANS`) becomes a store of pairs, by worker processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import jobs, plugins, provenance
from skullgen.core.errors import UserError, in_range, one_of, plain
from skullgen.data import controls, copies, defects, folders, headers, measures, sources, store

SHARD = 20  # pairs in a file: what a kill loses at most
FORM = "(size, config) -> sources.Plan"
FREE = ("root", "strict")  # fields of `config.data` that determine no pair


class Options(NamedTuple):
    """native: keep implants at the sources' own grids, for scores. share: as in `Store.shards`."""

    workers: int = 0
    versions: dict[str, Any] | None = None
    native: bool = True
    share: tuple[int, int] = (0, 1)


def check(config: ConfigDict) -> None:
    """UserError for what `run` would find wrong with `config.data` hours later, maybe."""
    in_range("data.threshold", config.threshold, 0.001, 1)
    for field in ("skulls", "cuts"):
        in_range(f"data.{field}", config[field], 1)
    for field in ("test_fraction", "validation_fraction"):
        in_range(f"data.{field}", config[field], 0, 1)
    one_of("data.form", config.form, ("", *headers.FORMS))
    one_of("data.space", config.space, ("", *headers.SPACES))
    if config.source != "store":
        planner(config.source)
        defects.kinds_of(config)


def planner(name: str) -> Callable[[int, ConfigDict], sources.Plan]:
    """`plan(size, config.data)` of a source: ours, or a user's `package.module`."""
    if "." in name:
        return plugins.attribute("data.source", name, name, "plan", FORM)
    names = *sorted(sources.PLANS), "store", "your package.module"
    return sources.PLANS[one_of("data.source", name, names)]


def run(path: Path, size: int, config: ConfigDict, options: Options) -> sources.Plan:
    """Ingests `config.source` of an experiment's `config.data`; lists cases that cannot be used."""
    plan = planner(config.source)(size, config)
    if not isinstance(plan, sources.Plan):
        raise UserError(f"{config.source}.plan returned {type(plan).__name__}: not a sources.Plan")
    own = plugins.sums([config.source, *plan.kinds])
    plan = plan._replace(sources={**plan.sources, **own})
    plan = _split(path, size, config, plan) or copies.together(plan, config, options.workers)
    for line in plan.problems:
        print(plain(f"note: {line}"))
    if 0 not in plan.split.values():
        what = f"data.source={config.source}: {len(plan.names)} skulls, none of them to train on"
        raise UserError(f"{what}: give more of them, or others for data.test, data.validation")
    _make_store(path, size, config, plan, options)
    return plan


def control(
    path: Path, source: sources.Plan, pairs: int, config: ConfigDict, options: Options
) -> None:
    """Makes a control of the name of `path`, of about `pairs` pairs, beside the real pairs."""
    real = store.Store(path.with_name("real.zarr"))
    plan, about = controls.plan(path.stem, source, real, pairs, config)
    _make_store(path, real.size, config, plan, options._replace(native=False), about)


def _recipe(size, config, plan, about=None):
    fields = {name: value for name, value in config.to_dict().items() if name not in FREE}
    if config.source != "triplets":
        fields.pop("triplets", None)
    recipe = {"data": fields, "model.resolution": size, "sources": plan.sources}
    return recipe | ({"control": about} if about else {})


def _split(path, size, config, plan):
    """The plan with the split of the store that was made of it; None where none was."""
    if store.exists(path):
        real = store.Store(path)
        split = real.attrs.get("split", {})
        if split.keys() == plan.split.keys():
            if not provenance.differences(real.recipe, _recipe(size, config, plan)):
                return plan._replace(split=split, problems=real.attrs["notes"])


def _make_store(path, size, config, plan, options, about=None):
    attributes = {
        "voxel_mm": plan.field_mm / size,
        "kinds": list(plan.kinds),
        "names": plan.names,
        "split": plan.split,
        "licence": config.licence or _licence(config),
        "notes": plan.problems,
        "native": options.native,
        "versions": options.versions or {},
    }
    count = sum(len(case.kinds) for case in plan.cases)
    recipe = _recipe(size, config, plan, about)
    pairs = store.create(path, store.Shape(count, size, SHARD), attributes, recipe)
    try:
        _work(pairs, plan, config, options)
        rest = sum(map(len, pairs.missing()))
        if rest:
            print(f"{path}: {rest} pairs are left to other processes")
        else:
            _summary(pairs, plan, config)
    except UserError:
        if options.share == (0, 1) and 0 not in pairs.column("split"):
            store.discard(path)  # no use: it must not be in the way of a mended config
        raise


def _licence(config):
    """The licence of a source, or that of an export in SkullBreak's layout, which says it."""
    file = folders.base(config.root) / "LICENCE.txt"
    if config.source == "skullbreak" and file.is_file():
        return plain(file.read_text("utf-8", "replace")[:1000].strip())
    licences = {"skullbreak": "CC BY-NC-SA 4.0", "phantom": "Apache-2.0"}
    return licences.get(config.source, "not stated")


def _work(pairs, plan, config, options):
    """Makes what is missing: cases in worker processes, whole shards written in order."""
    shards, ready = pairs.missing(options.share), {}
    todo, labels, rows = [], [], set().union(*shards)
    for case in plan.cases:
        start, split = len(labels), plan.split[plan.names[case.skull]]
        labels += [(split, kind, case.skull) for kind in case.kinds]
        if not rows.isdisjoint(range(start, len(labels))):
            todo.append((start, case))
    grid = pairs.size, pairs.attrs["voxel_mm"]
    tasks = ((case, grid, config.strict) for _, case in todo)
    total = sum(map(len, pairs.shards(options.share)))
    with jobs.progress(total, total - len(rows), "ingest", "pair") as bar:
        answers = jobs.ordered(_make, tasks, jobs.workers(options.workers))
        for (start, case), answer in zip(todo, answers, strict=True):
            if isinstance(answer, str):
                pairs.leave_out(start, answer.replace(f"{folders.base(config.root)}/", ""))
                bar.write(plain(f"left out: {answer}"))
                answer = [None] * len(case.kinds)
            ready |= dict(enumerate(answer, start))
            while shards and all(row in ready for row in shards[0]):
                shard = shards.pop(0)
                # Of a case at a shard's end, rows of the next one stay.
                parts = [ready.pop(row) for row in shard]
                _write(pairs, shard, parts, labels[shard.start : shard.stop], options.native)
                bar.update(len(shard))


def _make(case, grid, strict):
    """The pairs of a case, each with its measures; or why it has none, an error where `strict`."""
    try:
        pairs = case.make(*case.arguments)
    except UserError as error:
        if strict:
            raise
        return str(error)
    if len(pairs) != len(case.kinds):
        what = f"{case.make.__qualname__} made {len(pairs)} pairs"
        raise UserError(f"{what} of a case with {len(case.kinds)} kinds")
    size, voxel_mm = grid
    masks = (store.unpack(pair.bits, size) for pair in pairs)
    values = [measures.measure(mask, voxel_mm) for mask in masks]
    return list(zip(pairs, values, strict=True))


def _write(pairs, shard, parts, labels, native):
    """Writes a shard: for each row its pair and measures, None where its case was left out."""
    empty = sources.Pair(np.zeros(pairs.size**3 * 2 // 8, np.uint8), np.eye(4))
    nothing = empty, np.full(len(measures.NAMES), np.nan, np.float32)
    split, kind, skull = np.transpose(labels)
    split[[pair is None for pair in parts]] = store.LEFT_OUT
    parts, values = zip(*(pair or nothing for pair in parts), strict=True)
    affine, removed = np.stack([pair.affine for pair in parts]), np.zeros((len(parts), 3))
    columns = dict(split=split, kind=kind, skull=skull, affine=affine, removed=removed)
    bits = np.stack([pair.bits for pair in parts])
    columns["measures"] = np.stack(values)
    pairs.write(shard.start, bits, columns, [pair.native for pair in parts] * native)


def _summary(pairs, plan, config):
    lines, split, skull = pairs.left_out(), pairs.column("split"), pairs.column("skull")
    if lines and (config.strict or 0 not in split):
        number = f"{len(lines)} of {len(plan.cases)} cases"
        raise UserError(f"{pairs.path}: {number} cannot be used, the first: {lines[0]}")
    parts = [
        f"{name} {np.sum(split == number)} pairs of {len(set(skull[split == number]))} skulls"
        for number, name in enumerate(store.SPLITS)
    ]
    print(f"{pairs.path}: {', '.join(parts)}")
    empty = [name for number, name in enumerate(store.SPLITS) if number not in split]
    if empty and not pairs.recipe.get("control"):
        hint = "" if plan.settled else "; data.test, data.validation name skulls"
        print(f"note: no skull of split {', '.join(empty)}: nothing is judged on it{hint}")
    if lines:
        print(f"left out, {len(lines)} of {len(plan.cases)} cases (data.strict makes it an error):")
        print("\n".join(f"  {line}" for line in lines))
