"""Texts of strangers may nest values without end: how deep is enough, on every Python alike.

Where a JSON reader gives up depends on Python's version (1,000 deep in 3.11, some 10,000 later),
and what walks through the values gives up elsewhere.
"""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

DEEPEST = 100  # a Keras model within a model takes 8
TOO_DEEP = f"its values are nested more than {DEEPEST} deep"

_NESTING = (dict, list, tuple)
_Value = TypeVar("_Value")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for no JSON, and deeper than `DEEPEST`."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    return shallow(value)


def shallow(value: _Value) -> _Value:
    """The value as it is. Raises ValueError for dicts and lists nested deeper than `DEEPEST`."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [x for outer in level for x in _inside(outer) if isinstance(x, _NESTING)]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, _NESTING) else ()
