"""What files and stores keep beside their arrays: how two records differ, and why one is broken."""

from collections.abc import Mapping
from typing import Any


def first_line(error: Exception) -> str:
    """The first line of an error of Orbax, without the specification that tensorstore appends."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]


def difference(stored: Any, run: Mapping[str, Any]) -> str:
    """The first option in which a run differs from the one that is stored."""
    stored = stored or {}
    for room, value in run.items():
        before = stored.get(room)
        if isinstance(value, dict) and isinstance(before, dict):
            for name, x in value.items():
                if before.get(name) != x:
                    return f"{room}.{name} was {before.get(name)!r}, and is {x!r}"
        elif before != value:
            return f"{room} was {before!r}, and is {value!r}"
    return "its options differ"
