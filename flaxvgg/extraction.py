"""Photos in, arrays out: features of any number of files, a batch at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float
from rich.progress import track

from flaxvgg.checkpoint import write_atomically
from flaxvgg.console import console
from flaxvgg.images import load_images
from flaxvgg.model import VGG

_BATCH = 8


def map_photos(
    function: Callable[[VGG, Float[Array, "n h w 3"]], dict[str, Array]],
    model: VGG,
    photos: Sequence[Path],
    size: tuple[int, int],
    what: str,
) -> dict[str, np.ndarray]:
    """`jax.jit(function)(model, images)` over all photos, with a progress bar; results joined.

    Each array of the result has one row a photo. Raises ImageError for photos that cannot be read.
    """
    compiled = jax.jit(function)
    count = min(_BATCH, len(photos))
    rows: dict[str, list[np.ndarray]] = {}
    starts = range(0, len(photos), count)
    for start in track(starts, description=what, console=console, transient=True):
        batch = photos[start : start + count]
        # The last batch is filled up, so that one compiled program serves all.
        filled = [*batch, *[batch[-1]] * (count - len(batch))]
        images = load_images(filled, size, model.preprocessing)
        for name, array in compiled(model, images).items():
            rows.setdefault(name, []).append(np.asarray(array[: len(batch)]))
    return {name: np.concatenate(arrays) for name, arrays in rows.items()}


def extract(
    model: VGG, photos: Sequence[Path], layers: Sequence[str], size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The outputs of the layers for every photo, and "gap" and "photos" beside them.

    Keyed by the layers' names as they were asked for: (N, h, w, channels) or (N, units). "gap" is
    (N, 512), "photos" the paths. Raises ValueError for unknown layers, ImageError for bad photos.
    """
    for layer in layers:
        model.config.resolve(layer)

    def outputs(model: VGG, images: Float[Array, "n h w 3"]) -> dict[str, Array]:
        return model.activations(images, layers) | {"gap": model.gap(images)}

    arrays = map_photos(outputs, model, photos, size, "features")
    return arrays | {"photos": np.array([str(photo) for photo in photos])}


def check_npz(out: Path) -> None:
    """Raise ValueError, before any work is done, where the .npz file cannot be written."""
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the arrays are written as .npz; give a name that ends so")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.absolute().parent} is no directory: create it first")


def save_npz(out: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays to a .npz file, all or none; bfloat16 becomes float32, which NumPy knows."""
    known = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in arrays.items()
    }
    write_atomically(out.absolute(), lambda target: np.savez(target, **known))
