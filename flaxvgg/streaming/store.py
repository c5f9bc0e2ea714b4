"""A Zarr store that is written unit by unit, each unit whole or not at all.

    store.zarr/
      name, label         (image,)            what row i is; of pairs also reference, photo
      status              (image,)            0 not done yet, 1 done, 2 broken: see problem
      problem             (image,)
      size                (image, 2)          height and width of the file
      content             (image,)            of its bytes (images.fingerprint); 0 if not read
      pool5, gap, ...     (image, ...)        NaN, or -1, where there is nothing
      375x1242/...                            instead, where images keep their own sizes
      sums/...            (unit, ...)         what was added up over a unit of images

A chunk is whole or missing, here and in buckets (`streaming.places`). The chunk of `status` is a
unit's last: what has none is done again, to the same bytes, but for what is `unfinished`
(`streaming.units`).
"""

import contextlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt8, UInt64
from zarr.errors import GroupNotFoundError, ZarrUserWarning

from flaxvgg.files.addresses import named
from flaxvgg.files.foreign import AnyPath, plain, shown
from flaxvgg.files.records import first_line
from flaxvgg.files.remote import RemoteError
from flaxvgg.streaming.places import Bucket, place_of
from flaxvgg.streaming.source import Source
from flaxvgg.streaming.units import BROKEN as BROKEN
from flaxvgg.streaming.units import DONE as DONE
from flaxvgg.streaming.units import TODO as TODO
from flaxvgg.streaming.units import Unfinished, fill

_ATTRIBUTE = "flaxvgg"
_FORMAT = 1
_NAMES = 2**16  # texts in a chunk
_OWN = {"size": ["height_width"], "label": ["label_class"], "content": []}
_CHUNK = 2**20  # bytes that are compressed together, about


class StoreError(ValueError):
    """A store that cannot be used or written; the message is one line that says why."""


