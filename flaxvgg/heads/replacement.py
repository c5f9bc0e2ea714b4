"""Other heads on the same convolutions: GAP + linear, and the classifier made convolutional."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxvgg.images.resizing import resize
from flaxvgg.network.config import POOLED_SIZE, LastActivation, VGGConfig
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, Images, LayerStack, run_layers
from flaxvgg.network.provenance import Provenance
from flaxvgg.ops.sharding import spread_by_xla
from flaxvgg.weights.mapping import Path, build, model_arrays


def with_gap(
    model: VGG, num_classes: int, *, channels: int | None = None, rngs: nnx.Rngs | None = None
) -> VGG:
    """The same convolutions with global average pooling and one new linear layer, for CAM.

    The head reads pool5. With `channels`, pool5 gives way to a 3x3 convolution to so many channels
    and a ReLU: the network of Zhou et al. 2016 (arXiv:1512.04150), published with 1024. New layers
    are initialised from `rngs` as in `flaxvgg.vgg16`; the convolutions are shared, not copied. The
    torch names are those of a torchvision model with `avgpool = AdaptiveAvgPool2d(1)` and
    `classifier = Linear(512, num_classes)`. Raises ValueError for sizes under 1.

    >>> model = flaxvgg.with_gap(model, 20, rngs=nnx.Rngs(0))
    >>> model(images).shape
    (2, 20)
    """
    config = VGGConfig.gap(model.config.arch, num_classes=num_classes, channels=channels)
    return _with_new_head(model, config, rngs)


def with_score_map(
    model: VGG,
    num_classes: int,
    *,
    channels: int = 1024,
    last: LastActivation = "relu",
    batch_norm: bool = False,
    fc: bool = False,
    rngs: nnx.Rngs | None = None,
) -> VGG:
    """The same convolutions with a score map as head: one channel for each class, and its mean.

    pool5 gives way to a 3x3 convolution to `channels`, ReLU, a 3x3 convolution to `num_classes`,
    the activation `last` ("relu", "leaky_relu", "shifted_relu": max(x, -1), or "none") and the mean
    over space; see `VGGConfig.score_map` for `batch_norm` and `fc`. With "none" it is the network
    of Lin et al. 2014 (Network in Network, arXiv:1312.4400, section 3.2), and without an FC layer
    channel k of the last map is the class activation map of class k. Raises ValueError for sizes
    under 1 and for another activation.

    >>> model = flaxvgg.with_score_map(model, 20, channels=64, last="none", rngs=nnx.Rngs(0))
    >>> model(images).shape
    (2, 20)
    """
    config = VGGConfig.score_map(
        model.config.arch,
        num_classes=num_classes,
        channels=channels,
        last=last,
        batch_norm=batch_norm,
        fc=fc,
    )
    return _with_new_head(model, config, rngs)


def _with_new_head(model: VGG, config: VGGConfig, rngs: nnx.Rngs | None) -> VGG:
    kept = {"pooling": model.config.pooling, "padding": model.config.padding}
    config = dataclasses.replace(config, **kept)
    conv = model.conv_stack.conv1_1
    stack = LayerStack(
        config.head,
        dtype=conv.dtype,
        param_dtype=conv.param_dtype,
        precision=conv.precision,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
    )
    head = {
        ("head", *path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(stack))
    }
    # The class names are the old head's.
    return with_head(model, config, head, dataclasses.replace(model.provenance, classes=()))


def fully_convolutional(model: VGG) -> VGG:
    """The same network with its classifier applied to every 7x7 window of pool5.

    fc6 as a 7x7 convolution without padding, fc7 and fc8 as 1x1 convolutions (Long et al. 2015,
    arXiv:1411.4038; OverFeat, arXiv:1312.6229): images (N, H, W, 3) of at least 224x224 give score
    maps (N, H//32 - 6, W//32 - 6, classes), one place for 224x224, where they are the logits. The
    parameters are shared, not copied. Raises ValueError for a model without fc6.

    >>> convolutional = flaxvgg.fully_convolutional(classifier)
    >>> convolutional(np.zeros((1, 256, 224, 3), np.float32)).shape
    (1, 2, 1, 3)
    """
    config = model.config.fully_convolutional()
    head = {path: array for path, array in model_arrays(model).items() if path[0] == "head"}
    return with_head(model, config, head, model.provenance)


def score_maps(
    model: VGG, images: Images, scales: Sequence[float] = (2.0,)
) -> Float[Array, "n gh gw classes"]:
    """Every class's score in every part of the images: an approximate CAM without any training.

    The images are enlarged by each scale (bilinear), and the fully-convolutional classifier is run
    on them. A window's score belongs to its centre; beyond the centres of the outermost windows the
    nearest score is repeated, so that a map covers its image. Maps of several scales are resized to
    the largest and averaged (multi-scale evaluation, Simonyan & Zisserman 2015, section 3.2).
    Returns (N, sH//32, sW//32, classes) for the largest scale s. `model` has a classifier, or is
    fully convolutional already. Raises ValueError for images under 224x224 once scaled, and for
    other heads.

    >>> maps = flaxvgg.score_maps(classifier, np.zeros((1, 224, 224, 3), np.float32), scales=(1.0,))
    >>> maps.shape
    (1, 7, 7, 3)
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, at least one, not {scales!r}")
    if not any(layer.kind == "windows" for layer in model.config.head):
        model = fully_convolutional(model)
    images = check_images(images, model.preprocessing)
    height, width = images.shape[-3:-1]
    sizes = [(round(height * scale), round(width * scale)) for scale in scales]
    stacks = model.conv_stack, model.head
    return _score_maps(stacks, jnp.asarray(images), tuple(sizes), model.config.head_output.name)


@partial(jax.jit, static_argnames=("sizes", "output"))
def _score_maps(
    stacks: tuple[LayerStack, LayerStack],
    images: Float[Array, "n h w 3"],
    sizes: tuple[tuple[int, int], ...],
    output: str,
) -> Float[Array, "n gh gw classes"]:
    return spread_by_xla(partial(_of_sizes, sizes, output), images, stacks)


def _of_sizes(
    sizes: tuple[tuple[int, int], ...],
    output: str,
    images: Float[Array, "n h w 3"],
    stacks: tuple[LayerStack, LayerStack],
) -> Float[Array, "n gh gw classes"]:
    channels_first = jnp.moveaxis(images, -1, 1)
    margin = POOLED_SIZE // 2
    found = []
    for size in sizes:
        scaled = jnp.moveaxis(resize(channels_first, size), 1, -1)
        scores = jnp.moveaxis(run_layers(stacks, scaled, {output})[output], -1, 1)
        found.append(jnp.pad(scores, [(0, 0), (0, 0), (margin, margin), (margin, margin)], "edge"))
    largest = max(h for h, _ in (x.shape[2:] for x in found)), max(x.shape[3] for x in found)
    mean = sum(resize(scores, largest) for scores in found) / len(found)
    return jnp.moveaxis(mean, 1, -1)


def with_head(
    model: VGG, config: VGGConfig, head: dict[Path, jax.Array], provenance: Provenance
) -> VGG:
    """The model's convolutions, shared, with a head whose arrays are there, as `config` has it."""
    conv = model.conv_stack.conv1_1
    stack = {path: array for path, array in model_arrays(model).items() if path[0] == "conv_stack"}
    return build(
        config,
        stack | head,
        dtype=conv.dtype,
        param_dtype=conv.param_dtype,
        precision=conv.precision,
        provenance=provenance,
    )
