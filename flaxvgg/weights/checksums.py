"""Checksums of arrays: CRC-32 of every 16 MiB, so that all processors can compute some.

Each begins with the dtype and the shape: the same bytes as another array have other checksums.
"""

import math
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_PIECE = 1 << 24
_WORKERS = min(4, os.cpu_count() or 1)  # threads: zlib lets go of the interpreter


class Checksum:
    """The checksum of an array whose bytes come a block after the other."""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...]):
        self._start = _start(dtype, shape)
        self._crc, self._size, self._whole = self._start, 0, ""
        size = math.prod(shape) * dtype.itemsize
        self._digits = 8 * max(-(-size // _PIECE), 1)

    def add(self, block: np.ndarray) -> None:
        """Take in the next block."""
        view = _bytes(block)
        while len(view):
            if self._size == _PIECE:
                self._whole += f"{self._crc:08x}"
                self._crc, self._size = self._start, 0
            part = view[: _PIECE - self._size]
            self._crc, self._size = zlib.crc32(part, self._crc), self._size + len(part)
            view = view[len(part) :]

    def __str__(self) -> str:
        """Eight hex digits for each piece, as many from the start; at the end as `checksums`."""
        return f"{self._whole}{self._crc:08x}".ljust(self._digits, "0")


def checksums(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, str]:
    """The checksums of arrays, by their names: of each one while the next ones are made."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        pieces = {
            name: [
                pool.submit(zlib.crc32, view[i : i + _PIECE], _start(array.dtype, array.shape))
                for view in [_bytes(array)]
                for i in range(0, max(len(view), 1), _PIECE)
            ]
            for name, array in arrays
        }
    return {name: "".join(f"{x.result():08x}" for x in found) for name, found in pieces.items()}


def checksum_of_text(text: str) -> str:
    """Eight hex digits."""
    return f"{zlib.crc32(text.encode()):08x}"


def _start(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return zlib.crc32(f"{dtype.name} {list(shape)}".encode())


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))
