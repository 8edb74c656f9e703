"""The data card of a generated store: `README.md` in it, as dataset cards are written.

What it says is read from the store and from the verdict on it. It holds no times, no paths and no
names of the skulls that were learnt from.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from skullgen.core import files
from skullgen.core.errors import UserError, plain
from skullgen.data import store
from skullgen.generation import generate
from skullgen.report import tables
from skullgen.report.tables import Table

LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # a hub's words
SHARED = (
    " It asks to name its source (Kodym et al. 2021, doi:10.1016/j.dib.2021.106902), allows no "
    "commercial use, and asks that what is made from it is given on under the same terms."
)
CARD = """---
pretty_name: "Generated pairs: defective skulls and their defects"
{front}
task_categories: [image-segmentation]
tags: [medical, 3d, skull, cranial-implant, synthetic]
---

# Generated pairs: defective skulls and their defects

Made by skullgen. **Research only, not a medical device.**

{about}
The licence is that of the pairs that the model was trained on.{shared}

Post-processing (section 4.4 of the paper): {removal}. Settings:

```json
{settings}
```

## What they are worth

{worth}
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
@misc{{kwarciak2023cranial,
  author = {{Kwarciak, Kamil and Wodzinski, Marek}},
  title = {{Deep Generative Networks for Heterogeneous Augmentation of Cranial Defects}},
  year = {{2023}},
  eprint = {{2308.04883}},
  archivePrefix = {{arXiv}},
}}
```
"""


def identity(pairs: store.Store) -> dict[str, Any]:
    """What generated pairs are: their recipe, and their number."""
    return {"recipe": pairs.recipe, "pairs": pairs.count}


def write(path: Path, metrics: dict[str, Any] | None = None) -> Path:
    """Writes `README.md` into the whole generated store at `path`; returns its path.

    metrics: the content of a `metrics.json`; None: that beside the store, if it is about these
    pairs. Equal stores and metrics give equal bytes. Raises UserError where pairs are missing.
    """
    pairs = store.Store(path)
    if metrics is None:
        with contextlib.suppress(UserError):
            metrics = files.read_json(path.parent / "metrics.json")
    worth = "Not evaluated.\n"
    if metrics and metrics.get("generated") == identity(pairs):
        worth = tables.markdown(tables.fidelity(metrics["quality"])._replace(title=""))
        if metrics.get("verdict"):
            worth += "\n" + tables.markdown(_verdict(metrics["verdict"]))
    licence = pairs.attrs["licence"].removeprefix("as of the pairs that it was trained on: ")
    removed = generate.removed(pairs)
    text = CARD.format(
        front=_front(removed["pairs"], licence),
        about=tables.markdown(_about(pairs, licence)),
        shared=SHARED * (licence == "CC BY-NC-SA 4.0"),
        removal=tables.removal(removed),
        settings=json.dumps({name: pairs.recipe.get(name) for name in ("model", "generate")}),
        worth=worth,
    )
    files.replace(path / "README.md", text.encode())
    return path / "README.md"


def _front(count, licence):
    """What differs in the YAML that hubs of data sets read; a string of JSON is one of YAML."""
    size = SIZES[min(len(str(count // 1000).lstrip("0")), len(SIZES) - 1)]
    lines = [f"license: {LICENCES.get(licence, 'other')}", f'size_categories: ["{size}"]']
    if licence not in LICENCES:
        lines.append(f"license_name: {json.dumps(plain(licence))}")
    return "\n".join(lines)


def _about(pairs, licence):
    attrs, recipe, mm, rows = pairs.attrs, pairs.recipe, pairs.attrs["voxel_mm"], pairs.rows()
    ml = pairs.column("voxels")[rows, 1] * mm**3 / 1000
    sizes = np.percentile(ml[ml > 0], (0, 25, 50, 75, 100)) if ml.any() else []
    settings, left = recipe.get("generate") or {}, len(pairs.every()) - len(rows)
    cells = {
        "pairs": f"{len(rows)}, {pairs.size}^3 voxels of {mm:.4g} mm",
        **({"left out, in leave_out.txt": left} if left else {}),
        "empty defects": f"{(ml == 0).sum()} ({(ml == 0).mean():.1%})",
        "defects, ml: least, quartiles, most": ", ".join(f"{x:.1f}" for x in sizes) or "-",
        "licence": licence,
        "trained on": _listed(attrs.get("trained_on", {})) or "not stated",
        "model": f"{recipe.get('model_name')}, update {recipe.get('step')}",
        "weights, SHA-256": recipe.get("weights", "not stated"),
        "seed; first sample": f"{settings.get('seed')}; {settings.get('first')}",
        "made on": recipe.get("device"),
        "versions": _listed(attrs.get("versions", {})),
    }
    return Table("", ["what", ""], [[name, str(value)] for name, value in cells.items()])


def _listed(values):
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _verdict(verdict):
    """The nets on unseen real skulls, with the names of their stores but not where they lie."""
    table = tables.verdict(verdict)
    rows = [row for row in table.rows if row[1] == "test"]
    for row in rows:
        parts = verdict["nets"].get(row[0], {}).get("stores", [])
        stores = [f"{part['pairs']} of {Path(part['path']).name}" for part in parts]
        row[0] += f" on {' + '.join(stores)}" * bool(stores)
    return table._replace(rows=rows, notes=[])
