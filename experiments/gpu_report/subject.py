"""What is compared: networks, weights, images, and the three kinds of arithmetic."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from flaxvgg.heads.replacement import with_gap
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.config import ARCHITECTURES, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.training.trainer import Optimisation
from flaxvgg.weights.mapping import entries, from_torch, to_torch
from flaxvgg.weights.published import read_weights

Weights = Mapping[str, np.ndarray]
_WIDTH = 4096  # units of fc6 and fc7


class Mode(NamedTuple):
    """One kind of arithmetic, here and in PyTorch; `eps` is the spacing of its numbers at 1."""

    name: str
    precision: str
    dtype: str
    tf32: bool
    eps: float


MODES = (
    Mode("highest", "highest", "float32", False, 2.0**-23),
    Mode("TF32", "default", "float32", True, 2.0**-10),
    Mode("bfloat16", "default", "bfloat16", False, 2.0**-7),
)
HIGHEST, TF32, BFLOAT16 = MODES


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is run, of which network.

    `pages` are sizes (H, W) and batches of the large parity check, `small_archs` what is checked
    at `small` pixels; `maps` are heads and methods (None: all); `timed` and `repeated` the modes
    of the timings and of what is `computed_again`, by the `children`: processes of a framework,
    with deterministic algorithms or without. `backend` is torch.compile's.
    """

    arch: str = "vgg16"
    width: int = _WIDTH
    classes: int = 1000
    pages: tuple[tuple[tuple[int, int], int], ...] = (
        ((224, 224), 1),
        ((224, 224), 8),
        ((512, 512), 1),
        ((375, 1242), 1),
        ((512, 512), 8),
        ((375, 1242), 8),
    )
    small_archs: tuple[str, ...] = ARCHITECTURES
    small: int = 64
    size: int = 224
    maps: tuple[tuple[str, str], ...] | None = None
    map_images: int = 2
    timed: tuple[Mode, ...] = (HIGHEST, BFLOAT16, TF32)
    forward_batches: tuple[int, ...] = (64, 1, 8)
    sparsity_batch: int = 8
    train_batch: int = 32
    several: int = 8
    slow_cams: tuple[str, ...] = ("ablation_cam", "score_cam")
    rounds: int = 12
    slow_rounds: int = 3
    matrix: int = 8192
    backend: str = "inductor"
    repeated: tuple[Mode, ...] = (HIGHEST, BFLOAT16)
    computed_again: tuple[str, ...] = ("forward", "Grad-CAM", "training step")
    children: tuple[tuple[str, bool], ...] = (
        ("jax", False),
        ("jax", True),
        ("jax", True),
        ("torch", False),
        ("torch", True),
        ("torch", True),
    )


FULL = Plan()
TINY = Plan(
    arch="vgg11",
    width=32,
    classes=10,
    pages=(((33, 47), 2),),
    small_archs=(),
    size=32,
    maps=(("GAP", "cam"),),
    map_images=1,
    timed=(TF32,),
    forward_batches=(2,),
    sparsity_batch=2,
    train_batch=2,
    several=2,
    slow_cams=(),
    rounds=2,
    slow_rounds=1,
    matrix=256,
    backend="eager",
    repeated=(TF32,),
    computed_again=("forward",),
    children=(("jax", True),),
)


def config_of(plan: Plan, arch: str) -> VGGConfig:
    """torchvision's network of that name, with `plan.width` units in fc6 and fc7."""
    whole = VGGConfig.classifier(arch, num_classes=plan.classes)
    narrow = [
        {side: plan.width for side in ("inputs", "outputs") if getattr(layer, side) == _WIDTH}
        for layer in whole.head
    ]
    pairs = zip(whole.head, narrow, strict=True)
    return dataclasses.replace(
        whole, head=tuple(dataclasses.replace(layer, **sizes) for layer, sizes in pairs)
    )


