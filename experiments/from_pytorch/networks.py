"""The same convolutions on both sides, and the features that they give for a loader's batches."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision
from jaxtyping import Array, Float

import flaxvgg
from experiments.from_pytorch.batches import Sample
from experiments.from_pytorch.exchange import is_shared, to_jax, to_torch
from flaxvgg.network.model import VGG, flatten_chw


class Features(NamedTuple):
    """Of N images: pool5 flattened as PyTorch does it, its means over space, and the labels."""

    pool5: Float[Array | np.ndarray, "n chw"]
    gap: Float[Array | np.ndarray, "n c"]
    labels: Float[np.ndarray, "n classes"]


class Shared(NamedTuple):
    """How many batches went in and came out, and how many of them at one address on both sides."""

    batches: int
    pixels: int
    features: int


@jax.jit
def _features(model: VGG, images: Array) -> tuple[Array, Array]:
    pool5 = model.features(images)
    return flatten_chw(pool5), pool5.mean(axis=(1, 2))


def our_features(model: VGG, batches: Iterable[Sample]) -> tuple[Features, Shared]:
    """flaxvgg's, of uint8 batches (N, H, W, 3), and what was shared on the way."""
    found, pixels, features = [], [], []
    for batch, labels in batches:
        given = to_jax(batch)
        arrays = _features(model, flaxvgg.normalise(given, model.preprocessing))
        pixels.append(is_shared(batch, given))
        features.append(all(is_shared(to_torch(array), array) for array in arrays))
        found.append((*arrays, labels))
    pool5, gap, labels = zip(*found, strict=True)
    whole = Features(jnp.concatenate(pool5), jnp.concatenate(gap), torch.cat(labels).numpy())
    return whole, Shared(len(found), sum(pixels), sum(features))


def their_features(network: torch.nn.Module, batches: Iterable[Sample]) -> Features:
    """PyTorch's, of normalised float batches (N, 3, H, W)."""
    found = []
    with torch.inference_mode():
        for images, labels in batches:
            pool5 = network(images)
            found.append((pool5.flatten(1), pool5.mean((2, 3)), labels))
    return Features(*(torch.cat(parts).numpy() for parts in zip(*found, strict=True)))


def torch_convolutions(model: VGG) -> torch.nn.Module:
    """torchvision's network up to pool5, with the model's weights."""
    with torch.device("meta"):
        network = getattr(torchvision.models, model.config.arch)().features
    arrays = flaxvgg.to_torch(model).items()
    prefix = "features."
    tensors = {
        name.removeprefix(prefix): torch.from_numpy(np.array(array))
        for name, array in arrays
        if name.startswith(prefix)
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def passes(
    model: VGG, network: torch.nn.Module
) -> tuple[Callable[[torch.Tensor], object], Callable[[torch.Tensor], object]]:
    """What is timed: the means of pool5 of a batch that a loader gave, here and in PyTorch."""

    def ours(batch: torch.Tensor) -> jax.Array:
        if batch.dtype == torch.uint8:
            images = flaxvgg.normalise(to_jax(batch), model.preprocessing)
        else:
            images = to_jax(batch.permute(0, 2, 3, 1))
        return jax.block_until_ready(_features(model, images))[1]

    def theirs(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(batch).mean((2, 3))

    return ours, theirs
