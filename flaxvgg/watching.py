"""What long work tells whoever waits for it. The library is silent; `flaxvgg.commands` shows it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Bar:
    """A progress bar that nobody sees."""

    def show(self, done: int | float | None = None, *, what: str = "", told: str = "") -> None:
        """Say how much is done, and what is done now; empty texts leave what was said before."""

    def advance(self, by: int | float) -> None:
        """Say that so much more is done."""


class Watcher:
    """Is told what happens, and does nothing with it; those who show it derive from it."""

    def each(self, items: Iterable[T], what: str, of: int) -> Iterator[T]:
        """The items, of which there are so many, one after the other as each is done."""
        yield from items

    @contextlib.contextmanager
    def bar(self, what: str, of: int | float, done: int | float = 0) -> Iterator[Bar]:
        """A bar for work of which so much is done."""
        yield Bar()

    def say(self, text: str) -> None:
        """A line that is good to know."""

    def warn(self, text: str) -> None:
        """A line that must be known."""

    def run(self, function: Callable[[], T]) -> T:
        """What a function gives that works for long without a pause."""
        return function()
