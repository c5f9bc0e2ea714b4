"""What is measured: one layer's error for points, ways to sum and transforms, in PyTorch's own."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.winograd_errors import sums
from experiments.winograd_errors.sums import COMPENSATED, PLAIN, WAYS, Way
from experiments.winograd_errors.transforms import (
    TAPS,
    Points,
    Tile,
    both_axes,
    inputs_by_steps,
    results_by_steps,
)
from flaxvgg.conversion.rule import relative_error
from flaxvgg.network.model import VGG

LAYERS = ("conv1_2", "conv2_2", "conv3_2", "conv4_2", "conv5_2")
REGION = 4  # pixels of a sample, along one axis: tiles of 2 and of 4 cover it
_ROOT = 2**0.5


def square(name: str, *finite: float) -> Tile:
    """The same points along both axes."""
    points = Points(name, finite, len(finite) - 1)
    return Tile(points, points)


SMALL = square("0, ±1", 0, 1, -1)
THREE = square("±7/16, ±5/4", 0.4375, -0.4375, 1.25, -1.25)
USUAL = square("0, ±1, ±2", 0, 1, -1, 2, -2)
FOUR = square("0, ±5/8, ±3/2", 0, 0.625, -0.625, 1.5, -1.5)
WIDE_TILE = Tile(SMALL.down, FOUR.across)
TILES = (
    SMALL,
    WIDE_TILE,
    square("0, ±1, 1/2", 0, 1, -1, 0.5),
    square("±1/2, ±3/2", 0.5, -0.5, 1.5, -1.5),
    THREE,
    Tile(FOUR.down, THREE.across),
    USUAL,
    square("0, ±1, 1/2, -3", 0, 1, -1, 0.5, -3),
    square("0, ±1/√2, ±√2", 0, 1 / _ROOT, -1 / _ROOT, _ROOT, -_ROOT),
    square("0, ±3/4, ±3/2", 0, 0.75, -0.75, 1.5, -1.5),
    FOUR,
)
Steps = Literal["once", "steps"]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How a layer is computed.

    Transforms of `inputs` and `results` are float64 rounded once, or float32 rounded at every step.
    The kernel's transform is always float64 rounded once.
    """

    way: Way = PLAIN
    inputs: Steps = "once"
    results: Steps = "once"


class Sample(NamedTuple):
    """Regions of one layer's maps, their neighbourhoods, and some of its outputs.

    `truth` is the float64 result of the float32 `regions`, and `peer` PyTorch's float32 one.
    """

    regions: Float[np.ndarray, "tiles 6 6 channels"]
    kernel: Float[np.ndarray, "3 3 channels outputs"]
    bias: Float[np.ndarray, " outputs"]
    truth: Float[np.ndarray, "tiles 4 4 outputs"]
    peer: Float[np.ndarray, "tiles 4 4 outputs"]


def sample(
    maps: Float[np.ndarray, "n h w channels"],
    kernel: Float[np.ndarray, "3 3 channels outputs"],
    bias: Float[np.ndarray, " outputs"],
    tiles: int,
    outputs: int,
    rng: np.random.Generator,
) -> Sample:
    """`tiles` regions drawn from every image, edges included, and `outputs` drawn channels."""
    chosen = np.sort(rng.permutation(kernel.shape[-1])[:outputs])
    kernel, bias = kernel[..., chosen], bias[chosen]
    peer = np.concatenate([by_pytorch(image[None], kernel, bias) for image in maps])
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = list(itertools.product(*(range(0, n - REGION + 1, REGION) for n in maps.shape[1:3])))
    regions, theirs = [], []
    for image, found in zip(padded, peer, strict=True):
        for i in rng.permutation(len(corners))[:tiles]:
            row, column = corners[i]
            size = REGION + TAPS - 1
            regions.append(image[row : row + size, column : column + size])
            theirs.append(found[row : row + REGION, column : column + REGION])
    every = np.stack(regions)
    return Sample(every, kernel, bias, _direct(every, kernel, bias), np.stack(theirs))


