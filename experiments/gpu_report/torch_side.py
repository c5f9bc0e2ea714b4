"""PyTorch's side: its networks in each kind of arithmetic, on the GPU where there is one."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import torch

from experiments.gpu_report.subject import TRAINING, Mode, Weights
from experiments.torch_device import DEVICE
from flaxvgg.conversion.pytorch import torch_networks
from flaxvgg.network.config import VGGConfig

NO_CUDA = "no CUDA device"
_SGD = {"lr": TRAINING.learning_rate, "momentum": TRAINING.momentum}


class Networks(NamedTuple):
    """torchvision's network with the same weights, in float64 and in float32."""

    double: torch.nn.Module
    single: torch.nn.Module

    def in_mode(self, mode: Mode) -> torch.nn.Module:
        """The network that runs in this mode; BatchNorms keep float32, as autocast has them."""
        if mode.dtype == "float32":
            return self.single
        network = copy.deepcopy(self.single).to(dtype_of(mode))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.float()
        return network


def networks_of(config: VGGConfig, weights: Weights) -> Networks:
    """Both networks on the device, in evaluation mode."""
    # Tensors on a CPU would share the arrays, which training writes to.
    copied = {name: np.array(value) for name, value in weights.items()}
    return Networks(*(network.to(DEVICE) for network in torch_networks(config, copied)))


def dtype_of(mode: Mode) -> torch.dtype:
    """The type of the mode's activations."""
    return getattr(torch, mode.dtype)


def tensor(images: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images (N, H, W, 3) as PyTorch takes them by default: (N, 3, H, W), channels first."""
    moved = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    return moved.to(DEVICE, dtype)


def shared(array: jax.Array) -> torch.Tensor:
    """JAX's array as a tensor on the same device, without a copy."""
    return torch.from_dlpack(jax.block_until_ready(array))


@contextlib.contextmanager
def arithmetic(mode: Mode) -> Iterator[None]:
    """Let float32 products on a GPU be TF32 in this mode, and in no other."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = mode.tf32
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def relative_error(output: torch.Tensor, truth: torch.Tensor) -> float:
    """`flaxvgg.conversion.rule.relative_error`, where the tensors are."""
    if output.shape != truth.shape:
        return float("inf")
    size = float(torch.linalg.vector_norm(truth)) or 1.0
    return float(torch.linalg.vector_norm(output.double() - truth)) / size


class Training:
    """Steps of SGD with momentum on a copy of a network, in one kind of arithmetic.

    bfloat16 is autocast's: the parameters stay float32, as they do in `flaxvgg.Trainer`.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        mode: Mode,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self.network = copy.deepcopy(network).train().to(memory_format=memory_format)
        self.mode = mode
        self.optimiser = torch.optim.SGD(self.network.parameters(), **_SGD)
        self.scores: Callable[[torch.Tensor], torch.Tensor] = self.network

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        low = self.mode.dtype != "float32"
        with torch.autocast(DEVICE.type, dtype_of(self.mode), enabled=low):
            loss = torch.nn.functional.cross_entropy(self.scores(images), labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
