"""Readers with one fault each, all of which the fuzzer has to find."""

import os
import time
import warnings
from pathlib import Path

import numpy as np

from tests.fuzz.cases import Arrays, Inputs, Seed, Target, in_place


class _OwnError(ValueError):
    """The one that may be raised."""


def _content(path: Path) -> Arrays:
    return {"content": np.frombuffer(path.read_bytes(), np.uint8)}


def _truth(data: bytes, path: Path, whole: bytes) -> Arrays:
    return {"content": np.frombuffer(whole, np.uint8)}


def _refuse(path: Path) -> Arrays:
    raise _OwnError("no")


def _fail(path: Path) -> Arrays:
    raise ValueError("no")


def _abort(path: Path) -> Arrays:
    os.abort()


def _hang(path: Path) -> Arrays:
    time.sleep(1000)
    return _content(path)


def _take_memory(path: Path) -> Arrays:
    return {"content": np.ones(1 << 40, np.uint8)}


def _run_something(path: Path) -> Arrays:
    Path("executed").touch()
    return _content(path)


def _start_something(path: Path) -> Arrays:
    os.system("true")
    return _content(path)


def _warn(path: Path) -> Arrays:
    warnings.warn("it looks damaged", stacklevel=1)
    return _content(path)


def _change(path: Path) -> Arrays:
    return {"content": _content(path)["content"] + np.uint8(1)}


def inputs(seed: int) -> Inputs:
    """One input for each fault, and one without."""
    faults = (
        *(_content, _refuse, _fail, _abort, _hang, _take_memory, _run_something),
        *(_start_something, _warn, _change),
    )
    targets = [
        Target(read.__name__, 1, [Seed("a", b"abc")], (_OwnError,), read, _truth, in_place)
        for read in faults
    ]
    return Inputs(seed, targets, [("_content", Seed("b", b"bomb", hostile=True))])
