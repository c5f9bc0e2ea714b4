"""Two batches of images that are compared: what they may be, and on which scale their values are.

The commonest mistake with these distances is the range of the images. So it is asked for, and where
the values are known, those outside it are an error.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from flaxvgg.network.config import VGGConfig
from flaxvgg.network.inputs import as_array
from flaxvgg.network.model import AnyArray
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.perceptual.arithmetic import by_channel

Range = tuple[float | int, float | int]
Images = (
    Float[AnyArray, "*n h w 3"] | UInt8[AnyArray, "*n h w 3"] | Sequence[Float[AnyArray, "h w 3"]]
)

_UNIT, _SIGNED, _PIXELS = (0, 1), (-1, 1), (0, 255)
_KNOWN = (_UNIT, _SIGNED, _PIXELS)
_SLACK = 1e-5  # of the range: what rounding may add to its ends
# What is said to lie in (-1, 1) or (0, 255), and lies in (0, 1), was more likely meant as that.
_NARROWER = {_SIGNED: _UNIT, _PIXELS: _UNIT}


def check_range(value_range: Any) -> Range:
    """The range as two floats. Raises ValueError for what is none."""
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "value_range is the lowest and the highest value that images can have, such as (0, 1), "
            f"(-1, 1) or (0, 255), not {value_range!r}"
        )
    return low, high


def check_pair(a: Any, b: Any, value_range: Range, smallest: int = 1, deepest: str = "") -> Any:
    """Both as arrays (..., H, W, 3) of one shape, of uint8 or floats, with values in the range.

    `smallest` is the least height and width, that of the layer `deepest`. Values are looked at
    where they are known: not while JAX traces. Warns where they are likely to have another range.
    Raises ValueError, one line, for anything else.
    """
    a, b = (_checked(as_array(x), value_range, smallest, deepest) for x in (a, b))
    if a.shape != b.shape:
        raise ValueError(
            f"the images have shapes {a.shape} and {b.shape}: a distance is between images of one "
            "size, one by one"
        )
    named = {"first": _extremes(a), "second": _extremes(b)}
    known = [found for found in named.values() if found is not None]
    for name, found in named.items():
        if found is not None:
            _check_values(name, *found, value_range)
    if len(known) == 2:
        low, high = min(x for x, _ in known), max(x for _, x in known)
        _warn_of_narrower(low, high, value_range, a)
    return jnp.asarray(a), jnp.asarray(b)


def smallest_image(config: VGGConfig, layers: Sequence[str]) -> tuple[int, str]:
    """The least height and width at which all of these layers have a value, and the deepest.

    L2 pooling rounds sizes up: of one pixel it leaves one.
    """
    names = config.layer_names
    deepest = max(layers, key=names.index)
    kinds = [layer.kind for layer in config.layers[: names.index(deepest) + 1]]
    return 2 ** sum(kind in ("max_pool", "average_pool") for kind in kinds), deepest


def normalised(
    x: Array, value_range: Range, to: Range, mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "..."]:
    """Values of one range in another, less `mean` and by `std`, which are on the scale of that one.

    One subtraction and one product, with constants that are worked out before: so an image that is
    a constant of a program, which XLA works out while it compiles, is the same to the bit.
    """
    (low, high), (first, last) = value_range, to
    scale = (high - low) / (last - first)
    shift = low + (np.asarray(mean, np.float64) - first) * scale
    return (x - by_channel(shift, x)) * by_channel(1 / (scale * np.asarray(std, np.float64)), x)


def in_unit_range(x: Array, value_range: Range) -> Float[Array, "..."]:
    """Values of a range in (0, 1)."""
    return normalised(x, value_range, _UNIT, (0.0,) * 3, (1.0,) * 3)


def prepared(x: Array, value_range: Range, recipe: Preprocessing) -> Float[Array, "*n h w 3"]:
    """Images as the network takes them: `flaxvgg.normalise`, differentiable, and for any range."""
    if recipe.channels == "BGR":
        x = x[..., ::-1]
    return normalised(x, value_range, (0.0, 255 / recipe.divisor), recipe.mean, recipe.std)


def _checked(x: Any, value_range: Range, smallest: int, deepest: str) -> Any:
    if x.dtype == np.uint8:
        if value_range != _PIXELS:
            raise ValueError(f"uint8 images have value_range=(0, 255), not {_shown(value_range)}")
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"images are {x.dtype}: pass uint8 with value_range=(0, 255), or floats")
    if x.ndim < 3 or x.shape[-1] != 3:
        if x.ndim == 2 or (x.ndim > 2 and x.shape[-1] == 1):
            hint = ": a grayscale image has to be repeated, jnp.stack([x, x, x], axis=-1)"
        elif 3 in x.shape[-3:-2]:
            hint = ": channels come last in JAX: transpose (0, 2, 3, 1)"
        else:
            hint = ""
        raise ValueError(f"images must have shape (N, H, W, 3), not {x.shape}{hint}")
    height, width = x.shape[-3:-1]
    if any(isinstance(size, int) and size < smallest for size in (height, width)):
        raise ValueError(
            f"images of {height}x{width} are too small: {deepest} needs {smallest}x{smallest}"
        )
    return x


def _extremes(x: Any) -> tuple[float, float] | None:
    """The least and the largest value, NaN where one is; None where they are not known."""
    if isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) or not x.size:
        return None
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable:
            return None
        if any(device.platform != "cpu" for device in x.devices()):
            low, high = jax.device_get((x.min(), x.max()))
            return float(low), float(high)
        x = np.asarray(x)
    return float(x.min()), float(x.max())


def _check_values(name: str, low: float, high: float, value_range: Range) -> None:
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"a value of the {name} images is NaN")
    if not _lies_in(low, high, value_range):
        likely = next((known for known in _KNOWN if _lies_in(low, high, known)), None)
        if likely is not None:
            hint = f"they look like value_range={likely}"
        elif low > -3 and high < 3:
            hint = "they look normalised by a mean and a deviation, which is done here"
        else:
            hint = "clip them"
        raise ValueError(
            f"values of the {name} images, from {low:.4g} to {high:.4g}, lie outside "
            f"value_range={_shown(value_range)}: {hint}"
        )


def _warn_of_narrower(low: float, high: float, value_range: Range, x: Any) -> None:
    """Warn of values that a narrower range has too, unless the images are of a single value."""
    likely = _NARROWER.get(value_range)
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    if likely is None or not is_float or not _lies_in(low, high, likely) or high - low < 0.1:
        return
    warnings.warn(
        f"values from {low:.3g} to {high:.3g} were said to have "
        f"value_range={_shown(value_range)}: is it {likely}?",
        stacklevel=4,
    )


def _lies_in(low: float, high: float, value_range: Range) -> bool:
    slack = _SLACK * (value_range[1] - value_range[0])
    return low >= value_range[0] - slack and high <= value_range[1] + slack


def _shown(value_range: Range) -> str:
    return f"({value_range[0]:g}, {value_range[1]:g})"
