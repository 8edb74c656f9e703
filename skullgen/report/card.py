"""The data card of a generated store: `README.md` in it, as dataset cards are written.

What it says is read from the store and from the verdict on it. It holds no times, no paths and no
names of the skulls that were learnt from.
"""

import contextlib
import json
import re
from pathlib import Path

import numpy as np

from skullgen.core import files
from skullgen.core.errors import UserError, plain
from skullgen.data import store
from skullgen.generation import generate

LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # a hub's words
SHARED = (
    " It asks to name its source (Kodym et al. 2021, doi:10.1016/j.dib.2021.106902), allows no "
    "commercial use, and asks that what is made from it is given on under the same terms."
)
WORDS = """
## Read them

```python
import zarr

pairs = zarr.open_group("generated.zarr", mode="r")["pairs"]  # bool [N, D, D, D, 2], RAS
skull, defect = pairs[0, ..., 0], pairs[0, ..., 1]
```

## What they are not

They are no patients and no evidence of anatomy. No surgeon has looked at them. They have no kind,
no split and no skull of their own. Details finer than a voxel are not in them. What a network
learns from them must be judged on real skulls. Research only, not a medical device.

## To cite

skullgen (its `CITATION.cff`), the data above, and the paper whose methods these are:

```bibtex
@misc{kwarciak2023cranial,
  author = {Kwarciak, Kamil and Wodzinski, Marek},
  title = {Deep Generative Networks for Heterogeneous Augmentation of Cranial Defects},
  year = {2023},
  eprint = {2308.04883},
  archivePrefix = {arXiv},
}
```
"""


