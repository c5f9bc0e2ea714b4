"""`explain`: every method, any classes, one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.explanation import Explanation
from flaxvgg.cam.formulas import GRADIENT_METHODS, principal_component
from flaxvgg.cam.full_grad import bias_layers, full_grad
from flaxvgg.cam.masking import ablation_weights, score_cam_weights
from flaxvgg.cam.network import Network, as_scores, one_hot
from flaxvgg.config import VGGConfig
from flaxvgg.heads import score_maps
from flaxvgg.model import VGG, AnyArray, check_images

METHODS = (
    "cam",
    *GRADIENT_METHODS,
    "score_cam",
    "ablation_cam",
    "eigen_cam",
    "full_grad",
    "fully_convolutional",
)
Classes = int | Sequence[int] | Int[AnyArray, "..."] | str | None

_LARGEST = 256 * 2**20  # bytes of gradients that are held at once
_POOLED = ("avg_pool", "global_avg_pool", "flatten", "windows")


def explain(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    classes: Classes = None,
    method: str = "grad_cam",
    layer: str | Sequence[str] | None = None,
    convention: str = "paper",
) -> Explanation:
    """Class activation maps: where in the images (N, H, W, 3) the evidence for a class is.

    `classes` are None for each image's top one, a class, a list of classes for every image, an
    array (N, K) with K classes for each image, or "all". `method` is one of `flaxvgg.METHODS`;
    `flaxvgg.cam.formulas` and `flaxvgg.cam.masking` hold their definitions. `layer` is a named
    layer that gives maps, or several, whose maps are joined; None is the last ReLU before the
    pooling (relu5_3), for "cam" the layer that is pooled. `convention` is "paper", "grad-cam" or
    "torchcam" (`flaxvgg.cam.conventions`).

    Returns an `Explanation`: raw signed `maps` (N, K, h, w), `heatmaps(size)`, `flags`. It is a
    pure function under one `jax.jit`, compiled once for the shapes, the method, the layers and the
    convention: other images, classes or weights are no new program. "eigen_cam" knows no classes
    and works without a head. A score map, of a fully-convolutional head, counts as its mean.

    Raises ValueError for an unknown method, layer, class or convention, for "cam" without a GAP
    head, for a layer behind the pooling, and for no images.
    """
    config = model.config
    if method not in METHODS:
        raise ValueError(f"no method {method!r}: choose from {', '.join(METHODS)}")
    chosen = Convention.named(convention)
    check_images(images)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, H, W, 3), not {images.shape}")
    if not len(images):
        raise ValueError("no images: the batch is empty")
    _check_evaluating(model)
    layers = _layers(config, method, layer)
    if config.head or method != "eigen_cam":
        classes = _classes(classes, len(images), config.head_output.outputs)
    images = jnp.asarray(images)
    if method == "fully_convolutional":
        found = _from_score_maps(score_maps(model, images), classes)
    else:
        network = Network((model.conv_stack, model.head), config)
        found = layer_maps(network.stacks, images, classes, config, method, layers, chosen)
    return Explanation(*found, method, layers, convention, images.shape[1:3])


@partial(jax.jit, static_argnames=("config", "method", "layers", "convention"))
def layer_maps(
    stacks: Any,
    images: Float[Array, "n h w 3"],
    classes: Int[Array, "n k"] | None,
    config: VGGConfig,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> tuple[tuple[Array, ...], Int[Array, "n k"], Float[Array, "n k"]]:
    """The layers' raw maps (N, K, h, w), the classes (N, K), and their scores (N, K)."""
    network = Network(stacks, config)
    if method == "grad_cam" and len(layers) == 1 and network.pooled_by(*layers):
        return _grad_cam_of_pooled(network, images, classes, *layers)
    if method in GRADIENT_METHODS:
        formula = GRADIENT_METHODS[method]

        def from_gradients(activations, gradients):
            return tuple(formula(activations[x], gradients[x], convention) for x in layers)

        return _by_class(network, images, classes, layers, from_gradients)
    if method == "full_grad":

        def from_biases(activations, gradients):
            gradients = dict(gradients)
            return (full_grad(network, images, gradients.pop(""), gradients, convention),)

        return _by_class(network, images, classes, ("", *bias_layers(network)), from_biases)

    outputs = network.run(images, {*layers, *([network.output] if config.head else [])})
    activations = {name: _float32(outputs[name]) for name in layers}
    if not config.head:
        unknown = jnp.full((len(images), 1), -1), jnp.full((len(images), 1), jnp.nan)
        return tuple(principal_component(x)[:, None] for x in activations.values()), *unknown
    scores = as_scores(outputs[network.output])
    classes = _top(scores) if classes is None else classes
    maps = []
    for name, x in activations.items():
        match method:
            case "cam":
                weights = _float32(network.parameters(network.output).kernel[...])
                weights = jnp.broadcast_to(weights, (len(images), *weights.shape))
            case "score_cam":
                weights = score_cam_weights(network, images, x, convention)
            case "ablation_cam":
                weights = ablation_weights(network, name, outputs[name], scores, convention)
            case _:  # eigen_cam: the same map for every class
                maps.append(_repeat(principal_component(x), classes.shape[1]))
                continue
        maps.append(jnp.einsum("nhwc,nck->nkhw", x, _take(weights, classes), precision="highest"))
    return tuple(maps), classes, _take(scores, classes)


