"""The versions that numbers depend on."""

import importlib.metadata

from flaxvgg import __version__


def versions() -> dict[str, str]:
    """The versions that numbers depend on, by package."""
    names = ("jax", "flax", "numpy", "pillow")
    return {"flaxvgg": __version__} | {name: importlib.metadata.version(name) for name in names}
