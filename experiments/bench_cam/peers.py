"""The packages' side: PyTorch with hooks, as their documentation calls them."""

import contextlib
import importlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from experiments.bench_cam.ours import SEVERAL, StateDict
from experiments.timing import Call, Case
from experiments.torch_device import DEVICE, wait
from flaxvgg.conversion.pytorch import torch_networks
from flaxvgg.network.config import VGGConfig

_GRAD_CAM = {
    "grad_cam": "GradCAM",
    "grad_cam++": "GradCAMPlusPlus",
    "xgrad_cam": "XGradCAM",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "elementwise_grad_cam": "GradCAMElementWise",
    "eigen_grad_cam": "EigenGradCAM",
    "eigen_cam": "EigenCAM",
    "full_grad": "FullGrad",
    "score_cam": "ScoreCAM",
    "ablation_cam": "AblationCAM",
}
_TORCHCAM = {
    "grad_cam": "GradCAM",
    "grad_cam++": "GradCAMpp",
    "xgrad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
    "score_cam": "ScoreCAM",
    "cam": "CAM",
}
TOOLS = ("grad-cam", "torchcam")
# Forward passes that do not depend on the channels: the hooked one, and one for the scores.
_FIXED_PASSES = {("grad-cam", "score_cam"): 1, ("grad-cam", "ablation_cam"): 2}
_FIXED_PASSES[("torchcam", "score_cam")] = 2
_ONE_CLASS = ("eigen_cam", "full_grad", "score_cam", "ablation_cam", "cam")


def network(config: VGGConfig, state_dict: StateDict) -> Any:
    """torchvision's network with the same weights, its ReLUs in place as it has them."""
    copied = {name: np.array(array) for name, array in state_dict.items()}
    model = torch_networks(config, copied)[1]
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
    return model.to(DEVICE)


def cases(
    model: Any,
    images: np.ndarray,
    kept: int,
    methods: Sequence[str],
    tools: Sequence[str] = TOOLS,
) -> Iterator[Case]:
    """What the packages have of the methods, for one class and for 8, at the last ReLU."""
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(DEVICE)
    layer = list(model.features.children())[-2]  # the ReLU before pool5
    channels = next(p for p in reversed(list(model.features.parameters())) if p.ndim == 4).shape[0]
    for tool in tools:
        known = _GRAD_CAM if tool == "grad-cam" else _TORCHCAM
        for method in (name for name in methods if name in known):
            called, at = (model, layer) if method != "cam" else _with_gap(model)
            for classes in (1,) if method in _ONE_CLASS else (1, SEVERAL):
                fixed = _FIXED_PASSES.get((tool, method))
                part = kept if fixed else None
                make = _with_grad_cam if tool == "grad-cam" else _with_torchcam
                call = _waiting(make(known[method], called, at, x, classes, part))
                forward = _waiting(_forward(called, x))
                if fixed is None:
                    yield Case(method, classes, tool, call, forward)
                else:
                    yield Case(method, classes, tool, call, forward, kept, channels, fixed)


def _waiting(call: Call) -> Call:
    def waited() -> object:
        found = call()
        wait()
        return found

    return waited


def _forward(model: torch.nn.Module, x: torch.Tensor) -> Call:
    def forward() -> object:
        with torch.inference_mode():
            return model(x)

    return forward


def _first(kept: int | None):
    """What either package may do to activations: here, keep the first channels only."""
    return None if kept is None else lambda activations: activations[:, :kept]


def _with_grad_cam(
    name: str, model, layer, x: torch.Tensor, classes: int, kept: int | None
) -> Call:
    package = importlib.import_module("pytorch_grad_cam")
    method, layers = getattr(package, name), [] if name == "FullGrad" else [layer]
    targets = [package.utils.model_targets.ClassifierOutputTarget(c) for c in range(classes)]
    batch = x.repeat(classes, 1, 1, 1)  # the package has one class for each image

    def call() -> object:
        quiet = contextlib.redirect_stderr(io.StringIO())  # its progress bars
        with quiet, method(model, layers, reshape_transform=_first(kept)) as cam:
            return cam(input_tensor=batch, targets=targets)

    return call


def _with_torchcam(
    name: str, model, layer, x: torch.Tensor, classes: int, kept: int | None
) -> Call:
    # For CAM the name of the linear layer: it would say that it had to look for it.
    named = {"fc_layer": "3"} if name == "CAM" else {}
    by_gradients = name not in ("CAM", "ScoreCAM")
    method = getattr(importlib.import_module("torchcam.methods"), name)

    def call() -> object:
        with method(model, layer, reshape_transform=_first(kept), **named) as cam:
            with torch.inference_mode(not by_gradients):
                scores = model(x)
            if classes == 1:
                return cam(0, scores)
            return [cam(c, scores, retain_graph=c < classes - 1) for c in range(classes)]

    return call


def _with_gap(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same convolutions with global average pooling and one linear layer, and what it pools."""
    gap = torch.nn.Sequential()
    gap.append(model.features).append(torch.nn.AdaptiveAvgPool2d(1)).append(torch.nn.Flatten())
    channels = next(p for p in reversed(list(model.features.parameters())) if p.ndim == 4).shape[0]
    gap.append(torch.nn.Linear(channels, model.classifier[-1].out_features))
    return gap.eval().to(DEVICE), list(model.features.children())[-1]
