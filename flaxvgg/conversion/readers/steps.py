"""Layers met on a walk through a file's network, whatever the format, and how they slide.

Nothing here knows VGG: what is no layer of `flaxvgg.network.config` keeps its name in the file.
"""

import dataclasses
from collections.abc import Iterable
from operator import add
from typing import Any, NamedTuple

import numpy as np

from flaxvgg.network.config import POOLED_SIZE

# Operators of ONNX that compute in whole numbers, or round to them on the way.
QUANTISED = (
    *(
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
    ),
    *("ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearGlobalAveragePool"),
)


class Window(NamedTuple):
    """How a convolution or pooling slides; with `rounds_up` its last window may hang over."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    rounds_up: bool = False

    def differences(self, other: "Window") -> str:
        """What differs, in words: `pads (0, 0, 0, 0), not (1, 1, 1, 1)`."""
        pairs = zip(self._fields, self, other, strict=True)
        return ", ".join(f"{name} {mine}, not {its}" for name, mine, its in pairs if mine != its)


@dataclasses.dataclass
class Step:
    """One layer met on the walk.

    `kind` is a `flaxvgg.network.config.Kind`, or the file's own word where there is no such layer.
    `layout` names the axes of the output `tensor`: NCHW, NHWC, NU for units, or "" where it is
    unknown; for a flattening it is the layout before. `weights` have PyTorch's names; those of a
    linear layer are (inputs, outputs).
    """

    kind: str
    node: str
    tensor: str
    layout: str
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    window: Window | None = None
    epsilon: float = 1e-5


def slide(
    attributes: dict[str, Any], kernel: Iterable[int], pads: Iterable[int], size: list[int]
) -> Window:
    """The window of a Conv or pooling node behind a padding, for images of that size (0: any)."""
    kernel = tuple(kernel)
    strides = tuple(attributes.get("strides", (1, 1)))
    dilations = tuple(attributes.get("dilations", (1, 1)))
    lengths = [length or 1 for length in size]  # of any size: the odd ones are those that matter
    own = tuple(attributes.get("pads", (0, 0, 0, 0)))
    if {len(kernel), len(strides), len(dilations)} != {len(size)} or min(strides) < 1:
        return Window(kernel, strides, own, dilations, attributes.get("group", 1))  # none of VGG's
    if attributes.get("auto_pad", b"NOTSET").startswith(b"SAME"):
        spans = [
            max(-(-n // s) * s - s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True)
        ]
        own = [span // 2 for span in spans] + [span - span // 2 for span in spans]
    hangs_over = any((n - k) % s for n, k, s in zip(lengths, kernel, strides, strict=True))
    rounds_up = bool(attributes.get("ceil_mode", 0)) and hangs_over
    pads = tuple(map(add, own, pads))
    return Window(kernel, strides, pads, dilations, attributes.get("group", 1), rounds_up)


def pooled(size: list[int], window: Window) -> list[int]:
    """The size of the maps behind a pooling without padding."""
    return [n // max(stride, 1) for n, stride in zip(size, window.strides, strict=False)]


def is_adaptive(window: Window, size: list[int]) -> bool:
    """Whether an average pooling is what torchvision's adaptive one is for this size of map."""
    tiles = window == Window(window.kernel, strides=window.kernel)
    return tiles and (window.kernel == (1, 1) or size == [POOLED_SIZE * k for k in window.kernel])
