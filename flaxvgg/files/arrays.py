"""Arrays in a .npz file, all or none."""

from pathlib import Path

import numpy as np

from flaxvgg.files.replacing import sweep, write_atomically


def check_npz(out: Path) -> None:
    """Raise ValueError, before any work is done, where the .npz file cannot be written.

    What writers that were killed have left there is removed.
    """
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the arrays are written as .npz; give a name that ends so")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.absolute().parent} is no directory: create it first")
    sweep(out.absolute().parent)


def save_npz(out: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays to a .npz file, all or none; bfloat16 becomes float32, which NumPy knows."""
    known = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in arrays.items()
    }
    write_atomically(out.absolute(), lambda target: np.savez(target, **known))