def random_weights(config: VGGConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """He et al.'s weights under torchvision's names, with biases and statistics that matter."""
    rng = np.random.default_rng(seed)
    norms = {layer.torch for layer in config.layers if layer.kind == "batch_norm"}
    found = {}
    for entry in entries(config):
        if entry.integer:
            found[entry.torch] = np.zeros((), np.int64)
            continue
        values = rng.standard_normal(entry.torch_shape, np.float32)
        module, _, kind = entry.torch.rpartition(".")
        if values.ndim > 1:
            values *= np.float32(np.sqrt(2 / np.prod(entry.torch_shape[1:])))
        elif kind == "running_var" or (kind == "weight" and module in norms):
            values = 1 + np.abs(values) / 2
        else:
            values *= np.float32(0.1)
        found[entry.torch] = values
    return found


def weights_of(config: VGGConfig, path: Path | None) -> dict[str, np.ndarray]:
    """Random weights, with the convolutions of a file in their place where one is given.

    Raises ValueError where the file's tensors are no convolutions of this network.
    """
    weights = random_weights(config)
    if path is None:
        return weights
    for name, value in read_weights(path).tensors.items():
        if name not in weights or weights[name].shape != value.shape:
            raise ValueError(f"{path}: {name} {value.shape} is no tensor of {config.arch}")
        weights[name] = np.asarray(value, np.float32)
    return weights


def model_of(
    config: VGGConfig, weights: Weights, mode: Mode = HIGHEST, *, stored: str | None = None
) -> VGG:
    """Our network; weights are stored in the mode's type, BatchNorm's statistics in float32."""
    return from_torch(
        config.arch,
        weights,
        config=config,
        dtype=jnp.dtype(mode.dtype),
        param_dtype=jnp.dtype(stored or mode.dtype),
        precision=mode.precision,
    )


def gap_of(config: VGGConfig, weights: Weights) -> tuple[VGGConfig, dict[str, np.ndarray]]:
    """The same convolutions with global average pooling and one random linear layer."""
    model = with_gap(model_of(config, weights), config.num_classes, rngs=nnx.Rngs(0))
    return model.config, to_torch(model)


def preprocessing_of(path: Path | None) -> str:
    """What images the weights expect, by its name in PREPROCESSING: the file says so."""
    if path is None:
        return "torchvision"
    with safetensors.safe_open(path, "numpy") as file:
        return (file.metadata() or {}).get("preprocessing", "torchvision")


def photos(count: int, size: tuple[int, int], preprocessing: str) -> np.ndarray:
    """Photos (count, H, W, 3), some of them repeatedly; noise where scikit-image has none."""
    found = sample_photos(count)
    if not found:
        return noise(count, size)
    images = np.asarray(load_images(found, size=size, preprocessing=preprocessing))
    return np.resize(images, (count, *images.shape[1:]))


def noise(count: int, size: tuple[int, int]) -> np.ndarray:
    """Standard normal images (count, H, W, 3)."""
    return np.random.default_rng(1).standard_normal((count, *size, 3)).astype(np.float32)


def on_device(images: np.ndarray, mode: Mode) -> jax.Array:
    """Images as the mode's network takes them."""
    return jax.block_until_ready(jnp.asarray(images, mode.dtype))


def forward_of(model: VGG) -> Callable[[jax.Array], jax.Array]:
    """The logits of images, compiled. A list of arrays is dispatched faster than a model is."""
    arrays, structure = jax.tree.flatten(model)
    run = jax.jit(lambda arrays, images: jax.tree.unflatten(structure, arrays)(images))
    return lambda images: run(arrays, images)


TRAINING = Optimisation(
    loss="softmax", optimiser="sgd", learning_rate=1e-4, momentum=0.9, stack_rate=1.0
)


def training_batch(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Images and one-hot labels of one training step."""
    images = noise(plan.train_batch, (plan.size, plan.size))
    labels = np.arange(plan.train_batch) % plan.classes
    return images, np.eye(plan.classes, dtype=np.float32)[labels]


def multiplications(config: VGGConfig, size: tuple[int, int]) -> int:
    """Products that one image takes in a forward pass."""
    height, width = size
    total = 0
    for layer in config.layers:
        weights = layer.inputs * layer.outputs * layer.kernel**2
        if layer.kind == "max_pool":
            height, width = height // 2, width // 2
        elif layer.kind == "conv":
            total += weights * height * width
        elif layer.kind == "linear":
            total += weights
    return total


def describe(plan: Plan, weights: Path | None) -> dict[str, Any]:
    """What the networks and images of a report are."""
    names = [photo.stem for photo in sample_photos()]
    convolutions = "random" if weights is None else f"from {weights.name}"
    return {
        "arch": plan.arch,
        "weights": f"{plan.arch}'s convolutions {convolutions}; all other weights random",
        "images": ", ".join(names) or "standard normal noise",
    }
