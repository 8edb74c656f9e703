"""Tables as lines of text, and the two that every evaluation makes."""

import collections
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from skullgen.evaluation import asked

COLUMNS = {"validation": "learnt from"}  # the paper's word is that of a store's split, too
COPY = 0.99  # Dice: unseen real skulls that lie nearer to training ones are copies themselves
DICES = {  # title -> place in the numbers of `fidelity.fidelity`
    "nearest training pair: generated": ("nearest_training_dice", "generated"),
    "nearest training pair: held-out real": ("nearest_training_dice", "held_out"),
    "nearest training pair: mean pair": ("nearest_training_dice", "mean_training_pair"),
    "two generated pairs": ("pairwise_dice", "generated"),
    "two training pairs": ("pairwise_dice", "training"),
}
GROUPS = {  # what is compared with real training pairs, in the order of the rows
    "generated": "generated",
    "held_out": "held-out real",
    "augmentation": "training, augmented",
    "fresh": "fresh defects",
    "transplants": "transplants",
}
NUMBERS = ("precision", "recall", "density", "coverage", "nearest_accuracy")


class Table(NamedTuple):
    """Cells of text under their columns; notes are lines below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: Sequence[str] = ()


def number(value: float | int | None, sign: str = "", digits: int = 3) -> str:
    """A number with some decimals; "-" for None. sign: "+" shows it always."""
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def span(row: dict[str, Any] | None, sign: str = "") -> str:
    """The `mean [low, high]` of a row; "-" without one, no brackets without an interval."""
    row = row or {}
    mean, low, high = (number(row.get(k), sign) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if row.get("low") is not None else mean


def text(table: Table) -> list[str]:
    """Lines with aligned columns: those of numbers to the right."""
    columns = []
    for cells in zip(table.columns, *table.rows, strict=True):
        numbers, wide = all(re.match(r"[-+]?\d|-|$", c) for c in cells[1:]), max(map(len, cells))
        columns.append([cell.rjust(wide) if numbers else cell.ljust(wide) for cell in cells])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return [*[table.title] * bool(table.title), *lines, *table.notes]


def verdict(verdict: dict[str, Any]) -> Table:
    """Nets and columns of `verdict.verdict`; the user's own metrics and differences are notes."""
    rows = [row for row in verdict["summary"] if row["by"] == "all"]
    places, lines, notes = collections.defaultdict(dict), [], []
    for row in rows:
        places[row["net"], row["column"]][row["metric"]] = row
    for (net, column), its in places.items():
        dice, mean = its["dice"], {metric: number(row["mean"]) for metric, row in its.items()}
        native = f"{mean.get('dice_native', '-')} ({mean.get('ceiling_native', '-')})"
        distance = number(its.get("hd95_mm", {}).get("mean"), digits=1)
        cells = [span(dice), mean.get("dice_512", "-"), native, mean.get("bdsc", "-"), distance]
        rising = verdict.get("nets", {}).get(net, {}).get("converged") is False
        place = [net + " (not converged)" * rising, COLUMNS.get(column, column)]
        lines.append([*place, *cells, str(dice["cases"]), str(dice["skulls"])])
        own = [(metric, row) for metric, row in its.items() if "." in metric]
        notes += [f"{m}, {net}, {column}: {span(r)} ({r['skulls']} skulls)" for m, r in own]
    for row in verdict["differences"]:
        if row["metric"] == "dice":
            what = f"{row['net']} minus {row['minus']}, {row['column']}, Dice"
            notes.append(f"{what}: {span(row, '+')} ({row['skulls']} skulls, {row['interval']})")
    notes += _headroom(verdict.get("headroom", ()))
    title = (
        f"mean [95 % interval] over skulls; grids: {verdict['voxel_mm']:.3g} mm (the model's), "
        "512^3 (prediction and truth both upsampled), native"
    )
    names = "net, column, Dice, Dice 512^3, native (ceiling), bDSC, HD95 mm, cases, skulls"
    return Table(title, names.split(", "), lines, notes)


