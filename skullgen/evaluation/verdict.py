"""The verdict: what pairs are worth, by networks trained on them and scored on real ones.

Section 5 and table 1. A *net* is anything that designs implants: a trained V-Net, or one of the
two rules that need no training. Columns, as in table 1: `train`, the net's own training pairs;
`validation`, the real pairs that the generator was trained on (split `train`); `test`, split
`test`; `selection`, split `validation`, by which one of several nets may be chosen and nothing is
judged. Shapes: `D` voxels a side of the model's grid.
"""

import collections
import itertools

import cc3d
import jax
import numpy as np

from skullgen.core import jobs
from skullgen.data import store
from skullgen.evaluation import metrics
from skullgen.generation import generate
from skullgen.models import steps

METRICS = (
    "dice",
    "bdsc",
    "hd95_mm",
    "dice_512",
    "dice_native",
    "ceiling_native",
    "hd95_native_mm",
)
COLUMNS = ("train", "validation", "test", "selection")
TITLES = {"validation": "learnt from"}  # the paper's word is that of a store's split, too


def network(model, state, size, batch=8):
    """`predict(bits [n, bytes]) -> float32 [n, D, D, D]`, the implant's probability."""
    run = jax.jit(lambda state, bits: model.predict(state, steps.unpack(bits, size)[..., 0]))
    return lambda bits: generate.whole_batches(lambda part: run(state, part), bits, batch)


def mean_skull(train, size):
    """A rule without training: bone of most training skulls minus the case's, biggest piece.

    train: packed training pairs. Returns `predict` as `network` does.
    """
    votes = np.zeros((size, size, size), int)
    for row in train:
        votes += store.unpack(row, size).any(axis=-1)
    most = 2 * votes >= len(train)
    return lambda bits: np.stack([_rest(most, skull) for skull in _skulls(bits, size)])


def mirror(size):
    """A rule without training: the mirror image of the skull minus the skull, biggest piece."""
    return lambda bits: np.stack([_rest(skull[::-1], skull) for skull in _skulls(bits, size)])


def _skulls(bits, size):
    return store.unpack(bits, size)[..., 0]


def _rest(whole, skull):
    labels = cc3d.connected_components((whole & ~skull).astype(np.uint8), connectivity=6)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return (labels == counts.argmax()).astype(np.float32) * bool(counts.any())


