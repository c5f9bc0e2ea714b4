"""What a network is, layer by layer, as text: the names, shapes and parameters of a configuration.

Everything is told from the configuration, so that a model without values (`nnx.eval_shape`, within
a transformation) is described like any other.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from flaxvgg.files.foreign import plain
from flaxvgg.network.config import Layer, VGGConfig

Shape = tuple[int, ...]


class LayerRow(NamedTuple):
    """One layer: its names, what it is, the shape of its output for one image, its parameters."""

    name: str
    torch: str
    keras: str
    kind: str
    shape: Shape
    parameters: int


class Summary(str):
    """A text that shows itself, in a notebook too, with its lines."""

    def __repr__(self) -> str:
        return str(self)


def layer_rows(config: VGGConfig, size: tuple[int, int] = (224, 224)) -> list[LayerRow]:
    """Every layer of a network in the order of the forward pass, for images of `size` (H, W).

    Keras's name of a layer that includes its ReLU stands in the ReLU's row. A name that the network
    has for no module of its own is "". Raises ValueError for a size under 32x32, and for a
    fully-convolutional classifier under 224x224.
    """
    if min(size) < 32:
        raise ValueError(f"images are at least 32x32, not {size[0]}x{size[1]}")
    keras: dict[str, list[str]] = defaultdict(list)
    torch = {layer.torch for layer in config.layers}
    for alias, name in config.aliases.items():
        if alias not in torch and alias not in ("features", "classifier"):
            keras[name].append(alias)
    rows, shape = [], (*size, 3)
    for layer in config.layers:
        shape = _shape(layer, shape)
        names = layer.torch, ", ".join(keras[layer.name])
        rows.append(LayerRow(layer.name, *names, layer.kind, shape, parameters_of(layer)))
    return rows


def parameters_of(layer: Layer) -> int:
    """How many values of a layer are learned; a BatchNorm's statistics are not."""
    match layer.kind:
        case "conv" | "linear":
            return (layer.inputs * layer.kernel**2 + 1) * layer.outputs
        case "batch_norm":
            return 2 * layer.outputs
    return 0


def summary(config: VGGConfig, size: tuple[int, int], about: str) -> Summary:
    """A table with a line for each layer, below `about`."""
    rows = layer_rows(config, size)
    cells = [("layer", "PyTorch", "Keras", "output", "parameters")]
    cells += [
        (row.name, row.torch, row.keras, _times(row.shape), _counted(row.parameters))
        for row in rows
    ]
    total = sum(row.parameters for row in rows)
    lines = _aligned(cells, right=(3, 4))
    width = max(map(len, lines))
    return Summary(
        "\n".join([about, *lines[:1], "-" * width, *lines[1:], "-" * width, f"{total:,} in all"])
    )


def short(config: VGGConfig, about: str) -> str:
    """The network in a dozen lines: one for each block, one for each other layer."""
    size = 224
    blocks: dict[str, list[LayerRow]] = {}
    for row in layer_rows(config, (size, size)):
        in_stack = any(row.name == layer.name for layer in config.conv_stack)
        block = next((c for c in row.name if c.isdigit()), "") if in_stack else row.name
        blocks.setdefault(block if in_stack else f"head {block}", []).append(row)
    cells = []
    for rows in blocks.values():
        parameters = sum(row.parameters for row in rows)
        names = [row.name for row in rows if row.kind not in ("relu", "batch_norm")]
        names = names or [rows[-1].name]
        if not parameters and rows[-1].kind in ("relu", "dropout", "flatten"):
            continue
        cells.append((_range(names), _times(rows[-1].shape), _counted(parameters)))
    lines = _aligned([("layers", f"output at {size}x{size}", "parameters"), *cells], right=(1, 2))
    return "\n  ".join([about, *lines])


def about(config: VGGConfig, source: str, dtype: str, prepared: tuple[int, int] | None) -> str:
    """A network in a line: its parameters and classes, and where its weights come from."""
    total = sum(map(parameters_of, config.layers))
    classes = f"{config.num_classes} classes" if config.head else "no classifier"
    more = f", prepared for {prepared[0]}x{prepared[1]}" if prepared else ""
    return f"{config.arch}: {total:,} parameters ({dtype}), {classes}; {plain(source)}{more}"


def _shape(layer: Layer, shape: Shape) -> Shape:
    """The shape of one layer's output, of one image."""
    *lead, last = shape
    match layer.kind:
        case "conv":
            return (*lead, layer.outputs)
        case "max_pool" | "average_pool":
            return lead[0] // 2, lead[1] // 2, last
        case "l2_pool":
            return (lead[0] + 1) // 2, (lead[1] + 1) // 2, last
        case "avg_pool":
            return 7, 7, last
        case "global_avg_pool":
            return 1, 1, last
        case "windows":
            k = layer.kernel
            high, wide = lead[0] - k + 1, lead[1] - k + 1
            if min(high, wide) < 1:
                raise ValueError(
                    "a fully-convolutional classifier takes images of at least 224x224"
                )
            return high, wide, last * k * k
        case "flatten":
            return (math.prod(shape),)
        case "linear":
            return (*lead, layer.outputs)
    return shape


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _counted(parameters: int) -> str:
    return f"{parameters:,}" if parameters else ""


def _range(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Rows of cells as lines, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
