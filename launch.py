"""Runs an experiment: `python launch.py --config experiments/vae_wgan.py[:size]`.

--workdir FOLDER      all of a run (default: runs/<config>[-<size>][-<overrides>])
--config FOLDER/config.json   that run goes on; with --workdir it is made again elsewhere
--sweep=list|all|K    of a config with a sweep(add): show its runs, run all, or one of them
--distributed=auto    one of several processes that train together (SLURM, Open MPI, Kubernetes);
                      by hand K/N@HOST:PORT, process K of N with a port of process 0's host
--config.FIELD=VALUE  any field of the config, for example --config.seed=3
"""

import errno
import os
import re
import runpy
import signal
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from skullgen.core import errors

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SWEEP = flags.DEFINE_string("sweep", None, "Of a config with a sweep: list, all, or a number.")
_READER = Path(__file__).resolve().parent / "experiments" / "again.py"
_DISTRIBUTED = flags.DEFINE_string(
    "distributed", os.environ.get("SKULLGEN_DISTRIBUTED"), "Several processes: auto, or by hand."
)


def main(_):
    """Sets up devices and signals, and runs the stages of the config."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    config = _CONFIG.value
    if config.get("deterministic"):
        flag = " --xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    import jax

    from skullgen.core import hosts, jobs
    from skullgen.run import sweep, workdir

    sweeping = _SWEEP.value or config.get("table")
    if _DISTRIBUTED.value:
        if sweeping:
            raise errors.UserError("--distributed is for one run: give each run of a sweep a job")
        hosts.join(_DISTRIBUTED.value)
        jobs.quiet(not hosts.lead())
    flag = flags.FLAGS["config"]
    folder = Path(_WORKDIR.value or default_workdir(flag, bool(_SWEEP.value))).expanduser()
    if config.get("compilation_cache"):
        cache = Path(str(config.compilation_cache)).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    print(errors.plain(f"work directory: {folder}"), flush=True)
    path, _, size = flag.config_filename.partition(":")
    if Path(path) == _READER and folder.resolve() != Path(size).parent.resolve():
        workdir.tell_versions(Path(size).parent)
    with jobs.stoppable():
        if sweeping:
            fixed = config_flags.get_override_values(flag)
            declare = runpy.run_path(path).get("sweep")
            sweep.sweep(config, folder, _SWEEP.value or "all", declare, fixed)
        else:
            workdir.run(config, folder)


def default_workdir(flag, sweeping=False):
    """`runs/<config>[-<size>][-<overrides>][-sweep]`, or the folder of a run's `config.json`."""
    from skullgen.run import variants

    path, _, size = flag.config_filename.partition(":")
    if Path(path) == _READER:
        return Path(size).parent
    overrides = config_flags.get_override_values(flag)
    parts = [Path(path).stem, size, *(f"{name}={value}" for name, value in overrides.items())]
    # What a run is, these do not change.
    skip = ("stages=", "share=", "data.root=", "explore.", "export.", "predict.", "gallery.")
    parts = [part for part in parts if part and not part.startswith(skip)]
    return Path("runs") / variants.folder_name([*parts, *["sweep"] * sweeping])


def parse(argv):
    """Flags from the command line; a mistake in them or in the config file is one line, code 2."""
    logging.set_verbosity(logging.ERROR)
    file = _file(argv)
    if file.endswith(".json"):
        reader = f"{_READER}:{file}"
        words = {file: reader, f"--config={file}": f"--config={reader}"}
        argv = [words.get(word, word) for word in argv]
    try:
        rest = flags.FLAGS(argv)
        config = _CONFIG.value
        if not _file(argv):
            _fail("which experiment? For example --config experiments/vae_wgan.py")
        _ = config.stages  # a config that could not be loaded raises only when it is used
        if not isinstance(config, ConfigDict):
            raise TypeError
    except Exception as error:  # of the config file's own code, any
        _fail(_mistake(error, argv))
    if rest[1:]:
        _fail(f"{rest[1]!r} is no flag: fields are set by --config.FIELD=VALUE")
    return rest


def _file(argv):
    """The config file that a command line names, or ""."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    named = [one.partition("=")[2] or two for one, two in pairs if re.match("--?config(=|$)", one)]
    return named[-1].partition(":")[0] if named else ""


def _mistake(error, argv):
    """What is wrong with the command line, or with the config file that it names, in one line."""
    file = _file(argv)
    given = [part for part in argv[1:] if part.startswith("--config.")]
    where = f" (no such field? {' '.join(given)})" if given else ""
    where = "" if isinstance(error, flags.Error) else where
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if file and not Path(file).is_file():
        return f"{file}: no such config file"
    if isinstance(error, SyntaxError):
        return f"{error.filename or file}, line {error.lineno or 1}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.realpath(file) == frame.filename]
    if lines and not isinstance(error, ValueError):
        return f"{file}, line {lines[-1]}: {type(error).__name__}: {error}"
    if not (given or isinstance(error, flags.Error | ValueError)):
        return f"{file}: it needs a function get_config() that returns a ConfigDict with `stages`"
    words = str(error.args[0] if len(error.args) == 1 else error)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"\w+Error: ", line)]
    return (causes[-1].split(": ", 1)[1] if causes else " ".join(lines)) + where


def _fail(text):
    print(f"error: {errors.plain(text)}", file=sys.stderr)
    sys.exit(2)


def report_error(error):
    """Prints what a person can use of an error; returns the exit code, or None to raise it."""
    from skullgen.core import jobs

    if isinstance(error, jobs.Stopped):
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + error.signum
    if isinstance(error, errors.UserError):
        print(f"error: {error}", file=sys.stderr)
        return error.code
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or os.strerror(errno.ENOSPC) in str(error):
        where = errors.plain(str(getattr(error, "filename", None) or "the work directory"))
        print(
            f"error: no room left on the disk of {where}: make some and run the same command "
            "again; what was written is whole",
            file=sys.stderr,
        )
        return 2
    if isinstance(error, OSError) and error.filename:
        print(f"error: {errors.plain(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        return 2
    return None


def _end(signum, _):
    """Until `jobs.stoppable`: nothing is begun that could be lost."""
    os._exit(128 + signum)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a name that it cannot show ends no run
        stream.reconfigure(errors="backslashreplace")
    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = report_error(error)
        if _DISTRIBUTED.value and not (code and code > 128):
            # Not by sys.exit, which would wait for the other processes for minutes.
            if code is None:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code or 1)
        if code is None:
            raise
        sys.exit(code)
