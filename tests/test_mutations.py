"""The classic porting mistakes, applied to the port one at a time: the parity check finds each.

Each mistake is caught at the layer where it is made, not only somewhere after it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import lax

from flaxvgg.conversion.pytorch import torch_references
from flaxvgg.conversion.rule import Reference, compare
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG, LayerStack
from flaxvgg.ops.pooling import max_pool_2x2
from flaxvgg.weights.mapping import build, model_arrays
from helpers import describe, random_images, torch_features, torch_vgg
from parity import Port, port

Arrays = dict[tuple[str, ...], np.ndarray]


class Bench(NamedTuple):
    """A network that is ported right, and what some of its layers should give on some images."""

    config: VGGConfig
    arrays: Arrays
    images: np.ndarray
    references: list[Reference]


class Part(VGGConfig):
    """Some layers alone, applied to what is given as images."""

    conv_stack = ()


def _bench(port: Port, images: np.ndarray, layers: Sequence[Layer]) -> Bench:
    arrays = {path: np.asarray(value) for path, value in model_arrays(port.model).items()}
    part = Part(port.model.config.arch, tuple(layers))
    references = list(torch_references(part, port.networks, images))
    return Bench(port.model.config, arrays, images, references)


def _channels_last(module: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """A module of PyTorch applied to maps whose channels come last."""
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def benches() -> dict[str, Bench]:
    plain, bn = (port(arch, torch_features(arch)) for arch in ("vgg11", "vgg11_bn"))
    whole = port("vgg11", torch_vgg("vgg11").state_dict())
    head = whole.model.config.head
    return {
        # Values as large as 8-bit images have; odd sizes, so that windows matter.
        "plain": _bench(plain, 40 * random_images(2, 33, 47), plain.model.config.layers),
        "bn": _bench(bn, random_images(2, 33, 47), bn.model.config.layers[:7]),
        # Maps of 2x2 for the adaptive pooling, which repeats them, and of 9x10, whose windows
        # overlap.
        "head": _bench(whole, abs(random_images(2, 2, 2, channels=512)), head),
        "pooled": _bench(whole, abs(random_images(2, 9, 10, channels=512)), head[:1]),
    }


Apply = Callable[[LayerStack, Layer, jax.Array], jax.Array]


class Mutation(NamedTuple):
    """One mistake, the bench it shows on, and the first layer it shows at.

    `layers` replaces layers by name or kind, `arrays` parameters by path, `images` the images, and
    `dtype` what is computed in.
    """

    id: str
    bench: str
    caught_at: str
    layers: Mapping[str, Apply] = {}
    arrays: Callable[[Arrays], Mapping[tuple[str, ...], Any]] = lambda arrays: {}
    images: Callable[[np.ndarray], np.ndarray] = lambda images: images
    dtype: Any = jnp.float32


# Compiled once for all mutations.
_right = partial(jax.jit, static_argnums=(1, 3))(LayerStack._apply)


class Outputs(dict[str, Any]):
    """The mutated port's outputs, each computed when it is popped: none behind the mistake."""

    def __init__(self, model: VGG, layers: Mapping[str, Apply], images: jax.Array):
        super().__init__()
        self.model, self.layers, self.x = model, layers, images

    def pop(self, name: str) -> np.ndarray:
        config = self.model.config
        layer = next(layer for layer in config.layers if layer.name == name)
        stack = self.model.head if layer in config.head else self.model.conv_stack
        apply = self.layers.get(layer.name) or self.layers.get(layer.kind) or _as_it_is
        self.x = apply(stack, layer, self.x)
        return np.asarray(self.x)


def _first_failure(bench: Bench, mutation: Mutation) -> str:
    """The first layer where the mistake shows; "" where it is not caught."""
    arrays = bench.arrays | mutation.arrays(bench.arrays)
    model = build(bench.config, arrays, dtype=mutation.dtype)
    ours = Outputs(model, mutation.layers, jnp.asarray(mutation.images(bench.images)))
    for check in compare(bench.config, arrays, bench.images, ours, "PyTorch", bench.references):
        if not check.holds:
            print(describe(check))
            return check.layer
    return ""


