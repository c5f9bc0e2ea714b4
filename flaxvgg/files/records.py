"""What files and stores keep beside their arrays: how two records differ, and why one is broken."""

import os
import re
from collections.abc import Mapping
from typing import Any


def first_line(error: Exception) -> str:
    """The first line of an error of Orbax, without the specification that tensorstore appends."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]


def os_error(error: Exception) -> OSError:
    """What the system said, of an error of TensorStore, which tells it in the text."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is None:
        return OSError(first_line(error))
    return OSError(int(number[1]), os.strerror(int(number[1])))


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
