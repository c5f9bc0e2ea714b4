"""Class activation maps beside PyTorch's own, both against float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.gpu_report import torch_maps, torch_side
from experiments.gpu_report.subject import HIGHEST, on_device
from experiments.gpu_report.torch_side import Networks
from flaxvgg.cam.methods import METHODS, explain
from flaxvgg.conversion.rule import keeps_rule, ratio_of
from flaxvgg.network.model import VGG

_WRITTEN = tuple(method for method in METHODS if method in torch_maps.METHODS)
WITH_CLASSIFIER = tuple(method for method in _WRITTEN if method != "cam")
WITH_GAP = tuple(method for method in _WRITTEN if method != "fully_convolutional")


def check(
    model: VGG, networks: Networks, images: np.ndarray, method: str, classes: Sequence[int]
) -> dict[str, Any]:
    """One method's raw maps at `highest`: our error against float64, and PyTorch's."""
    found = explain(model, on_device(images, HIGHEST), list(classes), method)
    ours = torch_side.shared(found.maps)
    with torch_side.arithmetic(HIGHEST):
        truth, theirs = (
            torch_maps.maps_of(
                network,
                torch_side.tensor(images).to(next(network.parameters()).dtype),
                classes,
                method,
            )
            for network in (networks.double, networks.single)
        )
    error, peer = (torch_side.relative_error(x, truth) for x in (ours, theirs))
    return {
        "method": method,
        "shape": list(ours.shape),
        "error": error,
        "peer_error": peer,
        "ratio": ratio_of(error, peer),
        "holds": keeps_rule(error, peer),
    }
