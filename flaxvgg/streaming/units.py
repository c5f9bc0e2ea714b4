"""A unit of a store while it comes in, and the part of it that lies on disk until it is whole.

    store.zarr/status/unfinished/17-0.npz, 17-1.npz, ...

Each file has the rows of unit 17 that were new when it was saved, and what was added up until then.
They lie beside the chunks of an array, where nothing of Zarr looks, and are removed when the unit
is written. A run goes on behind the last of them that is whole.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.threads import in_threads
from flaxvgg.images.fingerprint import UNKNOWN
from flaxvgg.streaming.places import box_of
from flaxvgg.streaming.source import Item, Source

TODO, DONE, BROKEN = range(3)

Rows = dict[str, np.ndarray]
_PART = re.compile(r"\d+-\d+\.npz")

# What a file comes to that is damaged, or has other arrays than ours.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile)


class Unit:
    """The rows of one unit while they come in. `label` is the shape of an image's label, if any."""

    def __init__(self, number: int, here: range, label: tuple[int, ...] | None):
        self.number, self.here = number, here
        self.status = np.full(len(here), TODO, np.uint8)
        self.problems: dict[int, str] = {}
        self.rows: dict[str, Rows] = {
            "": {
                "size": nothing((len(here), 2), np.dtype(np.int32)),
                "content": np.full(len(here), UNKNOWN, np.uint64),
            }
        }
        if label is not None:
            dtype = np.dtype(bool if label else np.int32)
            self.rows[""]["label"] = nothing((len(here), *label), dtype)
        self.sums: Rows = {}
        self.parts = 0  # that are on disk
        self._saved = np.zeros(len(here), bool)

    @property
    def left(self) -> int:
        """How many images are not done."""
        return int((self.status == TODO).sum())

    @property
    def todo(self) -> list[int]:
        """The numbers of the images that are not done."""
        return (self.here.start + np.flatnonzero(self.status == TODO)).tolist()

    def take(self, item: Item) -> None:
        """Note what is known of an image before anybody has looked at it."""
        row = item.row - self.here.start
        self.rows[""]["content"][row] = item.content
        if item.label is not None:
            self.rows[""]["label"][row] = item.label
        if item.problem:
            self.status[row], self.problems[item.row] = BROKEN, item.problem
        else:
            self.rows[""]["size"][row] = item.size

    def put(
        self,
        items: Sequence[Item],
        group: str,
        rows: Rows,
        sums: Rows,
        add: Callable[[str, np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """Note what was made of some images."""
        at = [item.row - self.here.start for item in items]
        self.status[at] = DONE
        for name, values in rows.items():
            self._array(group, name, values)[at] = values
        for name, value in sums.items():
            self.sums[name] = add(name, self.sums[name], value) if name in self.sums else value

    def unsaved(self) -> Rows:
        """What is done and on no disk, for `restore`; it counts as saved from now on."""
        at = np.flatnonzero((self.status != TODO) & ~self._saved)
        if not len(at):
            return {}
        texts = [self.problems.get(self.here.start + int(row), "") for row in at]
        part = {"at": at, "status": self.status[at], "problem": np.array(texts)}
        for group, arrays in self.rows.items():
            part |= {f"rows/{group}/{name}": values[at] for name, values in arrays.items()}
        part |= {f"sums/{name}": np.array(values) for name, values in self.sums.items()}
        self._saved[at] = True
        self.parts += 1
        return part

    def restore(self, part: Mapping[str, np.ndarray]) -> None:
        """Take what was saved as done. Raises ValueError and LookupError for what was not."""
        at = part["at"]
        for key, values in part.items():
            kind, _, rest = key.partition("/")
            group, _, name = rest.partition("/")
            if kind == "rows":
                self._array(group, name, values)[at] = values
            elif kind == "sums":
                self.sums[rest] = values
        for row, problem in zip(at, part["problem"], strict=True):
            if problem:
                self.problems[self.here.start + int(row)] = str(problem)
        self.status[at] = part["status"]
        self._saved[at] = True
        self.parts += 1

    def is_still_of(self, source: Source) -> bool:
        """Whether the images that are done are still the same, and broken ones still broken."""
        known = self.rows[""]["content"].tolist()
        at = np.flatnonzero(self.status != TODO).tolist()
        rows = (self.here.start + row for row in at)
        now = in_threads(source.content, rows, source.threads)
        return all(
            content == known[row] or (self.status[row] == BROKEN and content == UNKNOWN)
            for row, content in zip(at, now, strict=True)
        )

    def _array(self, group: str, name: str, like: np.ndarray) -> np.ndarray:
        """The array for rows like these, which is made where there is none."""
        arrays = self.rows.setdefault(group, {})
        if name not in arrays:
            arrays[name] = nothing((len(self.here), *like.shape[1:]), like.dtype)
        return arrays[name]


class Unfinished:
    """The parts of units that lie in a folder, or below an address."""

    def __init__(self, folder: AnyPath):
        self._box = box_of(folder)

    def save(self, number: int, part: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a part of a unit, all or nothing. Raises OSError, or RemoteError."""
        self._box.write(f"{number}-{part}.npz", lambda file: np.savez(file, **arrays))

    def parts(self, number: int) -> Iterator[Rows]:
        """The parts of a unit, in order, up to the first that is missing or damaged."""
        for part in range(len(self._of(number))):
            try:
                with self._box.open(f"{number}-{part}.npz") as file, np.load(file) as arrays:
                    found = dict(arrays)
            except _DAMAGE:
                return
            yield found

    def numbers(self) -> list[int]:
        """The units that something is there of."""
        return sorted({int(name.partition("-")[0]) for name in self._names()})

    def images(self, numbers: Iterable[int]) -> int:
        """How many images of some units are done."""
        return sum(len(part["at"]) for number in numbers for part in self.parts(number))

    def begin(
        self, number: int, here: range, label: tuple[int, ...] | None, source: Source
    ) -> Unit:
        """A unit with what is there of it.

        Nothing is taken, and it is removed, where an image of it is another one by now: batches
        would not be those of a run that nobody disturbed.
        """
        unit = Unit(number, here, label)
        for part in self.parts(number):
            try:
                unit.restore(part)
            except _DAMAGE:
                unit = Unit(number, here, label)
                break
        if not unit.is_still_of(source):
            unit = Unit(number, here, label)
        for name in self._of(number):  # what comes now takes the names of what could not be read
            if int(name.removesuffix(".npz").partition("-")[2]) >= unit.parts:
                self._box.remove(name)
        return unit

    def forget(self, numbers: Iterable[int]) -> None:
        """Remove what is there of some units; and the folder, where that was all."""
        for number in numbers:
            for name in self._of(number):
                self._box.remove(name)
        self._box.end()

    def _of(self, number: int) -> list[str]:
        return [name for name in self._names() if name.startswith(f"{number}-")]

    def _names(self) -> list[str]:
        return [name for name in self._box.names() if _PART.fullmatch(name)]


def nothing(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What is in rows without an image: NaN, -1 or False."""
    return np.full(shape, fill(dtype), dtype)


def fill(dtype: np.dtype) -> float | int | bool:
    """What is in an array where there is nothing."""
    return {"f": float("nan"), "i": -1, "u": 0, "b": False}[dtype.kind]
