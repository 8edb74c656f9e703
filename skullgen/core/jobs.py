"""How long work is run: progress bars, worker processes, and a stop that loses nothing."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from skullgen.core.errors import UserError


class Stopped(Exception):
    """A signal asked the run to stop; what is done is written. agreed: all processes know."""

    def __init__(self, signum: int, agreed: bool = False) -> None:
        super().__init__(signum)
        self.signum, self.agreed = signum, agreed


_asked, _quiet = [], []


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into a wish that `check` reports; a second one stops at once."""

    def ask(signum, frame):
        if _asked:
            os._exit(128 + signum)
        _asked.append(signum)
        print("\nstopping at the next safe point (again: at once)", file=sys.stderr, flush=True)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _asked.clear()


def asked() -> int:
    """The signal that asked the run to stop; 0 where none did."""
    return _asked[0] if _asked else 0


def check() -> None:
    """Raises Stopped where a signal came: call it between two writes that belong together."""
    if _asked:
        raise Stopped(_asked[0])


def quiet(yes: bool) -> None:
    """Whether this process is to show no bar and print nothing but errors."""
    if yes:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        _quiet.append(True)


def progress(total: int, done: int, name: str, unit: str) -> tqdm:
    """A tqdm bar on stderr with rate and time left; in a log file one line every 30 s."""
    what = dict(total=total, initial=done, desc=name, unit=unit, disable=bool(_quiet))
    log = dict(mininterval=30, maxinterval=30, ascii=True)
    return tqdm(**what, **(dict(dynamic_ncols=True) if sys.stderr.isatty() else log))


def ordered(function: Callable[..., Any], tasks: Iterable[tuple], workers: int) -> Iterator[Any]:
    """`function(*task)` for each task, in worker processes, yielded in the order of the tasks.

    Tasks are drawn as workers become free, a few a worker ahead. One worker means this process.
    """
    if workers <= 1:
        for task in tasks:
            check()
            yield function(*task)
        return
    begin = dict(initializer=_begin_worker, initargs=(os.getpid(),))
    pool = joblib.Parallel(workers, return_as="generator", batch_size=1, max_nbytes=None, **begin)
    answers = None
    try:
        answers = pool(joblib.delayed(function)(*task) for task in tasks)  # begins the first ones
        for answer in answers:
            yield answer
            check()
    except TerminatedWorkerError:
        check()
        cure = "start again to go on, with --config.workers=1 to use less memory"
        raise UserError(f"a worker process died (out of memory?): {cure}") from None
    finally:
        with warnings.catch_warnings():  # joblib tells of tasks that are given up: we mean it
            warnings.filterwarnings("ignore", ".*tasks (have been successfully|which were still)")
            if answers:
                answers.close()


def _begin_worker(parent):
    """Leaves signals, sent to the whole group, to the parent; ends with it, even by kill -9."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def workers(count: int) -> int:
    """The number of worker processes: `count`, or one a core that this process may use if 0."""
    return count or joblib.cpu_count()
