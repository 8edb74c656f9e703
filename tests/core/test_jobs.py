"""What worker processes do when one of them dies."""

import concurrent.futures.process
import errno

import pytest

from skullgen.core import jobs


class _Broken:
    def __init__(self, error):
        self.error = error

    def submit(self, function, *task):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [OSError("handle is closed"), OSError(errno.EBADF, ""), BrokenPipeError(errno.EPIPE, "")],
)
def test_a_pool_that_breaks_while_it_starts_a_worker_is_broken(error):
    with pytest.raises(concurrent.futures.process.BrokenProcessPool):
        jobs._submit(_Broken(error), print, ())


def test_a_system_that_allows_no_more_processes_is_no_dead_worker():
    with pytest.raises(BlockingIOError):
        jobs._submit(_Broken(BlockingIOError(errno.EAGAIN, "")), print, ())
