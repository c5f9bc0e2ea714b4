"""The cures that people suggest, as data, and what a network does with one of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

import flaxvgg
from experiments.gap_collapse.peer import Network
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.training.trainer import TrainState

Report = Callable[[str, float], None]  # told what is done, and how much of it


@dataclasses.dataclass(frozen=True)
class Cure:
    """One way to end the network: what follows the last convolution, and how it starts.

    With `prior`, the biases of the last convolution start at the logit of the labels' mean.
    """

    name: str
    last: str = "none"
    batch_norm: bool = False
    fc: bool = False
    prior: bool = False

    def config(self, arch: str, classes: int, channels: int) -> VGGConfig:
        """The whole network."""
        return VGGConfig.score_map(
            arch,
            num_classes=classes,
            channels=channels,
            last=self.last,
            batch_norm=self.batch_norm,
            fc=self.fc,
        )


DISEASE = Cure("ReLU", last="relu")
CURES = (
    DISEASE,
    Cure("ReLU, bias at the prior", last="relu", prior=True),
    Cure("BatchNorm, ReLU", last="relu", batch_norm=True),
    Cure("ReLU, FC", last="relu", fc=True),
    Cure("leaky ReLU", last="leaky_relu"),
    Cure("shifted ReLU", last="shifted_relu"),
    Cure("no ReLU"),
    Cure("no ReLU, bias at the prior", prior=True),
)


class Batch(NamedTuple):
    """Images (N, H, W, 3), or a layer's outputs for them, and labels (N, K) of 0 and 1."""

    images: np.ndarray
    labels: np.ndarray


def random_batch(images: int, size: int, classes: int, seed: int) -> Batch:
    """Normal noise; each image has a tenth of the classes, and no two images the same ones.

    A class that half the images of a batch have is not pushed down, and its score not to 0.
    """
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((images, size, size, 3)).astype(np.float32)
    labels = np.zeros((images, classes), np.float32)
    tenth = classes // 10
    chosen = rng.permutation(classes)[: images * tenth].reshape(images, tenth)
    np.put_along_axis(labels, chosen, 1, axis=1)
    return Batch(pixels, labels)


def initialised(
    cure: Cure,
    arch: str,
    channels: int,
    labels: np.ndarray,
    *,
    seed: int,
    convolutions: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """A state dict as PyTorch initialises the network; with `convolutions`, its stack has those."""
    config = cure.config(arch, labels.shape[1], channels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = Network(config).state_dict()
    weights.update({name: torch.as_tensor(x) for name, x in (convolutions or {}).items()})
    if cure.prior:
        part = labels.mean()
        last = [layer for layer in config.head if layer.kind == "conv"][-1]
        weights[f"{last.torch}.bias"].fill_(float(np.log(part / (1 - part))))
    return weights


def sgd(rate: float, *, stack: bool) -> flaxvgg.Optimisation:
    """Plain SGD, of the whole network or of the head only."""
    return flaxvgg.Optimisation(optimiser="sgd", learning_rate=rate, stack_rate=float(stack))


def follow(
    trainer: flaxvgg.Trainer, model: VGG, batches: Iterable[Batch]
) -> tuple[TrainState, list[float]]:
    """Train on the batches, one after the other: the last state, and the loss before each step."""
    state, losses = trainer.start(model), []
    for images, labels in batches:
        state, metrics = trainer.step(state, jnp.asarray(images), jnp.asarray(labels))
        losses.append(metrics["loss"])
    return state, [float(loss) for loss in losses]


def as_trained(trainer: flaxvgg.Trainer, state: TrainState) -> VGG:
    """The model as training sees it.

    These BatchNorms never move their running statistics, so that in evaluation mode the model
    would be another network than the one that was trained.
    """
    model = trainer.model(state)
    model.head.train()
    return model
