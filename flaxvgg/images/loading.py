"""Image files -> normalised batches, one recipe per published set of weights.

    find_images -> open_image -> fit_image -> normalise        (load_images does the last three)

The recipes are data, `flaxvgg.network.provenance.PREPROCESSING`; a recipe's name does as well.
"""

import contextlib
import io
import operator
import os
import stat
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from flaxvgg.files.foreign import AnyPath
from flaxvgg.images.finding import ImageError as ImageError
from flaxvgg.images.finding import as_paths, kind_of, unreachable
from flaxvgg.images.finding import find_images as find_images
from flaxvgg.images.inside import Inside
from flaxvgg.images.orientation import orientation
from flaxvgg.network.config import SMALLEST_IMAGE
from flaxvgg.network.provenance import PREPROCESSING, Preprocessing

Size = tuple[SupportsIndex, SupportsIndex]  # (height, width) in pixels; NumPy's integers too

# Of the decoders that Pillow has, those of these files. It would hand PostScript to Ghostscript.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def load_images(
    paths: AnyPath | Iterable[AnyPath],
    size: Size | None = (224, 224),
    preprocessing: Preprocessing | str = PREPROCESSING["torchvision"],
) -> Float32[Array, "n h w 3"]:
    """The batch (N, H, W, 3) of image files, as networks with torchvision's recipe take it.

    `paths` are N files, or one; `size` is (H, W) in pixels, or None for images that all have the
    same size and keep it. See `open_image`, `fit_image` and `normalise` for what happens to each.
    Weights of other origin want another `preprocessing`: with a model at hand,
    `model.load_images(paths)` takes the model's own. Raises ImageError with every file that cannot
    be used.

        images = flaxvgg.load_images(["a.jpg", "b.jpg"], preprocessing="keras")

    >>> images = flaxvgg.load_images(["cat.jpg", "photos/dog.png"], (64, 64))
    >>> images.shape, images.dtype.name
    ((2, 64, 64, 3), 'float32')
    """
    recipe, size = _recipe(preprocessing), _checked_size(size)
    files = as_paths(paths)
    first, batch, problems = files[0], np.empty(0, np.uint8), []
    for i, path in enumerate(files):
        try:
            pixels = load_pixels(path, size, recipe)
            if not batch.size:  # allocated once, in 8 bits: a quarter of what it becomes
                first, batch = path, np.empty((len(files), *pixels.shape), np.uint8)
            if pixels.shape != batch.shape[1:]:
                sizes = f"{_shown(pixels.shape)}, but {first} has {_shown(batch.shape[1:])}"
                raise ImageError(f"{path}: {sizes}: one batch has one size, pass size=(H, W)")
            batch[i] = pixels
        except ImageError as error:
            problems += error.problems
    if problems:
        raise ImageError(*problems)
    return normalise(batch, recipe)


# Pillow's decoders share no exception: these are what they raise for damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, LookupError, RuntimeError, MemoryError),
    Image.DecompressionBombError,
)


def open_image(file: AnyPath | bytes | Inside) -> Image.Image:
    """The image in a file, or in the bytes of one, upright, in 8-bit RGB.

    The orientation that a camera noted (EXIF) is applied, which plain Pillow, torchvision and Keras
    leave out; transparency is dropped, showing the colours underneath, as they do. Of an animation
    or a document of many pages it is the first. 16-bit grey is scaled to 8 bits (Pillow clips it).
    Raises ImageError for a file that is missing, damaged or no image, and for grey images of 32-bit
    numbers, whose range nothing tells.

    >>> image = flaxvgg.open_image("cat.jpg")
    >>> image.mode, image.size
    ('RGB', (80, 60))
    """
    return open_turned(file)[0]


def open_turned(file: AnyPath | bytes | Inside) -> tuple[Image.Image, int]:
    """What `open_image` gives, and the orientation (EXIF, 1 to 8) that it was stored in."""
    if isinstance(file, Inside):
        try:
            return open_turned(file.read())
        except ImageError as error:
            raise ImageError(f"{file}: {str(error).removeprefix('image: ')}") from error
    path = None if isinstance(file, bytes) else Path(file)
    try:
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            switch = "PIL.ImageFile.LOAD_TRUNCATED_IMAGES"
            raise ImageError(f"{switch} is on, which hides truncated files: set it to False")
        with io.BytesIO(file) if path is None else _regular(path) as opened:
            image = _decoded(opened)
            turned = orientation(image)
            return upright(image), turned
    except _DAMAGE as error:
        raise ImageError(f"{path or 'image'}: {_reason(path, error)}") from error


def upright(image: Image.Image) -> Image.Image:
    """An image of Pillow as `open_image` gives it. The image given is changed."""
    ImageOps.exif_transpose(image, in_place=True)
    image.info.pop("transparency", None)  # Pillow would warn that it gets lost
    return _to_rgb(image)


