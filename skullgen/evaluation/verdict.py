"""The verdict: what pairs are worth, by networks trained on them and scored on real ones.

Columns: `train`, a net's own training pairs; `validation`, the real pairs that the generator learnt
from (split `train`); `test`; `selection`, the split `validation`, which judges nothing.
"""

import collections
import itertools
from collections.abc import Callable
from typing import Any

import cc3d
import jax
import numpy as np
from jaxtyping import Bool, Float32
from ml_collections import ConfigDict

from skullgen.core import jobs
from skullgen.core.errors import UserError
from skullgen.data import mixture, store
from skullgen.evaluation import intervals, metrics
from skullgen.generation import generate
from skullgen.models import steps
from skullgen.training.methods import Trained

METRICS = ("dice", "bdsc", "hd95_mm", "dice_512", *metrics.NATIVE)
CEILING = "vnet_ceiling"  # it has learnt from the test skulls, too
CHUNK = 32  # pairs that are read at once
Predict = Callable[[store.Packed], Float32[np.ndarray, "n D D D"]]  # the implant's probability
Case = dict[str, Any]  # net, column, store, pair, skull, kind, and the values of `metrics.case`
Nets, Tests = dict[str, Trained], dict[str, mixture.Part]  # by name
Row = dict[str, Any]  # a mean with its interval: of `summary` and `differences`


def network(net: Trained, size: int, batch: int = 8) -> Predict:
    """What a trained V-Net predicts for packed pairs of `size` voxels a side."""
    run = jax.jit(lambda state, bits: net.model.predict(state, steps.unpack(bits, size)[..., 0]))
    return lambda bits: generate.whole_batches(lambda part: run(net.state, part), bits, batch)


def mean_skull(train: store.Packed, size: int) -> Predict:
    """A rule without training: bone of most training skulls minus the case's, biggest piece."""
    most = 2 * sum(store.unpack(row, size).any(-1).astype(int) for row in train) >= len(train)
    return lambda bits: np.stack([biggest(most & ~x) for x in store.unpack(bits, size)[..., 0]])


def mirror(size: int) -> Predict:
    """A rule without training: the mirror image of the skull minus the skull, biggest piece."""
    return lambda bits: np.stack([biggest(x[::-1] & ~x) for x in store.unpack(bits, size)[..., 0]])


def biggest(mask: Bool[np.ndarray, "D D D"]) -> Float32[np.ndarray, "D D D"]:
    """The biggest piece (6 neighbours) of a mask."""
    labels = cc3d.connected_components(mask.astype(np.uint8), connectivity=6)
    counts = np.bincount(labels[mask], minlength=1)
    return (mask & (labels == counts.argmax())).astype(np.float32)


def verdict(
    real: store.Store, nets: Nets, settings: ConfigDict, workers: int, elsewhere: Tests
) -> dict[str, Any]:
    """Scores networks (the first is compared with the others) and the two rules on real pairs."""
    size, train = real.size, mixture.Part(real, real.rows("train"))
    splits = {"test": "test", "selection": "validation"}
    unseen = {name: spread([mixture.Part(real, real.rows(s))], 0) for name, s in splits.items()}
    for name, part in elsewhere.items():
        if part.store.size != size:
            raise UserError(f"{part.store.path}: its pairs are not of {size} voxels a side")
        unseen[f"test {name}"] = [part]
    predicts, columns = {}, {}
    for name, net in nets.items():
        predicts[name] = network(net, size, settings.batch_size)
        own = {} if _same(net.parts, train) else {"train": spread(net.parts, settings.cases)}
        columns[name] = {**own, "validation": spread([train], settings.cases), **unseen}
    if settings.rules:
        rules = {"mean_skull": mean_skull(real.load(train.rows), size), "mirror": mirror(size)}
        predicts, columns = predicts | rules, columns | dict.fromkeys(rules, unseen)
    cases = _score(predicts, columns, settings, workers)
    return {
        "threshold": settings.threshold,
        "voxel_mm": real.attrs["voxel_mm"],
        "leaks": {name: leaks(net.parts, real) for name, net in nets.items()},
        "cases": cases,
        "summary": summary(cases),
        "differences": differences(cases, next(iter(nets))),
        "headroom": headroom(cases, next((n for n in nets if _same(nets[n].parts, train)), "")),
    }