def _headroom(rows):
    """How much there is to gain on each test, and who gains which share of it."""
    for row in rows:
        shares = {net: share for net, share in row["shares"].items() if share}
        says = ", ".join(f"{net} {span(share)}" for net, share in shares.items())
        says = f"of it close: {says}" if says else "within noise, nothing can be told apart here"
        yield f"headroom on {row['column']}: {span(row, '+')} ({row['skulls']} skulls); {says}"


def fidelity(quality: dict[str, Any]) -> Table:
    """The numbers of `fidelity.fidelity`; what they say of copies is in the notes."""
    channels = {name: quality[name] for name in ("skull", "defect")}
    rows = []
    for title, (what, who) in DICES.items():
        rows.append([title, *(number(one[what].get(who)) for one in channels.values())])
    for who in ("generated", "training"):
        shares = (one["occupancy"][who] for one in channels.values())
        rows.append([f"occupancy, {who}", *(f"{share:.2%}" for share in shares)])
    notes = [copies(name, quality["copies"][name]) for name in ("skull", "pair")]
    notes += [asked.text(quality["asked"])] if "asked" in quality else []
    title = f"{quality['removed']['pairs']} generated pairs: {removal(quality['removed'])}"
    return Table(title, [f"Dice, {quality['compared']} pairs", "skull", "defect"], rows, notes)


def distances(beside: dict[str, Any]) -> list[Table]:
    """The two tables of `fidelity.beside`: how far groups are from real pairs; how varied."""
    if not beside:
        return []
    groups, lines, notes = [name for name in GROUPS if name in beside["skulls"]], [], []
    for title, part in beside["features"].items():
        for name in groups:
            row, skulls = part["groups"][name], str(beside["skulls"][name])
            cells = [skulls, span(row["mmd"]), *(number(row[k]) for k in ("frechet", *NUMBERS))]
            lines.append([f"{GROUPS[name]}; {title}", *cells])
        bias = number(part["frechet_bias"])
        notes.append(f"{title}: a Frechet of about {bias} is bias, of sets as small as these")
    count, skulls = beside["pairs"], beside["skulls"]["reference"]
    title = (
        f"distance from {count} real training pairs ({skulls} skulls), {count} pairs of each; "
        "equal sets: MMD 0, 1-NN .5, the four others about 1"
    )
    names = "pairs; features, skulls, MMD, Frechet, precision, recall, density, coverage, 1-NN"
    rows = []
    for name, its in beside["variety"].items():
        values = (its[channel][k] for k in ("ms_ssim", "dice") for channel in ("skull", "defect"))
        rows.append([GROUPS.get(name, "training"), *map(number, values)])
    columns = ["pairs", "MS-SSIM, skull", "MS-SSIM, defect", "Dice, skull", "Dice, defect"]
    likeness = "likeness of two pairs of different skulls: more than of real ones is less variety"
    return [Table(title, names.split(", "), lines, notes), Table(likeness, columns, rows)]


def copies(name: str, near: dict[str, Any]) -> str:
    """How near generated skulls, or pairs (`name`), lie to training ones, in a sentence."""
    count = f"{len(near['generated'])} generated {name}s"
    if near["limit"] is None:
        return f"{count} were compared; without held-out real ones no Dice is known as too near."
    if near["limit"] > COPY:
        return (
            f"{count} were compared, and no Dice is too near: unseen real ones lie at up to "
            f"{max(near['held_out']):.3f} of training ones; is a {name} there under two names?"
        )
    return (
        f"{near['share_above']:.1%} of {count} lie nearer to a training {name} (Dice above "
        f"{near['limit']:.3f}) than 95 % of {len(near['held_out'])} unseen real ones do, where 5 % "
        f"are expected if nothing is copied; the closest has {near['closest'][0]['dice']:.3f}."
    )


def removal(removed: dict[str, Any]) -> str:
    """What section 4.4 removed of the pairs of a store (`generate.removed`)."""
    return (
        f"{removed['empty_defects']:.1%} empty defects; equation 6 took {removed['overlap']:.2%} "
        f"of the defects' voxels; dust, voxels a pair: {removed['dust_skull_voxels']:.2f} of "
        f"skull, {removed['dust_defect_voxels']:.2f} of defect"
    )