def fit_image(
    image: Image.Image,
    size: Size | None = (224, 224),
    preprocessing: Preprocessing | str = PREPROCESSING["torchvision"],
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image from `open_image` at `size` = (H, W), or at its own size for None.

    Recipes that crop scale the image to cover (8H//7, 8W//7) and cut out the centre: at (224, 224)
    that is torchvision's resize to 256 and crop to 224, rounding included. Recipes that stretch
    resize it to (H, W). Raises ImageError for a size, or with None for an image, under 32x32, for
    an image too large (or elongated) once scaled, and for one that is not RGB.

    >>> image = flaxvgg.open_image("cat.jpg")
    >>> flaxvgg.fit_image(image, (224, 224)).shape
    (224, 224, 3)
    """
    recipe, size = _recipe(preprocessing), _checked_size(size)
    if image.mode != "RGB":
        raise ImageError(f"an image of mode {image.mode}: pass open_image(path)")
    shown = _shown((image.height, image.width))
    if size is None:
        if min(image.size) < SMALLEST_IMAGE:
            least = f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
            raise ImageError(f"{shown}, but the network needs {least}: pass size=(H, W)")
        return np.array(image)
    height, width = size
    scaled, (left, top) = _placed(image.size, size, recipe)
    resample = Image.Resampling[recipe.interpolation.upper()]
    if recipe.fit == "stretch":
        return np.array(image.resize(scaled, resample))
    # The limit above which Pillow opens no image holds for one made by scaling too.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and scaled[0] * scaled[1] > 2 * limit:
        raise ImageError(f"{shown}, too large once scaled to cover {size}: crop it first")
    return np.array(image.resize(scaled, resample).crop((left, top, left + width, top + height)))


def fit_boxes(
    boxes: Int[np.ndarray, "g 4"],
    image_size: tuple[int, int],
    size: Size | None = (224, 224),
    preprocessing: Preprocessing | str = PREPROCESSING["torchvision"],
) -> Int[np.ndarray, "kept 4"]:
    """Where boxes of an image are once `fit_image` has brought it to `size` = (H, W).

    Boxes are (left, top, right, bottom) in whole pixels, the last two exclusive; `image_size` is
    (height, width). A box is rounded outwards and cut at the border; those of which nothing is left
    behind the crop are left out.
    """
    recipe, size = _recipe(preprocessing), _checked_size(size)
    height, width = image_size
    target = size or image_size
    scaled, offset = _placed((width, height), target, recipe) if size else ((width, height), (0, 0))
    scale = np.array(scaled) / (width, height)
    corners = boxes.reshape(-1, 2, 2) * scale - offset
    # A corner that is whole but for rounding stays where it is.
    low, high = np.floor(corners[:, 0] + 1e-6), np.ceil(corners[:, 1] - 1e-6)
    low, high = np.maximum(low, 0), np.minimum(high, target[::-1])
    fitted = np.concatenate([low, high], axis=1).astype(int)
    return fitted[(high > low).all(axis=1)]


def _placed(
    image: tuple[int, int], size: tuple[int, int], recipe: Preprocessing
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size (width, height) that an image is scaled to, and where (H, W) begins in it."""
    (full_width, full_height), (height, width) = image, size
    if recipe.fit == "stretch":
        return (width, height), (0, 0)
    # The side that decides gets its length exactly, the other is truncated, as in torchvision.
    cover_height, cover_width = height * 256 // 224, width * 256 // 224
    if cover_height * full_width >= cover_width * full_height:
        scaled = int(cover_height * full_width / full_height), cover_height
    else:
        scaled = cover_width, int(cover_width * full_height / full_width)
    # Half pixels round to even: Python's round, as in torchvision.
    return scaled, (round((scaled[0] - width) / 2), round((scaled[1] - height) / 2))


def load_pixels(
    path: AnyPath | Inside,
    size: Size | None = (224, 224),
    preprocessing: Preprocessing | str = PREPROCESSING["torchvision"],
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of one image file at `size`: `open_image`, then `fit_image`.

    Raises ImageError, with the path, for a file that cannot be used.
    """
    image = open_image(path)
    try:
        return fit_image(image, size, preprocessing)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def normalise(
    pixels: UInt8[Array | np.ndarray, "*n h w 3"],
    preprocessing: Preprocessing | str = PREPROCESSING["torchvision"],
) -> Float32[Array, "*n h w 3"]:
    """8-bit RGB pixels as the network takes them: (pixels / divisor - mean) / std in float32.

    Pixels and result are (..., H, W, 3). The result is rounded as in PyTorch and Keras, bit for
    bit, on every device and under `jax.jit`. Raises ImageError for anything but 8-bit RGB.

    >>> pixels = np.zeros((1, 64, 64, 3), np.uint8)
    >>> flaxvgg.normalise(pixels)[0, 0, 0]
    Array([-2.117904 , -2.0357141, -1.8044444], dtype=float32)
    """
    if pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,):
        is_pixels = f"{pixels.dtype} of shape {pixels.shape}"
        raise ImageError(f"pixels must be uint8 of shape (..., H, W, 3), not {is_pixels}")
    return _normalise(pixels, recipe=_recipe(preprocessing))


@partial(jax.jit, static_argnames="recipe")
def _normalise(pixels: Array, recipe: Preprocessing) -> Array:
    # A table of the 256 values for each channel, made by NumPy: XLA would multiply by a rounded
    # reciprocal where the arithmetic says divide, and two pixels in three would be off by a bit.
    values = np.arange(256, dtype=np.float32) / np.float32(recipe.divisor)
    mean, std = (np.array(v, np.float32)[:, None] for v in (recipe.mean, recipe.std))
    table = jnp.asarray(((values - mean) / std).ravel())
    if recipe.channels == "BGR":
        pixels = pixels[..., ::-1]
    start = np.arange(0, 768, 256, dtype=np.int32).reshape((1,) * (pixels.ndim - 1) + (3,))
    # Under a mesh with explicit axes a gather has to be told that the batch stays as it is sharded.
    return table.at[pixels.astype(np.int32) + start].get(out_sharding=jax.typeof(pixels).sharding)


def _regular(path: Path) -> io.BufferedIOBase:
    """The opened file: not by its path, since Pillow would map it, past some of its own checks."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("a folder: pass find_images(folder)")
    if not stat.S_ISREG(mode):
        raise ImageError("no regular file: reading it may never end")
    return path.open("rb")


def _decoded(file: io.BufferedIOBase) -> Image.Image:
    """The image of one of the formats that we know, once it is seen to be whole."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    image = Image.open(file, formats=formats)
    if image.format in ("PNG", "JPEG2000"):  # whose damage Pillow decodes without a word
        file.seek(0)
        if image.format == "PNG":  # the checksums of the pixels
            Image.open(file, formats=["PNG"]).verify()
        elif not _has_end_of_codestream(file.read()):
            raise OSError("its end is missing")
        file.seek(0)
        image = Image.open(file, formats=[image.format])
    return image


def _has_end_of_codestream(data: bytes) -> bool:
    """Whether a JPEG 2000 image ends with its marker (ISO/IEC 15444-1, A.4.4 and I.4)."""
    if data[4:8] != b"jP  ":  # a bare codestream
        return data.endswith(b"\xff\xd9")
    place = 0
    while place + 16 <= len(data):
        size, kind, longer = struct.unpack_from(">I4sQ", data, place)
        size = {0: len(data) - place, 1: longer}.get(size, size)
        if kind == b"jp2c":
            return data[place : place + size].endswith(b"\xff\xd9")
        if size < 8:
            return False
        place += size
    return False


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow reads 16-bit PGM, and in older versions 16-bit PNG, into 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # BitsPerSample: a TIFF may have 12
        # The upper eight bits, which is also what Pillow takes of 16-bit colour.
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError("32-bit grey values of unknown range: save it as 8-bit or 16-bit PNG")
    return image.convert("RGB")


def _reason(path: Path | None, error: Exception) -> str:
    match error:
        case ImageError():
            return str(error)
        case Image.DecompressionBombError():
            return f"{error}: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        case MemoryError():
            return "it asks for more memory than there is: damaged, or scale it down"
        case UnidentifiedImageError() if path is None:
            return "no image that Pillow reads: its bytes are to be those of a whole file"
        case _ if path is None:
            return f"damaged or truncated ({error}): get it again"
        case UnidentifiedImageError():
            return _no_image(path)
        case OSError(errno=int()):
            return unreachable(error)
        case ValueError() if "\0" in str(path):
            return unreachable(error)
        case _:
            return f"damaged or truncated ({error}): get it again"


def _no_image(path: Path) -> str:
    """What a file is that Pillow does not read."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file: get it again"
    kind = kind_of(start)
    if kind:
        return f"no image that Pillow reads but {kind}: save it as PNG or JPEG"
    return f"no image that Pillow reads (it begins with {start[:16]}): save it as PNG or JPEG"


def _checked_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    with contextlib.suppress(TypeError, ValueError):  # of what has no two whole numbers in it
        height, width = map(operator.index, size)
        if min(height, width) >= SMALLEST_IMAGE:
            return height, width
    least = (SMALLEST_IMAGE, SMALLEST_IMAGE)
    raise ImageError(f"size must be (height, width) of at least {least}, or None, not {size!r}")


def _recipe(preprocessing: Preprocessing | str) -> Preprocessing:
    if not isinstance(preprocessing, str):
        return preprocessing
    if preprocessing in PREPROCESSING:
        return PREPROCESSING[preprocessing]
    names = ", ".join(PREPROCESSING)
    raise ImageError(f"no preprocessing {preprocessing!r}: choose from {names}")


def _shown(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} pixels (height x width)"
