"""Photos in, arrays out: features of any number of files, a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from flaxvgg.images.inside import Inside
from flaxvgg.images.loading import ImageError, load_pixels, normalise
from flaxvgg.network.model import VGG
from flaxvgg.network.outputs import check_outputs, outputs
from flaxvgg.network.prepared import prepare
from flaxvgg.watching import Watcher

_PIXELS = 8 * 512 * 1024  # of one batch at most, so that large photos need no more memory
_BATCH = 8


class Batch(NamedTuple):
    """Photos, their pixels as they were given to the network, and what it made of them.

    `outputs` is a pytree of arrays with one row a photo.
    """

    photos: list[Any]
    pixels: UInt8[np.ndarray, "n h w 3"]
    outputs: Any


def stream_photos(
    function: Callable[[VGG, Float[Array, "n h w 3"]], Any],
    model: VGG,
    photos: Sequence[Path | Inside],
    size: tuple[int, int],
    what: str,
    problems: list[str] | None = None,
    watch: Watcher = Watcher(),
) -> Iterator[Batch]:
    """`jax.jit(function)(model, images)` over all photos, in batches; `what` says what for.

    The function gives a pytree of arrays with one row an image. Photos that cannot be read are left
    out and noted in `problems`; without it they raise ImageError.
    """
    compiled = jax.jit(function)
    model = prepare(model, size)
    count = max(1, min(_BATCH, _PIXELS // (size[0] * size[1]), len(photos)))
    read: list[Any] = []
    pixels: list[np.ndarray] = []
    for photo in watch.each(photos, what, len(photos)):
        try:
            pixels.append(load_pixels(photo, size, model.preprocessing))
            read.append(photo)
        except ImageError as error:
            if problems is None:
                raise
            problems += error.problems
        if len(read) == count:
            yield _run(compiled, model, read, pixels, count)
            read, pixels = [], []
    if read:
        yield _run(compiled, model, read, pixels, count)


def _run(
    compiled: Callable[..., Any],
    model: VGG,
    photos: list[Any],
    pixels: list[np.ndarray],
    count: int,
) -> Batch:
    n = len(photos)
    # The last batch is filled up, so that one compiled program serves all.
    filled = np.stack([*pixels, *[pixels[-1]] * (count - n)])
    outputs = compiled(model, normalise(filled, model.preprocessing))
    return Batch(photos, filled[:n], jax.tree.map(lambda rows: np.asarray(rows)[:n], outputs))


def map_photos(
    function: Callable[[VGG, Float[Array, "n h w 3"]], Any],
    model: VGG,
    photos: Sequence[Path | Inside],
    size: tuple[int, int],
    what: str,
    watch: Watcher = Watcher(),
) -> Any:
    """The outputs of `stream_photos` for all photos, joined. Raises ImageError for broken ones."""
    return _joined(list(stream_photos(function, model, photos, size, what, watch=watch)))


def map_readable(
    function: Callable[[VGG, Float[Array, "n h w 3"]], Any],
    model: VGG,
    photos: Sequence[Path],
    size: tuple[int, int],
    what: str,
    problems: list[str],
    watch: Watcher = Watcher(),
) -> tuple[list[Path], Any]:
    """The photos that can be read, and the outputs of `stream_photos` for these, joined.

    The others are noted in `problems`. Raises ImageError where none can be read.
    """
    batches = list(stream_photos(function, model, photos, size, what, problems, watch))
    if not batches:
        raise ImageError(*problems)
    return [photo for batch in batches for photo in batch.photos], _joined(batches)


def _joined(batches: Sequence[Batch]) -> Any:
    outputs = [batch.outputs for batch in batches]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *outputs)


def extract(
    model: VGG,
    photos: Sequence[Path],
    names: Sequence[str],
    size: tuple[int, int],
    problems: list[str],
    watch: Watcher = Watcher(),
) -> dict[str, np.ndarray]:
    """The `outputs` for every photo that can be read, and "photos" beside them: their paths.

    The others are noted in `problems`. Raises ValueError for unknown layers, ImageError where no
    photo can be read.
    """
    function = partial(outputs, names=check_outputs(model.config, names))
    read, arrays = map_readable(function, model, photos, size, "features", problems, watch)
    return arrays | {"photos": np.array([str(photo) for photo in read])}
