"""What every command shares: progress for who waits, and one clear line when it fails."""

import atexit
import contextlib
import hashlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console

if TYPE_CHECKING:
    from multiprocessing.pool import AsyncResult

T = TypeVar("T")

console = Console()
# Packages of the extras: what only some sources, targets and pictures need.
_OPTIONAL = {"grain", "h5py", "matplotlib", "onnx", "onnxruntime", "pydantic", "tensorboardX"}
_OPTIONAL |= {"pyarrow", "torch", "torchvision", "zarr"}

errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Show a spinner while a step runs, then a line with its time and what was put in the list."""
    found: list[str] = []
    start = time.perf_counter()
    with console.status(f"{what} ..."):
        yield found
    line = f"{time.perf_counter() - start:6.1f} s  {what:<12} {', '.join(found)}"
    console.print(line, highlight=False, markup=False)


@contextlib.contextmanager
def clear_errors(unharmed: str) -> Iterator[None]:
    """Turn bad input into one line and exit code 2, Ctrl-C into exit code 130.

    `unharmed` says what was left as it was. What Orbax logs of the same error is not shown.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        errors.print(
            f"error: this needs {error.name}, which is not installed: "
            "pip install 'flaxvgg[convert,plot,stream,train]'",
            style="red",
        )
        raise typer.Exit(2) from None
    except (ValueError, OSError) as error:
        errors.print(f"error: {error}", style="red")
        raise typer.Exit(2) from None
    except (RuntimeError, AssertionError):  # JAX raises either
        wanted = os.environ.get("JAX_PLATFORMS")
        if not wanted or _has_devices():
            raise
        errors.print(
            f"error: JAX finds no device here that is meant by JAX_PLATFORMS={wanted}: unset it, "
            "or set JAX_PLATFORMS=cpu",
            style="red",
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print(f"interrupted: {unharmed}")
        raise typer.Exit(130) from None


def _has_devices() -> bool:
    """Whether JAX starts at all."""
    import jax

    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


def keep_compiled() -> None:
    """Keep XLA's programs from one command to the next, in JAX's persistent compilation cache.

    Under XDG_CACHE_HOME (~/.cache), a folder for each kind of processor, since a program made for
    one may not run on another. Who sets JAX_COMPILATION_CACHE_DIR has said where, and who sets
    JAX_ENABLE_COMPILATION_CACHE=false has none. To be called before JAX is imported.
    """
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = [line for line in file if line.startswith(("flags", "Features"))]
        kind = hashlib.sha256("".join(lines[:1]).encode()).hexdigest()[:8]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "flaxvgg" / f"xla-{kind}"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Let Ctrl-C set the event that this gives, so that what was done so far can be kept.

    A second Ctrl-C interrupts as ever.
    """
    stop = threading.Event()

    def ask(signum: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)
        errors.print("\nstopping after this batch; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def interruptible(function: Callable[[], T]) -> T:
    """Call a function in a thread, so that Ctrl-C is heard while XLA works.

    XLA cannot be stopped: interrupted, it works on, and when the process ends nobody waits for it.
    """
    from multiprocessing.pool import ThreadPool

    with ThreadPool(1) as pool:
        running = pool.apply_async(function)
        try:
            while not running.ready():
                running.wait(0.1)  # without a limit, a signal to another thread would not end it
        except KeyboardInterrupt:
            atexit.register(_abandon, running)
            raise
        return running.get()


def _abandon(running: "AsyncResult") -> None:
    if not running.ready():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