def _same(parts, train):
    alike = len(parts) == 1 and np.array_equal(parts[0].rows, train.rows)
    return alike and parts[0].store.path.samefile(train.store.path)


def _score(predicts, columns, settings, workers):
    """The cases of nets (name -> Predict) on their pairs (net -> column -> parts)."""
    parts = [part for own in columns.values() for several in own.values() for part in several]
    total, cases = sum(len(part.rows) for part in parts), []
    tasks = _tasks(predicts, columns, settings.threshold, metrics.own(settings))
    workers = min(jobs.workers(workers), total)
    with jobs.progress(total, 0, "evaluate", "case") as bar:
        for case in jobs.ordered(metrics.case, tasks, workers):
            cases.append(case)
            bar.update()
    return cases


def _tasks(predicts, columns, *options):
    """The arguments of `metrics.case`, of one case after the other."""
    places = [(net, *column) for net in predicts for column in columns[net].items()]
    for net, column, parts in places:
        for opened, rows in parts:
            names, kinds = opened.names(opened.column("skull")), opened.column("kind")
            affines, voxel_mm = opened.column("affine"), opened.attrs["voxel_mm"]
            for chunk in np.array_split(rows, -(-len(rows) // CHUNK)):
                bits = opened.load(chunk)
                answers = zip(chunk.tolist(), bits, predicts[net](bits), strict=True)
                for row, own, probability in answers:
                    kind = opened.attrs["kinds"][kinds[row]] if kinds[row] >= 0 else ""
                    place = {"net": net, "column": column, "store": opened.path.name}
                    label = {**place, "pair": row, "skull": names[row], "kind": kind}
                    pair = store.Pair(own, affines[row], opened.native(row))
                    yield label, pair, probability, voxel_mm, *options


def leaks(parts: list[mixture.Part], real: store.Store) -> list[str]:
    """Names of test skulls that are among a net's training skulls: there should be none."""
    parts = [mixture.Part(real, real.rows("test")), *parts]
    test, *seen = (set(one.store.names(one.store.column("skull")[one.rows])) for one in parts)
    return sorted(test & set().union(*seen) - {""})


def spread(parts: list[mixture.Part], most: int) -> list[mixture.Part]:
    """At most `most` pairs (0: all), evenly of all parts and spread over each."""
    share = -(-most // len(parts)) if most else 10**9
    return [
        part._replace(rows=part.rows[np.linspace(0, len(part.rows) - 1, n).astype(int)])
        for part in parts
        if (n := min(share, len(part.rows)))
    ]


def by_skull(cases: list[Case], metric: str) -> dict[str, float]:
    """Means of a metric over each skull's cases; a pair without a known skull is one of its own."""
    values = collections.defaultdict(list)
    for case in cases:
        if case.get(metric) is not None:
            values[case["skull"] or f"{case['store']} {case['pair']}"].append(case[metric])
    return {name: float(np.mean(part)) for name, part in values.items()}


def _row(place, values):
    mean, low, high, kind = intervals.interval(np.array(values))
    numbers = {"mean": mean, "low": low, "high": high, "interval": kind, "skulls": len(values)}
    return {**place, **numbers}


def _measured(cases):
    """The names of `METRICS`, and those of the user's own metrics that cases hold."""
    return [*METRICS, *dict.fromkeys(name for case in cases for name in case if "." in name)]


def summary(cases: list[Case]) -> list[Row]:
    """Means with intervals over skulls of each net, column, metric: whole, by kind, by skull."""
    rows = []
    for by in ("all", "kind", "skull"):
        groups = collections.defaultdict(list)
        for case in cases:
            if by == "all" or case[by]:
                groups[case["net"], case["column"], case.get(by, "")].append(case)
        for (net, column, group), part in groups.items():
            for metric in _measured(part):
                if values := by_skull(part, metric):
                    count = sum(case[metric] is not None for case in part)
                    place = {"net": net, "column": column, "metric": metric, "by": by}
                    rows.append(_row({**place, "group": group, "cases": count}, [*values.values()]))
    return rows


def differences(cases: list[Case], net: str) -> list[Row]:
    """`net` minus every other net on each test, for each metric, paired by skull."""
    rows = []
    for column, test in _tests(cases):
        others = [name for name in dict.fromkeys(case["net"] for case in test) if name != net]
        for other, metric in itertools.product(others, _measured(test)):
            paired = list(_minus(test, metric, net, other).values())
            if paired and metric != "ceiling_native":
                place = {"net": net, "minus": other, "column": column, "metric": metric}
                rows.append(_row(place, paired))
    return rows


def _tests(cases):
    """The columns of tests, each with its cases."""
    columns = dict.fromkeys(case["column"] for case in cases if case["column"].startswith("test"))
    return [(name, [case for case in cases if case["column"] == name]) for name in columns]


def _minus(test, metric, net, other):
    """Skull -> a metric of `net` minus that of `other`, of the skulls that both have."""
    ours, theirs = (
        by_skull([case for case in test if case["net"] == name], metric) for name in (net, other)
    )
    return {skull: ours[skull] - theirs[skull] for skull in ours if skull in theirs}


def headroom(cases: list[Case], floor: str) -> list[Row]:
    """The Dice of the ceiling minus `floor` on each test, and which share of it each net closes."""
    rows = []
    for column, test in _tests(cases):
        room = _minus(test, "dice", CEILING, floor)
        nets = dict.fromkeys(case["net"] for case in test if case["net"] not in (CEILING, floor))
        for net in nets if room else ():
            both = _minus(test, "dice", net, floor), room
            share = intervals.share(*(np.array([one[skull] for skull in room]) for one in both))
            nets[net] = share and share._asdict()
        if room:
            rows.append({**_row({"column": column}, [*room.values()]), "shares": nets})
    return rows


def warnings(result: dict[str, Any]) -> list[str]:
    """What the numbers of `metrics.json` warn of, in lines of text."""
    quality, judged = result.get("quality"), result.get("verdict") or {}
    leaks = [(net, names) for net, names in judged.get("leaks", {}).items() if net != CEILING]
    empty = collections.Counter(case["net"] for case in judged.get("cases", ()) if case["empty"])
    lines = [*_of_pairs(quality)] if quality else []
    for net, names in leaks:
        if names:
            lines.append(f"{net} was trained on skulls of the test: {', '.join(names)}")
    for net, its in judged.get("nets", {}).items():
        if its.get("converged") is False:
            rise = f"its Dice on selection skulls rose by {its['rise']:.3f} in the last quarter"
            cure = "raise segment.updates before you trust a difference"
            lines.append(f"{net} has not converged: {rise} of {its['updates']} updates: {cure}")
    return lines + [f"{net}: {n} predictions are empty (Dice 0)" for net, n in empty.items()]


def _of_pairs(quality):
    empty, copies = quality["removed"]["empty_defects"], quality["copies"]["skull"]
    if empty > 0.1:
        cure = "train longer, raise config.model.channel_weights, or lower config.generate.dust_mm3"
        yield f"{empty:.0%} of the generated pairs have no defect: {cure}"
    for channel in ("skull", "defect"):
        ours, real = (quality[channel]["occupancy"][who] for who in ("generated", "training"))
        if not 0.75 < ours / max(real, 1e-9) < 1.33:
            drift = f"generated {channel}s fill {ours:.2%} of the grid"
            yield f"occupancy drift: {drift}, training ones {real:.2%}"
    if (copies["share_above"] or 0) > 0.15:
        what = "training patient than 95 % of unseen real skulls do (5 % is expected)"
        share = f"{copies['share_above']:.0%} of the generated skulls"
        yield f"copies: {share} lie nearer to a {what}: a defect of the method"
    first = copies["closest"][0]
    if first["dice"] > max(copies["held_out"], default=1):
        near = f"training patient {first['name']} (Dice {first['dice']:.3f})"
        skull = f"generated skull {first['generated']}"
        yield f"copies: {skull} lies nearer to {near} than any unseen real skull does"