def _direct(regions: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    found = np.zeros((len(regions), REGION, REGION, kernel.shape[-1]))
    for i, j in np.ndindex(TAPS, TAPS):
        window = regions[:, i : i + REGION, j : j + REGION].astype(np.float64)
        found += window @ kernel[i, j].astype(np.float64)
    return found + bias


def by_pytorch(images: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """PyTorch's convolution of maps (N, h, w, channels), in the dtype of the arrays."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    weight = torch.from_numpy(np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1))))
    with torch.inference_mode():
        found = torch.nn.functional.conv2d(x, weight, torch.from_numpy(bias), padding=1)
    return np.moveaxis(found.numpy(), 1, -1)


def samples(
    model: VGG, images: np.ndarray, layers: Sequence[str], tiles: int, outputs: int, seed: int = 0
) -> dict[str, Sample]:
    """A sample of every layer, on what the model hands to it."""
    rng, found = np.random.default_rng(seed), {}
    names = list(model.config.layer_names)
    before = {layer: names[names.index(layer) - 1] for layer in layers}
    maps = model.activations(images, list(before.values()))
    for layer, name in before.items():
        module: Any = getattr(model.conv_stack, layer)
        kernel, bias = np.asarray(module.kernel[...]), np.asarray(module.bias[...])
        found[layer] = sample(np.asarray(maps[name]), kernel, bias, tiles, outputs, rng)
    return found


class Ratio(NamedTuple):
    """Relative errors against float64 (RMS) in units of PyTorch's on the same values.

    Of the layer's outputs, and of what its ReLU leaves of them.
    """

    before_relu: float
    after_relu: float


def ratio(found: Sample, tile: Tile, arithmetic: Arithmetic) -> Ratio:
    """The layer's errors in units of PyTorch's."""
    result = layer(found, tile, arithmetic)
    rows, columns = result.shape[1:3]
    truth, peer = found.truth[:, :rows, :columns], found.peer[:, :rows, :columns]
    after = [np.maximum(x, 0) for x in (result, truth, peer)]
    return Ratio(
        relative_error(result, truth) / relative_error(peer, truth),
        relative_error(after[0], after[1]) / relative_error(after[2], after[1]),
    )


def layer(
    found: Sample, tile: Tile, arithmetic: Arithmetic
) -> Float[np.ndarray, "tiles rows columns outputs"]:
    """The regions' outputs by Winograd's algorithm; of as many pixels as whole tiles cover."""
    down, across = tile
    tops, lefts = (range(0, REGION - axis.outputs + 1, axis.outputs) for axis in tile)
    every = [
        found.regions[:, top : top + down.size, left : left + across.size]
        for top in tops
        for left in lefts
    ]
    kernel = transformed(found.kernel, tile)
    result = convolve(np.concatenate(every), kernel, found.bias, tile, arithmetic)
    pieces = result.reshape(len(tops), len(lefts), -1, *result.shape[1:])
    rows = np.transpose(pieces, (2, 0, 3, 1, 4, 5))
    return rows.reshape(len(rows), len(tops) * down.outputs, len(lefts) * across.outputs, -1)


def transformed(
    kernel: Float[np.ndarray, "3 3 channels outputs"], tile: Tile
) -> Float[np.ndarray, "places channels outputs"]:
    """The kernel's transform, float64 rounded once."""
    found = both_axes(tile.down.kernel, tile.across.kernel, kernel).astype(np.float32)
    return found.reshape(-1, *kernel.shape[2:])


def convolve(
    tiles: Float[np.ndarray, "tiles down across channels"],
    kernel: Float[np.ndarray, "places channels outputs"],
    bias: Float[np.ndarray, " outputs"],
    tile: Tile,
    arithmetic: Arithmetic,
) -> Float[np.ndarray, "tiles rows columns outputs"]:
    """The outputs of tiles in float32, the bias added; the kernel is a `transformed` one."""
    down, across = tile
    d = np.moveaxis(tiles, 0, 2)
    if arithmetic.inputs == "once":
        inputs = both_axes(down.inputs, across.inputs, d).astype(np.float32)
    else:
        inputs = inputs_by_steps(tile, d)
    left = inputs.reshape(-1, *inputs.shape[2:])
    products = sums.product(left, kernel, arithmetic.way)
    products = products.reshape(down.size, across.size, *products.shape[1:])
    if arithmetic.results == "once":
        result = both_axes(down.results, across.results, products)
    else:
        result = results_by_steps(tile, products)
    return np.moveaxis((result + bias).astype(np.float32), 2, 0)


def _row(found: Mapping[str, Sample], tile: Tile, arithmetic: Arithmetic) -> dict[str, Any]:
    errors: dict[str, dict[str, float]] = {kind: {} for kind in Ratio._fields}
    for name, one in found.items():
        for kind, value in ratio(one, tile, arithmetic)._asdict().items():
            errors[kind][name] = round(value, 4)
    return {
        "algorithm": tile.algorithm,
        "points": tile.points,
        "products": round(tile.products, 4),
        "sums": arithmetic.way.name,
        "inputs": arithmetic.inputs,
        "results": arithmetic.results,
        **errors,
    }


def _cases() -> Iterable[tuple[str, Tile, Arithmetic]]:
    """Table by table."""
    yield from (("sums", tile, Arithmetic(way)) for tile in TILES for way in WAYS)
    for tile in (SMALL, THREE, FOUR):
        for inputs, results in itertools.product(("once", "steps"), repeat=2):
            yield "transforms", tile, Arithmetic(COMPENSATED, inputs, results)


def study(
    found: Mapping[str, Sample],
    first: Sequence[float],
    second: Sequence[float],
) -> dict[str, Any]:
    """A JSON value with every number of single layers.

    Points ±a, ±b are scanned on the second layer, for a in `first` and b in `second`.
    """
    scanned = list(found)[min(1, len(found) - 1)]
    tables: dict[str, list[dict[str, Any]]] = {"sums": [], "transforms": []}
    for table, tile, arithmetic in _cases():
        tables[table].append(_row(found, tile, arithmetic))
    scans = [
        {"algorithm": square("", *zero, *range(1, 5)).algorithm, "points": name}
        | {"errors": _scan(found[scanned], zero, first, second)}
        for name, zero in (("±a, ±b", ()), ("0, ±a, ±b", (0.0,)))
    ]
    return {
        "peer_errors": {name: relative_error(x.peer, x.truth) for name, x in found.items()},
        "values": {name: x.truth.size for name, x in found.items()},
        **tables,
        "scan": {"layer": scanned, "sums": COMPENSATED.name}
        | {"a": list(first), "b": list(second), "tiles": scans},
    }


def _scan(
    found: Sample,
    zero: tuple[float, ...],
    first: Sequence[float],
    second: Sequence[float],
) -> list[list[float | None]]:
    """Errors before the ReLU: rows by a, columns by b; None where b is not beyond a."""
    rows: list[list[float | None]] = []
    for a in first:
        rows.append([])
        for b in second:
            tile = square("", *zero, a, -a, b, -b)
            one = ratio(found, tile, Arithmetic(COMPENSATED)).before_relu if b > a else None
            rows[-1].append(one if one is None else round(one, 4))
    return rows
