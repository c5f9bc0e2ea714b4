"""Strict everywhere: shapes are checked, implicit promotion is an error, two devices are faked."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Two workers on two cores: threads that wait must sleep, and not spin.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if sys.platform == "linux":
    # glibc hands every large array back to the system, and fresh pages are slow: here it keeps
    # them until a module ends. M_TRIM_THRESHOLD and M_MMAP_MAX of mallopt(3).
    ctypes.CDLL(None).mallopt(-1, -1)
    ctypes.CDLL(None).mallopt(-4, 0)

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the command line's: tests compile anew

import jax
import pytest
from jaxtyping import install_import_hook
from object_store import Proxy, Server, at

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("flaxvgg", "beartype.beartype")


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Modules clean up after themselves as ever."""
    gc.unfreeze()


def pytest_configure() -> None:
    """Tests press Ctrl-C, which a shell lets its background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What measures errors beside other frameworks' is compiled as it is for users.
_OPTIMISED = {
    f"test_{name}"
    for name in (
        "convolution",
        "exact",
        "linear",
        "model",
        "mutations",
        "native",
        "parity",
        "parity_random",
        "perceptual_peers",
        "precision_modes",
        "processors",
        "score_map",
        "sparsity_parity",
        "verify",
    )
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiler(request: pytest.FixtureRequest) -> None:
    """XLA need not make fast what runs once or twice."""
    quick = request.module.__name__.rpartition(".")[2] not in _OPTIMISED
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.clear_caches()  # what was compiled the other way
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="module", autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """Networks of half a gigabyte each would otherwise add up from module to module."""
    yield
    if sys.platform == "linux":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The programs that XLA compiles, as they come."""
    found: list[str] = []

    def listen(event: str, duration: float, **kwargs) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(kwargs.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


# What takes seconds of a busy core, beside others that look at the same in less: ids, or how they
# begin, one a line. `make test PYTEST=--durations=200` says what would be next.
_LONG = tuple(Path(__file__).with_name("long.txt").read_text("utf-8").splitlines())


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long as slow: it runs in `make test-all`."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(_LONG):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real S3 server with one bucket, which all tests share."""
    with Server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def proxy(server):
    """What stands between this process and the server, and does nothing unless it is told to."""
    with Proxy(server.port) as found, at(found.port):
        yield found
