"""How Orbax saves and loads a model, in one thread at a time; and which files are its own."""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

# What Orbax and TensorStore run into in files that were cut off or spoiled.
ORBAX_DAMAGE = (ValueError, OSError, KeyError, TypeError, NotImplementedError, RecursionError)

_ONE = threading.RLock()  # Orbax cannot save and load in two threads at once


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Save, in all processes alike: Orbax compares the paths that they give."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Trained float32 weights compress by 7 %, which takes longer than writing them.
    context.array.saving.use_compression = False
    with _ONE, context:
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Load: each process for itself, whatever the others do."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if jax.process_count() > 1:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    with _ONE, context:
        yield


# What Orbax makes, whatever it calls the tree; and what systems put into folders by themselves.
_ORBAX_FILES = re.compile(
    r"(\w+/)?(_\w+|orbax\.checkpoint|commit_success\.txt)"
    r"|\w+/((ocdbt\.process_\d+/)?(d/\w+|manifest\.\w+)|array_metadatas/process_\d+)"
    r"|(.*/)?(\.DS_Store|Thumbs\.db|desktop\.ini|\.nfs\w+)"
)


def foreign_files(folder: Path) -> list[str]:
    """The files in a checkpoint's directory that are none of its own."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if not _ORBAX_FILES.fullmatch(name)]
