"""Images on their way in: decoded ahead, and cut into batches of one size."""

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from flaxvgg.images.ahead import ahead
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.streaming.source import Item, Source


@dataclasses.dataclass(frozen=True)
class _Read:
    """An image by its number among all rows: what other processes are given."""

    source: Source
    rows: Sequence[Sequence[int]]
    starts: np.ndarray
    size: tuple[int, int] | None
    recipe: Preprocessing

    def __call__(self, number: int) -> Item:
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        row = self.rows[part][number - int(self.starts[part])]
        return self.source.read(row, self.size, self.recipe)


def read_ahead(
    source: Source,
    rows: Sequence[Sequence[int]],
    size: tuple[int, int] | None,
    recipe: Preprocessing,
    buffer: int,
    decoders: int,
) -> Generator[Item, None, None]:
    """The images of these rows, decoded in threads, or in so many processes besides."""
    read = _Read(source, rows, np.cumsum([0, *map(len, rows)]), size, recipe)
    count, threads = int(read.starts[-1]), min(buffer, source.threads)
    return ahead(read, count, threads=threads, buffer=buffer, decoders=decoders)


def steps(items: Iterable[Item], batch: int, devices: int) -> Iterator[list[list[Item]]]:
    """Batches of images of one size, for at most all devices at once; all images in the end."""
    by_size: dict[tuple[int, ...], list[Item]] = {}
    for item in items:
        same = by_size.setdefault(item.pixels.shape, [])
        same.append(item)
        if len(same) == batch * devices:
            yield [same[i : i + batch] for i in range(0, len(same), batch)]
            del by_size[item.pixels.shape]
    for same in by_size.values():
        yield [same[i : i + batch] for i in range(0, len(same), batch)]
