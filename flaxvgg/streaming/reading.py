"""Images on their way in: decoded ahead in threads, and cut into batches of one size."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flaxvgg.network.provenance import Preprocessing
from flaxvgg.streaming.source import Item, Source


def read_ahead(
    source: Source,
    rows: Sequence[Sequence[int]],
    size: tuple[int, int] | None,
    recipe: Preprocessing,
    ahead: int,
) -> Iterator[Item]:
    """The images of these rows, decoded in threads."""
    import grain

    starts = np.cumsum([0, *map(len, rows)])

    def read(i: int) -> Item:
        part = int(np.searchsorted(starts, i, side="right")) - 1
        return source.read(rows[part][i - int(starts[part])], size, recipe)

    threads = min(ahead, source.threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(int(starts[-1])).map(read).to_iter_dataset(options))


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
