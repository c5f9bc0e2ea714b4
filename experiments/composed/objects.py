"""The classes: which part of which photo is an object, for training and for testing.

There is no data set on this road: what Python packages carry is a few photos, and a class is one
thing in one photo. So each thing is cut in two: one part is for training, the other for testing,
and no pixel is in both. Backgrounds are likewise two sets of other pictures.
"""

import dataclasses
import importlib.util
from pathlib import Path

from PIL import Image

from flaxvgg.images.datasets import Box
from flaxvgg.images.loading import open_image


@dataclasses.dataclass(frozen=True)
class Crop:
    """A part of a photo that a package carries."""

    photo: str
    box: Box


@dataclasses.dataclass(frozen=True)
class Object:
    """One class, and ImageNet's name for it, if it has one."""

    name: str
    training: Crop
    test: Crop
    imagenet: str = ""


def _halves(photo: str, box: Box, middle: int) -> tuple[Crop, Crop]:
    """The box cut at the column `middle`: left for training, right for testing."""
    left, top, right, bottom = box
    return Crop(photo, (left, top, middle, bottom)), Crop(photo, (middle, top, right, bottom))


# The rear as one camera saw it, and the front as another did: by the disparities that come with the
# photos, what is at column 355 of the right one is behind column 365 of the left one.
_MOTORCYCLE = (
    Crop("motorcycle_left.png", (95, 60, 365, 430)),
    Crop("motorcycle_right.png", (355, 60, 660, 450)),
)
# Too slim for halves: its lower and its upper part.
_ROCKET = Crop("rocket.jpg", (270, 260, 376, 427)), Crop("rocket.jpg", (270, 112, 376, 260))

OBJECTS = (
    Object("astronaut", *_halves("astronaut.png", (85, 10, 345, 380), 230)),
    Object("cat", *_halves("chelsea.png", (40, 0, 390, 300), 255), "Egyptian cat"),
    Object("cup", *_halves("coffee.png", (75, 15, 480, 385), 270), "espresso"),
    Object("rocket", *_ROCKET, "missile"),
    Object("motorcycle", *_MOTORCYCLE, "moped"),
    Object("flower", *_halves("flower.jpg", (160, 75, 455, 370), 305), "daisy"),
    Object("pagoda", *_halves("china.jpg", (65, 20, 365, 385), 205), "palace"),
    Object("retina", *_halves("retina.jpg", (0, 0, 1411, 1411), 705)),
    Object("galaxies", *_halves("hubble_deep_field.jpg", (0, 0, 1000, 872), 500)),
    Object("tissue", *_halves("ihc.png", (0, 0, 512, 512), 256)),
    Object("coins", *_halves("coins.png", (15, 20, 384, 230), 185)),
)

TRAINING_BACKGROUNDS = (
    Crop("brick.png", (0, 0, 512, 512)),
    Crop("grass.png", (0, 0, 512, 512)),
    Crop("text.png", (0, 0, 448, 172)),
    Crop("camera.png", (0, 0, 512, 512)),
    # What is around some of the things: it is there without them, too.
    Crop("coffee.png", (485, 0, 600, 400)),
    Crop("rocket.jpg", (400, 0, 640, 427)),
    Crop("china.jpg", (370, 0, 640, 427)),
)
TEST_BACKGROUNDS = (
    Crop("gravel.png", (0, 0, 512, 512)),
    Crop("moon.png", (0, 0, 512, 512)),
    Crop("page.png", (0, 0, 384, 191)),
    Crop("flower.jpg", (460, 0, 640, 380)),  # the leaves behind it
)


def open_photo(name: str) -> Image.Image:
    """A picture that scikit-image or scikit-learn carries; neither is imported.

    Raises ValueError where it is not installed.
    """
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / folder / name
            if path.exists():
                return open_image(path)
    raise ValueError(f"{name} is in scikit-image or scikit-learn: install both")
