"""EXIF's orientation, and boxes turned by it; pixels are turned in `loading.upright`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import ExifTags, Image

# Which sides of the stored image become left and top: whether x and y change places, and then which
# of them run backwards. 6, for one, is to be turned clockwise.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of an image, 1 to 8, that is not upright yet; 1 where there is none."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in _TURNS else 1


def upright_boxes(
    boxes: Int[np.ndarray, "g 4"],
    size: tuple[int, int],
    orientation: int,
    annotated: tuple[int, int] | None = None,
) -> Int[np.ndarray, "g 4"]:
    """Boxes of the stored pixels as they lie on the upright image of `size` = (height, width).

    Boxes are (left, top, right, bottom), the last two exclusive. Some programs show photos upright
    to those who annotate them; their boxes stay as they are. Which it was shows where the turn
    swaps the sides: by the `annotated` size that an annotation gives, or else by a box that is in
    the upright image and not in the stored one.
    """
    swapped, backwards_x, backwards_y = _TURNS[orientation]
    height, width = size
    if swapped and _seen_upright(boxes, size, annotated):
        return boxes
    left, top, right, bottom = boxes.T
    if swapped:
        left, top, right, bottom = top, left, bottom, right
    if backwards_x:
        left, right = width - right, width - left
    if backwards_y:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=1)


def _seen_upright(
    boxes: np.ndarray, size: tuple[int, int], annotated: Sequence[int] | None
) -> bool:
    """Whether who annotated an image whose sides the turn swaps saw it upright."""
    height, width = size
    if annotated is not None and tuple(annotated) in (size, size[::-1]) and height != width:
        return tuple(annotated) == size
    right, bottom = boxes[:, 2:].max(axis=0, initial=0).tolist()
    return (right > height or bottom > width) and right <= width and bottom <= height
