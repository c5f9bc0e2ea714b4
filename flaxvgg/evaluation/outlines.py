"""The boxes of all outlines of a map at all its levels at once, compiled, for many maps.

A map has 256 levels, and neighbouring ones hardly differ. So nothing is labelled level by level: a
pixel belongs to the peak that it climbs to, pixel by pixel, at every level; and two peaks are one
component up to the highest saddle between them. What is kept of a map is a table of peaks by
levels, and the tree of peaks that their highest saddles make: the maximum spanning tree, by rounds
of Borůvka's, in each of which all peaks find at once which neighbour they join.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt8

from flaxvgg.network.model import AnyArray

LEVELS = 255  # a pixel is in at level 0 to 254 if its value is above it
_VALUES = 256
_EDGES = ((-1, 0), (0, -1), (0, 1), (1, 0))
_CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_NONE = jnp.iinfo(jnp.int32).max
_PEAKS = 256  # that there is room for, at first
_AT_ONCE = 64 * _PEAKS  # peaks of all maps that an accelerator has at once
_SIDE = 32  # maps are filled up to a multiple of it, so that one program serves many sizes


class Outlines(NamedTuple):
    """Boxes (left, top, right, bottom) in whole pixels, right and bottom the first ones outside.

    `largest` (4, L) are those of each level's largest outline, `all` (4, M, L) those of all; zeros
    where there is none. `peaks` is how many there must be room for.
    """

    largest: Int[Array, "4 l"]
    all: Int[Array, "4 m l"]
    peaks: Int[Array, ""]


class _Components(NamedTuple):
    """The components of each level, each in the row of one of its peaks.

    `first` is the first pixel in reading order, _NONE where there is no component; of the `boxes`
    right and bottom are inside. `top` is the row of each peak's component, `peak` that of each
    pixel, `peaks` how many there are.
    """

    first: Int[Array, "k l"]
    boxes: Int[Array, "4 k l"]
    top: Int[Array, "k l"]
    peak: Int[Array, "h w"]
    peaks: Int[Array, ""]


def right_levels(
    images: UInt8[np.ndarray, "n h w"], given: Sequence[Int[np.ndarray, "_ 4"]]
) -> Bool[np.ndarray, "n 4 l"]:
    """At which levels maps in 8 bits have a box that is right, by four criteria.

    Right is an IoU with one of the boxes given of at least 0.5 for the largest outline's box, and
    of 0.3, 0.5 and 0.7 for any. A box takes in one more column on the right and one more row below,
    inside the image.
    """
    count, height, width = images.shape
    padded = -height % _SIDE, -width % _SIDE
    boxes = np.zeros((count, _room(max(map(len, given)), 4), 4), np.int32)
    for row, found in zip(boxes, given, strict=True):
        row[: len(found)] = found
    right = np.zeros((count, 4, LEVELS), bool)
    room = np.full(count, _PEAKS)
    while room.any():  # one of those that a map needs, or more
        peaks = int(room[room > 0].min())
        rows = np.flatnonzero(room == peaks)
        at_once = 1 if jax.default_backend() == "cpu" else max(1, _AT_ONCE // peaks)
        at_once = min(at_once, _room(len(rows), 1))
        running = []
        for start in range(0, len(rows), at_once):
            some = np.resize(rows[start : start + at_once], at_once)
            maps = np.pad(images[some], [(0, 0), (0, padded[0]), (0, padded[1])])
            found = outlines(maps, peaks)
            size = np.array([width, height], np.int32)
            running.append((some, _right(found, boxes[some], size), found.peaks))
        for some, found, needed in running:
            right[some] = found
            room[some] = [0 if x <= peaks else _room(x, peaks) for x in np.asarray(needed).tolist()]
    return right


def _room(count: int, least: int) -> int:
    """The first of least, 4 least, 16 least, ... that is no less than a count."""
    while least < count:
        least *= 4
    return least


def outlines(images: UInt8[AnyArray, "n h w"], peaks: int) -> Outlines:
    """The outlines of maps in 8 bits at each level, as OpenCV's `findContours` has them.

    Around components, diagonal neighbours included, and around their holes; the largest is the one
    that encloses most, of equals the lowest. `peaks` is how many peaks and pits there is room for:
    of a map with more the outlines are wrong, and its `peaks` are more.
    """
    # One program for components, holes and filled components: it is compiled once.
    shown, out = _framed(images)
    components = _components(shown, _offsets(images, _EDGES + _CORNERS), peaks)
    # Pixels that are out touch along edges only.
    around = _components(out, _offsets(images, _EDGES + _EDGES), peaks)
    filled = _filled(out, around)
    whole = _components(filled, _offsets(images, _EDGES + _CORNERS), peaks)
    return _boxes(filled, components, around, whole)


def _offsets(images: AnyArray, neighbours: tuple[tuple[int, int], ...]) -> Int[np.ndarray, "8"]:
    """How far neighbours are in a framed image whose rows lie one behind the other."""
    return np.array([y * (images.shape[2] + 2) + x for y, x in neighbours], np.int32)


@jax.jit
def _framed(images: UInt8[Array, "n h w"]) -> tuple[Array, Array]:
    """Images with a frame that is never in, and what is out, with a frame that always is."""
    shown = jnp.pad(images.astype(jnp.int32), [(0, 0), (1, 1), (1, 1)])
    return shown, _VALUES - 1 - shown


@jax.jit
@jax.vmap
def _filled(out: Int[Array, "h w"], around: _Components) -> Int[Array, "h w"]:
    """The image without its holes: a pixel is in until its pit is open to the frame."""
    is_open = around.top == around.top[around.peak[0, 0]][None]
    return _VALUES - 1 - jnp.minimum(out, is_open.sum(axis=1)[around.peak])


@jax.jit
@jax.vmap
def _boxes(
    filled: Int[Array, "h w"], shown: _Components, around: _Components, whole: _Components
) -> Outlines:
    left, top, right, bottom = around.boxes
    is_hole = (around.first < _NONE) & (around.first > 0)
    # The outline of a hole runs over the pixels around it.
    holes = jnp.where(is_hole[None], jnp.stack([left - 1, top - 1, right + 1, bottom + 1]), 0)
    found = jnp.where((shown.first < _NONE)[None], shown.boxes, 0)
    every = jnp.concatenate([found, holes[..., ::-1]], axis=1)
    needed = jnp.stack([shown.peaks, around.peaks, whole.peaks]).max()
    return Outlines(_unframed(_largest(filled, whole)), _unframed(every), needed)


def _unframed(boxes: Int[Array, "4 ..."]) -> Int[Array, "4 ..."]:
    """Boxes whose right and bottom are inside, with them outside, and without the frame."""
    left, top, right, bottom = boxes
    return jnp.where((right > 0)[None], jnp.stack([left - 1, top - 1, right, bottom]), 0)


def _largest(values: Int[Array, "h w"], components: _Components) -> Int[Array, "4 l"]:
    """The boxes of those components, which have no holes, whose outlines enclose most."""
    # Of the square between four pixels' centres, an outline encloses all if the four are in, half
    # if three are, and nothing if fewer are. Three of four are of one component.
    squares, peak = _squares(values), _squares(components.peak)
    owner = jnp.take_along_axis(peak, squares.argmax(axis=0)[None], axis=0)[0]
    low, high = jnp.sort(squares[:2], axis=0), jnp.sort(squares[2:], axis=0)
    least = jnp.minimum(low[0], high[0])
    second = jnp.minimum(jnp.maximum(low[0], high[0]), jnp.minimum(low[1], high[1]))
    areas = jnp.zeros((len(components.top), _VALUES), jnp.int32)
    areas = areas.at[owner, least].add(1, mode="drop").at[owner, second].add(1, mode="drop")
    areas = lax.cumsum(areas, axis=1, reverse=True)[:, 1:]
    areas = jnp.zeros_like(areas).at[components.top, jnp.arange(LEVELS)[None]].add(areas)
    there = components.first < _NONE
    is_best = there & (areas == jnp.where(there, areas, -1).max(axis=0)[None])
    last = jnp.where(is_best, components.first, -1).max(axis=0)
    is_best &= components.first == last[None]
    return jnp.where(is_best[None], components.boxes, 0).sum(axis=1)


def _squares(x: Int[Array, "h w"]) -> Int[Array, "4 squares"]:
    """The four pixels of each square of 2x2."""
    corners = x[:-1, :-1], x[:-1, 1:], x[1:, :-1], x[1:, 1:]
    return jnp.stack([corner.ravel() for corner in corners])


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, None, None))
def _components(values: Int[Array, "h w"], offsets: Int[Array, "8"], peaks: int) -> _Components:
    number = jnp.arange(values.size, dtype=jnp.int32)
    # Beyond the frame there is only frame: which of its pixels makes no difference.
    neighbours = jnp.clip(number[None] + offsets[:, None], 0, values.size - 1)
    pixels = values.ravel()
    peak, count = _climbed(pixels, number, neighbours)
    up, saddle = _tree(pixels, peak, neighbours, peaks)
    level = jnp.arange(LEVELS)[None]
    here = jnp.arange(peaks)[:, None]
    top = _ends(jnp.where(saddle[:, None] > level, up[:, None], here))
    # Of each peak's pixels of each value, then of those above each level.
    y, x = jnp.divmod(number, values.shape[1])
    table = jnp.full((peaks, _VALUES, 4), _NONE)
    table = table.at[peak, pixels].min(jnp.stack([number, x, -x, -y], axis=-1), mode="drop")
    table = lax.cummin(table, axis=1, reverse=True)[:, 1:]
    table = jnp.full_like(table, _NONE).at[top, level].min(table)
    first, left, right, bottom = jnp.moveaxis(table, -1, 0)
    boxes = jnp.stack([left, first // values.shape[1], -right, -bottom])
    return _Components(first, boxes, top, peak.reshape(values.shape), count)


def _climbed(
    pixels: Int[Array, " p"], number: Int[Array, " p"], neighbours: Int[Array, "8 p"]
) -> tuple[Int[Array, " p"], Int[Array, ""]]:
    """The number of the peak that each pixel climbs to, and how many peaks there are."""
    numbers = jnp.concatenate([number[None], neighbours])
    values = pixels[numbers]
    # To the highest, of equals to the last: no circles.
    to = jnp.where(values == values.max(axis=0)[None], numbers, -1).max(axis=0)
    is_peak = to == number
    return (jnp.cumsum(is_peak) - 1)[_ends(to)], is_peak.sum()


def _ends(to: Int[Array, "rows ..."]) -> Int[Array, "rows ..."]:
    """Where paths end that go from each row to the row that it names."""

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        now, _ = state
        then = jnp.take_along_axis(now, now, axis=0)
        return then, (then != now).any()

    return lax.while_loop(lambda state: state[1], step, (to, jnp.array(True)))[0]


def _tree(
    pixels: Int[Array, " p"], peak: Int[Array, " p"], neighbours: Int[Array, "8 p"], peaks: int
) -> tuple[Int[Array, " k"], Int[Array, " k"]]:
    """Which peak each one hangs on, and by what saddle; a root on itself, by 0."""
    here = jnp.arange(peaks, dtype=jnp.int32)
    bits = (peaks - 1).bit_length()
    saddles = jnp.minimum(pixels[None], pixels[neighbours]) << bits

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        root, up, saddle, _ = state
        own = root[peak]
        other = own[neighbours]
        best = jnp.where((other != own[None]) & (saddles > 0), saddles | other, -1).max(axis=0)
        best = jnp.full_like(here, -1).at[own].max(best, mode="drop")
        # Of equal saddles that to the highest number: only two can choose each other.
        to = jnp.where(best >= 0, best & ((1 << bits) - 1), here)
        joins = (best >= 0) & ~((to[to] == here) & (here > to))
        to = jnp.where(joins, to, here)
        up, saddle = jnp.where(joins, to, up), jnp.where(joins, best >> bits, saddle)
        return _ends(to)[root], up, saddle, joins.any()

    state = here, here, jnp.zeros_like(here), jnp.array(True)
    _, up, saddle, _ = lax.while_loop(lambda state: state[-1], step, state)
    return up, saddle


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None))
def _right(found: Outlines, given: Int[Array, "g 4"], size: Int[Array, " 2"]) -> Bool[Array, "4 l"]:
    largest = _reached(found.largest[:, None], given, size)[1]
    return jnp.stack([largest, *_reached(found.all, given, size)])


def _reached(
    found: Int[Array, "4 m l"], given: Int[Array, "g 4"], size: Int[Array, " 2"]
) -> Bool[Array, "3 l"]:
    """Whether the IoU of any of the boxes found with one given is at least 0.3, 0.5, 0.7."""
    left, top, right, bottom = found[..., None]
    is_box = right > left
    right, bottom = jnp.minimum(right + 1, size[0]), jnp.minimum(bottom + 1, size[1])
    left_, top_, right_, bottom_ = given.T[:, None, None]
    shared_width = jnp.minimum(right, right_) - jnp.maximum(left, left_)
    shared_height = jnp.minimum(bottom, bottom_) - jnp.maximum(top, top_)
    shared = jnp.maximum(shared_width, 0) * jnp.maximum(shared_height, 0)
    areas = (right - left) * (bottom - top), (right_ - left_) * (bottom_ - top_)
    either = areas[0] + areas[1] - shared
    # In whole numbers nothing is rounded.
    reached = [is_box & (10 * shared >= tenths * either) for tenths in (3, 5, 7)]
    return jnp.stack([x.any(axis=(0, 2)) for x in reached])
