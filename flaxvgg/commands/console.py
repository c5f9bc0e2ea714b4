"""What every command shares: progress for who waits, and one clear line when it fails."""

import atexit
import contextlib
import hashlib
import io
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console, ConsoleDimensions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from flaxvgg.commands.processes import end, ended_by_another
from flaxvgg.files.addresses import named
from flaxvgg.files.foreign import plain
from flaxvgg.files.remote import RemoteError
from flaxvgg.watching import Bar, Watcher

if TYPE_CHECKING:
    from multiprocessing.pool import AsyncResult

    from rich.progress import Task

T = TypeVar("T")
_UNCUT = 4096  # characters of a line that no terminal shows


class PlainConsole(Console):
    """A console that takes every text, in tables too, as what it is.

    Nothing in it is markup, and what a terminal would obey is shown. Colours are for `Text`, which
    is made of our own words.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        options |= {"markup": False, "emoji": False}
        return super().render_str(plain(text, lines=True), **options)

    @property
    def size(self) -> ConsoleDimensions:
        """As wide as a terminal, or COLUMNS; what goes into a file or pipe is cut nowhere."""
        if self.is_terminal or os.environ.get("COLUMNS"):
            return super().size
        return ConsoleDimensions(_UNCUT, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


class Told(TextColumn):
    """A column of a progress bar with a field of its task, as plain text."""

    def render(self, task: "Task") -> Text:
        return Text(plain(self.text_format.format(task=task)))


console = PlainConsole()
# Packages of the extras, which only some sources and targets need: the extra that has
# each, by the command that needs it where several have it.
_EXTRAS = {
    **dict.fromkeys(("h5py", "onnx", "onnxruntime", "torch", "torchvision"), "convert"),
    **dict.fromkeys(("pydantic", "tensorboardX"), "train"),
    **dict.fromkeys(("grain", "pyarrow", "zarr"), "stream"),
    "obstore": "cloud",
}
_NAMES = {"skimage": "scikit-image"}  # on the package index
_LONGEST = 20  # lines of an error

errors = PlainConsole(stderr=True, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _plain_usage() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = plain(error.message)
        raise


_UsageError: Any = typer.BadParameter.__mro__[1]  # what typer raises for options, of click


class PlainGroup(TyperGroup):
    """Commands whose errors of usage show what was typed, which may be a file's name, as text."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _plain_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _plain_usage():
            return super().invoke(ctx)


class PlainCommand(TyperCommand):
    """The same for a program of one command."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _plain_usage():
            return super().make_context(*args, **kwargs)


def accept_any_text() -> None:
    """Let what an output's encoding does not have be shown as escapes, not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_warnings_of(shown: type[Warning]) -> None:
    """Say warnings of a kind in a line of their own; others are shown as Python does."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, shown):
            errors.print(plain(str(message)), style="yellow")
        else:
            before(message, category, *where, **more)

    warnings.showwarning = show


def say_left_out(problems: Iterable[str]) -> None:
    """Name the files that could not be used, a line for each."""
    for problem in problems:
        errors.print(f"left out: {plain(problem)}", style="red")


def finish(problems: Collection[str], left: str = "") -> None:
    """Name what could not be used, and end with the code that tells how it went.

    `left` says what was not done, where it was stopped.
    """
    say_left_out(problems)
    if left:
        errors.print(f"stopped: {left}")
        raise typer.Exit(130)
    if problems:
        raise typer.Exit(1)


def keep_stdout(json_wanted: bool) -> bool:
    """Keep stdout for JSON where that is wanted: tables, notes and bars go to stderr then."""
    console.stderr = json_wanted
    return json_wanted


def show(table: Callable[[], RenderableType], value: Any, *, as_json: bool) -> None:
    """Show a result: its table, or its value as JSON on stdout, where nothing else is."""
    if not as_json:
        console.print(table(), highlight=False)
        return
    sys.stdout.write(json.dumps(_finite(value), indent=1) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not know, and lists for arrays."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def say_where(path: Path) -> None:
    """Point to what is to be looked at."""
    console.print(f"look at {plain(named(path))}", style="bold", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Show a spinner while a step runs, then a line with its time and what was put in the list."""
    found: list[str] = []
    start = time.perf_counter()
    with console.status(Text(f"{what} ...")):
        yield found
    told = ", ".join(map(plain, found))
    console.print(f"{time.perf_counter() - start:6.1f} s  {what:<12} {told}", highlight=False)


