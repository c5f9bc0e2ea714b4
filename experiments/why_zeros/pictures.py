"""The images of the study: what Python packages carry, and what is made of it. 8-bit RGB."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flaxvgg.images.loading import fit_image, open_image
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.provenance import Preprocessing

_TEXTURES = ("brick.png", "grass.png", "gravel.png")
_GREY = ("camera.png", "coins.png", "moon.png")


def photos() -> list[Path]:
    """The eight photos that every explanation is tested on."""
    found = sample_photos()
    if len(found) < 8:
        raise ValueError("the photos are in scikit-image: pip install scikit-image")
    return found


def textures() -> list[Path]:
    """Brick, grass and gravel."""
    return [_packaged("skimage", "data", name) for name in _TEXTURES]


def sources() -> list[Path]:
    """Every picture that crops are taken from: 8 photos, 2 more, 3 in grey, 3 textures."""
    more = [
        _packaged("sklearn", "datasets", "images", name) for name in ("china.jpg", "flower.jpg")
    ]
    grey = [_packaged("skimage", "data", name) for name in _GREY]
    return [*photos(), *more, *grey, *textures()]


def _packaged(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
    if path is None or not path.exists():
        raise ValueError(f"{parts[-1]} is in scikit-image or scikit-learn: install both")
    return path


def load(paths: list[Path], size: tuple[int, int], recipe: Preprocessing) -> np.ndarray:
    """(N, H, W, 3): each picture brought to (H, W) as the recipe says."""
    return np.stack([fit_image(open_image(path), size, recipe) for path in paths])


def detail(pixels: np.ndarray) -> np.ndarray:
    """Detail of images (N, H, W, 3): mean difference between neighbouring pixels, of 255 levels."""
    x = pixels.astype(np.float64)
    return (
        np.abs(np.diff(x, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(x, axis=2)).mean((1, 2, 3))
    ) / 2


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Images (N, H, W, 3) under a Gaussian of `sigma` pixels."""
    gaussian = ImageFilter.GaussianBlur(sigma)
    return np.stack([np.asarray(Image.fromarray(image).filter(gaussian)) for image in pixels])


def uniform(colours: list[tuple[int, int, int]], size: tuple[int, int]) -> np.ndarray:
    """One image (H, W, 3) of each colour."""
    return np.stack([np.full((*size, 3), colour, np.uint8) for colour in colours])


def ramps(size: tuple[int, int]) -> np.ndarray:
    """Black to white from left to right, and from top to bottom."""
    h, w = size
    across = np.broadcast_to(np.linspace(0, 255, w)[None, :, None], (h, w, 3))
    down = np.broadcast_to(np.linspace(0, 255, h)[:, None, None], (h, w, 3))
    return np.stack([across, down]).astype(np.uint8)


def chequers(side: int, size: tuple[int, int]) -> np.ndarray:
    """One chequerboard (1, H, W, 3) of black and white squares of `side` pixels."""
    rows, columns = np.indices(size) // side
    return np.repeat((255 * ((rows + columns) % 2)).astype(np.uint8)[None, ..., None], 3, axis=-1)


def uniform_noise(count: int, size: tuple[int, int], block: int = 1) -> np.ndarray:
    """Noise (N, H, W, 3): every value equally likely, the same in blocks of `block` pixels."""
    h, w = size
    small = np.random.default_rng(block).integers(
        0, 256, (count, -(-h // block), -(-w // block), 3), np.uint8
    )
    return small.repeat(block, axis=1).repeat(block, axis=2)[:, :h, :w]


def gaussian_noise(count: int, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Mid-grey (N, H, W, 3) with normal noise of `sigma` levels on it."""
    noise = np.random.default_rng(0).normal(128, sigma, (count, *size, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def pink_noise(count: int, size: tuple[int, int], sigma: float = 50) -> np.ndarray:
    """Noise (N, H, W, 3) with the 1/f amplitudes of natural images, and no objects in it."""
    white = np.random.default_rng(1).standard_normal((count, *size, 3))
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :])
    frequency[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(white, axes=(1, 2)) / frequency[None, ..., None]
    pink = np.fft.irfft2(spectrum, size, axes=(1, 2))
    pink *= sigma / pink.std(axis=(1, 2), keepdims=True)
    return np.clip(128 + pink, 0, 255).astype(np.uint8)


def random_crops(paths: list[Path], count: int, size: tuple[int, int]) -> np.ndarray:
    """`count` crops of each picture (N, H, W, 3), at random places, scales and mirrored or not.

    A crop's side is 35 to 100 % of the picture's shorter side. All first crops come first.
    """
    rng = np.random.default_rng(0)
    opened = [open_image(path) for path in paths]
    found = []
    for _ in range(count):
        for image in opened:
            side = rng.uniform(0.35, 1.0) * min(image.size)
            left, top = rng.uniform(0, 1, 2) * (np.array(image.size) - side)
            box = (left, top, left + side, top + side)
            crop = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
            found.append(np.asarray(crop)[:, :: rng.choice((-1, 1))])
    return np.stack(found)
