"""The numbers rule at every layer, in three kinds of arithmetic, where the tensors are.

`flaxvgg.conversion.rule` looks at flips one by one on the host; a GPU's outputs of 4 million
pixels are compared on the GPU, and the rounding that explains a flip is computed for all places at
once.
"""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.gpu_report import torch_side
from experiments.gpu_report.subject import HIGHEST, Mode, on_device
from experiments.gpu_report.torch_side import Networks
from flaxvgg.conversion.pytorch import TorchLayer, torch_layers
from flaxvgg.conversion.rule import ROUNDING, Flip, LayerCheck
from flaxvgg.conversion.verify import all_outputs
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG

_LOCATED = 3  # flips of one layer whose places are written down
COARSE = 1.2  # how much worse than PyTorch's own in the same mode TF32 and bfloat16 may be


class Row(NamedTuple):
    """One layer in one mode: the check of ours, and PyTorch's own flips."""

    mode: str
    check: LayerCheck
    peer_flips: int
    peer_unexplained: int

    def to_json(self) -> dict[str, Any]:
        """The row with the first flips' places, true pre-activations and bounds."""
        check = self.check
        return {
            "layer": check.layer,
            "mode": self.mode,
            "values": math.prod(check.shape),
            "error": check.error,
            "peer_error": check.peer_error,
            "ratio": check.ratio,
            "negatives": check.negatives,
            "zeros": check.zeros,
            "flips": check.flips,
            "unexplained": check.unexplained,
            "peer_flips": self.peer_flips,
            "peer_unexplained": self.peer_unexplained,
            "first_flips": [flip._asdict() for flip in check.flipped],
            # What coarser arithmetic is held to is PyTorch's in the same mode, over all layers.
            "holds": check.holds if self.mode == HIGHEST.name else not check.negatives,
        }


Outputs = dict[str, torch.Tensor]


def check(
    config: VGGConfig, models: Mapping[Mode, VGG], networks: Networks, images: np.ndarray
) -> Iterator[Row]:
    """Check every layer of our models, a mode at a time, on images (N, H, W, 3)."""

    def outputs_of(mode: Mode) -> Outputs:
        found = all_outputs(models[mode], on_device(images, mode))
        return {name: torch_side.shared(array) for name, array in found.items()}

    with ThreadPoolExecutor() as pool:  # XLA compiles the modes' programs side by side
        ours = dict(zip(models, pool.map(outputs_of, models), strict=True))
    return check_outputs(config, ours, networks, images)


def check_outputs(
    config: VGGConfig, ours: Mapping[Mode, Outputs], networks: Networks, images: np.ndarray
) -> Iterator[Row]:
    """Check our outputs by mode and layer, which are emptied on the way."""
    walks = {
        mode: torch_layers(
            config,
            networks.in_mode(mode),
            torch_side.tensor(images, torch_side.dtype_of(mode)),
        )
        for mode in ours
    }
    weighted: TorchLayer | None = None
    norm: Layer | None = None
    for true in torch_layers(config, networks.double, torch_side.tensor(images, torch.float64)):
        if true.layer.kind in ("conv", "linear"):
            weighted, norm = true, None
        elif true.layer.kind == "batch_norm":
            norm = true.layer
        size = None
        if true.layer.kind == "relu":
            assert weighted is not None
            size = _our_layout(_rounding_size(networks.double, weighted, norm))
        for mode, walk in walks.items():
            with torch_side.arithmetic(mode):
                theirs = next(walk).in_our_layout
            yield _row(mode, true, size, ours[mode].pop(true.layer.name), theirs)


def _row(
    mode: Mode,
    true: TorchLayer,
    size: torch.Tensor | None,
    ours: torch.Tensor,
    theirs: torch.Tensor,
) -> Row:
    truth = true.in_our_layout
    counts = [(0, 0), (0, 0)]
    flipped: list[Flip] = []
    if size is not None and ours.shape == truth.shape:
        before = _our_layout(true.inputs)
        bound = ROUNDING * mode.eps * size
        masks = [(output == 0) != (truth == 0) for output in (ours, theirs)]
        counts = [(int(x.sum()), int((x & (before.abs() > bound)).sum())) for x in masks]
        for place in torch.nonzero(masks[0])[:_LOCATED].tolist():
            at = tuple(place)
            flipped.append(Flip(at, float(before[at]), float(bound[at])))
    found = LayerCheck(
        layer=true.layer.name,
        peer="PyTorch",
        shape=tuple(ours.shape),
        error=torch_side.relative_error(ours, truth),
        peer_error=torch_side.relative_error(theirs, truth),
        negatives=int((ours < 0).sum()) if true.layer.kind == "relu" else 0,
        zeros=float((ours == 0).double().mean()),
        flips=counts[0][0],
        unexplained=counts[0][1],
        flipped=tuple(flipped),
    )
    return Row(mode.name, found, *counts[1])


def _our_layout(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1) if x.ndim == 4 else x


def _rounding_size(
    double: torch.nn.Module, weighted: TorchLayer, norm: Layer | None
) -> torch.Tensor:
    """sum |w||x| + |b| of every pre-activation, carried through a BatchNorm that follows."""
    module: Any = double.get_submodule(weighted.layer.torch)
    with torch.inference_mode():
        weight, bias, x = module.weight.abs(), module.bias.abs(), weighted.inputs.abs()
        if weighted.layer.kind == "linear":
            size = torch.nn.functional.linear(x, weight, bias)
        else:
            images = x.split(1)  # see torch_layers: float64 takes much memory
            size = torch.cat([torch.conv2d(i, weight, bias, padding="same") for i in images])
        if norm is not None:
            following: Any = double.get_submodule(norm.torch)
            scale = following.weight.abs() / (following.running_var + norm.eps).sqrt()
            shift = scale * following.running_mean.abs() + following.bias.abs()
            size = size * scale[:, None, None] + shift[:, None, None]
    return size


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One mode of one network, over its layers: mean and worst ratio of errors, and all flips."""
    worst = max(rows, key=lambda row: row["ratio"])
    ratios = [row["ratio"] for row in rows if row["peer_error"] > 0]
    finite = bool(ratios) and all(0 < ratio < math.inf for ratio in ratios)
    return {
        "mean_ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)) if finite else math.inf,
        "worst_ratio": worst["ratio"],
        "worst_layer": worst["layer"],
        "largest_error": max(row["error"] for row in rows),
        "relus": sum(row["values"] for row in rows if row["layer"].startswith("relu")),
        **{
            name: sum(row[name] for row in rows)
            for name in ("negatives", "flips", "unexplained", "peer_flips", "peer_unexplained")
        },
        "failing": [row["layer"] for row in rows if not row["holds"]],
    }
