"""Photos to try things on: the ones that scikit-image carries."""

import importlib.util
from pathlib import Path

_NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
)

# What is in them, where the file's name does not say it.
_TITLES = {
    "chelsea.png": "cat",
    "coffee.png": "cup",
    "motorcycle_left.png": "motorcycle",
    "hubble_deep_field.jpg": "galaxies (Hubble)",
    "ihc.png": "tissue (stained)",
}


def title_of(photo: Path) -> str:
    """A photo's name for people: what is in it, or its file's name without the ending."""
    if photo in sample_photos():
        return _TITLES.get(photo.name, photo.stem)
    return photo.stem.replace("_", " ")


def sample_photos(count: int = len(_NAMES)) -> list[Path]:
    """Up to eight photos in scikit-image's wheel; empty where it is not installed.

    scikit-image itself is not imported.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    photos = [Path(spec.origin).parent / "data" / name for name in _NAMES]
    return [photo for photo in photos if photo.exists()][:count]
