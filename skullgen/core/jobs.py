"""How long work is run: progress bars, worker processes, and a stop that loses nothing."""

import collections
import concurrent.futures
import contextlib
import errno
import fcntl
import itertools
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import threading
import uuid

from tqdm import tqdm

from skullgen.core.errors import UserError


class Stopped(Exception):
    """A signal asked the run to stop; what is done has been written.

    agreed: of several processes, all know.
    """

    def __init__(self, signum, agreed=False):
        super().__init__(signum)
        self.signum, self.agreed = signum, agreed


_asked, _quiet = [], []


@contextlib.contextmanager
def stoppable():
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


def asked():
    """The signal that asked the run to stop; 0 where none did."""
    return _asked[0] if _asked else 0


def check():
    """Raises Stopped where a signal came: call it between two writes that belong together."""
    if _asked:
        raise Stopped(_asked[0])


def quiet(yes):
    """Whether this process is to show no bar and print nothing but errors."""
    if yes:
        sys.stdout = open(os.devnull, "w")
        _quiet.append(True)


def progress(total, done, name, unit):
    """A tqdm bar on stderr with rate and time left; in a log file one line every 30 s."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        mininterval=0.2 if terminal else 30,
        maxinterval=10 if terminal else 30,
        dynamic_ncols=terminal,
        ascii=not terminal,
        disable=bool(_quiet),
    )


def _begin_worker():
    """Leaves signals to the parent, and ends when the parent is gone, even by kill -9.

    Schedulers signal the whole process group: a worker finishes its task, and the parent stops.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell(given):
    """`threading.excepthook`, but for the pool's own thread: `ordered` says what became of it.

    It may trip over the workers that are still being started when one of them dies.
    """
    if type(given.thread).__module__ != "concurrent.futures.process":
        threading.__excepthook__(given)


def _kill_workers():
    for child in multiprocessing.active_children():
        child.kill()


def _submit(pool, function, task):
    """Hands a task to the pool; BrokenProcessPool, too, where that breaks as it starts a worker."""
    try:
        return pool.submit(function, *task)
    except OSError as error:
        # The pool's thread closes its pipes when a worker dies: "handle is closed" has no number.
        if error.errno not in (None, errno.EBADF, errno.EPIPE):
            raise
        raise concurrent.futures.process.BrokenProcessPool from error


def ordered(function, tasks, workers):
    """`function(*task)` for each task, in worker processes, yielded in the order of the tasks.

    Tasks are drawn as they are needed, at most two a worker ahead: memory does not grow with
    their number. One worker means this process. An exception in a task is raised here; where a
    worker dies, UserError.
    """
    if workers <= 1:
        for task in tasks:
            check()
            yield function(*task)
        return
    # Not fork: jax runs threads.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker)
    pending, hook = collections.deque(), threading.excepthook
    threading.excepthook = _tell
    try:
        for task in tasks:
            check()
            pending.append(_submit(pool, function, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            check()
            yield pending.popleft().result()
    except (KeyboardInterrupt, Stopped):
        _kill_workers()  # what they were making is made again
        raise
    except concurrent.futures.process.BrokenProcessPool:
        _kill_workers()  # the pool's own way is SIGTERM, which they leave to us
        check()
        raise UserError(
            "a worker process died (out of memory?): start again to go on, "
            "with --config.workers=1 to use less memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        threading.excepthook = hook


@contextlib.contextmanager
def room(path, needed=0):
    """UserError that names `path` and the room that is missing where the disk is full within.

    needed: bytes that are written at most, all in all.
    """
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise no_room(path, needed) from None


def replace(path, content):
    """Writes bytes as the file `path`, whole or not at all; a power cut leaves the old or the new.

    Raises UserError where the disk is full.
    """
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex}")
    with room(path, len(content)):
        try:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def no_room(path, needed):
    """The error of a disk that has no room for `needed` bytes more at `path`."""
    free = free_bytes(path)
    return UserError(
        f"{path}: no room left on its disk: up to {needed / 2**20:.3g} MB are needed and "
        f"{free / 2**20:.3g} MB free: make room and start again; what was written is whole"
    )


def free_bytes(path):
    """Bytes that this process may still write on the disk of `path`, which need not exist."""
    return shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free


@contextlib.contextmanager
def alone(path, field, shared=False):
    """Holds the lock file `path`, which the system lets go when the process ends.

    field: where another folder is chosen. shared: with others that share it. Raises UserError
    where the lock is another's.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "shares of a store"
            raise UserError(
                f"{path.parent}: another run works here ({holder}): "
                f"wait for its end, or choose another {field}"
            ) from None
        file.truncate(0)
        if not shared:
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # what is given away names no host


def share(text):
    """`K/N`, share K of N shares of a store, as two numbers; UserError for anything else."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"share is {text!r}: write K/N, for example 0/4 for the first of four")
    return int(index), int(count)


def workers(count):
    """The number of worker processes: `count`, or one a core that this process may use if 0."""
    if hasattr(os, "sched_getaffinity"):  # Linux; not macOS
        return count or len(os.sched_getaffinity(0))
    return count or os.cpu_count() or 1


def clear(folder):
    """Removes what our writers and Zarr's left half-made under `folder`, links not followed."""
    names = re.compile(r".*\.partial-[0-9a-f]{32}|.*\.[0-9a-f]{32}\.partial|deleted\.partial")
    for path in [path for path in folder.rglob("*.partial*") if names.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def set_aside(path, tag=""):
    """Renames a file or folder to the first free `<stem><tag>-<number><suffix>`; returns it."""
    numbers = itertools.count()
    names = (path.with_name(f"{path.stem}{tag}-{number}{path.suffix}") for number in numbers)
    return path.rename(next(name for name in names if not name.exists()))
