"""What every reader gives: weights under torchvision's names, and where they come from."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flaxvgg.provenance import Provenance


class SourceError(ValueError):
    """The source cannot be read as VGG weights; the message is one line that says what to do."""


@dataclasses.dataclass
class Source:
    """Weights as they were read.

    `state_dict` has torchvision's names and layouts (fc6 may be (4096, 25088), or (4096, 512, 7, 7)
    with fc7 and fc8 alike); values are tensors or arrays, views where a view will do. `notes` says
    what was left out and why, a line each. `layer_outputs`, where the source can be run as it is,
    computes the float32 outputs (N, h, w, c) of its layers, by the paper's names, from images
    (N, H, W, 3) that were preprocessed already; `runs_with` names what it runs with.
    """

    arch: str
    state_dict: dict[str, Any]
    provenance: Provenance
    notes: tuple[str, ...] = ()
    layer_outputs: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    runs_with: str = ""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
