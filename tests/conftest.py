"""Test settings: two host devices, a shared compilation cache, a PRNG that compiles in no time.

Set before jax is first imported. rbg under vmap is not per key, so tests that compare device
splits or single samples ask for threefry keys themselves. Type hints are checked, arrays' shapes
and dtypes too, unless SKULLGEN_TEST_HINTS=0.
"""

import gc
import os
import pathlib
import tempfile

import hypothesis
import jaxtyping
import pytest

# Time is no property: a busy machine must fail no test; and what passed passes again.
profile = dict(deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("patient", **profile)
hypothesis.settings.load_profile("patient")

# Compiling takes longer than what tests compute: no optimisation in this process.
flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "skullgen-test-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DEFAULT_PRNG_IMPL", "rbg")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # t-SNE's threads wait for each other on a few points

if os.environ.get("SKULLGEN_TEST_HINTS") != "0":
    whole = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # 1 is a float
    jaxtyping.install_import_hook("skullgen", whole)

SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="module")
def lax():
    """Convolutions of the form that compiles fastest; tests/networks proves all forms equal."""
    from skullgen.networks import conv

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "_matmul", lambda impl: impl == "matmul")
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget():
    """Drops a module's compiled programs: each maps memory, and a process has 65,530 maps."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
