"""pool5's error in PyTorch's own, where every layer is computed as one of several plans says."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.winograd_errors.study import (
    FOUR,
    SMALL,
    THREE,
    WIDE_TILE,
    Arithmetic,
    by_pytorch,
    convolve,
    transformed,
)
from experiments.winograd_errors.sums import COMPENSATED, PLAIN
from experiments.winograd_errors.transforms import TAPS, Tile
from flaxvgg.conversion.rule import relative_error
from flaxvgg.network.model import VGG

_TILES_AT_ONCE = 64  # their products stay in the cache


class Plan(NamedTuple):
    """What a block (1 to 5) is computed by, in words and in tiles."""

    name: str
    tiles: Mapping[int, Tile]
    arithmetic: Arithmetic


def _plan(name: str, tiles: Mapping[int, Tile], inputs: Any = "once") -> Plan:
    return Plan(name, tiles, Arithmetic(COMPENSATED, inputs))


def _blocks(*tiles: Tile) -> dict[int, Tile]:
    return dict(enumerate(tiles, start=1))


_MIXED = _blocks(FOUR, FOUR, THREE, SMALL, SMALL)
PLANS = (
    Plan(
        "F(2x2), 8 chains of 8, float32 beyond", _blocks(*[SMALL] * 5), Arithmetic(PLAIN, "steps")
    ),
    _plan("F(2x2)", _blocks(*[SMALL] * 5)),
    _plan("F(2x4) in blocks 1 to 4, F(2x2) in 5: flaxvgg's", _blocks(*[WIDE_TILE] * 4, SMALL)),
    _plan("F(3x3)", _blocks(*[THREE] * 5)),
    _plan("F(4x4)", _blocks(*[FOUR] * 5)),
    _plan("F(4x4) in blocks 1 to 4, F(2x2) in 5", _blocks(*[FOUR] * 4, SMALL)),
    _plan("F(4x4) in blocks 1 to 3, F(2x2) in 4 and 5", _blocks(*[FOUR] * 3, SMALL, SMALL)),
    _plan("F(4x4) in 1 and 2, F(3x3) in 3, F(2x2) in 4 and 5", _MIXED),
    _plan("the same, inputs by steps", _MIXED, "steps"),
)


def errors(
    model: VGG, images: Float[np.ndarray, "n h w 3"], plans: Sequence[Plan]
) -> list[dict[str, Any]]:
    """By plan, pool5's relative error (RMS) of every image, in units of PyTorch's own."""
    import torch

    found: list[dict[str, Any]] = [
        {"plan": plan.name, "products": products(model, images.shape[1:3], plan), "errors": []}
        for plan in plans
    ]
    for image in images:
        truth = _pytorch(model, image, torch.float64)
        peer = relative_error(_pytorch(model, image, torch.float32), truth)
        for row, plan in zip(found, plans, strict=True):
            error = relative_error(_pool5(model, image, plan), truth)
            row["errors"].append(round(error / peer, 4))
    return found


def products(model: VGG, size: tuple[int, ...], plan: Plan) -> int:
    """Products of all layers but the first, for one image; tiles beyond the edge are whole."""
    (height, width), total = size, 0
    for layer in model.config.conv_stack:
        if layer.kind == "max_pool":
            height, width = height // 2, width // 2
        elif layer.kind == "conv" and layer.name != "conv1_1":
            down, across = plan.tiles[_block(layer.name)]
            tiles = -(-height // down.outputs) * -(-width // across.outputs)
            total += tiles * down.size * across.size * layer.inputs * layer.outputs
    return total


def _block(layer: str) -> int:
    return int(layer.removeprefix("conv").split("_")[0])


def _pool5(model: VGG, image: np.ndarray, plan: Plan) -> np.ndarray:
    layers = list(model.config.conv_stack)
    maps = np.asarray(model.activations(image[None], ["relu1_1"])["relu1_1"])[0]  # direct sums
    names = [layer.name for layer in layers]
    for layer in layers[names.index("relu1_1") + 1 :]:
        if layer.kind == "conv":
            module: Any = getattr(model.conv_stack, layer.name)
            weights = np.asarray(module.kernel[...]), np.asarray(module.bias[...])
            maps = whole(maps, *weights, plan.tiles[_block(layer.name)], plan.arithmetic)
        elif layer.kind == "relu":
            maps = np.maximum(maps, 0)
        else:
            height, width = (n // 2 for n in maps.shape[:2])
            pairs = maps[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
            maps = pairs.max((1, 3))
    return maps


def without_structure(channels: int = 64, side: int = 40, seed: int = 0) -> dict[str, float]:
    """The error of one layer in PyTorch's own on normal values after a ReLU, by algorithm.

    Neighbours there have nothing to do with each other, and a tile's transforms cancel nothing.
    """
    rng = np.random.default_rng(seed)
    maps = np.maximum(rng.standard_normal((side, side, channels)), 0).astype(np.float32)
    kernel = rng.standard_normal((3, 3, channels, channels)).astype(np.float32)

    nothing = np.zeros(channels, np.float32)
    arrays = maps[None], kernel, nothing
    truth = by_pytorch(*(array.astype(np.float64) for array in arrays))[0]
    peer = relative_error(by_pytorch(*arrays)[0], truth)
    return {
        tile.algorithm: round(
            relative_error(whole(maps, kernel, nothing, tile, Arithmetic(COMPENSATED)), truth)
            / peer,
            3,
        )
        for tile in (SMALL, WIDE_TILE, THREE, FOUR)
    }


def whole(
    maps: Float[np.ndarray, "h w channels"],
    kernel: Float[np.ndarray, "3 3 channels outputs"],
    bias: Float[np.ndarray, " outputs"],
    tile: Tile,
    arithmetic: Arithmetic,
) -> Float[np.ndarray, "h w outputs"]:
    """A convolution of whole maps, padded by one pixel, tile by tile."""
    down, across = tile
    height, width = maps.shape[:2]
    rows, columns = -(-height // down.outputs), -(-width // across.outputs)
    more = rows * down.outputs - height, columns * across.outputs - width
    padded = np.pad(maps, ((1, 1 + more[0]), (1, 1 + more[1]), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (down.size, across.size), (0, 1))
    tiles = windows[:: down.outputs, :: across.outputs].reshape(-1, *windows.shape[2:])
    tiles = np.moveaxis(tiles, 1, 3)  # (tiles, down, across, channels)
    weights = transformed(kernel, tile)
    found = [
        convolve(tiles[i : i + _TILES_AT_ONCE], weights, bias, tile, arithmetic)
        for i in range(0, len(tiles), _TILES_AT_ONCE)
    ]
    result = np.concatenate(found).reshape(rows, columns, down.outputs, across.outputs, -1)
    joined = result.swapaxes(1, 2).reshape(rows * down.outputs, columns * across.outputs, -1)
    return joined[:height, :width]


def _pytorch(model: VGG, image: np.ndarray, dtype: Any) -> np.ndarray:
    import torch

    x = torch.from_numpy(np.array(np.moveaxis(image[None], -1, 1), order="C")).to(dtype)
    with torch.inference_mode():
        for layer in model.config.conv_stack:
            if layer.kind == "conv":
                module: Any = getattr(model.conv_stack, layer.name)
                kernel = np.transpose(np.asarray(module.kernel[...]), (3, 2, 0, 1))
                weights = (kernel, np.asarray(module.bias[...]))
                weight, bias = (torch.from_numpy(np.array(w)).to(dtype) for w in weights)
                x = torch.nn.functional.conv2d(x, weight, bias, padding=TAPS // 2)
            elif layer.kind == "relu":
                x = torch.relu(x)
            else:
                x = torch.nn.functional.max_pool2d(x, 2)
    return np.moveaxis(x[0].numpy(), 0, -1)
