"""A source of skulls (`sources.PLANS`) becomes a store of pairs.

A source is planned first, then worker processes make its cases, and whole shards are written in
order. What is there already is not made again.
"""

import contextlib
import os
from collections import Counter
from pathlib import Path

import numpy as np

from skullgen.core import jobs, plugins
from skullgen.core.errors import UserError, one_of, plain
from skullgen.data import schema, sources, store

SHARD = 20  # pairs in a file: what a kill loses at most
FORM = "(size, config) -> sources.Plan"
FREE = ("root", "strict", "max_voxels")  # fields of `config.data` that determine no pair


def planner(name):
    """`plan(size, config.data) -> sources.Plan` of a source: ours, or a user's `package.module`.

    Raises UserError where there is none.
    """
    if "." in name:
        return plugins.attribute("data.source", name, name, "plan", FORM)
    if name not in sources.PLANS:
        known = ", ".join((*sorted(sources.PLANS), "store"))
        raise UserError(f"data.source is {name!r}: choose one of {known}, or your package.module")
    return sources.PLANS[name]


def run(path, size, config, versions=None, workers=0, native=True, share=(0, 1)):
    """Ingests `config.source` (`config` is an experiment's `config.data`) into the store `path`.

    size: voxels a side. versions: recorded in the store. native: keep the implants at the
    sources' own grids, too, which only pairs to score need. share: (k, n), of the shards.

    A volume that cannot be read, or a pair that is none, is left out and listed at the end.
    Raises UserError for it where `config.strict`; for a folder without a pair to train on; for
    a store begun with other data.
    """
    plan = planner(config.source)(size, config)
    if not isinstance(plan, sources.Plan):
        raise UserError(f"{config.source}.plan returned {type(plan).__name__}: not a sources.Plan")
    own = plugins.sums([config.source, *plan.kinds])
    plan = _kept(plan._replace(sources={**plan.sources, **own}), config.splits)
    for line in plan.problems:
        print(plain(f"note: {line}"))
    if 0 not in plan.split.values():
        raise UserError(f"{config.root}: no pair to train on (data.source={config.source})")
    count = sum(len(case.kinds) for case in plan.cases)
    if not count:
        raise UserError(f"data.splits is {config.splits!r}: no skull is in it")
    _begin(path, count, size, config, plan, versions, native, share)
    try:
        _work(path, plan, config, workers, native, share)
    except UserError:
        if share == (0, 1) and store.Store(path).missing() == store.Store(path).shards():
            store.discard(path)  # nothing was made
        raise
    left = sum(map(len, store.Store(path).missing()))
    if left:
        print(f"{path}: {left} pairs are left to other shares")
    else:
        _summary(path, plan, config)


def fresh(path, size, config, *, cuts, versions=None, workers=0, share=(0, 1)):
    """Cuts the training skulls anew, `cuts` times into each kind: a control for generated pairs.

    config: the `config.data` of the real pairs; the same skulls are in the same places of the
    frame, and none of the defects is among the real pairs. Of SkullBreak, the complete skulls.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        # Numbers of cuts that no real pair has.
        config.update(cuts=cuts, first_cut=config.first_cut + config.cuts, splits="train")
        if config.source == "skullbreak":
            root = str(Path(config.root) / "train" / "complete_skull")
            config.update(source="skulls", root=root, reframe=False)
            config.update(test_fraction=0.0, validation_fraction=0.0, folds=0, fold=0)
    run(path, size, config, versions, workers, native=False, share=share)


def _kept(plan, splits):
    """The plan of only the skulls whose split is named; of all where none is."""
    names = [name.strip() for name in splits.split(",") if name.strip()]
    wanted = [store.SPLITS.index(one_of("data.splits", name, store.SPLITS)) for name in names]
    cases = [case for case in plan.cases if plan.split[plan.names[case.skull]] in wanted]
    return plan._replace(cases=cases) if names else plan


def _begin(path, count, size, config, plan, versions, native, share):
    recipe = {"config": config.to_dict(), "size": size, "sources": plan.sources}
    for free in FREE:
        recipe["config"].pop(free)
    for name in ("kinds", "label"):  # as in stores that were made before it was a field
        if not recipe["config"].get(name):
            recipe["config"].pop(name, None)
    held = store.Store(path).recipe
    begun = held is not None and store.Store(path).missing() != store.Store(path).shards()
    if held not in (None, recipe) and not begun and share == (0, 1):
        store.discard(path)  # begun, and nothing made: a file was mended, say
    elif held not in (None, recipe):
        old, new = held["sources"], recipe["sources"]
        changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        what = f"these files changed: {', '.join(changed[:5])}" if changed else "its fields changed"
        raise UserError(f"{path}: begun with other data ({what}): choose another --workdir")
    attributes = {
        "recipe": recipe,
        "voxel_mm": plan.field_mm / size,
        "kinds": list(plan.kinds),
        "names": plan.names,
        "licence": config.licence or _licence(config),
        "notes": plan.problems,
        "native": native,
        "versions": versions or {},
    }
    store.create(path, count=count, size=size, shard=SHARD, attributes=attributes)


def _licence(config):
    """The licence of a source, or that of an export in SkullBreak's layout, which says it."""
    known = {"skullbreak": "CC BY-NC-SA 4.0", "phantom": "Apache-2.0"}
    if config.source == "skullbreak":
        told = Path(config.root) / "LICENCE.txt"
        with contextlib.suppress(UserError, OSError):  # none, or a text of law
            content = schema.plain_file(told, os.path.realpath(config.root), 1000).read_bytes()
            return plain(content.decode(errors="replace").strip()) or known["skullbreak"]
    return known.get(config.source, "not stated")


