"""Features of images in files beside the checkpoints: each is whole and checked, or made anew."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flaxvgg.files.folders import make_folder
from flaxvgg.files.replacing import write_atomically

_IMAGES = 512  # of a file, at most: what a run that is killed computes again
_BYTES = 64 * 2**20  # of a file, about, at most: what is in memory while it is made
_ROWS, _TOLD = "rows", "flaxvgg"  # the array, and what is told of it


class FeatureFiles:
    """The features of `count` images, `row` each (a shape and a dtype), in a folder.

    Files are `name`-000000.safetensors and so on, of so many images each (`rows`). With its rows a
    file has their digest, and `key`, which says what they were made of. Rows are read when they are
    asked for, from any thread; what they take in memory is the system's cache of files.
    """

    def __init__(self, folder: Path, name: str, key: str, count: int, row: Any):
        self._folder, self._name, self._key, self._count = folder, name, key, count
        self._shape, self._dtype = tuple(row.shape), np.dtype(row.dtype)
        self.image_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._of_file = int(np.clip(_BYTES // self.image_bytes, 1, _IMAGES))
        self._opened = functools.cache(lambda number: safe_open(self.path(number), "numpy"))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, image: int) -> Shaped[np.ndarray, "..."]:
        """The features of an image, by its number; of files that are whole."""
        number, row = divmod(image, self._of_file)
        found = self._opened(number).get_slice(_ROWS)[row : row + 1]
        return found.view(self._dtype).reshape(self._shape)

    def path(self, number: int) -> Path:
        """Where a file is."""
        return self._folder / f"{self._name}-{number:06d}.safetensors"

    def rows(self, number: int) -> range:
        """The images of a file."""
        return range(number * self._of_file, min((number + 1) * self._of_file, self._count))

    def missing(self) -> tuple[list[int], list[int]]:
        """The numbers of the files that have to be made, and of those among them that are damaged.

        Files that were made of something else count as not there.
        """
        numbers = range(-(-self._count // self._of_file))
        found = {number: self._state(number) for number in numbers}
        return (
            [number for number, state in found.items() if state != "whole"],
            [number for number, state in found.items() if state == "damaged"],
        )

    def write(self, number: int, features: Shaped[np.ndarray, "n ..."]) -> None:
        """Write the features of a file's images, all or nothing. Raises ValueError."""
        if features.shape != (len(self.rows(number)), *self._shape):
            raise ValueError(f"{self.path(number)} is not for features {features.shape}")
        flat = features.astype(self._dtype, copy=False).reshape(len(features), -1)
        rows = np.ascontiguousarray(flat).view(np.uint8)
        told = {_TOLD: json.dumps({"key": self._key, "digest": self._digest(rows)})}
        make_folder(self._folder)
        write_atomically(
            self.path(number).absolute(), lambda target: save_file({_ROWS: rows}, target, told)
        )

    def _state(self, number: int) -> str:
        path = self.path(number)
        if not path.exists():
            return "missing"
        try:
            with safe_open(path, "numpy") as file:
                told = json.loads((file.metadata() or {}).get(_TOLD, "{}"))
                rows = file.get_tensor(_ROWS)
        except (OSError, SafetensorError, ValueError):
            return "damaged"
        if told.get("digest") != self._digest(rows):
            return "damaged"
        fits = rows.shape == (len(self.rows(number)), self.image_bytes)
        return "whole" if told.get("key") == self._key and fits else "missing"

    @staticmethod
    def _digest(rows: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
