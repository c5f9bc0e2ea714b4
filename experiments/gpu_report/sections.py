"""Work in order of value, under limits of time: what is cut is listed, what was found is kept."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]


class Step(NamedTuple):
    """Something that gives rows; it is not interrupted, and not begun when time is over."""

    name: str
    run: Callable[[], Rows]


class Section(NamedTuple):
    """Steps in order of value, and the seconds that they may take together."""

    name: str
    limit: float
    steps: Iterator[Step]


def run(
    sections: list[Section],
    results: dict[str, Any],
    write: Callable[[], None],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Fill `results` and `write` it after every step.

    It gets "sections" (rows, seconds and limit by name), "cut" (what was not begun for want of
    time) and "failed" (what raised, and what it said).
    """
    results |= {"sections": {}, "cut": [], "failed": []}
    end = clock() + seconds
    for section in sections:
        start = clock()
        until = min(start + section.limit, end)
        found = {"limit": section.limit, "seconds": 0.0, "rows": []}
        results["sections"][section.name] = found
        for step in section.steps:
            if clock() >= until:
                results["cut"].append(f"{section.name}: {step.name}")
                continue
            try:
                found["rows"] += step.run()
            except Exception as error:  # the next step may work
                said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                results["failed"].append(f"{section.name}: {step.name}: {said}")
            found["seconds"] = round(clock() - start, 1)
            write()
