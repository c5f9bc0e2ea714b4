"""What every reader gives: weights under torchvision's names, and where they come from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxvgg.network.provenance import Preprocessing, Provenance
from flaxvgg.weights.published import sha256 as sha256


class SourceError(ValueError):
    """The source cannot be read as VGG weights; the message is one line that says what to do."""


class CannotRunError(SourceError):
    """A framework does not run the source as it is; nothing is said of its weights."""


@dataclasses.dataclass
class SourceWeights:
    """Weights as they were read.

    `state_dict` has torchvision's names and layouts (fc6 may be (4096, 25088), or (4096, 512, 7, 7)
    with fc7 and fc8 alike); values are tensors or arrays, views where a view will do. `notes` says
    what was left out and why, a line each. `layer_outputs`, where the source can be run as it is,
    computes the float32 outputs (N, h, w, c) of its layers, by the paper's names, from images
    (N, H, W, 3) that were preprocessed already; `runs_with` names what it runs with. `release`
    gives the memory of an array back that was mapped from the file. `front` is the recipe for the
    first convolution, of one for the file's own input: what stands between the two is in it.
    """

    arch: str
    state_dict: dict[str, Any]
    provenance: Provenance
    notes: tuple[str, ...] = ()
    layer_outputs: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    runs_with: str = ""
    release: Callable[[np.ndarray], None] = lambda array: None
    front: Callable[[Preprocessing], Preprocessing] = lambda recipe: recipe
