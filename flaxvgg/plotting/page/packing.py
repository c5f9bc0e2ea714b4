"""Photos and maps as they travel in a page: JPEG, and 8-bit arrays at the layer's own size."""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

BUDGET = 4 * 2**20  # bytes of all maps of a page, before they are compressed
_LONGEST = 900  # pixels of a photo's side


def jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A photo as an address that carries it."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST, _LONGEST))
    image.save(file, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def packed(values: UInt8[np.ndarray, "..."]) -> str:
    """An array of bytes, compressed (zlib), as text."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode()


def maps_value(maps: Float[np.ndarray, "k h w"], factor: int = 1) -> dict[str, Any]:
    """Maps (K, h, w) as a JSON value: 256 steps from each one's lowest to its highest value.

    With a `factor` the mean of so many times so many places is one. A map that is not finite has no
    range and is shown as nothing.
    """
    if factor > 1:
        maps = block_means(maps, factor)
    maps = np.asarray(maps, np.float32)
    steps, ranges = np.zeros(maps.shape, np.uint8), []
    for one, step in zip(maps, steps, strict=True):
        low, high = float(one.min()), float(one.max())
        if not np.isfinite([low, high]).all():
            ranges.append(None)
            continue
        ranges.append([low, high])
        # In float64: the difference of two float32 may be none.
        scaled = (one.astype(np.float64) - low) / (high - low if high > low else 1)
        step[...] = np.rint(255 * scaled)
    count, height, width = maps.shape
    return {"k": count, "h": height, "w": width, "ranges": ranges, "data": packed(steps)}


def block_means(maps: Float[np.ndarray, "k h w"], factor: int) -> Float[np.ndarray, "k y x"]:
    """The mean of every block of factor x factor places; the last ones may be smaller."""
    starts = [np.arange(0, size, factor) for size in maps.shape[1:]]
    sums = np.add.reduceat(np.asarray(maps, np.float64), starts[0], axis=1)
    sums = np.add.reduceat(sums, starts[1], axis=2)
    counts = [np.diff([*start, size]) for start, size in zip(starts, maps.shape[1:], strict=True)]
    return (sums / np.outer(*counts)).astype(np.float32)


def factors(sizes: Sequence[tuple[int, int]], copies: int, budget: int = BUDGET) -> list[int]:
    """For maps of these sizes (h, w), by how much each is made smaller, for the budget to suffice.

    There are so many `copies` of each. The largest ones are made smaller first.
    """
    found = [1] * len(sizes)

    def bytes_of(i: int) -> int:
        return copies * -(-sizes[i][0] // found[i]) * -(-sizes[i][1] // found[i])

    while sum(map(bytes_of, range(len(sizes)))) > budget:
        largest = max(range(len(sizes)), key=bytes_of)
        if bytes_of(largest) <= copies:
            break
        found[largest] += 1
    return found


def channels_value(maps: Float[np.ndarray, "h w c"]) -> dict[str, Any]:
    """All channels of a feature map after a ReLU, each in 255 steps up to its own largest value.

    Exactly what is zero is 0: a page counts the zeros of a channel right.
    """
    values = np.moveaxis(np.asarray(maps, np.float32), -1, 0)
    largest = values.max(axis=(1, 2))
    values = np.where(np.isfinite(largest)[:, None, None], values, 0)
    top = np.where(np.isfinite(largest) & (largest > 0), largest, 1)
    top = top[:, None, None].astype(np.float64)
    steps = np.where(values > 0, np.clip(np.ceil(255 * values / top), 1, 255), 0)
    count, height, width = values.shape
    told = [float(x) if np.isfinite(x) else None for x in largest]
    return {
        "c": count,
        "h": height,
        "w": width,
        "largest": told,
        "data": packed(steps.astype(np.uint8)),
    }
