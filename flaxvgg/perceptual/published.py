"""The small weights of LPIPS and DISTS, which come with the package, and the network they are for.

weights.md says where they are from, and `scripts/perceptual_weights.py` makes the file.
"""

import functools
import hashlib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxvgg.network.model import VGG

TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
ARCH = "vgg16"
# Of the biases of torchvision's IMAGENET1K_V1, rounded to bfloat16: see `_digest`.
_TRUNK = "a0c036e376dcd3fbb60b45561282ce5f20ce0001d193c4f96f5d5f7f5dd113a5"


@functools.cache
def _file() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(__file__).with_name("weights.safetensors"))


def lpips_weights(version: str) -> dict[str, np.ndarray]:
    """LPIPS's linear weights (channels,) by tap."""
    return {tap: _file()[f"lpips {version} {tap}"] for tap in TAPS}


@functools.cache
def dists_weights() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """DISTS's alpha and beta (channels,) by tap, "image" first, divided by the sum of all."""
    flat = [_file()[f"dists {name}"].astype(np.float64) for name in ("alpha", "beta")]
    total = sum(x.sum() for x in flat)
    sizes = [3, *(len(_file()[f"lpips 0.1 {tap}"]) for tap in TAPS)]
    parts = [np.split((x / total).astype(np.float32), np.cumsum(sizes)[:-1]) for x in flat]
    alpha, beta = (dict(zip(("image", *TAPS), part, strict=True)) for part in parts)
    return alpha, beta


def check_trunk(model: VGG, name: str) -> None:
    """Raise ValueError for another architecture; warn of other weights, where they are known."""
    config = model.config
    if config.arch != ARCH:
        raise ValueError(f"{name} is defined on the convolutions of vgg16, not of {config.arch}")
    changed = (config.pooling, config.padding) != ("max", "zeros")
    if changed or _digest(model) not in (_TRUNK, None):
        what = (
            f"{config.pooling} pooling and {config.padding} beyond the edge"
            if changed
            else "other weights than torchvision's IMAGENET1K_V1"
        )
        warnings.warn(
            f"this network has {what}, which {name} was not fitted on: the values are not "
            f'{name}\'s (flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS") is its network)',
            stacklevel=3,
        )


def _digest(model: VGG) -> str | None:
    """What tells a vgg16 from others: its biases, of which training leaves none; None if traced.

    Rounded to bfloat16, so that a copy in bfloat16 is the same.
    """
    found = hashlib.sha256()
    for layer in model.config.conv_stack:
        if layer.kind == "conv":
            bias = getattr(model.conv_stack, layer.name).bias[...]
            if isinstance(bias, jax.core.Tracer | jax.ShapeDtypeStruct):
                return None
            if not getattr(bias, "is_fully_addressable", True):
                return None
            found.update(np.asarray(bias).astype(jnp.bfloat16).tobytes())
    return found.hexdigest()
