"""The loop: images are read ahead, every device takes its own, rows go into the store.

A unit of the store is cut into batches of `batch` images of one size, and each batch runs on one
device, by the same program. Which device that is, how many there are, and where a run was killed
makes no difference to what a batch holds, and so none to the bits of what comes out.
"""

import collections
import contextlib
import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from flaxvgg.images.fingerprint import model_digest
from flaxvgg.images.loading import AnyPath, normalise
from flaxvgg.network.model import VGG
from flaxvgg.network.prepared import prepare
from flaxvgg.network.processes import meet
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.network.sharding import data_mesh, place
from flaxvgg.streaming.opening import compare, image_settings, open_store
from flaxvgg.streaming.reading import read_ahead, steps
from flaxvgg.streaming.source import Item, Source
from flaxvgg.streaming.store import BROKEN, TODO, Store, axes
from flaxvgg.streaming.units import Rows, Unit
from flaxvgg.versions import versions

_STEPS_AHEAD = 2  # given to the devices before the oldest result is asked for
_UNITS_WRITING = 2  # at once, so that memory stays bounded
_UNIT_BYTES = 64 * 2**20
_UNIT_BATCHES = 32  # at most
_PROGRAMS = 32  # compiled ones that are kept, one for each size of image: 2 to 4 MB each
_TRACES = 256  # programs after which JAX forgets what else it keeps of each


