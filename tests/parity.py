"""The numbers rule for a whole network: what the parity tests share."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from convert.verify import LayerCheck, Reference, compare, torch_networks, torch_references
from flaxvgg.mapping import from_torch, model_arrays
from flaxvgg.model import VGG, flatten_chw
from helpers import assert_holds, torch_vgg

SIZES = [(32, 32), (33, 47), (224, 224), (512, 512), (375, 1242)]


class Port(NamedTuple):
    """Our model, and PyTorch's networks (float64, float32) with the same weights."""

    model: VGG
    networks: tuple[Any, Any]


@partial(jax.jit, static_argnames="last")
def all_outputs(model: VGG, images: jax.Array, last: int) -> dict[str, jax.Array]:
    """Every layer's output for the last images of the batch."""
    outputs = model.activations(images, model.config.layer_names)
    return {name: output[-last:] for name, output in outputs.items()}


def compare_all(
    model: VGG, images: np.ndarray, ours: Mapping[str, Any], references: Iterable[Reference]
) -> Iterator[LayerCheck]:
    parameters = {path: np.asarray(value) for path, value in model_arrays(model).items()}
    return compare(model.config, parameters, images, dict(ours), "PyTorch", references)


def check_three_and_one(port: Port, images: np.ndarray) -> None:
    """Check a batch of three images, and a batch of one, the last of them.

    Of three large images only the last has references, which are what takes the time: the others
    are there to be kept apart from it.
    """
    model, checked = port.model, 3 if images[0].size < 3 * 300 * 300 else 1
    references = torch_references(model.config, port.networks, images[-checked:])
    for_three, for_one, for_pool5 = itertools.tee(references, 3)
    for_one = (Reference(layer, truth[-1:], other[-1:]) for layer, truth, other in for_one)
    ours, ours_alone = all_outputs(model, images, checked), all_outputs(model, images[-1:], 1)
    pool5 = ours["pool5"]
    three = compare_all(model, images[-checked:], ours, for_three)
    one = compare_all(model, images[-1:], ours_alone, for_one)
    del ours, ours_alone
    # Layer by layer, in step: the references of a whole network would be gigabytes.
    checks = []
    for of_three, of_one, reference in zip(three, one, for_pool5, strict=True):
        checks += [of_three, of_one]
        if of_three.layer == "pool5":
            _check_zeros(pool5, reference.truth, flips=checks[-4].flips)
    assert_holds(checks)


def _check_zeros(pool5: jax.Array, truth: np.ndarray, flips: int) -> None:
    """Check which values of the feature vector are zero, in the order of `torch.flatten`."""
    ours = np.asarray(flatten_chw(pool5)) == 0
    theirs = torch.flatten(torch.from_numpy(truth).permute(0, 3, 1, 2), 1).numpy() == 0
    assert ours.shape == theirs.shape
    assert (ours != theirs).sum() <= flips


def random_port() -> Port:
    """torchvision's vgg16 with random weights, and ours with the same."""
    state_dict = torch_vgg("vgg16").state_dict()
    model = from_torch("vgg16", state_dict)
    return Port(model, torch_networks(model.config, state_dict))
