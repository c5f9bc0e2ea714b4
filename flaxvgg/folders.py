"""A folder of results: checked before the work begins, and every file in it whole."""

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flaxvgg.checkpoint import write_atomically
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_folder(out: Path) -> None:
    """Raise ValueError, before any work is done, where `out` can be no folder with pictures."""
    new_figure()
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file: choose a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{existing} cannot be written to: choose another folder")


def check_apart(out: Path, photos: Iterable[Path]) -> None:
    """Raise ValueError where a photo is in `out` itself, since its picture might replace it."""
    for photo in photos:
        if photo.resolve().parent == out.resolve():
            raise ValueError(f"{photo} is in {out}, where pictures will be: choose another folder")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, all or nothing, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(target: Path) -> None:
        target.write_bytes(data)

    write_atomically(path.absolute(), write)


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name may be of any script, and is no less of one where the font has boxes for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png")
    return file.getvalue()
