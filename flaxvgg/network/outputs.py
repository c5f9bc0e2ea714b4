"""What is asked of a network by name: outputs of layers, logits, pooled features."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG


def outputs(
    model: VGG, images: Float[Array, "n h w 3"], names: Sequence[str]
) -> dict[str, Float[Array, "n ..."]]:
    """What a network makes of images (N, H, W, 3), by the names that were asked for.

    A layer's output is (N, h, w, channels) or (N, units), by any of its names; "logits" are
    (N, classes), and "gap", global average pooling of the features, (N, 512).
    """
    others = {"gap": model.gap, "logits": model}
    found = model.activations(images, [name for name in names if name not in others])
    return {name: found[name] if name in found else others[name](images) for name in names}


def check_outputs(config: VGGConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The outputs that are asked for, none twice, and "gap", which is small and always wanted.

    Raises ValueError for what this network has not.
    """
    for name in names:
        if name == "logits":
            _ = config.head_output  # or what it raises
        elif name != "gap":
            config.resolve(name)
    return tuple(dict.fromkeys((*names, "gap")))