class Looked(NamedTuple):
    """What a batch gives: rows (N, ...) by name, and sums over its valid images by name."""

    rows: dict[str, Array]
    sums: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a model makes of every image.

    `look(model, images, valid, asked)` is pure and runs on the devices: images (N, H, W, 3), of
    which some may be fillers and are not `valid` (N,); `asked` (N, ...) is what `ask` gives for the
    number of each image. Where `judge` is given, it makes the rows and sums that are kept of the
    rows, on the host. Sums of batches are added by `add`. `settings` are all that the result
    depends on besides the model, the images and their size; `axes` names an array's axes behind
    the first, of which there are so many. Images are read and normalised by `recipe`, None for the
    model's; `each` is what an item of the source has before its height: (2,) for pairs.
    """

    name: str
    model: VGG
    settings: Mapping[str, Any]
    look: Callable[[VGG, Float[Array, "n h w 3"], Bool[Array, " n"], Array], Looked]
    ask: Callable[[int], np.ndarray] = lambda row: np.zeros(0, np.int32)
    judge: Callable[[Rows, Sequence[Item]], tuple[Rows, Rows]] | None = None
    add: Callable[[str, np.ndarray, np.ndarray], np.ndarray] = lambda name, a, b: a + b
    axes: Callable[[str, int], Sequence[str]] = axes
    recipe: Preprocessing | None = None
    each: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Streamed:
    """How a run ended.

    `problems` are those of broken images, by name; `left` is how many images of all are not done,
    because somebody stopped the run; `now` how many were done by this process, in `seconds`.
    """

    store: Store
    problems: Mapping[str, str]
    left: int
    now: int
    seconds: float


def stream(
    job: Job,
    source: Source,
    path: AnyPath,
    *,
    size: tuple[int, int] | None = (224, 224),
    batch: int | None = None,
    decoders: int = 0,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int, int], None] = lambda done, broken: None,
    note: Callable[[str], None] = warnings.warn,
) -> Streamed:
    """Do a job for all images, on all devices of this process, into the store at `path`.

    A store that is there already is gone on with, if its images are still the same; broken ones
    that can be read by now, or have been replaced, are done again. In several processes of
    `jax.distributed`, which see the same files, each takes its share of the units. `size` None
    leaves images at their own sizes. `batch` is the number of images that a device takes at once:
    by default 8, on a GPU 64. Images are decoded in threads, or in `decoders` processes besides, to
    the same result. `stop` is asked after each step, and what is done by then is kept, as it is
    every second for a run that is killed (every ten for a store in a bucket); `advance` is told how
    many images are done, and how many of them broken: first those that were, then the others by
    batches; `note` what cannot be checked.
    Raises StoreError for a store of another job or of other images, and where there is no room,
    LockedError while another run writes it, RemoteError for addresses that cannot be reached.
    """
    devices = jax.local_devices()
    if batch is None:
        batch = 8 if devices[0].platform == "cpu" else 64
    for name, least, given in (("batch", 1, batch), ("decoders", 0, decoders)):
        if given < least:
            raise ValueError(f"{name} must be at least {least}, not {given}")
    settings = _settings(job, source, size, batch)
    with contextlib.ExitStack() as held:
        unit_size = _unit(job, size, batch)
        names = job.model.classes
        store = open_store(path, source, settings, unit_size, note, held, names)
        mine = range(jax.process_index(), store.units, jax.process_count())
        compare(store, source, mine, note)
        status = store.status
        units = _Units(store, source, [x for x in mine if status[store.rows(x).start] == TODO])
        begun = np.concatenate([status, *(unit.status for unit in units.begun.values())])
        advance(int((begun != TODO).sum()), int((begun == BROKEN).sum()))
        start, counted = time.perf_counter(), 0

        def told(done: int, broken: int) -> None:
            nonlocal counted
            counted += done
            advance(done, broken)

        program = _Program(job, batch, devices, size)
        with _Writer(store, job.axes) as writer:
            save = writer.save, store.place.save_every
            for unit in _finished_units(program, units, size, decoders, stop, told, *save):
                writer.put(unit)
        seconds = time.perf_counter() - start
        meet("flaxvgg: all units are written")
    return Streamed(store, store.problems(), store.left(), counted, seconds)


class _Program:
    """A job on the devices: batches in, one for each device; rows and sums out."""

    def __init__(self, job: Job, batch: int, devices: Sequence[Any], size: tuple[int, int] | None):
        mesh = data_mesh(devices)
        whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
        self.job, self.batch, self.devices = job, batch, len(devices)
        self.recipe = job.recipe or job.model.preprocessing
        self._split = NamedSharding(mesh, split)
        # Images of their own sizes are of many sizes: no one of them is prepared for.
        self._model = place(prepare(job.model, size) if size else job.model, mesh)

        def of_one(model: VGG, pixels: Array, valid: Array, asked: Array) -> Looked:
            rows, sums = job.look(model, normalise(pixels, self.recipe), valid, asked)
            return Looked(rows, jax.tree.map(lambda x: x[None], sums))

        # Not spread by XLA: every device runs the program of one, so that it makes no difference
        # how many there are.
        specs = (whole, split, split, split)
        program = jax.shard_map(of_one, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        self._jitted = jax.jit(program)
        self._compiled: dict[tuple[int, ...], Callable[..., Looked]] = {}
        self._met: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._count = 0

    def __call__(self, batches: Sequence[Sequence[Item]]) -> Looked:
        """The rows and sums of at most one batch for each device, as soon as they are there."""
        items = [item for batch in batches for item in batch]
        at = [i * self.batch + j for i, batch in enumerate(batches) for j in range(len(batch))]
        count = self.devices * self.batch
        pixels = np.zeros((count, *items[0].pixels.shape), np.uint8)
        valid = np.zeros(count, bool)
        valid[at] = True
        found = [self.job.ask(item.row) for item in items]
        asked = np.zeros((count, *found[0].shape), found[0].dtype)
        asked[at] = np.stack(found)
        for i, item in zip(at, items, strict=True):
            pixels[i] = item.pixels
        given = jax.device_put((pixels, valid, asked), self._split)
        return self._program(given)(self._model, *given)

    def _program(self, given: tuple[Array, ...]) -> Callable[..., Looked]:
        """The program for images of this size.

        A folder may have as many sizes as photos: of more than `_PROGRAMS` those stay that were met
        most often. A program that is compiled again is the same, and so are its results.
        """
        size = given[0].shape
        self._met[size] += 1
        if size not in self._compiled:
            if len(self._compiled) == _PROGRAMS:
                # Of those met equally often the newest: sizes that come round in turn would
                # otherwise drive each other out, every one of them just before it is wanted.
                newest_first = reversed(self._compiled)
                del self._compiled[min(newest_first, key=lambda known: self._met[known])]
            self._compiled[size] = self._jitted.lower(self._model, *given).compile()
            self._count += 1
            # JAX keeps programs, and what they were traced from, until the process ends.
            self._jitted.clear_cache()
            if self._count % _TRACES == 0:
                jax.clear_caches()
        return self._compiled[size]

    def settle(self, looked: Looked, batches: Sequence[Sequence[Item]]) -> Iterator[tuple]:
        """What each batch gave, on the host: its items, their rows, its sums."""
        rows, sums = jax.tree.map(np.asarray, looked)
        for i, batch in enumerate(batches):
            start = i * self.batch
            of_batch = {name: x[start : start + len(batch)] for name, x in rows.items()}
            if self.job.judge is None:
                yield batch, of_batch, {name: x[i] for name, x in sums.items()}
            else:
                yield batch, *self.job.judge(of_batch, batch)


class _Units:
    """The units of a store that are still to be done, those that were begun with what is done."""

    def __init__(self, store: Store, source: Source, numbers: Sequence[int]):
        self._store, self.source, self._numbers = store, source, numbers
        self._label = source.label_shape
        saved = set(store.unfinished.numbers())
        self.begun = {
            x: store.unfinished.begin(x, store.rows(x), self._label, source)
            for x in numbers
            if x in saved
        }

    def __iter__(self) -> Iterator[Unit]:
        for x in self._numbers:
            yield self.begun.get(x) or Unit(x, self._store.rows(x), self._label)

    def rows(self) -> list[Sequence[int]]:
        """The images of each unit that are not done."""
        return [
            self.begun[x].todo if x in self.begun else self._store.rows(x) for x in self._numbers
        ]


def _finished_units(
    program: _Program,
    units: _Units,
    size: tuple[int, int] | None,
    decoders: int,
    stop: Callable[[], bool],
    advance: Callable[[int, int], None],
    save: Callable[[Unit], None],
    save_every: float,
) -> Iterator[Unit]:
    """The units, in order, each when all its images are done; until `stop` says so.

    What is done of the others is saved, every so many seconds and in the end.
    """
    running: collections.deque[tuple[Looked, Unit, list[list[Item]]]] = collections.deque()
    open_units: collections.deque[Unit] = collections.deque()

    def settle_until(most: int) -> Iterator[Unit]:
        while len(running) > most:
            looked, unit, batches = running.popleft()
            for items, rows, sums in program.settle(looked, batches):
                height, width = items[0].pixels.shape[-3:-1]
                group = "" if size else f"{height}x{width}"
                unit.put(items, group, rows, sums, program.job.add)
                advance(len(items), 0)
        while open_units and not open_units[0].left:
            yield open_units.popleft()

    ahead = 2 * program.batch * program.devices
    rows = units.rows()
    reading = read_ahead(units.source, rows, size, program.recipe, ahead, decoders)
    saved = time.perf_counter()
    with contextlib.closing(reading) as items:
        for unit, todo in zip(units, rows, strict=True):
            open_units.append(unit)
            taken = _taken(items, unit, len(todo), advance)
            for batches in steps(taken, program.batch, program.devices):
                if stop():
                    yield from settle_until(0)
                    for begun in open_units:
                        save(begun)
                    return
                running.append((program(batches), unit, batches))
                yield from settle_until(_STEPS_AHEAD)
                if time.perf_counter() - saved >= save_every:
                    for begun in open_units:
                        save(begun)
                    saved = time.perf_counter()
        yield from settle_until(0)


def _taken(
    items: Iterator[Item], unit: Unit, count: int, advance: Callable[[int, int], None]
) -> Iterator[Item]:
    """The images of a unit that could be read, of so many that are not done."""
    for _ in range(count):
        item = next(items)
        unit.take(item)
        if item.problem:
            advance(1, 1)
        else:
            yield item


class _Writer:
    """Writes units in the background, a few at a time. Raises StoreError a unit or two later."""

    def __init__(self, store: Store, axes: Callable[[str, int], Sequence[str]]):
        self._store, self._axes = store, axes
        self._thread = ThreadPoolExecutor(1)
        self._writing: collections.deque[Future] = collections.deque()

    def put(self, unit: Unit) -> None:
        """Write a unit that is done."""
        of_unit = unit.number, unit.status, unit.problems, unit.rows, unit.sums, self._axes
        self._submit(self._store.write, *of_unit)

    def save(self, unit: Unit) -> None:
        """Save what is new of a unit that is not done."""
        part = unit.parts
        rows = unit.unsaved()
        if rows:
            self._submit(self._store.save, unit.number, part, rows)

    def _submit(self, write: Callable[..., None], *of_unit: Any) -> None:
        while len(self._writing) >= _UNITS_WRITING:
            self._writing.popleft().result()
        self._writing.append(self._thread.submit(write, *of_unit))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        for future in self._writing:
            if error[0] is None:
                future.result()


def _unit(job: Job, size: tuple[int, int] | None, batch: int) -> int:
    """The images of a unit: a power of two of batches, whose rows are not too large."""
    height, width = size or (224, 224)
    images = jax.ShapeDtypeStruct((1, *job.each, height, width, 3), np.float32)
    valid = jax.ShapeDtypeStruct((1,), np.bool_)
    asked = job.ask(0)
    shape = jax.ShapeDtypeStruct((1, *asked.shape), asked.dtype)
    rows = jax.eval_shape(job.look, job.model, images, valid, shape).rows
    row = sum(x.size * x.dtype.itemsize for x in rows.values())
    batches = np.clip(_UNIT_BYTES // max(1, batch * row), 1, _UNIT_BATCHES)
    return batch * 2 ** int(np.log2(batches))


def _settings(job: Job, source: Source, size: tuple[int, int] | None, batch: int) -> dict[str, Any]:
    """All that the rows depend on, as a JSON value."""
    model = job.model
    conv = model.conv_stack.conv1_1
    settings = {
        "job": job.name,
        **job.settings,
        "size": list(size) if size else None,
        "batch": batch,
        "images": image_settings(source, with_boxes=job.judge is not None),
        "classes": list(source.classes),
        "weights": {"source": model.provenance.source, "sha256": model_digest(model)},
        "config": model.config.to_json(),
        "preprocessing": dataclasses.asdict(job.recipe or model.preprocessing),
        "arithmetic": {
            "dtype": np.dtype(conv.dtype).name,
            "precision": str(conv.precision),
            "device": jax.local_devices()[0].device_kind,
        },
        "versions": versions(),
    }
    return json.loads(json.dumps(settings))