def _as_it_is(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
    return _right(stack, layer, x, None)


def _kept(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
    """No layer at all."""
    return x


def _then(change: Callable[[jax.Array], jax.Array]) -> Apply:
    """The layer's input changed, then the layer."""
    return lambda stack, layer, x: _right(stack, layer, change(x), None)


def _instead(function: Callable[[jax.Array], jax.Array]) -> Apply:
    """A function in the layer's place."""
    return lambda stack, layer, x: function(x)


def _kernel(layer: str, change: Callable[[np.ndarray], np.ndarray], room: str = "conv_stack"):
    """The kernel of one layer changed."""
    path = (room, layer, "kernel")
    return lambda arrays: {path: np.ascontiguousarray(change(arrays[path]))}


def _no_bias(layer: str, room: str = "conv_stack"):
    path = (room, layer, "bias")
    return lambda arrays: {path: np.zeros_like(arrays[path])}


def _exchanged(a: tuple[str, ...], b: tuple[str, ...]):
    return lambda arrays: {a: arrays[b], b: arrays[a]}


def _every(name: str, change: Callable[[np.ndarray], np.ndarray]):
    return lambda arrays: {path: change(x) for path, x in arrays.items() if path[2] == name}


def _padded(**kwargs: Any) -> Apply:
    """A convolution that pads otherwise."""

    def apply(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
        conv = getattr(stack, layer.name)
        if kwargs:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), **kwargs)
        return _conv(x, conv.kernel[...], "VALID") + conv.bias[...].reshape(1, 1, 1, -1)

    return apply


def _conv(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers, precision="highest"
    )


def _fc6_same(reduce: Callable[[jax.Array], jax.Array]) -> Apply:
    """fc6 as a 7x7 convolution with SAME padding, and its 7x7 outputs made one."""

    def apply(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
        maps = x.reshape(-1, 7, 7, 512)
        kernel = stack.fc6.kernel[...].reshape(7, 7, 512, -1)
        return reduce(_conv(maps, kernel, "SAME")) + stack.fc6.bias[...].reshape(1, -1)

    return apply


def _fc6_off_by_a_row(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
    """What SAME padding gives beside the centre, whose window alone is the right one."""
    maps = jnp.roll(x.reshape(-1, 7, 7, 512).at[:, -1].set(0.0), 1, axis=1)
    return _right(stack, layer, maps.reshape(x.shape), None)


def _window(reduce: Any, start: float, size: int, padding: Any) -> Apply:
    """A pooling with stride 2 over other windows."""
    dims, strides = (1, size, size, 1), (1, 2, 2, 1)
    if padding not in ("SAME", "VALID"):
        padding = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return _instead(lambda x: lax.reduce_window(x, start, reduce, dims, strides, padding))


_mean_pool = _window(lax.add, 0.0, 2, "VALID")


def _batch_norm(epsilon: float = 1e-5, *, batch: bool = False, deviation: bool = False) -> Apply:
    """BatchNorm written out, with another epsilon or other statistics."""

    def apply(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
        norm = getattr(stack, layer.name)
        mean, var = norm.mean[...], norm.var[...]
        if batch:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        scale, bias, mean, var = (
            y.reshape(1, 1, 1, -1) for y in (norm.scale[...], norm.bias[...], mean, var)
        )
        divisor = var + epsilon if deviation else jnp.sqrt(var + epsilon)
        return (x - mean) / divisor * scale + bias

    return apply


def _dropout(stack: LayerStack, layer: Layer, x: jax.Array) -> jax.Array:
    return nnx.Dropout(layer.rate, deterministic=False)(x, rngs=nnx.Rngs(dropout=0))


def _equal_windows(x: jax.Array) -> jax.Array:
    """7x7 means over equal windows, and what is left over dropped."""
    h, w = x.shape[1] // 7, x.shape[2] // 7
    return x[:, : 7 * h, : 7 * w].reshape(-1, 7, h, 7, w, x.shape[3]).mean(axis=(2, 4))


def _resized(method: str) -> Apply:
    return _instead(lambda x: jax.image.resize(x, (x.shape[0], 7, 7, x.shape[3]), method))


def _adaptive_max(x: jax.Array) -> jax.Array:
    return jnp.asarray(_channels_last(torch.nn.AdaptiveMaxPool2d(7), torch.from_numpy(np.array(x))))


def _tf32(x: Any) -> np.ndarray:
    """Rounded to TF32's 10 bits of mantissa."""
    bits = np.array(x, np.float32).view(np.uint32)
    bits += 0xFFF + ((bits >> 13) & 1)
    return (bits & 0xFFFFE000).view(np.float32)


def _bfloat16(x: Any) -> np.ndarray:
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float32)


def _chw(x: jax.Array) -> jax.Array:
    """Vectors of 7x7 maps from the channels-last to the channels-first order."""
    return jnp.moveaxis(x.reshape(-1, 7, 7, 512), 3, 1).reshape(x.shape)


def _unpermuted(kernel: np.ndarray) -> np.ndarray:
    """fc6's kernel in the order of PyTorch's flattening."""
    return kernel.reshape(7, 7, 512, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


CONV4_2, CONV5_1 = ("conv_stack", "conv4_2", "kernel"), ("conv_stack", "conv5_1", "kernel")

MUTATIONS = [
    # Activations.
    Mutation("no relu after conv3_1", "plain", "relu3_1", {"relu3_1": _kept}),
    Mutation("no relu in the convolutions", "plain", "relu1_1", {"relu": _kept}),
    Mutation("no relu after fc6", "head", "relu6", {"relu6": _kept}),
    Mutation("no relu after fc7", "head", "relu7", {"relu7": _kept}),
    Mutation("no relu in the classifier", "head", "relu6", {"relu6": _kept, "relu7": _kept}),
    Mutation("leaky relu", "plain", "relu1_1", {"relu": _instead(jax.nn.leaky_relu)}),
    Mutation("relu6", "plain", "relu1_1", {"relu": _instead(jax.nn.relu6)}),
    Mutation("gelu", "plain", "relu1_1", {"relu": _instead(jax.nn.gelu)}),
    Mutation(
        "zeros that are 1e-9",
        "plain",
        "relu1_1",
        {"relu": _instead(lambda x: jnp.maximum(x, 1e-9))},
    ),
    Mutation(
        "zeros that are -1e-9",
        "plain",
        "relu1_1",
        {"relu": _instead(lambda x: jnp.where(x > 0, x, -1e-9))},
    ),
    Mutation(
        "one zero that is none",
        "plain",
        "relu4_1",
        {"relu4_1": _instead(lambda x: jax.nn.relu(x).at[..., 7].add(1e-9))},
    ),
    Mutation(
        "small values cut off",
        "plain",
        "relu1_1",
        {"relu": _instead(lambda x: jnp.where(x > 1e-3, x, 0.0))},
    ),
    Mutation("relu before batch norm", "bn", "bn1_1", {"batch_norm": _then(jax.nn.relu)}),
    # Convolutions.
    Mutation("no bias in conv1_1", "plain", "conv1_1", arrays=_no_bias("conv1_1")),
    Mutation("no bias in conv4_2", "plain", "conv4_2", arrays=_no_bias("conv4_2")),
    Mutation("no bias before batch norm", "bn", "conv1_1", arrays=_no_bias("conv1_1")),
    Mutation(
        "kernel rows for columns",
        "plain",
        "conv3_1",
        arrays=_kernel("conv3_1", lambda k: k.transpose(1, 0, 2, 3)),
    ),
    Mutation(
        "kernel inputs for outputs",
        "plain",
        "conv4_2",
        arrays=_kernel("conv4_2", lambda k: k.transpose(0, 1, 3, 2)),
    ),
    Mutation(
        "kernel flipped",
        "plain",
        "conv1_1",
        arrays=_kernel("conv1_1", lambda k: k[::-1, ::-1]),
    ),
    Mutation("kernels exchanged", "plain", "conv4_2", arrays=_exchanged(CONV4_2, CONV5_1)),
    Mutation("no padding", "plain", "conv1_1", {"conv": _padded()}),
    Mutation("no padding in conv2_1", "plain", "conv2_1", {"conv2_1": _padded()}),
    Mutation("edge padding", "plain", "conv1_1", {"conv": _padded(mode="edge")}),
    Mutation("circular padding", "plain", "conv1_1", {"conv": _padded(mode="wrap")}),
    Mutation("padding with ones", "plain", "conv1_1", {"conv": _padded(constant_values=1.0)}),
    # Images.
    Mutation("images in BGR", "plain", "conv1_1", images=lambda x: x[..., ::-1]),
    Mutation(
        "conv1_1 in BGR",
        "plain",
        "conv1_1",
        arrays=_kernel("conv1_1", lambda k: k[:, :, ::-1]),
    ),
    Mutation("images 0-1 for 0-255", "plain", "conv1_1", images=lambda x: x / np.float32(255)),
    Mutation("images flipped", "plain", "conv1_1", images=lambda x: x[:, :, ::-1]),
    Mutation("images not normalised", "plain", "conv1_1", images=lambda x: x + np.float32(0.45)),
    # Pooling.
    Mutation(
        "pool padding SAME", "plain", "pool1", {"max_pool": _window(lax.max, -jnp.inf, 2, "SAME")}
    ),
    Mutation("pool padded by 1", "plain", "pool1", {"max_pool": _window(lax.max, -jnp.inf, 2, 1)}),
    Mutation("pool 3x3", "plain", "pool1", {"max_pool": _window(lax.max, -jnp.inf, 3, "SAME")}),
    Mutation(
        "pool windows begin at 1",
        "plain",
        "pool1",
        {"max_pool": _instead(lambda x: max_pool_2x2(x[:, 1:, 1:]))},
    ),
    Mutation(
        "stride for pool", "plain", "pool1", {"max_pool": _instead(lambda x: x[:, :-1:2, :-1:2])}
    ),
    Mutation("average for max pool", "plain", "pool1", {"max_pool": _mean_pool}),
    Mutation("adaptive max pool", "pooled", "avgpool", {"avg_pool": _instead(_adaptive_max)}),
    Mutation("adaptive max pool of 2x2", "head", "avgpool", {"avg_pool": _instead(_adaptive_max)}),
    Mutation("equal windows", "pooled", "avgpool", {"avg_pool": _instead(_equal_windows)}),
    Mutation("linear resize", "pooled", "avgpool", {"avg_pool": _resized("linear")}),
    Mutation("nearest resize", "pooled", "avgpool", {"avg_pool": _resized("nearest")}),
    Mutation("nearest resize of 2x2", "head", "avgpool", {"avg_pool": _resized("nearest")}),
    Mutation("crop", "pooled", "avgpool", {"avg_pool": _instead(lambda x: x[:, 1:8, 1:8])}),
    # Classifier.
    Mutation(
        "CHW flatten",
        "head",
        "flatten",
        {"flatten": lambda stack, layer, x: _chw(x.reshape(x.shape[0], -1))},
    ),
    Mutation("fc6 not permuted", "head", "fc6", arrays=_kernel("fc6", _unpermuted, "head")),
    Mutation("CHW flatten for fc6", "head", "fc6", {"fc6": _then(_chw)}),
    Mutation("fc6 SAME, mean", "head", "fc6", {"fc6": _fc6_same(lambda y: y.mean(axis=(1, 2)))}),
    Mutation("fc6 SAME, corner", "head", "fc6", {"fc6": _fc6_same(lambda y: y[:, 0, 0])}),
    Mutation("fc6 off by a row", "head", "fc6", {"fc6": _fc6_off_by_a_row}),
    Mutation("fc7 transposed", "head", "fc7", arrays=_kernel("fc7", lambda k: k.T, "head")),
    Mutation("no bias in fc6", "head", "fc6", arrays=_no_bias("fc6", "head")),
    Mutation("no bias in fc8", "head", "fc8", arrays=_no_bias("fc8", "head")),
    Mutation("dropout on", "head", "drop6", {"dropout": _dropout}),
    Mutation("dropout on in drop7", "head", "drop7", {"drop7": _dropout}),
    Mutation(
        "dropout's scale at inference", "head", "drop6", {"dropout": _instead(lambda x: x / 2)}
    ),
    Mutation("logits for probabilities", "head", "prob", {"prob": _kept}),
    Mutation("sigmoid", "head", "prob", {"prob": _instead(jax.nn.sigmoid)}),
    Mutation(
        "softmax over the batch",
        "head",
        "prob",
        {"prob": _instead(lambda x: jax.nn.softmax(x, axis=0))},
    ),
    # BatchNorm.
    Mutation("epsilon 1e-3", "bn", "bn1_1", {"batch_norm": _batch_norm(1e-3)}),
    Mutation("no epsilon", "bn", "bn1_1", {"batch_norm": _batch_norm(0.0)}),
    Mutation("batch statistics", "bn", "bn1_1", {"batch_norm": _batch_norm(batch=True)}),
    Mutation("variance for deviation", "bn", "bn1_1", {"batch_norm": _batch_norm(deviation=True)}),
    Mutation("no batch norm", "bn", "bn1_1", {"batch_norm": _kept}),
    Mutation(
        "mean for variance",
        "bn",
        "bn2_1",
        arrays=_exchanged(("conv_stack", "bn2_1", "mean"), ("conv_stack", "bn2_1", "var")),
    ),
    Mutation(
        "scale for bias",
        "bn",
        "bn2_1",
        arrays=_exchanged(("conv_stack", "bn2_1", "scale"), ("conv_stack", "bn2_1", "bias")),
    ),
    # Precision.
    Mutation("bfloat16", "plain", "conv1_1", dtype=jnp.bfloat16),
    Mutation("float16", "bn", "conv1_1", dtype=jnp.float16),
    Mutation("bfloat16 weights", "plain", "conv1_1", arrays=_every("kernel", _bfloat16)),
    Mutation("TF32 weights", "plain", "conv1_1", arrays=_every("kernel", _tf32)),
    Mutation("TF32 images", "plain", "conv1_1", images=_tf32),
    Mutation(
        "TF32 inputs of conv5_2",
        "plain",
        "conv5_2",
        {"conv5_2": _then(lambda x: jnp.asarray(_tf32(x)))},
    ),
    Mutation("TF32 inputs of fc7", "head", "fc7", {"fc7": _then(lambda x: jnp.asarray(_tf32(x)))}),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.id)
def test_mistake_is_caught_where_it_is_made(benches: dict[str, Bench], mutation: Mutation):
    assert _first_failure(benches[mutation.bench], mutation) == mutation.caught_at


@pytest.mark.parametrize("bench", ["plain", "bn", "pooled", "head"])
def test_port_without_mistakes_passes_the_same_check(benches: dict[str, Bench], bench: str):
    assert _first_failure(benches[bench], Mutation("none", bench, "")) == ""
