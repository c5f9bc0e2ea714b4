"""Photos in, arrays out: features of any number of files, a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from rich.progress import track

from flaxvgg.commands.console import console
from flaxvgg.files.replacing import sweep, write_atomically
from flaxvgg.images.loading import ImageError, load_pixels, normalise
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG

_PIXELS = 8 * 512 * 1024  # of one batch at most, so that large photos need no more memory
_BATCH = 8


class Batch(NamedTuple):
    """Photos, their pixels as they were given to the network, and what it made of them.

    `outputs` is a pytree of arrays with one row a photo.
    """

    photos: list[Path]
    pixels: UInt8[np.ndarray, "n h w 3"]
    outputs: Any


def stream_photos(
    function: Callable[[VGG, Float[Array, "n h w 3"]], Any],
    model: VGG,
    photos: Sequence[Path],
    size: tuple[int, int],
    what: str,
    problems: list[str] | None = None,
) -> Iterator[Batch]:
    """`jax.jit(function)(model, images)` over all photos, in batches, with a progress bar.

    The function gives a pytree of arrays with one row an image. Photos that cannot be read are left
    out and noted in `problems`; without it they raise ImageError.
    """
    compiled = jax.jit(function)
    count = max(1, min(_BATCH, _PIXELS // (size[0] * size[1]), len(photos)))
    read: list[Path] = []
    pixels: list[np.ndarray] = []
    for photo in track(photos, description=what, console=console, transient=True):
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
    photos: list[Path],
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
    photos: Sequence[Path],
    size: tuple[int, int],
    what: str,
) -> Any:
    """The outputs of `stream_photos` for all photos, joined. Raises ImageError for broken ones."""
    return _joined(list(stream_photos(function, model, photos, size, what)))


def map_readable(
    function: Callable[[VGG, Float[Array, "n h w 3"]], Any],
    model: VGG,
    photos: Sequence[Path],
    size: tuple[int, int],
    what: str,
    problems: list[str],
) -> tuple[list[Path], Any]:
    """The photos that can be read, and the outputs of `stream_photos` for these, joined.

    The others are noted in `problems`. Raises ImageError where none can be read.
    """
    batches = list(stream_photos(function, model, photos, size, what, problems))
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
) -> dict[str, np.ndarray]:
    """The `outputs` for every photo that can be read, and "photos" beside them: their paths.

    The others are noted in `problems`. Raises ValueError for unknown layers, ImageError where no
    photo can be read.
    """
    function = partial(outputs, names=check_outputs(model.config, names))
    read, arrays = map_readable(function, model, photos, size, "features", problems)
    return arrays | {"photos": np.array([str(photo) for photo in read])}


def outputs(
    model: VGG, images: Float[Array, "n h w 3"], names: Sequence[str]
) -> dict[str, Float[Array, "n ..."]]:
    """What a network makes of images (N, H, W, 3), by the names that were asked for.

    A layer's output is (N, h, w, channels) or (N, units), by any of its names; "logits" are
    (N, classes), and "gap", global average pooling of the features, (N, 512).
    """
    others = {"gap": model.gap, "logits": model}
    found = model.activations(images, [name for name in names if name not in others])
    return {name: found[name] if name in found else others[name](images) for name in names}


def check_outputs(config: VGGConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The outputs that are asked for, none twice, and "gap", which is small and always wanted.

    Raises ValueError for what this network has not.
    """
    for name in names:
        if name == "logits":
            _ = config.head_output  # or what it raises
        elif name != "gap":
            config.resolve(name)
    return tuple(dict.fromkeys((*names, "gap")))


def check_npz(out: Path) -> None:
    """Raise ValueError, before any work is done, where the .npz file cannot be written.

    What writers that were killed have left there is removed.
    """
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the arrays are written as .npz; give a name that ends so")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.absolute().parent} is no directory: create it first")
    sweep(out.absolute().parent)


def save_npz(out: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays to a .npz file, all or none; bfloat16 becomes float32, which NumPy knows."""
    known = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in arrays.items()
    }
    write_atomically(out.absolute(), lambda target: np.savez(target, **known))