@contextlib.contextmanager
def clear_errors(unharmed: str) -> Iterator[None]:
    """Turn bad input into one line and exit code 2, Ctrl-C into exit code 130.

    `unharmed` says what was left as it was. What Orbax logs of the same error is not shown. What no
    user can have caused is a fault of ours, and ends in its traceback. One of several processes
    ends at once, which the others notice.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS | _NAMES:
            raise
        _say(_missing(error.name))
        end(2)
    except (ValueError, OSError, RemoteError) as error:
        _say(ended_by_another(error) or str(error))
        end(2)
    except (MemoryError, RuntimeError, AssertionError) as error:
        line = ended_by_another(error) or _beyond_this_machine(error)
        if not line:
            raise
        _say(line)
        end(2)
    except KeyboardInterrupt:
        errors.print(f"interrupted: {plain(unharmed)}")
        end(130)


def _say(error: str) -> None:
    """An error in its one line; of several problems each has a line that is set in.

    Of more lines than one reads, the first few, and how many there are.
    """
    found = [plain(line) for line in error.split("\n  ")]
    if len(found) > _LONGEST:
        found = [*found[: _LONGEST - 1], f"and {len(found) - _LONGEST + 1} more"]
    lines = "\n  ".join(found)
    errors.print(f"error: {lines}", style="red")


def _missing(module: str) -> str:
    """What to install for a module, and nothing that is not needed for it."""
    name = _NAMES.get(module, module)
    extra = _EXTRAS.get(module, "")
    if module == "grain" and "train" in sys.argv[1:2]:
        extra = "train"
    whole = f", or all of this command's: pip install 'flaxvgg[{extra}]'" if extra else ""
    return f"this needs {name}, which is not installed: pip install {name}{whole}"


def _beyond_this_machine(error: Exception) -> str:
    """What this machine lacks, of an error that comes of it; "" for any other, which is a bug."""
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        return "out of memory: choose a smaller --size or --batch, or fewer classes and layers"
    wanted = os.environ.get("JAX_PLATFORMS")
    if wanted and not _has_devices():
        return (
            f"JAX finds no device here that is meant by JAX_PLATFORMS={wanted}: unset it, or set "
            "JAX_PLATFORMS=cpu"
        )
    return ""


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

    So does SIGTERM, by which a scheduler announces the end. A second signal acts as ever.
    """
    stop = threading.Event()
    numbers = signal.SIGINT, signal.SIGTERM

    def ask(signum: int, frame: object) -> None:
        stop.set()
        restore()
        errors.print("\nstopping after this batch; Ctrl-C again stops at once")

    def restore() -> None:
        for number, handler in zip(numbers, before, strict=True):
            # None is a handler that is not Python's: jax.distributed's, which would do nothing.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    before = [signal.signal(number, ask) for number in numbers]
    try:
        yield stop
    finally:
        restore()


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


class Shown(Watcher):
    """Shows on the console what the library tells: bars while they are of use, and lines."""

    def each(self, items: Iterable[T], what: str, of: int) -> Iterator[T]:
        yield from track(items, what, total=of, console=console, transient=True)

    @contextlib.contextmanager
    def bar(self, what: str, of: int | float, done: int | float = 0) -> Iterator[Bar]:
        columns = Told("{task.description}"), BarColumn(), Told("{task.percentage:>3.0f} %")
        times = TimeElapsedColumn(), TimeRemainingColumn(), Told("{task.fields[told]}")
        with Progress(*columns, *times, console=console, transient=True) as progress:
            yield _ShownBar(progress, progress.add_task(what, total=of, completed=done, told=""))

    def say(self, text: str) -> None:
        console.print(text, highlight=False)

    def warn(self, text: str) -> None:
        errors.print(text, style="yellow")

    def run(self, function: Callable[[], T]) -> T:
        return interruptible(function)


class _ShownBar(Bar):
    def __init__(self, progress: Progress, task: Any):
        self._progress, self._task = progress, task

    def show(self, done: int | float | None = None, *, what: str = "", told: str = "") -> None:
        fields = {"told": told} if told else {}
        self._progress.update(self._task, completed=done, description=what or None, **fields)

    def advance(self, by: int | float) -> None:
        self._progress.advance(self._task, by)
