"""Every parameter of a network: what torchvision calls it, and where Flax has it."""

from typing import NamedTuple

from flaxvgg.config import Layer, VGGConfig

Path = tuple[str, str, str]


class MappingError(ValueError):
    """A state dict does not fit the architecture; `problems` names every entry that is wrong."""

    def __init__(self, arch: str, problems: list[str]):
        self.problems = problems
        listed = "; ".join(problems)
        if len(problems) > 3:
            listed = f"{len(problems)} problems\n  " + "\n  ".join(problems)
        super().__init__(f"this is no {arch}: {listed}")


class Entry(NamedTuple):
    """One parameter: its torch name and shape, and its Flax path, shape and layout."""

    torch: str
    torch_shape: tuple[int, ...]
    path: Path
    shape: tuple[int, ...]
    layout: tuple[int, int, int, int] | None  # (out, in, k, k) of a weight; None: taken as it is
    integer: bool = False


_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _layer_entries(room: str, layer: Layer) -> list[Entry]:
    out, k = layer.outputs, layer.kernel
    if layer.kind == "batch_norm":
        entries = [
            Entry(f"{layer.torch}.{torch}", (out,), (room, layer.name, ours), (out,), None)
            for torch, ours in _BATCH_NORM.items()
        ]
        count = "num_batches_tracked"
        return [
            *entries,
            Entry(f"{layer.torch}.{count}", (), (room, layer.name, count), (), None, True),
        ]
    layout = (out, layer.inputs, k, k)
    if layer.kind == "conv":
        torch_shape, shape = layout, (k, k, layer.inputs, out)
    else:
        torch_shape, shape = (out, layer.inputs * k * k), (layer.inputs * k * k, out)
    return [
        Entry(f"{layer.torch}.weight", torch_shape, (room, layer.name, "kernel"), shape, layout),
        Entry(f"{layer.torch}.bias", (out,), (room, layer.name, "bias"), (out,), None),
    ]


def entries(config: VGGConfig) -> tuple[Entry, ...]:
    """Every parameter and statistic of the network, in PyTorch's order."""
    return tuple(
        entry
        for room, layers in (("conv_stack", config.conv_stack), ("head", config.head))
        for layer in layers
        if layer.kind in ("conv", "linear", "batch_norm")
        for entry in _layer_entries(room, layer)
    )
