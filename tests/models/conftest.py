import pytest

from tests.models import common

data = pytest.fixture(scope="module")(common.packed_pairs)
