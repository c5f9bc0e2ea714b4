"""What is given to a model: images as an array, or one line that says what to call instead."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxvgg.network.config import SMALLEST_IMAGE
from flaxvgg.network.provenance import Preprocessing

_SAMPLED = 4096  # values of a batch, whose range is looked at


def check_images(images: Any, recipe: Preprocessing | None = None) -> Any:
    """The images as a float array (..., H, W, 3), large enough for five poolings.

    Takes arrays of NumPy and JAX, of any byte order, tensors of PyTorch (by DLPack), and lists of
    these of one shape; a `jax.ShapeDtypeStruct` is checked likewise. Raises ValueError for anything
    else. With a `recipe`, and where the values are known, warns of those that it cannot have given.
    """
    images = as_array(images)
    shape = tuple(images.shape)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}: the network takes normalised floats (model.load_images)"
        )
    if len(shape) < 3 or shape[-1] != 3:
        hint = "; channels come last in JAX: transpose (0, 2, 3, 1)" if 3 in shape[-3:-2] else ""
        raise ValueError(f"images must have shape (N, H, W, 3), not {_text(shape)}{hint}")
    if any(isinstance(size, int) and size < SMALLEST_IMAGE for size in shape[-3:-1]):
        raise ValueError(
            f"images of {shape[-3]}x{shape[-2]} are too small: at least "
            f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE} survive five poolings"
        )
    if recipe is not None:
        _warn_of_range(images, recipe)
    return images


def as_array(images: Any) -> Any:
    """What is given as images, as an array of JAX or NumPy. Raises ValueError for what is none."""
    if isinstance(images, jax.Array | jax.ShapeDtypeStruct):
        return images
    if isinstance(images, np.ndarray):
        return images if images.dtype.isnative else images.astype(images.dtype.newbyteorder("="))
    if isinstance(images, list | tuple) and images:
        arrays = [as_array(image) for image in images]
        shapes = sorted({tuple(array.shape) for array in arrays})
        if len(shapes) > 1:
            some = ", ".join(map(_text, shapes[:3]))
            raise ValueError(
                f"images of a list must have one shape, not {some}: "
                "model.load_images(paths, size) brings them to one"
            )
        on_host = all(isinstance(array, np.ndarray) for array in arrays)
        return np.stack(arrays) if on_host else jnp.stack(arrays)
    if type(images).__module__.partition(".")[0] == "torch" and hasattr(images, "__dlpack__"):
        return jnp.from_dlpack(images.detach().contiguous())
    if hasattr(images, "__jax_array__"):  # a Variable of flax
        return jnp.asarray(images)
    if hasattr(images, "__array__") and hasattr(images, "shape"):  # of xarray, of TensorFlow
        return as_array(np.asarray(images))
    raise ValueError(
        f"images are {_what(images)}: the network takes a normalised float array (N, H, W, 3), "
        "which model.load_images(paths) makes of files"
    )


def _what(images: Any) -> str:
    if isinstance(images, str | os.PathLike):
        return f"a path, {os.fspath(images)!r}"
    if isinstance(images, Sequence) and not images:
        return "an empty list"
    return f"of type {type(images).__module__}.{type(images).__qualname__}"


def _text(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _warn_of_range(images: Any, recipe: Preprocessing) -> None:
    """Warn where the values are known to be another recipe's; of no image that is this one's.

    No value of a normalised image is ten times as large as the recipe's largest. Nor do those of
    one on the scale of 0 to 255 lie between 0 and 1, unless it is one colour: one value a channel.
    """
    if isinstance(images, jax.core.Tracer | jax.ShapeDtypeStruct) or not images.size:
        return
    if isinstance(images, jax.Array) and not (images.is_fully_addressable and _is_at_hand(images)):
        return  # nobody waits for a device for this
    flat = np.asarray(images).reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLED)].astype(np.float32)
    low, high = float(some.min()), float(some.max())
    brightest = [255 / recipe.divisor / std for std in recipe.std]  # above a mean of zero
    if max(abs(low), abs(high)) > 10 * max(brightest) and np.isfinite([low, high]).all():
        told = "larger than"
    elif min(brightest) > 100 and low >= 0 and high <= 1 and len(np.unique(some)) > 3:
        told = "smaller than"
    else:
        return
    warnings.warn(
        f"images from {low:.3g} to {high:.3g} are {told} what these weights were trained on, the "
        f"recipe {recipe.name!r}: model.load_images(paths), or flaxvgg.normalise for pixels",
        stacklevel=4,
    )


def _is_at_hand(images: jax.Array) -> bool:
    return images.is_ready() and all(device.platform == "cpu" for device in images.devices())
