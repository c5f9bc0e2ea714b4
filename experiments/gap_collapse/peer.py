"""The same network in PyTorch, of PyTorch's own layers."""

from collections import OrderedDict

import torch

from flaxvgg.network.config import Layer, VGGConfig


class Network(torch.nn.Module):
    """A convolution stack with a score map, as one writes it in PyTorch; in training mode.

    PyTorch initialises it; its state dict is what `flaxvgg.from_torch` takes with this `config`.
    """

    def __init__(self, config: VGGConfig):
        super().__init__()
        self.features = torch.nn.Sequential(
            OrderedDict(
                (layer.torch.removeprefix("features."), _module(layer))
                for layer in config.layers
                if layer.torch.startswith("features.")
            )
        )
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        linear = [layer for layer in config.head if layer.torch == "classifier"]
        self.classifier = _module(linear[0]) if linear else torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The scores (N, K) of images (N, 3, H, W)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def _module(layer: Layer) -> torch.nn.Module:
    match layer.kind:
        case "conv":
            size, padding = layer.kernel, layer.kernel // 2
            return torch.nn.Conv2d(layer.inputs, layer.outputs, size, padding=padding)
        case "batch_norm":
            return torch.nn.BatchNorm2d(layer.outputs, eps=layer.eps, momentum=layer.momentum)
        case "relu":
            return torch.nn.ReLU()
        case "leaky_relu":
            return torch.nn.LeakyReLU()
        case "shifted_relu":
            return torch.nn.Threshold(-1, -1)
        case "max_pool":
            return torch.nn.MaxPool2d(2)
        case "linear":
            return torch.nn.Linear(layer.inputs, layer.outputs)
    raise ValueError(f"a network with a score map has no {layer.kind}")


def channels_first(images) -> torch.Tensor:
    """Images (N, H, W, 3) as a tensor (N, 3, H, W) of their own."""
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()
