"""VGG: a convolution stack, its named layers, and a head."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from flaxvgg.files.foreign import AnyPath
from flaxvgg.network.config import Layer, VGGConfig, listed
from flaxvgg.network.hub import OnTheHub
from flaxvgg.network.inputs import check_images
from flaxvgg.network.layers import (
    BatchNorm,
    adaptive_avg_pool,
    average_pool_2x2,
    global_avg_pool,
    l2_pool,
    sum_dtype,
    windows,
)
from flaxvgg.network.provenance import Preprocessing, Provenance
from flaxvgg.network.summary import Summary, about, short, summary
from flaxvgg.ops import convolution
from flaxvgg.ops.linear import conv_general_dilated, dot_general
from flaxvgg.ops.pooling import max_pool_2x2
from flaxvgg.ops.sharding import spread_by_xla

AnyArray = Array | np.ndarray
Images = Float[AnyArray, "*n h w 3"] | Sequence[Float[AnyArray, "h w 3"]]

# torchvision's initialisation: He et al. 2015 with fan_out for convolutions, N(0, 0.01) for linear.
_CONV_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_LINEAR_INIT = nnx.initializers.normal(0.01)


class Packed(nnx.Variable):
    """A convolution's kernel once more, as a CPU multiplies by it; `prepare` makes it."""