def score(nets, columns, *, settings, workers):
    """Scores nets on the pairs of their columns: a list of dicts, one a case.

    nets: name -> `predict`. columns: name -> column -> list of `store.Part`. settings: as above.
    A case holds its net, column, store, pair, skull, kind, whether the prediction is empty, and
    the values of `METRICS` (None where the pair has no native truth) and of `metrics.own`.
    """
    work = [
        (net, column, part.path, rows)
        for net, column in itertools.product(nets, COLUMNS)
        for part in columns[net].get(column, ())
        for rows in np.array_split(part.rows, -(-len(part.rows) // 32))
    ]
    own = metrics.own(settings)
    labels = (label for item in work for label in _labels(*item))
    tasks = (
        (path, row, probability, settings.upsampling, settings.threshold, own)
        for net, _, path, rows in work
        for row, probability in zip(
            rows.tolist(), nets[net](store.Store(path).load(rows)), strict=True
        )
    )
    total = sum(len(rows) for *_, rows in work)
    cases = []
    with jobs.progress(total, 0, "evaluate", "case") as bar:
        done = jobs.ordered(metrics.case, tasks, min(jobs.workers(workers), total))
        for label, values in zip(labels, done, strict=True):
            cases.append({**label, **values})
            bar.update()
    return cases


def _labels(net, column, path, rows):
    group = store.Store(path)
    names = store.Store(path).names(group.column("skull")[rows])
    kinds = [group.attrs["kinds"][kind] if kind >= 0 else "" for kind in group.column("kind")[rows]]
    for row, name, kind in zip(rows.tolist(), names, kinds, strict=True):
        place = {"net": net, "column": column, "store": path.name, "pair": row}
        yield {**place, "skull": name, "kind": kind}


def verdict(real, trained, *, size, settings, workers):
    """Scores the trained networks and the two rules on real pairs: the dict `describe` shows.

    real: path of the store. trained: name -> (model, state, parts), as `segment.trained` returns
    it; the first is the one that the others are compared with. settings: `config.evaluate`.
    """
    train = store.Part(real, store.Store(real).rows("train"))
    sources = {"validation": "train", "test": "test", "selection": "validation"}
    seen = {  # of test and selection every pair, as of every skull
        column: _spread(
            [store.Part(real, store.Store(real).rows(split))],
            settings.cases if split == "train" else 0,
        )
        for column, split in sources.items()
    }
    nets, columns = {}, {}
    for name, (model, state, parts) in trained.items():
        nets[name] = network(model, state, size, settings.batch_size)
        own = len(parts) > 1 or not np.array_equal(parts[0].rows, train.rows)
        own = own or not parts[0].path.samefile(real)
        columns[name] = {**seen, **({"train": _spread(parts, settings.cases)} if own else {})}
    if settings.rules:
        rules = {"mean_skull": mean_skull(store.load(*train), size), "mirror": mirror(size)}
        nets |= rules
        columns |= {name: {k: seen[k] for k in ("test", "selection")} for name in rules}
    cases = score(nets, columns, settings=settings, workers=workers)
    return {
        "rule": settings.upsampling,
        "threshold": settings.threshold,
        "voxel_mm": store.Store(real).attrs["voxel_mm"],
        "leaks": {name: _shared(parts, real) for name, (_, _, parts) in trained.items()},
        "cases": cases,
        "summary": summary(cases),
        "differences": differences(cases, next(iter(trained))),
    }


def _shared(parts, real):
    """Names of test skulls that are among a net's training skulls: there should be none."""
    group = store.Store(real)
    test = set(store.Store(real).names(group.column("skull")[store.Store(real).rows("test")])) - {
        ""
    }
    seen = [store.Store(p.path).names(store.Store(p.path).column("skull")[p.rows]) for p in parts]
    return sorted(test.intersection(*[set().union(*seen)]))


def _spread(parts, most):
    """At most `most` pairs (0: all), evenly of all parts and spread over each."""
    share = -(-most // len(parts)) if most else 10**9
    return [
        part._replace(rows=part.rows[np.linspace(0, len(part.rows) - 1, n).astype(int)])
        for part in parts
        if (n := min(share, len(part.rows)))
    ]


def by_skull(cases, metric):
    """Means of a metric over each skull's cases: name -> float.

    A pair without a known skull (a generated one) is a skull of its own.
    """
    values = collections.defaultdict(list)
    for case in cases:
        if case.get(metric) is not None:
            values[case["skull"] or f"{case['store']} {case['pair']}"].append(case[metric])
    return {name: float(np.mean(part)) for name, part in values.items()}


def _summed(values):
    mean, low, high, kind = metrics.interval(list(values))
    return {"mean": mean, "low": low, "high": high, "skulls": len(values), "interval": kind}


def measured(cases):
    """The names of `METRICS`, and those of the user's own metrics that cases hold."""
    return [*METRICS, *dict.fromkeys(name for case in cases for name in case if "." in name)]


def summary(cases):
    """Means with intervals over skulls of each net, column, metric: whole, by kind, by skull."""
    rows = []
    for by, field in (("all", None), ("kind", "kind"), ("skull", "skull")):
        groups = collections.defaultdict(list)
        for case in cases:
            group = case[field] if field else ""
            if group or not field:
                groups[case["net"], case["column"], group].append(case)
        for (net, column, group), part in groups.items():
            for metric in measured(part):
                values = by_skull(part, metric)
                if values:
                    place = {"net": net, "column": column, "metric": metric}
                    count = sum(case[metric] is not None for case in part)
                    place |= {"by": by, "group": group, "cases": count}
                    rows.append({**place, **_summed(values.values())})
    return rows


def differences(cases, net, column="test"):
    """`net` minus every other net, for each metric, paired by skull, with intervals."""
    groups = collections.defaultdict(list)
    for case in cases:
        if case["column"] == column:
            groups[case["net"]].append(case)
    rows = []
    others = [name for name in groups if name != net]
    for other, metric in itertools.product(others, measured(cases)):
        ours, theirs = by_skull(groups[net], metric), by_skull(groups[other], metric)
        paired = [ours[skull] - theirs[skull] for skull in ours if skull in theirs]
        if paired and metric != "ceiling_native":
            place = {"net": net, "minus": other, "column": column, "metric": metric}
            rows.append({**place, **_summed(paired)})
    return rows


def describe(verdict):
    """The verdict as lines of text: a table of nets and columns, then the differences."""
    found = {
        (row["net"], row["column"], row["metric"]): row
        for row in verdict["summary"]
        if row["by"] == "all"
    }
    lines = [
        f"mean [95 % interval] over skulls; grids: {verdict['voxel_mm']:.3g} mm (the model's), "
        f"512^3 (prediction and truth both upsampled), native; upsampling: {verdict['rule']}",
        f"{'net':12s}{'column':12s}{'Dice':>22s}{'Dice 512^3':>12s}{'native (ceiling)':>18s}"
        f"{'bDSC':>7s}{'HD95':>9s}  cases, skulls",
    ]
    for net, column in dict.fromkeys(key[:2] for key in found):

        def show(metric, net=net, column=column):
            row = found.get((net, column, metric))
            return "-" if row is None else f"{row['mean']:.3f}"

        row, title = found[net, column, "dice"], TITLES.get(column, column)
        native = f"{show('dice_native')} ({show('ceiling_native')})"
        distance = found[net, column, "hd95_mm"]["mean"]
        lines.append(
            f"{net:12s}{title:12s}{_span(row):>22s}{show('dice_512'):>12s}{native:>18s}"
            f"{show('bdsc'):>7s}{distance:>6.1f} mm  {row['cases']}, {row['skulls']}"
        )
    for (net, column, metric), row in found.items():
        if "." in metric:
            lines.append(f"{metric}, {net}, {column}: {_span(row)} ({row['skulls']} skulls)")
    for row in verdict["differences"]:
        if row["metric"] == "dice":
            lines.append(
                f"{row['net']} minus {row['minus']}, {row['column']}, Dice: {_span(row, '+')} "
                f"({row['skulls']} skulls, {row['interval']})"
            )
    return lines


def _span(row, sign=""):
    text = f"{row['mean']:{sign}.3f}"
    return (
        text if row["low"] is None else f"{text} [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"
    )


def warnings(result):
    """What the numbers of `metrics.json` warn of: lines of text."""
    lines = []
    pairs = result.get("quality")
    if pairs:
        if pairs["removed"]["empty_defects"] > 0.1:
            lines.append(
                f"{pairs['removed']['empty_defects']:.0%} of the generated pairs have no defect: "
                "train longer, raise config.model.channel_weights, or lower "
                "config.generate.dust_mm3"
            )
        for channel in ("skull", "defect"):
            made, real = (pairs[channel]["occupancy"][who] for who in ("generated", "training"))
            if not 0.75 < made / max(real, 1e-9) < 1.33:
                lines.append(
                    f"occupancy drift: generated {channel}s fill {made:.2%} of the grid, training "
                    f"ones {real:.2%}"
                )
        found = pairs["copies"]["skull"]
        if found["share_above"] is not None and found["share_above"] > 0.15:
            lines.append(
                f"copies: {found['share_above']:.0%} of the generated skulls lie nearer to a "
                "training patient than 95 % of unseen real skulls do (5 % is expected): a defect "
                "of the method"
            )
        first = found["closest"][0]
        if first["dice"] > max(found["held_out"], default=1):
            lines.append(
                f"copies: generated skull {first['generated']} lies nearer to training patient "
                f"{first['name']} (Dice {first['dice']:.3f}) than any unseen real skull does"
            )
    empty = collections.Counter(
        case["net"] for case in (result.get("verdict") or {}).get("cases", ()) if case["empty"]
    )
    for net, names in ((result.get("verdict") or {}).get("leaks") or {}).items():
        if names:
            lines.append(f"{net} was trained on skulls of the test: {', '.join(names)}")
    lines += [f"{net}: {count} predictions are empty (Dice 0)" for net, count in empty.items()]
    return lines