def text(value):
    """Any value as one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!&$])", r"\\\1", plain(str(value)))


def source(path, rows):
    """What rows int [n] of the real store at `path` are: source, number of pairs and skulls."""
    opened = store.Store(path)
    skulls = len(np.unique(opened.column("skull")[rows]))
    named = opened.recipe.get("config", {}).get("source", "unknown")
    return {"source": named, "pairs": len(rows), "skulls": skulls}


def identity(path):
    """What the pairs of the generated store at `path` are: its recipe, and their number."""
    return {"recipe": store.Store(path).recipe, "pairs": store.Store(path).count}


def write(path, metrics=None):
    """Writes `README.md` into the whole generated store at `path`; returns its Path.

    metrics: the content of a `metrics.json`; None: that beside the store, if it is about these
    pairs. Equal stores and metrics give equal bytes. Raises UserError where pairs are missing.
    """
    path = Path(path)
    if metrics is None:
        with contextlib.suppress(UserError):
            metrics = files.read_json(path.parent / "metrics.json")
    if (metrics or {}).get("generated") != identity(path):
        metrics = {}
    licence = store.Store(path).attrs["licence"]
    licence = licence.removeprefix("as of the pairs that it was trained on: ")
    lines = _front(path, licence) + _about(path, licence) + _quality(metrics) + _verdict(metrics)
    files.replace(path / "README.md", ("\n".join(lines) + WORDS).encode())
    return path / "README.md"


def _front(path, licence):
    """YAML, as the hubs of data sets read it; a string of JSON is one of YAML."""
    size = SIZES[min(len(str(len(store.Store(path).rows()) // 1000).lstrip("0")), len(SIZES) - 1)]
    other = [] if licence in LICENCES else [f"license_name: {json.dumps(plain(licence))}"]
    return [
        "---",
        'pretty_name: "Generated pairs: defective skulls and their defects"',
        f"license: {LICENCES.get(licence, 'other')}",
        *other,
        "task_categories: [image-segmentation]",
        "tags: [medical, 3d, skull, cranial-implant, synthetic]",
        f'size_categories: ["{size}"]',
        "---",
        "",
        "# Generated pairs: defective skulls and their defects",
        "",
        "Made by skullgen. **Research only, not a medical device.**",
        "",
    ]


def _about(path, licence):
    group, removed = store.Store(path), generate.removed(store.Store(path))
    attrs, recipe, mm = group.attrs, group.recipe, group.attrs["voxel_mm"]
    left = group.count - removed["pairs"]
    ml = group.column("voxels")[store.Store(path).rows(), 1] * mm**3 / 1000
    sizes = np.percentile(ml[ml > 0], (0, 25, 50, 75, 100)) if ml.any() else []
    settings = {name: recipe.get(name) for name in ("model", "generate")}
    drawn = settings["generate"] or {}
    rows = {
        "pairs": f"{len(ml)}, {group.size}^3 voxels of {mm:.4g} mm",
        **({"left out, in leave_out.txt": left} if left else {}),
        "empty defects": f"{(ml == 0).sum()} ({removed['empty_defects']:.1%})",
        "defects, ml: least, quartiles, most": ", ".join(f"{x:.1f}" for x in sizes) or "-",
        "licence": licence,
        "trained on": _listed(attrs.get("trained_on", {})) or "not stated",
        "model": f"{recipe.get('model_name')}, update {recipe.get('step')}",
        "weights, SHA-256": recipe.get("weights", "not stated"),
        "seed; first sample": f"{drawn.get('seed')}; {drawn.get('first')}",
        "made on": recipe.get("device"),
        "versions": _listed(attrs.get("versions", {})),
    }
    return [
        *_table(("what", ""), [(name, text(value)) for name, value in rows.items()]),
        "The licence is that of the pairs that the model was trained on."
        + SHARED * (licence == "CC BY-NC-SA 4.0"),
        "",
        f"Post-processing: equation 6 of the paper took {removed['overlap']:.2%} of the defects' "
        f"voxels, which lay in the skull; dust, mean voxels a pair: "
        f"{removed['dust_skull_voxels']:.2f} of skull, {removed['dust_defect_voxels']:.2f} of "
        "defect. Settings:",
        "",
        *("```json", json.dumps(settings), "```", ""),
    ]


def _listed(values):
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(head, rows):
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def _number(value):
    return "-" if value is None else f"{value:.3f}"


def _quality(metrics):
    if not metrics:
        return ["## What they are worth", "", "Not evaluated.", ""]
    quality, rows, lines = metrics["quality"], [], []
    for title, what in (
        ("nearest training pair", "nearest_training_dice"),
        ("two different", "pairwise_dice"),
    ):
        for who in quality["skull"][what]:
            values = [_number(quality[name][what][who]) for name in ("skull", "defect")]
            rows.append((f"{title}: {who.replace('_', ' ')}", *values))
    for name, what in (("skull", "skulls"), ("pair", "pairs")):
        found = quality["copies"][name]
        if found["limit"] is not None:
            lines.append(
                f"- Copies: {found['share_above']:.1%} of the generated {what} lie nearer to a "
                f"training one (Dice {found['limit']:.3f} or more) than 95 % of unseen real ones "
                f"do; the closest has {found['closest'][0]['dice']:.3f}."
            )
    head = (f"Dice, {quality['compared']} pairs", "skull", "defect")
    return ["## What they are worth", "", *_table(head, rows), *lines, ""]


def _verdict(metrics):
    """A table of the nets on unseen real skulls; none where no network was trained."""
    verdict, lines = metrics.get("verdict") or {"summary": []}, []
    rows = [r for r in verdict["summary"] if r["by"] == "all" and r["column"] == "test"]
    for row in [row for row in rows if row["metric"] == "dice"]:
        mean = {r["metric"]: r["mean"] for r in rows if r["net"] == row["net"]}
        span = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        stores = verdict["nets"].get(row["net"], {}).get("stores", [])
        made = [f"{part['pairs']} of {Path(part['path']).name}" for part in stores]
        native = f"{_number(mean.get('dice_native'))} ({_number(mean.get('ceiling_native'))})"
        at = _number(mean.get("dice_512"))
        net = f"{row['net']} on {' + '.join(made)}" if made else row["net"]
        lines.append((text(net), f"{row['mean']:.3f}{span}", at, native, str(row["skulls"])))
    head = "network or rule", "test Dice [95 %]", "at 512^3", "native (ceiling)", "unseen skulls"
    return _table(head, lines) if lines else []
