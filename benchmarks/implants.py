"""How good implants are: holes cut natively into complete skulls, closed again by `predict`.

  python benchmarks/implants.py SKULLS [--weights=demo] [--kinds=parietotemporal,random_1]
      [--skulls=brainweb_04,...] [--seed=1000] [--json=FILE]

For each hole: Dice with what was cut out, on the skull's own voxels, the implant's share of its
volume, pieces, contact with the rim, cover of the opening, seconds.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import common
import numpy as np

from skullgen.data import defects, folders, grids, volumes
from skullgen.delivery import predict, release
from skullgen.evaluation import metrics
from skullgen.training import methods

COLUMNS = "skull kind dice volume pieces rim_contact opening_covered seconds".split()


def main():
    """Prints a line for each hole, and their means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--kinds", default="parietotemporal,random_1")
    parser.add_argument("--skulls", default="")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from experiments.common import defaults

    folder = release.place(options.weights)
    config = methods.load_config(folder)
    config.predict = defaults("demo").predict
    net = predict.designer(config, folder)
    print(common.device(), json.dumps(net.about))
    print(*COLUMNS)
    wanted = set(options.skulls.split(",")) - {""}
    rows = []
    for path in folders.scans(options.folder)[0]:
        if not wanted or folders.name_of(path) in wanted:
            for number, kind in enumerate(options.kinds.split(",")):
                rows.append(hole(net, config.predict, path, kind, options.seed + number))
                print(*rows[-1].values(), flush=True)
    for name in COLUMNS[2:]:
        values = [row[name] for row in rows if row[name] is not None]
        print(f"{name}: mean {np.mean(values):.3f}, from {min(values):.3f} to {max(values):.3f}")
    if options.json:
        options.json.write_text(json.dumps({"net": net.about, "holes": rows}, indent=1) + "\n")


def hole(net, settings, path, kind, seed):
    """One hole, cut and closed: the values of `COLUMNS`."""
    skull, affine = volumes.read(path)
    turn = grids.to_ras(affine, skull.shape)
    skull, affine = grids.turned(skull, turn), affine @ turn
    defective, cut = defects.cut(skull, kind, seed, voxel_mm=np.linalg.norm(affine[:3, :3], axis=0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "defective.nii.gz"
        volumes.write(file, defective, affine)
        start = time.monotonic()
        implant = predict.predict(net, file, settings)
    seconds, numbers = round(time.monotonic() - start, 1), implant.numbers
    assert np.allclose(implant.affine, affine)  # RAS: in the file's order it is `cut`'s
    values = (
        folders.name_of(path),
        kind,
        round(metrics.dice(implant.mask, cut), 3),
        round(np.count_nonzero(implant.mask) / np.count_nonzero(cut), 2),
        len(numbers["pieces"]),
        *(numbers[name] for name in COLUMNS[5:7]),
        seconds,
    )
    return dict(zip(COLUMNS, values, strict=True))


if __name__ == "__main__":
    main()
