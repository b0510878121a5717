import gc
import os
from importlib.metadata import version

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "..", ".cache", "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of a cold run would go into XLA's compiler: it is asked for plain code here, which it makes
# five times as fast. `XLA_FLAGS= make test` compiles as users do, and takes more than twice as long.
# XLA ends the process at a flag that it does not know, so the flags are for the versions they were tried with.
_FLAGS = {
    "0.10.": "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1",
    "0.12.": "--xla_backend_optimization_level=0",
}
for _series, _flags in _FLAGS.items():
    if version("jaxlib").startswith(_series):
        os.environ.setdefault("XLA_FLAGS", _flags)

# tracing makes millions of objects that live on: looking through them all less often saves a twentieth
gc.set_threshold(50_000, 50, 100)

# HYPERGRAD_FUZZ=long makes every fuzz test try 5,000 files instead of 200
settings.register_profile(
    "quick",
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("long", settings.get_profile("quick"), max_examples=5000)
settings.load_profile(os.environ.get("HYPERGRAD_FUZZ", "quick"))


@pytest.fixture(scope="module")
def no_waiting():
    """Do not wait for the disk; what a disk keeps, and when it is asked to, has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(scope="session")
def whole():
    """The run of the toy that nothing disturbs."""
    from hypergrad import study
    from tests.disk import KEY, toy

    return study.run(toy(), KEY, 6)


@pytest.fixture
def kept(tmp_path):
    """A study of the toy that was ended after four of its six steps."""
    from tests.disk import end_after

    end_after(4, tmp_path / "study")
    return tmp_path / "study"