class Store:
    """The rows of N images in units, which are written one by one.

    `settings` is what the store was made with, `units` how many there are, `unit` the rows of each.
    `class_names` are those of the weights' classes, where they are known. `path` is a path of this
    machine or an address (`flaxvgg.files.remote`), where all here may raise RemoteError.
    """

    def __init__(self, path: AnyPath):
        """Open the store at `path`. Raises StoreError where there is none."""
        self.place = place_of(path)
        self.path = self.place.url if isinstance(self.place, Bucket) else Path(path).absolute()
        try:
            self._group = zarr.open_group(self.place.zarr, mode="r+", zarr_format=3)
            told: Any = self._group.attrs[_ATTRIBUTE]
            if told["format"] != _FORMAT:
                raise StoreError(
                    f"{path} has format {told['format']}; this flaxvgg reads {_FORMAT}"
                )
            self.settings, self.unit, self.images = told["settings"], told["unit"], told["images"]
            self.class_names = tuple(map(_text, told.get("class_names", ())))
        except (
            GroupNotFoundError,
            KeyError,
            TypeError,
            RecursionError,
            json.JSONDecodeError,
        ) as error:
            raise StoreError(f"{path} is no store of flaxvgg: {first_line(error)}") from None
        self._arrays: dict[str, Any] = {}
        self.unfinished = Unfinished(f"{self.path}/status/unfinished")

    @classmethod
    def create(
        cls,
        path: AnyPath,
        source: Source,
        settings: Mapping[str, Any],
        unit: int,
        *,
        class_names: Sequence[str] = (),
        held: bool = False,
    ) -> "Store":
        """A new store without rows. Raises StoreError where it cannot be written.

        `held` says that its lock is held, and leftovers of killed runs are nobody's.
        """
        place = place_of(path)
        told = {"format": _FORMAT, "images": len(source), "unit": unit, "settings": settings}
        told |= {"class_names": list(map(plain, class_names))} if class_names else {}

        def build(new: Any) -> None:
            group = zarr.create_group(new, attributes={_ATTRIBUTE: told})
            texts = {"name": source.names, **source.texts}
            for name, chunk in {**dict.fromkeys(texts, _NAMES), "problem": unit}.items():
                shape = (len(source),)
                array = group.create_array(
                    name, shape=shape, chunks=(chunk,), dtype=str, dimension_names=("image",)
                )
                if name in texts:
                    array[:] = np.array([shown(x) for x in texts[name]], object)

        try:
            place.make(build, held)
        except OSError as error:
            raise StoreError(f"{named(path)} cannot be written: {error.strerror}") from None
        store = cls(path)
        store._status()
        return store

    @staticmethod
    def lock(path: AnyPath) -> contextlib.AbstractContextManager[bool]:
        """The lock of a store, for one run at a time: `flaxvgg.files.locking.alone`, beside it."""
        return place_of(path).lock()

    @property
    def units(self) -> int:
        """How many units there are; the last one may have fewer rows."""
        return -(-self.images // self.unit)

    def rows(self, unit: int) -> range:
        """The rows of a unit."""
        return range(unit * self.unit, min((unit + 1) * self.unit, self.images))

    @property
    def status(self) -> UInt8[np.ndarray, " n"]:
        """TODO, DONE or BROKEN for every image."""
        try:
            return np.asarray(self._status().read().result())
        except ValueError as error:
            raise StoreError(f"{self.path} is damaged: {first_line(error)}") from None

    def left(self) -> int:
        """How many images are not done; those that are saved of an unfinished unit are."""
        todo = np.flatnonzero(self.status == TODO)
        units = set(self.unfinished.numbers()) & set((todo // self.unit).tolist())
        return len(todo) - self.unfinished.images(units)

    def save(self, unit: int, part: int, rows: Mapping[str, np.ndarray]) -> None:
        """Save what is done of a unit. Raises StoreError where there is no room."""
        self.place.check()
        try:
            self.unfinished.save(unit, part, rows)
        except (OSError, RemoteError) as error:
            raise self._no_room(error) from None

    def contents(self) -> UInt64[np.ndarray, " n"]:
        """The content of every image when it was read; 0 where that is not known."""
        if "content" not in self._group:  # of a store that was made before there was one
            return np.zeros(self.images, np.uint64)
        return self.read("content")

    def reopen(self, units: Iterable[int]) -> None:
        """Let units count as not done. Raises StoreError where that cannot be written."""
        for unit in units:
            here = self.rows(unit)
            try:
                status = np.full(len(here), TODO, np.uint8)
                self._status()[here.start : here.stop].write(status).result()
            except (OSError, ValueError) as error:
                raise StoreError(f"{self.path} cannot be written: {first_line(error)}") from None

    def problems(self) -> dict[str, str]:
        """What is wrong with the images that are broken, by name."""
        rows = np.flatnonzero(self.status == BROKEN)
        if not len(rows):
            return {}
        names, problems = (np.asarray(self._group[x][:])[rows] for x in ("name", "problem"))
        return {str(name): str(problem) for name, problem in zip(names, problems, strict=True)}

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what was made of the images, by name."""
        with warnings.catch_warnings():
            # A server that has folders keeps those of objects that a killed run did not put there.
            warnings.simplefilter("ignore", ZarrUserWarning)
            members = self._group.members(max_depth=None)
        found = {name: x.shape for name, x in members if isinstance(x, zarr.Array)}
        ours = ("name", "status", "problem", "size", "label", "content", "reference", "photo")
        return {
            name: shape
            for name, shape in sorted(found.items())
            if name not in ours and not name.startswith("sums/")
        }

    def read(self, name: str) -> np.ndarray:
        """A whole array by its name.

        Where images keep their own sizes, there is one for each size; those of the same shape are
        put together. Raises StoreError where the store has none, or of several shapes.
        """
        shapes = self.arrays()
        groups = [key for key in shapes if key.endswith(f"/{name}")]
        if name in self._group or not groups:
            groups = [name]
        if len({shapes.get(key) for key in groups}) > 1:
            raise StoreError(f"{self.path} has {name} of several shapes: read {', '.join(groups)}")
        try:
            found = np.asarray(self._group[groups[0]][:])
            for key in groups[1:]:
                size = [int(x) for x in key.partition("/")[0].split("x")]
                rows = (np.asarray(self._group["size"][:]) == size).all(axis=1)
                found[rows] = np.asarray(self._group[key][:])[rows]
        except KeyError:
            raise StoreError(f"{self.path} has no {name}") from None
        return found

    def row(self, name: str, row: int) -> np.ndarray:
        """What an array has of one image, without reading the others.

        Where images keep their own sizes, of the array for its size. Raises StoreError where the
        store has none.
        """
        for key in (name, "/".join(["x".join(map(str, self._size(row))), name])):
            if key in self._group:
                return np.asarray(self._group[key][row])
        raise StoreError(f"{self.path} has no {name}")

    def _size(self, row: int) -> list[int]:
        return np.asarray(self._group["size"][row]).tolist()

    def sums(self) -> Iterator[dict[str, np.ndarray]]:
        """What was added up, of every unit that is done and in which an image is whole."""
        if "sums" not in self._group:
            return
        group: Any = self._group["sums"]
        arrays = {name: group[name] for name in sorted(group.array_keys())}
        for unit in np.unique(np.flatnonzero(self.status == DONE) // self.unit):
            yield {name: np.asarray(array[unit]) for name, array in arrays.items()}

    def sweep(self, *, held: bool = False) -> None:
        """Remove what a run that was killed has left half-written beside its chunks.

        Raises LockedError while a run writes; who has the store's lock says that it is `held`.
        """
        with contextlib.nullcontext() if held else self.place.lock():
            self.place.sweep()
            status = self.status
            begun = self.unfinished.numbers()
            written = [status[self.rows(x).start] != TODO for x in begun]
            self.unfinished.forget(itertools.compress(begun, written))

    def write(
        self,
        unit: int,
        status: UInt8[np.ndarray, " n"],
        problems: Mapping[int, str],
        rows: Mapping[str, Mapping[str, np.ndarray]],
        sums: Mapping[str, np.ndarray],
        axes: Callable[[str, int], Sequence[str]],
    ) -> None:
        """Write a unit: arrays with its rows, by group ("" is the store) and name, and its sums.

        `axes` names an array's axes behind the first.
        Raises StoreError where there is no room; the unit counts as not written then.
        """
        here = self.rows(unit)
        place = slice(here.start, here.stop)
        self.place.check()
        try:
            writing = [
                self._rows(group, name, values, axes)[place].write(values)
                for group, arrays in rows.items()
                for name, values in arrays.items()
            ]
            writing += [self._sums_array(name, x)[unit].write(x) for name, x in sums.items()]
            for written in writing:
                written.result()
            # A unit that is done again may have fewer; one without any takes no room.
            texts = np.full(len(here), "", object)
            for row, problem in problems.items():
                texts[row - here.start] = shown(problem)
            self._group["problem"][place] = texts
            self._status()[place].write(status).result()
        except (OSError, ValueError, RemoteError) as error:
            raise self._no_room(error) from None
        self.unfinished.forget([unit])

    def _no_room(self, error: Exception) -> StoreError:
        why, cure = first_line(error), "make room, and rerun the command to resume"
        if isinstance(error, RemoteError):
            why, cure = error.reason, error.advice
            cure += "" if "resume" in cure else ", and rerun the command to resume"
        return StoreError(f"{self.path} cannot be written ({why}): what is in it is whole; {cure}")

    def _rows(
        self, group: str, name: str, values: np.ndarray, axes: Callable[[str, int], Sequence[str]]
    ) -> Any:
        row = values.shape[1:]
        dimensions = _OWN[name][: len(row)] if name in _OWN else axes(name, len(row))
        if not group:
            few = max(1, _CHUNK * len(values) // max(1, values.nbytes))
            return self._rows_array(name, row, values.dtype, dimensions, few)
        # Images of another size are not in this group: a chunk for each image leaves out the rest.
        self._group.require_group(group)
        return self._rows_array(f"{group}/{name}", row, values.dtype, dimensions, 1)

    def _rows_array(
        self, path: str, row: tuple[int, ...], dtype: np.dtype, dimensions: Sequence[str], few: int
    ) -> Any:
        """An array with a `row` for each image: a file for each unit, read `few` rows at a time."""
        shape, unit = (self.images, *row), (self.unit, *row)
        few = max(n for n in range(1, min(few, self.unit) + 1) if self.unit % n == 0)
        return self._array(path, shape, unit, (few, *row), dtype, ("image", *dimensions))

    def _sums_array(self, name: str, values: np.ndarray) -> Any:
        self._group.require_group("sums")
        shape, unit = (self.units, *values.shape), (1, *values.shape)
        dimensions = ("unit", *(f"{name}_{i}" for i in range(values.ndim)))
        return self._array(f"sums/{name}", shape, unit, unit, values.dtype, dimensions)

    def _status(self) -> Any:
        return self._rows_array("status", (), np.dtype(np.uint8), (), self.unit)

    def _array(
        self,
        path: str,
        shape: tuple[int, ...],
        file: tuple[int, ...],
        chunk: tuple[int, ...],
        dtype: np.dtype,
        dimensions: Sequence[str],
    ) -> Any:
        """An array in files of the shape `file`, in which chunks are compressed one by one.

        It is made where the store has none yet.
        """
        if path not in self._arrays:
            # Of an array without values, such as the counts of no ReLU at all, too.
            file, chunk = (tuple(max(length, 1) for length in of) for of in (file, chunk))
            as_bytes = {"name": "bytes", "configuration": {"endian": "little"}}
            blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
            blosc |= {"typesize": dtype.itemsize}
            codecs: list[Any] = [as_bytes, {"name": "blosc", "configuration": blosc}]
            if chunk != file:
                shard = {"chunk_shape": chunk, "codecs": codecs}
                shard |= {"index_codecs": [as_bytes, {"name": "crc32c"}]}
                codecs = [{"name": "sharding_indexed", "configuration": shard}]
            grid = {"name": "regular", "configuration": {"chunk_shape": file}}
            metadata = {
                "shape": shape,
                "data_type": dtype.name,
                "chunk_grid": grid,
                "fill_value": "NaN" if dtype.kind == "f" else fill(dtype),
                "codecs": codecs,
                "dimension_names": dimensions,
            }
            self._arrays[path] = self.place.array(path, metadata)
        return self._arrays[path]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} for a name")
    return value


def axes(name: str, count: int) -> list[str]:
    """Names of so many axes of an array; xarray wants one length for each name."""
    known = {1: ["unit"], 3: ["y", "x", "channel"]}
    return [f"{name}_{axis}" for axis in known.get(count, range(count))]
