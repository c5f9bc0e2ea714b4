"""The numbers rule for a whole network: what the parity tests share."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from flaxvgg.conversion.pytorch import torch_networks, torch_references
from flaxvgg.conversion.rule import FLOOR, LayerCheck, Reference, compare
from flaxvgg.conversion.verify import all_outputs
from flaxvgg.network.model import VGG, flatten_chw
from flaxvgg.weights.mapping import from_torch, model_arrays
from helpers import assert_holds, describe

SMALL_SIZES = [(32, 32), (33, 47), (224, 224)]


class Port(NamedTuple):
    """Our model, and PyTorch's networks (float64, float32) with the same weights."""

    model: VGG
    networks: tuple[Any, Any]


def port(arch: str, state_dict: dict[str, torch.Tensor]) -> Port:
    """PyTorch's weights on both sides."""
    model = from_torch(arch, state_dict)
    return Port(model, torch_networks(model.config, state_dict))


def compare_all(
    model: VGG, images: np.ndarray, ours: dict[str, Any], references: Iterable[Reference]
) -> Iterator[LayerCheck]:
    """Check `ours`, which is emptied on the way, against the references."""
    parameters = {path: np.asarray(value) for path, value in model_arrays(model).items()}
    return compare(model.config, parameters, images, ours, "PyTorch", references)


def largest_ratio(checks: Iterable[LayerCheck]) -> str:
    """The layer of the largest ratio, and the one of those whose error is above the floor."""
    checks = sorted(checks, key=lambda check: check.ratio)
    above = [check for check in checks if check.error > FLOOR]
    return "; above the floor: ".join(describe(found[-1]) for found in (checks, above) if found)


def check(port: Port, images: np.ndarray) -> None:
    """Check a batch, of any size: its references are made and dropped layer by layer."""
    _check(port.model, images, torch_references(port.model.config, port.networks, images))


def check_three_and_one(port: Port, images: np.ndarray) -> None:
    """Check a batch of three images, and a batch of one, the last of them."""
    assert len(images) == 3
    references = list(torch_references(port.model.config, port.networks, images))
    _check(port.model, images, references)
    alone = [Reference(layer, truth[-1:], other[-1:]) for layer, truth, other in references]
    _check(port.model, images[-1:], alone)


def _check(model: VGG, images: np.ndarray, references: Iterable[Reference]) -> None:
    ours = all_outputs(model, images)
    zeros = np.asarray(flatten_chw(ours["pool5"])) == 0
    references, again = itertools.tee(references)
    compared = compare_all(model, images, ours, references)
    checks = []
    for check, reference in zip(compared, again, strict=True):
        if check.layer == "pool5":
            # Which values of the feature vector are zero, in the order of `torch.flatten`.
            truth = torch.from_numpy(reference.truth).permute(0, 3, 1, 2)
            theirs = torch.flatten(truth, 1).numpy() == 0
            assert zeros.shape == theirs.shape
            assert (zeros != theirs).sum() <= checks[-1].flips  # of the ReLU before
        checks.append(check)
    print(f"\nlargest ratio of {model.config.arch}, {images.shape}:", largest_ratio(checks))
    assert_holds(checks)
    assert tuple(check.layer for check in checks) == model.config.layer_names
