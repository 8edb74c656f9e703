"""A run that is trained once, and copies of it."""

import shutil

import pytest

from tests.training import test_loop


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("whole")
    test_loop.make_store(work / "real.zarr")
    test_loop.train(work)
    return work


@pytest.fixture
def trained(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")
