"""What stands before the first convolution, as long as it is arithmetic on the colours of a pixel.

Rescaling, normalisation, another order of the channels, and what preprocessing becomes inside a
graph are all maps from the three colours of a pixel to as many channels, with weights and offsets:
they are composed here, in float64, and become one recipe for images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.network.provenance import PREPROCESSING, Preprocessing

_SAME = 1e-6  # what float32 makes of a recipe's numbers

BLUE_FIRST, RED_FIRST = (2, 1, 0), (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class ChannelMap:
    """Channels that are computed pixel by pixel: matrix @ colours + offset.

    `matrix` is (channels, colours) and `offset` (channels,), in float64. `apart` says that the one
    channel has no axis of its own, as after `images[..., 0]`.
    """

    matrix: np.ndarray
    offset: np.ndarray
    apart: bool = False

    @classmethod
    def identity(cls, channels: int) -> "ChannelMap":
        """The images as they are."""
        return cls(np.eye(channels), np.zeros(channels))

    def scaled(self, scale: Any, offset: Any = 0.0) -> "ChannelMap | None":
        """channels * scale + offset; None where these are not one number, or one a channel."""
        factor, added = (_per_channel(value, len(self.offset)) for value in (scale, offset))
        if factor is None or added is None:
            return None
        return _finite(self.matrix * factor[:, None], self.offset * factor + added, self.apart)

    def mixed(self, weights: np.ndarray, bias: np.ndarray) -> "ChannelMap | None":
        """weights (outputs, channels) @ channels + bias, as a 1x1 convolution does."""
        return _finite(weights @ self.matrix, weights @ self.offset + bias)

    def picked(self, index: int | slice | Sequence[int]) -> "ChannelMap":
        """The channels of an index, a slice or a list. Raises IndexError for one out of range."""
        if isinstance(index, slice):
            index = range(len(self.offset))[index]
        apart = isinstance(index, int)
        rows = [index] if isinstance(index, int) else list(index)
        return ChannelMap(self.matrix[rows], self.offset[rows], apart)

    def plus(self, other: "ChannelMap", sign: float = 1.0) -> "ChannelMap | None":
        """The sum or difference of two maps of equally many channels."""
        if self.matrix.shape != other.matrix.shape or self.apart != other.apart:
            return None
        return _finite(
            self.matrix + sign * other.matrix, self.offset + sign * other.offset, self.apart
        )

    @property
    def changes_nothing(self) -> bool:
        """Whether it is the identity."""
        square = self.matrix.shape[0] == self.matrix.shape[1]
        plain = square and (self.matrix == np.eye(len(self.matrix))).all()
        return bool(plain and not self.offset.any())

    def after(self, recipe: Preprocessing) -> Preprocessing | None:
        """The recipe that does what `recipe` and then this map do; None where no recipe can.

        One can where every channel is computed from one colour, in the order RGB or BGR.
        """
        if self.changes_nothing:
            return recipe
        order = RED_FIRST if recipe.channels == "RGB" else BLUE_FIRST
        mean, std = np.array(recipe.mean), np.array(recipe.std)
        if self.matrix.shape != (3, 3):
            return None
        matrix = np.zeros((3, 3))
        matrix[:, order] = self.matrix / (recipe.divisor * std)
        offset = self.offset - self.matrix @ (mean / std)
        for channels, colours in (("RGB", RED_FIRST), ("BGR", BLUE_FIRST)):
            scale = matrix[range(3), colours]
            only = np.zeros((3, 3))
            only[range(3), colours] = scale
            if (only == matrix).all() and scale.all():
                found = _recipe(scale, offset, channels, recipe)
                # Numbers that float32 has not would make images of NaN.
                own = np.array([found.divisor, *found.mean, *found.std], np.float32)
                return found if np.isfinite(own).all() and all(own[[0, 4, 5, 6]]) else None
        return None


def numbers(value: Any) -> np.ndarray | None:
    """The value in float64; None for what is no array of numbers."""
    try:
        return np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None


def _finite(matrix: np.ndarray, offset: np.ndarray, apart: bool = False) -> ChannelMap | None:
    whole = np.isfinite(matrix).all() and np.isfinite(offset).all()
    return ChannelMap(matrix, offset, apart) if whole else None


def stacked(maps: Sequence[ChannelMap]) -> ChannelMap | None:
    """The channels of several maps, one behind the other; None for maps of different images."""
    if len({found.matrix.shape[1] for found in maps}) != 1:
        return None
    matrices, offsets = zip(*((found.matrix, found.offset) for found in maps), strict=True)
    return ChannelMap(np.concatenate(matrices), np.concatenate(offsets))


def _per_channel(value: Any, channels: int) -> np.ndarray | None:
    """A number or a vector for as many channels, leading axes of one taken off; else None."""
    array = numbers(value)
    if (
        array is None
        or array.size not in (1, channels)
        or array.shape[-1:] not in ((), (1,), (channels,))
    ):
        return None
    if not np.isfinite(array).all():
        return None
    return np.broadcast_to(array.reshape(-1), channels)


def _recipe(
    scale: np.ndarray, offset: np.ndarray, channels: Any, like: Preprocessing
) -> Preprocessing:
    """pixels * scale + offset as a recipe that places images as `like` does.

    Numbers that are those of a named recipe, but for their rounding, make that recipe.
    """
    for known in PREPROCESSING.values():
        theirs = 1 / (known.divisor * np.array(known.std)), -np.array(known.mean) / known.std
        if (
            (known.fit, known.interpolation, known.channels)
            == (like.fit, like.interpolation, channels)
            and np.allclose(scale, theirs[0], rtol=_SAME, atol=0)
            and np.allclose(offset, theirs[1], rtol=_SAME, atol=_SAME)
        ):
            return known
    divisor, mean, std = 1.0, -offset / scale, 1 / scale
    if (scale == scale[0]).all() and scale[0] > 0:
        divisor, mean, std = 1 / scale[0], -offset, np.ones(3)
    return dataclasses.replace(
        like,
        name="own",
        divisor=float(divisor),
        mean=tuple(map(float, mean + 0.0)),
        std=tuple(map(float, std)),
        channels=channels,
    )


@dataclasses.dataclass(frozen=True)
class Front:
    """The layers before a file's first convolution, by name, and what they do together."""

    file: str
    layers: tuple[str, ...]
    map: ChannelMap

    def recipe(self, given: Preprocessing) -> Preprocessing:
        """The recipe for the first convolution, where `given` is that for the file's own input.

        Raises SourceError, with the layers, where no recipe can say what they do.
        """
        with np.errstate(all="ignore"):
            found = self.map.after(given)
        if found is None:
            raise SourceError(
                f"{self.file}: what its layers before the first convolution do "
                f"({', '.join(self.layers)}) is no recipe for RGB images, which scales each "
                "channel by itself: save the network without them, and feed it what they made"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """A line that says what became of the layers, where they do anything."""
        if self.map.changes_nothing:
            return []
        layers = ", ".join(self.layers)
        return [f"what is done before the first convolution ({layers}) is part of the recipe"]

    @property
    def wants_unit(self) -> bool:
        """Whether the layers look made for images from 0 to 1, and not for pixels."""
        scale = self.map.matrix.sum(1)
        if not scale.size or not scale.all():
            return False
        with np.errstate(all="ignore"):
            means = -self.map.offset / scale
        return bool(abs(scale).max() * 255 > 300 or ((means > 0) & (means < 1)).all())
