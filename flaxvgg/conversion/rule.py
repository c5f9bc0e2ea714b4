"""The numbers rule: our float32 outputs and zeros beside another framework's, against float64.

The rule: at every layer our error against the float64 truth is at most 1.5 times PyTorch's own
float32 error (twice ONNX Runtime's), or at most 2 eps, where both are so small that their ratio
only counts roundings; every output of a ReLU is >= 0; and where the truth and we disagree about
which activations are zero, the true pre-activation is within rounding of zero.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxvgg.network.config import Layer, VGGConfig

MAX_RATIO = {"PyTorch": 1.5, "ONNX Runtime": 2.0}
FLOOR = 2 * float(np.finfo(np.float32).eps)  # 2.4e-7: an error that is right whatever the peer's
_LOCATED = 10_000  # flips of one layer that are looked at; a port with more is wrong
ROUNDING = 16  # a flip is explained where |z| <= 16 eps (sum |w||x| + |b|)


def keeps_rule(error: float, peer_error: float, peer: str = "PyTorch") -> bool:
    """Whether an error against float64 is as small as the rule asks; `peer` is in MAX_RATIO."""
    return error <= FLOOR or ratio_of(error, peer_error) <= MAX_RATIO[peer]


def ratio_of(error: float, peer_error: float) -> float:
    """An error in units of the peer's; 0 where it is 0."""
    if error == 0:
        return 0.0
    return error / peer_error if peer_error else float("inf")


def limit(peer: str = "PyTorch") -> str:
    """What `keeps_rule` allows, in words for a page."""
    return f"ratio at most {MAX_RATIO[peer]}, or error at most {FLOOR:.1e} (2 eps)"


class Reference(NamedTuple):
    """One layer as others compute it, in our layout: the float64 truth and a peer's float32."""

    layer: str
    truth: np.ndarray
    output: np.ndarray


class Flip(NamedTuple):
    """An activation that is zero on one side only: where, its true pre-activation, and how large
    that may be to be rounding."""

    place: tuple[int, ...]
    truth: float
    bound: float

    @property
    def explained(self) -> bool:
        """Whether rounding alone can have made the difference."""
        return bool(abs(self.truth) <= self.bound)


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """One layer's verdict. Errors are root mean squares relative to that of the truth.

    `flipped` locates the first ones of the `flips`; those beyond are counted as unexplained.
    """

    layer: str
    peer: str
    shape: tuple[int, ...]
    error: float
    peer_error: float
    negatives: int
    zeros: float
    flips: int
    unexplained: int
    flipped: tuple[Flip, ...] = ()

    @property
    def ratio(self) -> float:
        """Our error in units of the peer's; 0 where both are exact."""
        return ratio_of(self.error, self.peer_error)

    @property
    def holds(self) -> bool:
        """Whether the layer keeps the rule."""
        small = keeps_rule(self.error, self.peer_error, self.peer)
        return small and not self.negatives and not self.unexplained


def compare(
    config: VGGConfig,
    parameters: Mapping[tuple[str, ...], np.ndarray],
    images: np.ndarray,
    ours: dict[str, Any],
    peer: str,
    references: Iterable[Reference],
) -> Iterator[LayerCheck]:
    """Check every layer of `references`, in the order of the forward pass.

    `parameters` are the model's (Flax path -> array), `images` (N, H, W, 3) what all were fed,
    `ours` our float32 outputs by layer (emptied on the way); `peer` is a key of MAX_RATIO. Raises
    KeyError where we miss a layer.
    """
    layers = {layer.name: layer for layer in config.layers}
    rooms = {layer.name: "conv_stack" for layer in config.conv_stack}
    inputs = np.asarray(images, np.float64)  # of the last convolution or linear layer
    before = inputs  # the truth of the layer before this one
    weighted: Layer | None = None
    norm: Layer | None = None
    for name, truth, other in references:
        layer, output = layers[name], np.asarray(ours.pop(name))
        if layer.kind in ("conv", "linear"):
            inputs, weighted, norm = before, layer, None
        elif layer.kind == "batch_norm":
            norm = layer
        flipped: list[Flip] = []
        flips = negatives = 0
        if layer.kind == "relu":
            assert weighted is not None
            negatives = int((output < 0).sum())
            if output.shape == truth.shape:  # else the error says so already
                places = np.argwhere((output == 0) != (truth == 0))
                flips = len(places)
                scale = Rounding(parameters, rooms.get(weighted.name, "head"), weighted, norm)
                unit = ROUNDING * float(np.finfo(output.dtype).eps)
                for place in places[:_LOCATED]:
                    at = tuple(int(i) for i in place)
                    flipped.append(Flip(at, float(before[at]), unit * scale(inputs, at)))
        yield LayerCheck(
            layer=name,
            peer=peer,
            shape=output.shape,
            error=relative_error(output, truth),
            peer_error=relative_error(other, truth),
            negatives=negatives,
            zeros=float((output == 0).mean()),
            flips=flips,
            unexplained=flips - sum(flip.explained for flip in flipped),
            flipped=tuple(flipped),
        )
        before = truth


def relative_error(output: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square of output - truth, relative to that of truth; infinite for another shape."""
    if output.shape != truth.shape:
        return float("inf")
    size = float(np.linalg.norm(truth.ravel())) or 1.0
    differences = [  # of one image after the other, to need less memory
        np.linalg.norm(np.subtract(a, b, dtype=np.float64).ravel())
        for a, b in zip(output, truth, strict=True)
    ]
    return float(np.linalg.norm(differences)) / size


class Rounding:
    """The magnitude that rounding errors of one pre-activation are relative to.

    That is sum |w||x| + |b| over its window, carried through the BatchNorm where one follows.
    """

    def __init__(self, parameters, room: str, layer: Layer, norm: Layer | None):
        self.layer = layer
        kernel = np.asarray(parameters[room, layer.name, "kernel"])
        self.kernel = kernel.reshape(layer.kernel, layer.kernel, layer.inputs, layer.outputs)
        self.bias = np.asarray(parameters[room, layer.name, "bias"], np.float64)
        self.norm = None
        if norm is not None:
            self.norm = {
                name: np.asarray(parameters[room, norm.name, name], np.float64)
                for name in ("scale", "bias", "mean", "var")
            }

    def __call__(self, inputs: np.ndarray, place: tuple[int, ...]) -> float:
        channel = place[-1]
        weights = np.abs(self.kernel[..., channel].astype(np.float64))
        if self.layer.kind == "conv":
            n, row, column, _ = place
            pad = self.layer.kernel // 2
            image = inputs[n]
            if self.layer.padding == "replicate":
                rows, columns = (
                    np.clip(np.arange(at - pad, at + pad + 1), 0, size - 1)
                    for at, size in zip((row, column), image.shape, strict=False)
                )
                window = np.abs(image[np.ix_(rows, columns)])
            else:
                top, left = max(row - pad, 0), max(column - pad, 0)
                window = np.abs(image[top : row + pad + 1, left : column + pad + 1])
                k = weights[top - row + pad :, left - column + pad :]
                weights = k[: window.shape[0], : window.shape[1]]
        else:
            window = np.abs(inputs[place[0]]).reshape(weights.shape)
        size = float((weights * window).sum() + abs(self.bias[channel]))
        if self.norm is not None:
            scale, bias, mean, var = (
                self.norm[name][channel] for name in ("scale", "bias", "mean", "var")
            )
            size = abs(scale) / np.sqrt(var + 1e-5) * (size + abs(mean)) + abs(bias)
        return size
