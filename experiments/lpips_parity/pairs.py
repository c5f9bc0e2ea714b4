"""What is compared: photos with each other, and with themselves under distortions."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from flaxvgg.images.loading import load_pixels
from flaxvgg.images.samples import sample_photos, title_of

Distort = Callable[[Image.Image, float], Image.Image]
STRENGTHS = (0.25, 0.5, 1.0)


def _noise(image: Image.Image, strength: float) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noise = np.random.default_rng(0).standard_normal(pixels.shape)
    return _image(pixels + 60 * strength * noise)


def _salt(image: Image.Image, strength: float) -> Image.Image:
    pixels = np.asarray(image).copy()
    chance = np.random.default_rng(0).random(pixels.shape[:2])
    pixels[chance < 0.08 * strength] = 255
    pixels[chance > 1 - 0.08 * strength] = 0
    return Image.fromarray(pixels)


def _jpeg(image: Image.Image, strength: float) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=round(40 - 35 * strength))
    return Image.open(data).convert("RGB")


def _shift(image: Image.Image, strength: float) -> Image.Image:
    return _image(np.roll(np.asarray(image), round(8 * strength), axis=(0, 1)))


def _turn(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(10 * strength, Image.Resampling.BILINEAR)


def _small(image: Image.Image, strength: float) -> Image.Image:
    width, height = image.size
    small = image.resize((int(width / (1 + 5 * strength)), int(height / (1 + 5 * strength))))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _blocks(image: Image.Image, strength: float) -> Image.Image:
    pixels = np.asarray(image).copy()
    rng = np.random.default_rng(0)
    for _ in range(round(12 * strength)):
        y, x = rng.integers(0, min(pixels.shape[:2]) - 12, 2)
        pixels[y : y + 12, x : x + 12] = 128
    return Image.fromarray(pixels)


def _fade(image: Image.Image, strength: float) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, (128, 128, 128)), 0.8 * strength)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


DISTORTIONS: dict[str, Distort] = {
    "blur": lambda image, s: image.filter(ImageFilter.GaussianBlur(4 * s)),
    "noise": _noise,
    "salt and pepper": _salt,
    "JPEG": _jpeg,
    "shift": _shift,
    "turn": _turn,
    "low resolution": _small,
    "missing blocks": _blocks,
    "darker": lambda image, s: ImageEnhance.Brightness(image).enhance(1 - 0.7 * s),
    "less contrast": _fade,
    "less colour": lambda image, s: ImageEnhance.Color(image).enhance(1 - s),
    "posterised": lambda image, s: image.quantize(round(2 ** (5 - 4 * s))).convert("RGB"),
}


def photo_pairs(size: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every pair of the packaged photos: names, and two batches of pixels (N, H, W, 3)."""
    photos = {title_of(path): load_pixels(path, (size, size)) for path in sample_photos()}
    names = list(photos)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    first, second = (np.stack([photos[pair[i]] for pair in pairs]) for i in (0, 1))
    return [f"{a} and {b}" for a, b in pairs], first, second


def distorted_pairs(size: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The second of the photos and itself under each distortion, at each strength."""
    pixels = load_pixels(sample_photos()[1], (size, size))
    image = Image.fromarray(pixels)
    names = [f"{name} {strength:g}" for name in DISTORTIONS for strength in STRENGTHS]
    found = [np.asarray(f(image, s)) for f in DISTORTIONS.values() for s in STRENGTHS]
    return names, np.stack([pixels] * len(found)), np.stack(found)
