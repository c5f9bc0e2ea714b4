"""The same loss in PyTorch, on the same convolutions, with its own optimisers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from experiments.lpips_parity import peers
from experiments.style_transfer.ours import (
    CONTENT_LAYER,
    LAYERS,
    MEMORY,
    RATE,
    STYLE_LAYERS,
    Course,
)
from flaxvgg.network.config import VGGConfig

_MEAN, _STD = (
    torch.tensor(values, dtype=torch.float64)[:, None, None]
    for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
)


class Loss:
    """The loss of an image (1, 3, H, W) in (0, 1), in a dtype."""

    def __init__(
        self,
        convolutions: Mapping[str, np.ndarray],
        content: np.ndarray,
        style: np.ndarray,
        weight: float,
        dtype: torch.dtype = torch.float32,
    ):
        network = peers.vgg("vgg16", convolutions, dtype).features
        names = VGGConfig.features_only("vgg16", "").layer_names
        last = 1 + max(map(names.index, LAYERS))
        layers = [
            torch.nn.AvgPool2d(2) if isinstance(layer, torch.nn.MaxPool2d) else layer
            for layer in network[:last]
        ]
        self._layers = dict(zip(names, layers, strict=False))
        self._weight, self._dtype = weight, dtype
        self._scale = _MEAN.to(dtype), _STD.to(dtype)
        with torch.no_grad():
            self._content = self._features(self.tensor(content))[CONTENT_LAYER]
            of_style = self._features(self.tensor(style))
            self._grams = {name: _gram(of_style[name]) for name, _ in STYLE_LAYERS}

    def tensor(self, image: np.ndarray) -> torch.Tensor:
        """An image (1, H, W, 3) as it is taken here."""
        return peers.tensor(image, self._dtype)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        found = self._features(image)
        content = (found[CONTENT_LAYER] - self._content).square().mean()
        style = torch.zeros((), dtype=self._dtype)
        for name, weight in STYLE_LAYERS:
            style = style + weight * (_gram(found[name]) - self._grams[name]).square().mean() / 4
        return content + self._weight * style

    def _features(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        mean, std = self._scale
        x = (image - mean) / std
        found = {}
        for name, layer in self._layers.items():
            x = layer(x)
            if name in LAYERS:
                found[name] = x
        return found


def _gram(maps: torch.Tensor) -> torch.Tensor:
    x = maps.flatten(2)
    return x @ x.transpose(1, 2) / x.shape[2]


def value_and_gradient(loss: Loss, image: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss of an image (1, H, W, 3), and its gradient of that shape."""
    x = loss.tensor(image).requires_grad_(True)
    value = loss(x)
    value.backward()
    return float(value.detach()), peers.array(x.grad)


def by_adam(loss: Loss, start: np.ndarray, steps: int) -> list[float]:
    """The losses of so many steps, each before its step."""
    x = loss.tensor(start).requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=RATE)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    return losses


def by_lbfgs(loss: Loss, start: np.ndarray, steps: int, marks: Sequence[int]) -> Course:
    """L-BFGS with PyTorch's strong Wolfe line search; `marks` are the steps with an image."""
    x = loss.tensor(start).requires_grad_(True)
    no_end = {"tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimiser = torch.optim.LBFGS(
        [x], max_iter=1, max_eval=25, history_size=MEMORY, line_search_fn="strong_wolfe", **no_end
    )
    last: list[Any] = [None, None]  # the image that was looked at last, and its loss
    count = 0

    def closure() -> torch.Tensor:
        nonlocal count
        if last[0] is None or not torch.equal(last[0], x.detach()):  # a step begins where one ended
            count += 1
            optimiser.zero_grad()
            value = loss(x)
            value.backward()
            last[:] = x.detach().clone(), value.detach()
        return last[1]

    losses, evaluations, images = [], [], {}
    for step in range(1, steps + 1):
        before = count
        losses.append(float(optimiser.step(closure)))
        evaluations.append(before + 1 if step == 1 else before)
        if step in marks:
            images[step] = peers.array(x)[0]
    return Course(losses, evaluations, images)
