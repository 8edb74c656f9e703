"""Worker processes: order, laziness, errors, deaths, signals; nothing of them stays."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from skullgen.core import jobs
from skullgen.core.errors import UserError

ROOT = Path(__file__).parents[2]
# Where tasks are given up, a thread of loky's may end by a KeyError of its own.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def _wait(seconds, value):
    time.sleep(seconds)
    return value


def _fail(error):
    raise error


def _end(number):
    os.kill(os.getpid(), number) if number else os._exit(0)


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_come_in_the_order_of_the_tasks(workers):
    tasks = ((0.2 * (n in (0, 3)), n) for n in range(20))
    assert list(jobs.ordered(_wait, tasks, workers)) == list(range(20))


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_drawn_as_they_are_needed(workers):
    drawn = []
    tasks = ((0.05, drawn.append(n)) for n in range(1000))
    answers = jobs.ordered(_wait, tasks, workers)
    for _ in range(10):
        next(answers)
        assert len(drawn) <= 30 * workers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers.close()
    assert len(drawn) <= 30 * workers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [UserError("a pair is bad"), ZeroDivisionError("theirs")])
def test_errors_of_tasks_and_of_what_draws_them_are_raised_here(error, workers):
    def draw():
        yield from [(0, 1), (0, 2)]
        raise error

    with pytest.raises(type(error), match=str(error)):
        list(jobs.ordered(_wait, draw(), workers))
    with pytest.raises(type(error), match=str(error)):
        list(jobs.ordered(_fail, [(error,)] * 9, workers))
    assert list(jobs.ordered(_wait, [(0, 1)] * 3, workers)) == [1] * 3


@pytest.mark.parametrize("number", [0, signal.SIGKILL])
def test_a_worker_that_dies_is_told_in_one_line(number):
    with pytest.raises(UserError, match=r"a worker process died .*--config.workers=1"):
        list(jobs.ordered(_end, [(number,)] * 5, 2))
    assert list(jobs.ordered(_wait, [(0, 1)] * 3, 2)) == [1] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_between_two_answers(workers):
    with jobs.stoppable():
        answers = jobs.ordered(_wait, [(0, n) for n in range(50)], workers)
        assert next(answers) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(jobs.Stopped) as stopped:
            list(answers)
        assert stopped.value.signum == jobs.asked() == signal.SIGTERM
    assert jobs.asked() == 0
    jobs.check()


# Tasks say when they begin and end. Two workers; each task takes a second.
RUN = """
import signal, sys, time
from skullgen.core import jobs
from skullgen.core.errors import UserError

def task(n):
    sys.stdout.write(f"begin {n}\\n")
    sys.stdout.flush()
    time.sleep(1)
    sys.stdout.write(f"end {n}\\n")
    sys.stdout.flush()

with jobs.stoppable():
    try:
        for _ in jobs.ordered(task, [(n,) for n in range(60)], 2):
            print("answer", flush=True)
            if "break" in sys.argv:
                raise UserError("the caller's own")
    except (jobs.Stopped, UserError) as stopped:
        print(type(stopped).__name__, flush=True)
"""


def _start(*arguments):
    how = dict(cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], **how, **pipes)


def _group(process):
    """Processes of its session."""
    ask = ["ps", "-o", "stat=", "-s", str(process.pid)]
    listed = subprocess.run(ask, capture_output=True, encoding="utf-8").stdout.splitlines()
    return [state for state in listed if "Z" not in state]


def _all_end(process, seconds=15):
    end = time.monotonic() + seconds
    while _group(process) and time.monotonic() < end:
        time.sleep(0.1)
    return not _group(process)


def _lines(process, count):
    return [process.stdout.readline() for _ in range(count)]


def test_a_signal_to_all_of_them_lets_workers_end_their_tasks():
    process = _start()
    assert set(_lines(process, 2)) == {"begin 0\n", "begin 1\n"}
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "end 0\n" in out and out.endswith("Stopped\n") and process.returncode == 0
    assert "begin 5" not in out
    assert "Traceback" not in err and "arning" not in err, err
    assert _all_end(process)


@pytest.mark.parametrize("why", ["killed", "signals", "breaks"])
def test_no_worker_outlives_its_parent(why):
    process = _start(*["break"] * (why == "breaks"))
    _lines(process, 2)
    assert len(_group(process)) >= 3
    if why == "killed":
        process.kill()
    if why == "signals":  # a second one ends at once
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n" and "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    assert code == {"killed": -9, "signals": 128 + signal.SIGTERM, "breaks": 0}[why]
    assert _all_end(process)
    err = process.stderr.read()
    assert "Traceback" not in err and (why != "breaks" or "Warning" not in err), err
