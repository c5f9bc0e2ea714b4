"""The data: objects cut out of eight photos, pasted over textures, with their places known.

There is no data set on this road: what Python packages carry is a few photos. So each class is one
object of one photo. For training it is turned, coloured, scaled and put anywhere on some textures;
for testing, two objects share an image, at other sizes and on textures that were not seen before.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from flaxvgg.images import fit_image, open_image
from flaxvgg.provenance import Preprocessing

Box = tuple[int, int, int, int]  # left, top, right, bottom: pixels, the last two exclusive


@dataclasses.dataclass(frozen=True)
class Object:
    """One class: what is in the box of a photo, and ImageNet's name for it, if it has one."""

    name: str
    photo: str
    box: Box
    imagenet: str = ""


OBJECTS = (
    Object("astronaut", "astronaut.png", (100, 0, 400, 370)),
    Object("cat", "chelsea.png", (40, 0, 380, 300), "Egyptian cat"),
    Object("cup", "coffee.png", (140, 5, 485, 350), "espresso"),
    Object("rocket", "rocket.jpg", (250, 110, 395, 427), "missile"),
    Object("motorcycle", "motorcycle_left.png", (125, 50, 690, 485), "moped"),
    Object("flower", "flower.jpg", (155, 55, 470, 375), "daisy"),
    Object("pagoda", "china.jpg", (75, 15, 395, 385), "palace"),
    Object("retina", "retina.jpg", (0, 0, 1411, 1411)),
)
# The same object, from the second of two cameras: for testing.
_OTHER_VIEW = {"motorcycle_left.png": ("motorcycle_right.png", (95, 50, 660, 485))}
_TRAINING_TEXTURES = ("brick.png", "grass.png", "ihc.png", "hubble_deep_field.jpg")
_TEST_TEXTURES = ("gravel.png", "moon.png", "page.png")
_TRAINING_SIDES = (60, 260)  # the longer side of an object, in pixels of an image of 224
_TEST_SIDES = (75, 110)
_EMPTY = 0.15  # of the training images show no object


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


def training_scenes(count: int, seed: int, size: int = 224) -> Scenes:
    """Images with one object or none, each class as often as the others."""
    random = np.random.default_rng(seed)
    textures = [_open(name) for name in _TRAINING_TEXTURES]
    cutouts = [_cut(item.photo, item.box) for item in OBJECTS]
    pixels, boxes = [], []
    for i in range(count):
        canvas = _background(textures, size, random)
        placed: dict[int, Box] = {}
        if random.random() >= _EMPTY:
            item = i % len(OBJECTS)
            side = _side(_TRAINING_SIDES, size, random)
            # The middle of the object is in the image; its rim need not be.
            centre = random.uniform(0.1, 0.9, 2) * size
            placed[item] = _paste(canvas, cutouts[item], side, centre, random)
        pixels.append(canvas)
        boxes.append(placed)
    return _scenes(pixels, boxes)


def held_out_scenes(count: int, seed: int, size: int = 224) -> Scenes:
    """Images with two different objects, side by side or one above the other, both whole."""
    random = np.random.default_rng([seed, 1])  # not those of the training scenes
    textures = [_open(name) for name in _TEST_TEXTURES]
    cutouts = [_cut(*_OTHER_VIEW.get(item.photo, (item.photo, item.box))) for item in OBJECTS]
    pixels, boxes = [], []
    for i in range(count):
        canvas = _background(textures, size, random)
        first = i % len(OBJECTS)
        second = (first + 1 + i // len(OBJECTS) % (len(OBJECTS) - 1)) % len(OBJECTS)
        across, placed = random.random() < 0.5, {}
        for item, half in zip((first, second), random.permutation(2), strict=True):
            side = _side(_TEST_SIDES, size, random)
            middle = half * size / 2 + size / 4
            free = random.uniform(side / 2, size - side / 2)
            centre = np.array([middle, free] if across else [free, middle])
            placed[item] = _paste(canvas, cutouts[item], side, centre, random)
        pixels.append(canvas)
        boxes.append(placed)
    return _scenes(pixels, boxes)


def photo_scenes(recipe: Preprocessing, size: int = 224) -> Scenes:
    """Two photos as they are: the second camera's motorcycle, and the pagoda in its landscape."""
    pixels, boxes = [], []
    for name in ("motorcycle", "pagoda"):
        number, item = next((i, x) for i, x in enumerate(OBJECTS) if x.name == name)
        photo, box = _OTHER_VIEW.get(item.photo, (item.photo, item.box))
        image = _open(photo)
        pixels.append(fit_image(image, (size, size), recipe).astype(np.float64))
        # Where the box gets to, whatever the recipe does: as a white patch it goes the same way.
        patch = Image.new("RGB", image.size)
        patch.paste((255, 255, 255), box)
        rows, columns = np.nonzero(fit_image(patch, (size, size), recipe)[..., 0] > 127)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes.append({number: tuple(map(int, found))})
    return _scenes(pixels, boxes)


def _scenes(pixels: list[np.ndarray], boxes: list[dict[int, Box]]) -> Scenes:
    return Scenes(np.stack(pixels).round().astype(np.uint8), tuple(boxes))


def _paste(
    canvas: np.ndarray,
    cutout: Image.Image,
    side: float,
    centre: np.ndarray,
    random: np.random.Generator,
) -> Box:
    """Put the object on the canvas, as one would lay a picture down; returns where it is."""
    scale = side / max(cutout.size)
    width, height = (max(8, round(length * scale)) for length in cutout.size)
    small = np.asarray(cutout.resize((width, height), Image.Resampling.LANCZOS), np.float64)
    if random.random() < 0.5:
        small = small[:, ::-1]
    small = small * random.uniform(0.8, 1.2) * random.uniform(0.92, 1.08, 3)
    # Rounded corners with a soft rim: a hard one would be a feature of its own.
    y, x = (np.abs((np.arange(n) + 0.5) / n * 2 - 1) for n in (height, width))
    opacity = np.clip((1 - (y[:, None] ** 4 + x[None, :] ** 4)) / 0.25, 0, 1)[..., None]
    left, top = (round(c - n / 2) for c, n in zip(centre, (width, height), strict=True))
    size = len(canvas)
    box = max(left, 0), max(top, 0), min(left + width, size), min(top + height, size)
    inside = slice(box[1] - top, box[3] - top), slice(box[0] - left, box[2] - left)
    view = canvas[box[1] : box[3], box[0] : box[2]]
    view += opacity[inside] * (np.clip(small[inside], 0, 255) - view)
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


def _side(sides: tuple[int, int], size: int, random: np.random.Generator) -> float:
    """A length between the two, which are meant for images of 224 pixels."""
    return np.exp(random.uniform(*np.log(sides))) * size / 224


def _cut(photo: str, box: Box) -> Image.Image:
    image = _open(photo).crop(box)
    image.thumbnail((320, 320), Image.Resampling.LANCZOS)
    return image


def _open(name: str) -> Image.Image:
    """A picture that scikit-image or scikit-learn carries; neither is imported."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / folder / name
            if path.exists():
                return open_image(path)
    raise ValueError(f"{name} is in scikit-image or scikit-learn: install both")
