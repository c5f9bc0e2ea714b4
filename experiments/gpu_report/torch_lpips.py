"""LPIPS 0.1 written plainly in PyTorch (Zhang et al. 2018, arXiv:1801.03924).

On torchvision's layers, whose ReLUs may be in place.
"""

from collections.abc import Sequence

import numpy as np
import torch

# Of `features`: the five ReLUs before the poolings.
_TAPS = (3, 8, 15, 22, 29)
# ImageNet's mean and deviation for values in (-1, 1), to the digits that the package lpips has.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LPIPS(torch.nn.Module):
    """The distance (N,) of images (N, 3, H, W) in (-1, 1), both in one pass of 2 N."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, features: torch.nn.Sequential, linear: Sequence[np.ndarray]):
        super().__init__()
        self.features = features[: _TAPS[-1] + 1]
        like = next(features.parameters())
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            tensor = torch.tensor(values, dtype=like.dtype, device=like.device)
            self.register_buffer(name, tensor.view(1, 3, 1, 1))
        for i, weights in enumerate(linear):
            tensor = torch.tensor(np.array(weights), dtype=like.dtype, device=like.device)
            self.register_buffer(f"linear{i}", tensor.view(1, -1, 1, 1))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """As the package computes it."""
        x = (torch.cat([a, b]) - self.shift) / self.scale
        total = torch.zeros(len(a), dtype=x.dtype, device=x.device)
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in _TAPS:
                length = torch.sqrt((x**2).sum(dim=1, keepdim=True))
                first, second = (x / (length + _EPSILON)).chunk(2)
                weights = getattr(self, f"linear{_TAPS.index(number)}")
                total = total + ((first - second) ** 2 * weights).sum(dim=1).mean(dim=(1, 2))
        return total
