"""The data: things cut out of photos, laid on textures, with their places known.

Every image is made of the crops of `objects.py`: the class of each thing in it, and its box, are
known without anybody having drawn one. Whatever is random comes from the seed.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.composed import objects
from experiments.composed.objects import OBJECTS, Crop
from flaxvgg.images.datasets import Box
from flaxvgg.images.loading import fit_image
from flaxvgg.network.provenance import Preprocessing

Part = Literal["training", "test"]
_EMPTY = 0.15  # of the training images show no object
_SMALLEST = 0.4  # of the image's side, in the direction in which an object is tighter
_PHOTOS = {  # whole objects, where they are in whole photos
    "motorcycle": Crop("motorcycle_right.png", (95, 50, 660, 485)),
    "pagoda": Crop("china.jpg", (75, 15, 395, 385)),
}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """N images (N, size, size, 3) in 8 bits, and the boxes of the objects in each, by class."""

    pixels: UInt8[np.ndarray, "n h w 3"]
    boxes: tuple[Mapping[int, Box], ...]

    @property
    def labels(self) -> Float[np.ndarray, "n classes"]:
        """1 for each class that is in the image."""
        found = np.zeros((len(self.boxes), len(OBJECTS)), np.float32)
        for row, boxes in zip(found, self.boxes, strict=True):
            row[list(boxes)] = 1
        return found


def training_scenes(
    count: int, seed: int, size: int = 224, parts: Sequence[Part] = ("training",)
) -> Scenes:
    """Images of no object, one or two, each class about as often as the others.

    With both parts of the things they are taken in turn, and nothing is left to test with.
    """
    random = np.random.default_rng([seed, 0])
    paints = [
        _Painter([getattr(item, part) for item in OBJECTS], objects.TRAINING_BACKGROUNDS, size)
        for part in parts
    ]
    canvases = []
    for i in range(count):
        first, second = _pair(i // len(parts))
        chosen = () if random.random() < _EMPTY else (first, second)[: random.integers(1, 3)]
        canvases.append(paints[i % len(parts)].scene(chosen, random))
    return _scenes(canvases)


def held_out_scenes(count: int, seed: int, size: int = 224) -> Scenes:
    """Images of two different objects, side by side or one above the other, both whole."""
    random = np.random.default_rng([seed, 1])  # not those of the training scenes
    paint = _Painter([item.test for item in OBJECTS], objects.TEST_BACKGROUNDS, size)
    return _scenes(paint.scene(_pair(i), random) for i in range(count))


def photo_scenes(recipe: Preprocessing, size: int = 224) -> Scenes:
    """Two photos as they are: the second camera's motorcycle, and the pagoda in its landscape."""
    canvases = []
    for name, crop in _PHOTOS.items():
        image = objects.open_photo(crop.photo)
        # Where the box gets to, whatever the recipe does: as a white patch it goes the same way.
        patch = Image.new("RGB", image.size)
        patch.paste((255, 255, 255), crop.box)
        rows, columns = np.nonzero(fit_image(patch, (size, size), recipe)[..., 0] > 127)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        number = next(i for i, item in enumerate(OBJECTS) if item.name == name)
        pixels = fit_image(image, (size, size), recipe).astype(np.float64)
        canvases.append((pixels, {number: tuple(map(int, found))}))
    return _scenes(canvases)


def _pair(i: int) -> tuple[int, int]:
    """Two different classes; all pairs in turn, so that each class comes equally often."""
    count = len(OBJECTS)
    first = i % count
    return first, (first + 1 + i // count % (count - 1)) % count


def _scenes(painted: Iterable[tuple[np.ndarray, dict[int, Box]]]) -> Scenes:
    canvases, boxes = zip(*painted, strict=True)
    return Scenes(np.stack(canvases).round().astype(np.uint8), boxes)


class _Painter:
    """Lays objects on backgrounds."""

    def __init__(self, things: Sequence[Crop], backgrounds: Sequence[Crop], size: int):
        self.things = [_cut(crop, 320) for crop in things]
        self.backgrounds = [_cut(crop, 512) for crop in backgrounds]
        self.size = size

    def scene(
        self, classes: Sequence[int], random: np.random.Generator
    ) -> tuple[np.ndarray, dict[int, Box]]:
        """A background with the objects on it, each in its own part of the image."""
        canvas = _background(self.backgrounds, self.size, random)
        cells = _cells(len(classes), self.size, random)
        return canvas, {
            item: _paste(canvas, self.things[item], cell, random)
            for item, cell in zip(classes, cells, strict=True)
        }


def _cells(count: int, size: int, random: np.random.Generator) -> list[Box]:
    """The image, or its two halves, left and right or top and bottom, in any order."""
    if count < 2:
        return [(0, 0, size, size)] * count
    half = size // 2
    if random.random() < 0.5:
        cells = [(0, 0, half, size), (half, 0, size, size)]
    else:
        cells = [(0, 0, size, half), (0, half, size, size)]
    return [cells[i] for i in random.permutation(2)]


def _paste(canvas: np.ndarray, thing: Image.Image, cell: Box, random: np.random.Generator) -> Box:
    """Put most of the object somewhere in the cell, mirrored or not; returns where it is."""
    # Not the same rim every time: three quarters of the cut-out's width and height, or more.
    whole = np.array(thing.size, np.float64)
    part = random.uniform(0.75, 1.0, 2) * whole
    start = random.uniform(0, 1, 2) * (whole - part)
    seen = (*start, *np.minimum(start + part, whole))
    corner, room = np.array(cell[:2]), np.array(cell[2:]) - cell[:2]
    scale = random.uniform(_SMALLEST * len(canvas) / room.min(), 1) * (room / part).min()
    width, height = np.minimum(np.ceil(scale * part), room).astype(int)
    small = np.asarray(thing.resize((width, height), Image.Resampling.LANCZOS, seen), np.float64)
    if random.random() < 0.5:
        small = small[:, ::-1]
    small = small * random.uniform(0.8, 1.2) * random.uniform(0.92, 1.08, 3)
    # Rounded corners with a soft rim: a hard one would be a feature of its own.
    y, x = (np.abs((np.arange(n) + 0.5) / n * 2 - 1) for n in (height, width))
    opacity = np.clip((1 - (y[:, None] ** 4 + x[None, :] ** 4)) / 0.25, 0, 1)[..., None]
    left, top = map(int, corner + random.integers(room - (width, height) + 1))
    box = left, top, left + int(width), top + int(height)
    view = canvas[box[1] : box[3], box[0] : box[2]]
    view += opacity * (np.clip(small, 0, 255) - view)
    return box


def _background(
    textures: Sequence[Image.Image], size: int, random: np.random.Generator
) -> np.ndarray:
    """A part of one of the textures, turned and coloured; as float64 (size, size, 3)."""
    texture = textures[random.integers(len(textures))]
    side = int(random.uniform(0.5, 1.0) * min(texture.size))
    left, top = (int(random.integers(length - side + 1)) for length in texture.size)
    part = texture.resize(
        (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    pixels = np.rot90(np.asarray(part, np.float64), random.integers(4))
    tint = random.uniform(0.6, 1.2) * random.uniform(0.75, 1.25, 3)
    return np.clip(pixels * tint, 0, 255)


def _cut(crop: Crop, largest: int) -> Image.Image:
    image = objects.open_photo(crop.photo).crop(crop.box)
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return image
