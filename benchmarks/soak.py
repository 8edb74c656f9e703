"""Whether memory, file handles, threads and time stay flat: first tenth against last tenth.

  python benchmarks/soak.py                          # 5,000 steps of the VAE, 20,000 pairs
  python benchmarks/soak.py --config wgan_gp --steps 1000

The smoke size (16^3) with checkpoints and logs as a run writes them, by the stages themselves.
"""

import argparse
import os
import pathlib
import tempfile
import time

import common
import numpy as np

from experiments import vae, vae_wgan, wgan_gp
from skullgen.core import jobs
from skullgen.run import workdir
from skullgen.training import logs

CONFIGS = {"vae": vae, "vae_wgan": vae_wgan, "wgan_gp": wgan_gp}


def state():
    """(seconds, MiB, file handles, threads, processes) of this process and its workers."""
    here, memory, handles, threads, processes = os.getpid(), 0, 0, 0, 0
    for place in pathlib.Path("/proc").iterdir():
        try:
            if not place.name.isdigit():
                continue
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if int(place.name) == here or parent == here:
                status = (place / "status").read_text()
                memory += int(status.split("VmRSS:")[1].split()[0]) / 1024
                threads += int(status.split("Threads:")[1].split()[0])
                handles += len(list((place / "fd").iterdir()))
                processes += 1
        except (OSError, IndexError):
            continue  # it ended while it was looked at
    return time.monotonic(), memory, handles, threads, processes


def row(what, places, points):
    """Means of the first and of the last tenth; `places`: steps or pairs done at each point."""
    places, points = np.asarray(places), np.asarray(points)
    tenth = max(2, len(points) // 10)

    def mean(part):
        ms = 1e3 * (points[part][-1, 0] - points[part][0, 0])
        each = ms / (places[part][-1] - places[part][0])
        return [each, *points[part][:, 1:].mean(axis=0)]

    first, last = mean(slice(tenth)), mean(slice(-tenth, None))
    names = ("ms", "MiB", "file handles", "threads", "processes")
    print(f"{what}: first tenth -> last tenth, of {places[-1]}")
    for name, a, b in zip(names, first, last, strict=True):
        print(f"  {name:13s} {a:8.2f} -> {b:8.2f}  ({b / a:.3f})")
    return {"what": what, "count": int(places[-1]), "first": first, "last": last}


def watched(config, work):
    """Runs training and generation; at each flush of the log, and each shard, how things stand."""
    steps, pairs, append, ordered = [], [], logs.append, jobs.ordered

    def flush(path, records):
        append(path, records)
        steps.append((records[-1]["step"], state()))

    def shards(function, tasks, workers):
        done = 0
        for count in ordered(function, tasks, workers):
            if isinstance(count, int):
                done += count
                pairs.append((done, state()))
            yield count

    logs.append, jobs.ordered = flush, shards
    workdir.run(config, work)
    return steps, pairs


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="vae")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--json")
    given = parser.parse_args()
    config = CONFIGS[given.config].get_config("smoke")
    config.stages = ("ingest", "train", "generate")
    config.phases = [{**config.phases[-1], "updates": given.steps}]
    config.log_every, config.save_every = 20, 100
    config.generate.count = given.pairs
    with tempfile.TemporaryDirectory() as folder:
        steps, pairs = watched(config, pathlib.Path(folder) / "run")
    rows = [
        row(f"{given.config}, steps at 16^3", *zip(*steps, strict=True)),
        row(f"{given.config}, pairs of 16^3", *zip(*pairs, strict=True)),
    ]
    common.save(rows, given.json)


if __name__ == "__main__":
    main()