class Convolution(nnx.Conv):
    """`nnx.Conv`, and the ReLU and the 2x2 max pooling behind it, which a CPU does in one go.

    Where it `replicates`, the edge goes on beyond the edge, and no zeros are there.
    """

    replicates = False
    packed: Packed | None = None

    def __call__(
        self, inputs: Array, out_sharding: Any = None, *, relu: bool = False, pool: bool = False
    ) -> Array:
        """The convolution and its bias, then ReLU, then pooling, where they are wanted."""
        if not self.replicates:
            return self._padded_with_zeros(inputs, out_sharding, relu=relu, pool=pool)
        wider = jnp.pad(inputs, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        y = self._padded_with_zeros(wider, out_sharding, relu=relu)[:, 1:-1, 1:-1]
        return max_pool_2x2(y) if pool else y

    def _padded_with_zeros(
        self, inputs: Array, out_sharding: Any, *, relu: bool = False, pool: bool = False
    ) -> Array:
        ours = self.conv_general_dilated is conv_general_dilated and self.dtype == jnp.float32
        kernel, bias = self.kernel[...], self.bias
        if ours and bias is not None and convolution.fits(inputs, kernel):
            settings = {"relu": relu, "pool": pool, "precision": self.precision}
            packed = None if self.packed is None else self.packed[...]
            if packed is not None and convolution.is_packed_for(inputs, kernel, packed):
                return convolution.packed_block(inputs, kernel, packed, bias[...], **settings)
            return convolution.conv3x3_block(inputs, kernel, bias[...], **settings)
        y = super().__call__(inputs, out_sharding)
        y = jax.nn.relu(y) if relu else y
        return max_pool_2x2(y) if pool else y


class LayerStack(nnx.Module):
    """A run of named layers; those with parameters are attributes of the same name."""

    def __init__(
        self,
        layers: tuple[Layer, ...],
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        precision: jax.lax.PrecisionLike,
        rngs: nnx.Rngs,
    ):
        self.layers = layers
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        for layer in layers:
            match layer.kind:
                case "conv":
                    module = Convolution(
                        layer.inputs,
                        layer.outputs,
                        (layer.kernel, layer.kernel),
                        padding=layer.kernel // 2,
                        kernel_init=_CONV_INIT,
                        precision=precision,
                        conv_general_dilated=conv_general_dilated,
                        **kwargs,
                    )
                    module.replicates = layer.padding == "replicate"
                case "linear":
                    module = nnx.Linear(
                        layer.inputs * layer.kernel**2,
                        layer.outputs,
                        kernel_init=_LINEAR_INIT,
                        precision=precision,
                        dot_general=dot_general,
                        **kwargs,
                    )
                case "batch_norm":
                    options = {"eps": layer.eps, "momentum": layer.momentum}
                    module = BatchNorm(layer.outputs, **options, **kwargs)
                case "dropout":
                    # No rngs of its own: under jax.jit a stored stream gives one mask for ever.
                    module = nnx.Dropout(layer.rate, deterministic=True)
                case _:
                    continue
            setattr(self, layer.name, module)

    def _apply_some(
        self,
        layers: Sequence[Layer],
        kept: Collection[str],
        x: Array,
        rngs: nnx.Rngs | jax.Array | None,
    ) -> tuple[Array, int]:
        """The output of the first of `layers` for the input `x`, or of the first few, and how many.

        A convolution takes its ReLU and its pooling along, unless an output between is `kept`.
        """
        if layers[0].kind != "conv":
            return self._apply(layers[0], x, rngs), 1
        count = 1
        for layer, kind in zip(layers[1:3], ("relu", "max_pool"), strict=False):
            if layer.kind != kind or layers[count - 1].name in kept:
                break
            count += 1
        return getattr(self, layers[0].name)(x, relu=count > 1, pool=count > 2), count

    def _apply(self, layer: Layer, x: Array, rngs: nnx.Rngs | jax.Array | None) -> Array:
        """The output of one layer of this stack for the input `x`."""
        match layer.kind:
            case "relu":
                return jax.nn.relu(x)
            case "leaky_relu":
                return jax.nn.leaky_relu(x)  # with PyTorch's slope, 0.01
            case "shifted_relu":
                return jnp.maximum(x, -1)
            case "max_pool":
                return max_pool_2x2(x)
            case "average_pool":
                return average_pool_2x2(x)
            case "l2_pool":
                return l2_pool(x)
            case "avg_pool":
                return adaptive_avg_pool(x)
            case "global_avg_pool":
                return global_avg_pool(x)
            case "windows":
                return windows(x, layer.kernel)
            case "flatten":
                return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 fails on no images
            case "softmax":
                return jax.nn.softmax(x, axis=-1)
            case "dropout":
                dropout = getattr(self, layer.name)
                if rngs is None and not dropout.deterministic and dropout.rate > 0:
                    raise ValueError(
                        "dropout is on (model.train() was called): pass "
                        "rngs=nnx.Rngs(dropout=seed), or call model.eval()"
                    )
                if isinstance(rngs, jax.Array):  # one key for all: each layer gets its own
                    rngs = jax.random.fold_in(rngs, self.layers.index(layer))
                return dropout(x, rngs=rngs)
            case _:
                return getattr(self, layer.name)(x)


class VGG(OnTheHub, nnx.Module):
    """A VGG network (Simonyan & Zisserman 2015, arXiv:1409.1556) as torchvision defines it.

    A model is a pytree whose leaves are its parameters (and BatchNorm statistics), so it can be
    handed to `jax.jit`, `jax.grad` and `jax.vmap` as it is. It starts in evaluation mode;
    `model.train()` switches dropout and batch statistics on, `model.eval()` off again.

    Images are float arrays of shape (N, H, W, 3) with H, W >= 32, normalised by `preprocessing`
    (`model.load_images(paths)` gives them). Any other number of leading axes works alike, and so do
    tensors of PyTorch and lists of images of one size.

    >>> model(images).shape, model.activations(images, ["pool5"])["pool5"].shape
    ((2, 3), (2, 2, 2, 512))
    """

    prepared_for: tuple[int, int] | None = None  # the height and width that `prepare` was given

    def __init__(
        self,
        config: VGGConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        precision: jax.lax.PrecisionLike = "highest",
        provenance: Provenance = Provenance(),
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.provenance = provenance
        kwargs = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "precision": precision,
            "rngs": rngs,
        }
        self.conv_stack = LayerStack(config.conv_stack, **kwargs)
        self.head = LayerStack(config.head, **kwargs)

    @property
    def preprocessing(self) -> Preprocessing:
        """The recipe that the weights expect, as `load_images` follows it."""
        return self.provenance.preprocessing

    def train(self, **attributes: Any) -> None:
        """Switch dropout and batch statistics on. Raises ValueError for a prepared model."""
        if self.prepared_for:
            raise ValueError(
                "a prepared model is not trained: train the model that flaxvgg.prepare was given, "
                "and prepare it again"
            )
        super().train(**attributes)

    def load_images(
        self,
        paths: AnyPath | Iterable[AnyPath],
        size: tuple[SupportsIndex, SupportsIndex] | None = (224, 224),
    ) -> Float32[Array, "n h w 3"]:
        """The batch (N, H, W, 3) of N image files, prepared as these weights expect it.

        It is `flaxvgg.load_images` with the model's own `preprocessing`. `size` is (H, W) in
        pixels, or None for images that all have the same size and keep it. Raises ImageError with
        every file that cannot be used.

            images = model.load_images(["a.jpg", "b.jpg"])
            features = model.features(images)  # (2, 7, 7, 512)
        """
        from flaxvgg.images.loading import load_images

        return load_images(paths, size, self.preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; empty where they are not known."""
        return self.provenance.classes

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The paper's name of every layer, in order; `summary` has PyTorch's and Keras's too."""
        return self.config.layer_names

    def summary(self, size: tuple[int, int] = (224, 224)) -> Summary:
        """A table of all layers: their names, outputs for an image of `size` (H, W), parameters.

        A text that shows itself. Raises ValueError for a size that the network does not take.

            model.summary((375, 1242))
        """
        return summary(self.config, size, self._about())

    def __repr__(self) -> str:
        """A short table of blocks; `nnx.display(model)` shows every array."""
        return f"VGG {short(self.config, self._about())}"

    __str__ = __repr__

    def _about(self) -> str:
        dtype = jnp.dtype(self.conv_stack.conv1_1.param_dtype).name
        return about(self.config, self.provenance.source, dtype, self.prepared_for)

    def __call__(
        self, images: Images, *, rngs: nnx.Rngs | jax.Array | None = None
    ) -> Float[Array, "... classes"]:
        """Logits (N, classes) of images (N, H, W, 3); fully convolutional, (N, h, w, classes).

        `rngs` feeds dropout in training mode. Raises ValueError for a model without a classifier.
        """
        name = self.config.head_output.name
        return self.activations(images, [name], rngs=rngs)[name]

    def features(self, images: Images) -> Float[Array, "*n fh fw c"]:
        """The last feature map: pool5, (N, H//32, W//32, 512), of images (N, H, W, 3).

        Where a GAP head has put a convolution in the place of pool5, it is that one's ReLU.
        """
        return self.activations(images, ["features"])["features"]

    def gap(self, images: Images) -> Float[Array, "*n c"]:
        """Global average pooling: the mean of `features` over space, (N, 512)."""
        features = self.features(images)
        pooled = features.mean(axis=(-3, -2), dtype=sum_dtype(features.dtype))
        return pooled.astype(features.dtype)

    def activations(
        self,
        images: Images,
        layers: Iterable[str],
        *,
        rngs: nnx.Rngs | jax.Array | None = None,
    ) -> dict[str, Float[Array, "..."]]:
        """The outputs of the named layers, keyed by the names as they were asked for.

        `layers` holds the paper's names (`conv5_3`, `relu5_3`, `pool5`, `fc6`), PyTorch's
        (`features.29`) or Keras's (`block5_conv3`, which includes its ReLU); see
        `model.config.all_names`. Maps are (N, h, w, channels), vectors (N, units). Layers after the
        last one asked for are not computed. Raises ValueError for an unknown name.
        """
        wanted = {name: self.config.resolve(name) for name in listed(layers)}
        images = check_images(images, self.preprocessing)
        lead = images.shape[:-3]

        def run(images: Array, stacks: Sequence[LayerStack]) -> dict[str, Array]:
            x = images.reshape(math.prod(lead), *images.shape[-3:])
            found = run_layers(stacks, x, set(wanted.values()), rngs=rngs)
            return {
                name: found[layer].reshape(*lead, *found[layer].shape[1:])
                for name, layer in wanted.items()
            }

        images, stacks = jnp.asarray(images), (self.conv_stack, self.head)
        if self._keeps_statistics():
            return run(images, stacks)  # a copy of the stacks would keep them in vain
        return spread_by_xla(run, images, stacks)

    def _keeps_statistics(self) -> bool:
        """Whether a forward pass changes a BatchNorm's running statistics."""
        return any(
            isinstance(module, BatchNorm) and not module.use_running_average
            for stack in (self.conv_stack, self.head)
            for module in vars(stack).values()
        )


def run_layers(
    stacks: Sequence[LayerStack],
    x: Float[Array, "n ..."],
    wanted: Collection[str],
    *,
    after: str | None = None,
    shifts: Mapping[str, Float[Array, "..."]] = MappingProxyType({}),
    rngs: nnx.Rngs | jax.Array | None = None,
) -> dict[str, Float[Array, "..."]]:
    """The one forward pass: the outputs of the layers `wanted`, keyed by the paper's names.

    `x` holds images (N, H, W, 3), or, with `after`, the output of that layer, behind which the pass
    then starts. What `shifts` has under a layer's name is added to its output; the derivative by a
    shift, at zero, is the derivative by that output. Layers behind the last one wanted do not run.
    """
    found = {after: x} if after in wanted else {}
    missing = set(wanted) - set(found)
    started = after is None
    for stack in stacks:
        layers = stack.layers
        if not started:
            names = [layer.name for layer in layers]
            started = after in names
            layers = layers[names.index(after) + 1 :] if started else ()
        while layers and missing:
            x, count = stack._apply_some(layers, missing | set(shifts), x, rngs)
            name = layers[count - 1].name
            if name in shifts:
                x = x + shifts[name]
            if name in missing:
                found[name] = x
                missing.remove(name)
            layers = layers[count:]
    return found


def flatten_chw(features: Float[AnyArray, "*n h w c"]) -> Float[Array, "*n c*h*w"]:
    """Flatten maps (N, h, w, C) to (N, C*h*w) in the order of `torch.flatten` on NCHW maps.

    >>> features = model.features(images)
    >>> features.shape, flaxvgg.flatten_chw(features).shape
    ((2, 2, 2, 512), (2, 2048))
    """
    return jnp.moveaxis(features, -1, -3).reshape(*features.shape[:-3], -1)