def _work(path, plan, config, workers, native, share):
    """Makes what is missing: cases in worker processes, whole shards written in order."""
    ends = np.cumsum([len(case.kinds) for case in plan.cases])
    starts = ends - [len(case.kinds) for case in plan.cases]
    shards = store.Store(path).missing(share)
    total = sum(map(len, store.Store(path).shards(share)))
    todo = [
        number
        for number in range(len(plan.cases))
        if any(shard.start < ends[number] and starts[number] < shard.stop for shard in shards)
    ]
    ready = {}
    tasks = ((plan.cases[n].make, plan.cases[n].arguments, config.strict) for n in todo)
    done = total - sum(map(len, shards))
    counts = Counter()
    with jobs.progress(total, done, "ingest", "pair") as bar:
        for number, pairs in zip(
            todo, jobs.ordered(_call, tasks, jobs.workers(workers)), strict=True
        ):
            case = plan.cases[number]
            if isinstance(pairs, str):
                store.Store(path).leave_out(starts[number], pairs.replace(f"{config.root}/", ""))
                bar.write(plain(f"left out: {pairs}"))
                pairs = [None] * len(case.kinds)
            if len(pairs) != len(case.kinds):
                made, kinds = f"{case.make.__qualname__} made {len(pairs)} pairs", len(case.kinds)
                raise UserError(f"{config.source}: {made} of a case with {kinds} kinds")
            for offset, (pair, kind) in enumerate(zip(pairs, case.kinds, strict=True)):
                ready[starts[number] + offset] = (pair, kind, case.skull)
                if pair:
                    counts.update(ties=pair.ties, redraws=pair.redraws)
            while shards and all(row in ready for row in shards[0]):
                shard = shards.pop(0)
                _write(path, shard, [ready.pop(row) for row in shard], plan, native)
                bar.update(len(shard))
            for row in [row for row in ready if not any(row in shard for shard in shards)]:
                del ready[row]  # its shard was there already
    if counts["ties"]:
        print(f"{counts['ties']} voxels are in both channels: ties at the threshold")
    if counts["redraws"]:
        print(f"{counts['redraws']} defects vanished at this grid and were drawn again, larger")


def _call(make, arguments, strict):
    """The pairs of a case, or in one line why it has none."""
    try:
        return make(*arguments)
    except UserError as error:
        if strict:
            raise
        return str(error)


def _write(path, shard, rows, plan, native):
    size = store.Store(path).size
    nothing = sources.Pair(np.zeros(size**3 * 2 // 8, np.uint8), np.eye(4), None, 0, 0)
    pairs = [pair or nothing for pair, _, _ in rows]
    splits = [plan.split[plan.names[skull]] if pair else store.LEFT_OUT for pair, _, skull in rows]
    columns = {
        "split": np.array(splits),
        "kind": np.array([kind for _, kind, _ in rows]),
        "skull": np.array([skull for _, _, skull in rows]),
        "affine": np.stack([pair.affine for pair in pairs]),
        "removed": np.zeros((len(pairs), 3)),
    }
    bits = np.stack([pair.bits for pair in pairs])
    store.Store(path).write(shard.start, bits, columns, [pair.native for pair in pairs] * native)


def _summary(path, plan, config):
    group, lines = store.Store(path), store.Store(path).left_out()
    split = group.column("split")
    if lines and (config.strict or 0 not in split):
        if 0 not in split:
            store.discard(path)
        number = f"{len(lines)} of {len(plan.cases)} cases"
        raise UserError(f"{path}: {number} cannot be used, the first: {lines[0]}")
    parts = []
    for number, name in enumerate(store.SPLITS):
        skulls = len(np.unique(group.column("skull")[split == number]))
        parts.append(f"{name} {np.sum(split == number)} pairs of {skulls} skulls")
    print(f"{path}: {', '.join(parts)}")
    empty = [name for number, name in enumerate(store.SPLITS) if number not in split]
    if empty and not config.splits:
        hint = "" if config.source == "skullbreak" else "; data.test, data.validation name skulls"
        print(f"note: no skull of split {', '.join(empty)}: nothing is judged on it{hint}")
    if lines:
        print(f"left out, {len(lines)} of {len(plan.cases)} cases (data.strict makes it an error):")
        print("\n".join(f"  {line}" for line in lines))