def _by_class(
    network: Network,
    images: Array,
    classes: Array | None,
    layers: Sequence[str],
    maps_of: Callable[[dict[str, Array], dict[str, Array]], tuple[Array, ...]],
) -> tuple[tuple[Array, ...], Array, Array]:
    """`maps_of(activations, gradients)` for each class; the layer "" is the images themselves.

    The forward pass runs once for all classes, and the backward pass from the first of the layers.
    """
    named = [name for name in layers if name]
    shapes = jax.eval_shape(lambda x: network.run(x, named), images)
    shifts = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    if "" in layers:
        shifts[""] = jnp.zeros_like(images)

    def shifted(shifts: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        x = images + shifts[""] if "" in shifts else images
        outputs = network.run(x, {*named, network.output}, shifts=shifts)
        return as_scores(outputs[network.output]), {name: outputs[name] for name in named}

    scores, pull_back, activations = jax.vjp(shifted, shifts, has_aux=True)
    classes = _top(scores) if classes is None else classes
    activations = {name: _float32(x) for name, x in activations.items()}

    def of_class(wanted: Int[Array, " n"]) -> tuple[Array, ...]:
        (gradients,) = pull_back(one_hot(wanted, scores.shape[-1]).astype(scores.dtype))
        return maps_of(activations, {name: _float32(g) for name, g in gradients.items()})

    at_once = max(1, _LARGEST // (4 * sum(x.size for x in shifts.values())))
    if classes.shape[1] <= at_once:
        maps = jax.vmap(of_class)(classes.T)
    else:
        maps = lax.map(of_class, classes.T, batch_size=at_once)
    return tuple(jnp.moveaxis(x, 0, 1) for x in maps), classes, _take(scores, classes)


def _grad_cam_of_pooled(
    network: Network, images: Array, classes: Array | None, layer: str
) -> tuple[tuple[Array, ...], Array, Array]:
    """Grad-CAM at a layer between which and a linear one there is nothing but pooling.

    A channel's gradient summed over space is the derivative by what is added to the whole channel.
    Pooling passes that on unchanged, to every place, so that the sum over places can be taken of
    the linear layer's weights, once for all classes: for vgg16 49 times less than the gradients.
    """
    linear = network.pooled_by(layer)
    assert linear is not None
    outputs = network.run(images, [layer, linear.name])
    activations = _float32(outputs[layer])
    units = outputs[linear.name]
    scores, pull_back = jax.vjp(lambda units: network.scores(units, after=linear.name), units)
    classes = _top(scores) if classes is None else classes
    one_hots = jax.vmap(one_hot, (1, None))(classes, scores.shape[-1]).astype(scores.dtype)
    (gradients,) = jax.vmap(pull_back)(one_hots)
    kernel = network.kernel_by_place(linear)
    places = activations.shape[1] * activations.shape[2]
    summed = kernel.sum(axis=0, dtype=activations.dtype) / places
    weights = jnp.einsum("kno,co->nkc", _float32(gradients), summed, precision="highest")
    maps = jnp.einsum("nhwc,nkc->nkhw", activations, weights, precision="highest")
    return (maps,), classes, _take(scores, classes)


@jax.jit
def _from_score_maps(
    score_maps: Float[Array, "n h w c"], classes: Int[Array, "n k"] | None
) -> tuple[tuple[Array, ...], Array, Array]:
    scores = as_scores(score_maps)
    classes = _top(scores) if classes is None else classes
    maps = _take(_float32(score_maps), classes[:, None, None])
    return (jnp.moveaxis(maps, -1, 1),), classes, _take(scores, classes)


def _top(scores: Float[Array, "n c"]) -> Int[Array, "n 1"]:
    return scores.argmax(axis=-1, keepdims=True)


def _take(values: Float[Array, "n *d c"], classes: Int[Array, "n *e k"]) -> Float[Array, "n *d k"]:
    """The values of the wanted classes, along the last axis; NaN for a class there is none of."""
    classes = classes.reshape(len(classes), *[1] * (values.ndim - 2), classes.shape[-1])
    return jnp.take_along_axis(values, classes, axis=-1, mode="fill", fill_value=jnp.nan)


def _repeat(maps: Float[Array, "n h w"], count: int) -> Float[Array, "n k h w"]:
    return jnp.broadcast_to(maps[:, None], (len(maps), count, *maps.shape[1:]))


def _float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _classes(classes: Classes, images: int, count: int) -> Int[Array, "n k"] | None:
    """The classes as an array (N, K), checked where their values are known; None stays None."""
    if classes is None:
        return None
    if isinstance(classes, str):
        if classes != "all":
            raise ValueError(f'classes must be numbers, None or "all", not {classes!r}')
        classes = np.arange(count)
    array = classes if isinstance(classes, jax.Array) else np.asarray(classes)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"classes must be whole numbers, not {array.dtype}")
    if not isinstance(array, jax.core.Tracer):
        outside = sorted({int(c) for c in np.ravel(array) if not 0 <= c < count})
        if outside:
            raise ValueError(f"no class {outside[0]}: the model has classes 0 to {count - 1}")
    if array.ndim < 2:
        array = jnp.broadcast_to(jnp.atleast_1d(array), (images, max(array.size, 0)))
    if array.ndim != 2 or array.shape[0] != images or not array.shape[1]:
        raise ValueError(
            f"classes of shape {np.shape(classes)} for {images} images: pass one class, a list of "
            "classes for every image, or an array (N, K)"
        )
    return jnp.asarray(array, jnp.int32)


def _layers(config: VGGConfig, method: str, layer: str | Sequence[str] | None) -> tuple[str, ...]:
    """The paper's names of the layers whose maps are wanted, in the order asked for."""
    layers = config.layers
    pooled = next((i for i, x in enumerate(layers) if x.kind in _POOLED), len(layers))
    maps = layers[:pooled]
    if method == "cam":
        kinds = [x.kind for x in layers[pooled:]][:3]
        if kinds != ["global_avg_pool", "flatten", "linear"]:
            raise ValueError(
                '"cam" needs global average pooling and one linear layer behind it: '
                "flaxvgg.with_gap(model, num_classes, rngs=rngs)"
            )
        default = choices = [maps[-1].name]
    elif method in ("full_grad", "fully_convolutional"):
        if layer is not None:
            raise ValueError(f"{method!r} takes no layer: it uses the whole network")
        return ()
    else:
        choices = [x.name for x in maps]
        default = [[x.name for x in maps if x.kind == "relu"][-1]]
    names = default if layer is None else [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise ValueError("no layer was given: pass at least one name")
    resolved = tuple(dict.fromkeys(config.resolve(name) for name in names))
    wrong = [name for name in resolved if name not in choices]
    if wrong:
        raise ValueError(f"{method!r} has no map at {wrong[0]!r}: choose from {', '.join(choices)}")
    return resolved


def _check_evaluating(model: VGG) -> None:
    """Raise ValueError in training mode, in which an image's scores depend on chance or batch."""
    for stack in (model.conv_stack, model.head):
        for layer in stack.layers:
            module: Any = getattr(stack, layer.name, None)
            training = layer.kind == "dropout" and not module.deterministic and module.rate > 0
            if training or (layer.kind == "batch_norm" and not module.use_running_average):
                raise ValueError("the model is in training mode: call model.eval() first")
