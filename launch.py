"""Runs an experiment: `python launch.py --config experiments/vae_wgan.py[:size]`.

--workdir FOLDER      all of a run (default: runs/<config>[-<size>][-<overrides>])
--config FOLDER/config.json   that run goes on; with --workdir it is made again elsewhere
--sweep=list|all|K    of a config with a sweep(add): show its runs, run all, or one of them
--distributed=auto    one of several processes that train together (SLURM, Open MPI, Kubernetes);
                      by hand K/N@HOST:PORT, process K of N with a port of process 0's host
--config.FIELD=VALUE  any field of the config, for example --config.seed=3
"""

import os
import signal
import sys
import traceback
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until `jobs.stoppable`
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from absl import app, flags

from skullgen.run import config as command

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SWEEP = flags.DEFINE_string("sweep", None, "Of a config with a sweep: list, all, or a number.")
_DISTRIBUTED = flags.DEFINE_string(
    "distributed", os.environ.get("SKULLGEN_DISTRIBUTED"), "Several processes: auto, or by hand."
)


def main(_):
    """Sets up devices and signals, and runs the stages of the config."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    config = command.CONFIG.value
    if config.get("deterministic"):  # before the first device is asked for
        flag = " --xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    import jax

    from skullgen.core import errors, hosts, jobs
    from skullgen.run import sweep, workdir

    sweeping = bool(_SWEEP.value or config.get("table"))
    if _DISTRIBUTED.value:
        if sweeping:
            raise errors.UserError("--distributed is for one run: give each run of a sweep a job")
        hosts.join(_DISTRIBUTED.value)
        jobs.quiet(not hosts.lead())
    named = command.named()
    folder = Path(_WORKDIR.value or named.folder(bool(_SWEEP.value))).expanduser()
    if config.get("compilation_cache"):
        cache = os.path.expanduser(config.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    print(errors.plain(f"work directory: {folder}"), flush=True)
    with jobs.stoppable():
        if sweeping:
            sweep.sweep(config, folder, _SWEEP.value or "all", named)
        else:
            workdir.run(config, folder)


if __name__ == "__main__":
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a name that it cannot show ends no run
        stream.reconfigure(errors="backslashreplace")
    try:
        app.run(main, flags_parser=command.parse)
    except Exception as error:
        code = command.report(error)
        if _DISTRIBUTED.value and not (code and code > 128):
            # Not by sys.exit, which would wait for the other processes for minutes.
            if code is None:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code or 1)
        if code is None:
            raise
        sys.exit(code)
