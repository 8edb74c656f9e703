"""Coverage-guided fuzzing: `python tests/fuzz/fuzz.py TARGET|all [--seconds N] [--corpus DIR]`.

Needs `pip install -e '.[fuzz]'` (atheris, Python 3.11 to 3.13 on Linux). Each target runs in a
process of its own and goes on after a finding: an exception that is no `UserError`, an input that
takes over 10 s or lets the process grow by over 1 GB. Findings are kept in DIR/findings/TARGET,
what covers new lines in DIR/TARGET. Prints a table, and writes it to DIR/results.json.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("nrrd", "nifti", "store", "log", "config", "checkpoint")
MAX_SECONDS, MAX_MB = 10, 1024


def peak_mb():
    """The most memory that this process held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(name, seconds, corpus):
    """Fuzzes one target, and writes what it found to `corpus`/`name`.json."""
    import atheris
    import pytest

    with atheris.instrument_imports(include=["skullgen", "nrrd", "nibabel", "zarr"]):
        from skullgen.core.errors import UserError
        from tests.fuzz import targets

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    read, seeds = targets.TARGETS[name](folder, pytest.MonkeyPatch())
    kept, findings = corpus / name, corpus / "findings" / name
    for place in (kept, findings):
        place.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (kept / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        try:  # first uses import and compile
            read(seed)
        except Exception as error:  # what seeds break is found again below
            print(f"{name}: a seed raises {type(error).__name__}")
    state = dict(runs=0, refused=0, longest_s=0.0, found={}, base_mb=peak_mb())
    state["mb"], began = state["base_mb"], time.monotonic()

    def found(what, data):
        if what not in state["found"]:
            place = findings / hashlib.sha256(data).hexdigest()[:16]
            place.write_bytes(data)
            state["found"][what] = place.name
            print(f"{name}: {what}: {place}", flush=True)
            traceback.print_exc()

    def finish():
        spent = time.monotonic() - began
        row = dict(target=name, runs=state["runs"], refused=state["refused"])
        row |= dict(runs_s=round(state["runs"] / spent, 1), findings=state["found"])
        row |= dict(base_mb=round(state["base_mb"]), peak_mb=round(peak_mb()))
        row |= dict(longest_s=round(state["longest_s"], 2), seconds=round(spent))
        (corpus / f"{name}.json").write_text(json.dumps(row, indent=2) + "\n")
        shutil.rmtree(folder)

    def one(data):
        (corpus / f"{name}.last").write_bytes(data)  # for what takes the process down
        start = time.monotonic()
        try:
            if data:
                read(data)
        except UserError as error:
            state["refused"] += 1
            if "\n" in str(error):
                found("a message of several lines", data)
        except MemoryError:
            found("MemoryError", data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if f"{os.sep}skullgen{os.sep}" in f.filename] or frames
            place = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
            found(f"{type(error).__name__} in {place}", data)
        end = time.monotonic()
        state["runs"] += 1
        state["longest_s"] = max(state["longest_s"], end - start)
        if end - start > MAX_SECONDS:
            found("over 10 s", data)
        grown, state["mb"] = peak_mb() - state["mb"], peak_mb()
        if grown > MAX_MB / 4 and state["mb"] - state["base_mb"] > MAX_MB:
            found("over 1 GB", data)
        if end - began > seconds:
            finish()
            os._exit(0)

    options = [f"-max_total_time={seconds + 60}", "-timeout=120", "-rss_limit_mb=0"]
    options += ["-max_len=16384", "-detect_leaks=0", "-verbosity=0", "-print_final_stats=0"]
    options += [f"-dict={targets.words(folder)}", f"-artifact_prefix={findings}/"]
    atheris.Setup([sys.argv[0], *options, str(kept)], one)
    atheris.Fuzz()


def start(name, seconds, corpus):
    """One target in a process of its own: its row of the table."""
    place = corpus / f"{name}.json"
    place.unlink(missing_ok=True)
    command = [sys.executable, __file__, name, f"--seconds={seconds}", f"--corpus={corpus}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with open(corpus / f"{name}.txt", "wb") as log:
        options = dict(env=environment, stdout=log, stderr=log, timeout=600 + 2 * seconds)
        code = subprocess.run([*command, "--child"], **options).returncode
    if not place.exists():  # taken down by `last`
        last = hashlib.sha256((corpus / f"{name}.last").read_bytes()).hexdigest()[:16]
        (corpus / "findings" / name / last).write_bytes((corpus / f"{name}.last").read_bytes())
        return dict(target=name, findings={f"the process ended with {code}": last})
    return json.loads(place.read_text())


def main():
    """Runs what the command line asks for; exit code 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("--seconds", type=int, default=60, help="in all")
    parser.add_argument("--corpus", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    corpus = options.corpus.absolute()
    if options.child:
        return child(options.target, options.seconds, corpus)
    corpus.mkdir(parents=True, exist_ok=True)
    names = NAMES if options.target == "all" else (options.target,)
    rows = [start(name, max(1, options.seconds // len(names)), corpus) for name in names]
    columns = ("target", "runs", "refused", "runs_s", "seconds", "base_mb", "peak_mb", "longest_s")
    print("| " + " | ".join((*columns, "findings")) + " |\n|" + "---|" * (len(columns) + 1))
    for row in rows:
        cells = [str(row.get(name, "")) for name in columns]
        print("| " + " | ".join([*cells, str(len(row["findings"]))]) + " |")
    (corpus / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["findings"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
