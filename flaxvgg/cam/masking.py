"""Score-CAM and Ablation-CAM: a channel weighs what the scores do with it, or without it.

Both run many passes, for all classes at once, in chunks of a fixed size, so that memory does not
grow with the number of channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.cam.conventions import Convention, scale
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.targets import Targets
from flaxvgg.images.resizing import resize
from flaxvgg.network.config import Layer

_CHUNK = 32  # inputs in one pass
_BLOCK = 256  # units of a linear layer's input that are multiplied at once


def score_cam_weights(
    network: Network,
    images: Float[Array, "n h w 3"],
    activations: Float[Array, "n i j c"],
    targets: Targets,
    convention: Convention,
) -> Float[Array, "n k c"]:
    """The softmax over channels of the scores of the masked image (Wang et al. 2020, 1910.01279).

    A mask is a channel enlarged to the image and scaled to [0, 1]. The paper subtracts the score of
    a baseline, which cancels in the softmax. A constant channel masks everything: one pass serves
    all of those, and the loop ends with the last channel that varies.
    """
    n, height, width, _ = images.shape
    channels = jnp.moveaxis(activations, -1, 1)
    varies = channels.max(axis=(2, 3)) > channels.min(axis=(2, 3))
    order = jnp.argsort(~varies, axis=1, stable=True)  # channels that vary come first
    count = activations.shape[-1]
    chunk = min(_at_once(n), count)

    def masks(channels: Array) -> Array:
        if convention.mask == "scale then resize":
            channels = scale(channels, convention.mask_eps)
            return resize(channels, (height, width))
        enlarged = resize(channels, (height, width), align_corners=convention.mask_corners)
        return scale(enlarged, convention.mask_eps)

    def passes(i: int | Array, scores: Array) -> Array:
        # The last chunk is moved back to fit, and does a few channels again.
        start = jnp.minimum(i * chunk, count - chunk)
        taken = lax.dynamic_slice_in_dim(order, start, chunk, axis=1)
        mask = masks(jnp.take_along_axis(channels, taken[:, :, None, None], axis=1))
        masked = images[:, None] * mask[..., None].astype(images.dtype)
        found = network.scores(masked.reshape(-1, height, width, 3)).reshape(n, chunk, -1)
        return scores.at[jnp.arange(n)[:, None], taken].set(found)

    nothing = network.scores(jnp.zeros_like(images))
    scores = jnp.broadcast_to(nothing[:, None], (n, count, nothing.shape[-1]))
    needed = (varies.sum(axis=1).max() + chunk - 1) // chunk
    # A loop of known length has a derivative.
    scores = lax.fori_loop(
        0,
        -(-count // chunk),
        lambda i, scores: lax.cond(i < needed, passes, lambda _, scores: scores, i, scores),
        scores,
    )
    return jax.nn.softmax(_of_targets(scores, targets), axis=-1)


def _at_once(images: Any) -> int:
    """How many inputs are made of each image for one pass; 1 where their number is a symbol."""
    return max(1, _CHUNK // images) if isinstance(images, int) else 1


def ablation_weights(
    network: Network,
    layer: str,
    activations: Float[Array, "n h w c"],
    targets: Targets,
    scores: Float[Array, "n classes"],
    convention: Convention,
) -> Float[Array, "n k c"]:
    """The share of a score that goes with a channel (Desai & Ramaswamy 2020, WACV, eq. 3).

    (y - y_k) / |y|, y_k being the score with channel k set to zero; the paper's formula, and the
    package grad-cam, divide by y, which turns the map of a negative score upside down.
    """
    linear = network.pooled_by(layer)
    if linear is not None:
        without = _without_channels_linear(network, layer, linear, activations, targets)
    else:
        without = _of_targets(_without_channels(network, layer, activations), targets)
    before = _of_targets(scores[:, None], targets)
    size = jnp.abs(before) if convention.ablation_by_magnitude else before
    present = (activations != 0).any(axis=(1, 2))[:, None]
    # A channel of zeros takes nothing along, which rounding might hide.
    return jnp.where(present, (before - without) / size, 0)


def _of_targets(scores: Float[Array, "n c classes"], targets: Targets) -> Float[Array, "n k c"]:
    """What is wanted of the scores without, or of, each channel; top classes are settled before."""
    return jax.vmap(lambda logits: targets.scores(logits)[1], in_axes=1, out_axes=2)(scores)


def _without_channels(
    network: Network, layer: str, activations: Float[Array, "n h w c"]
) -> Float[Array, "n c classes"]:
    """The scores without each channel, by running everything behind the layer again."""
    n, _, _, count = activations.shape

    def without(channel: int | Array) -> Array:
        kept = jnp.arange(count) != channel
        return network.scores(jnp.where(kept, activations, 0), after=layer)

    found = lax.map(without, jnp.arange(count), batch_size=_at_once(n))
    return jnp.moveaxis(found, 0, 1)


def _without_channels_linear(
    network: Network,
    layer: str,
    linear: Layer,
    activations: Float[Array, "n h w c"],
    targets: Targets,
) -> Float[Array, "n k c"]:
    """The scores of the targets without each channel, where only pooling precedes a linear layer.

    The linear layer's output is a sum over channels, so each channel's part is taken off it, and
    only what follows runs again, image by image.
    """
    n, count = activations.shape[0], activations.shape[-1]
    found = network.run(activations, ["flatten", linear.name], after=layer)
    kernel = network.kernel_by_place(linear)
    vectors = as_float32(found["flatten"]).reshape(n, -1, count)

    def place(i: int | Array, parts: Array) -> Array:
        return parts + vectors[:, i, :, None] * as_float32(kernel[None, i])

    nothing = lax.full_like(vectors, 0, shape=(n, *kernel.shape[1:]))
    parts = lax.fori_loop(0, vectors.shape[1], place, nothing)
    whole = found[linear.name]
    remaining = whole[:, None] - parts.astype(whole.dtype)
    each = remaining, targets.classes
    scores = lax.map(lambda one: _scores_of_units(network, linear, *one), each)
    return jnp.moveaxis(scores, 1, 2) if targets.function is None else _of_targets(scores, targets)


def _scores_of_units(
    network: Network,
    linear: Layer,
    units: Float[Array, "c units"],
    classes: Int[Array, " k"] | None,
) -> Float[Array, "c k"]:
    """The scores of the classes, or of all, for some outputs of a linear layer."""
    wanted = slice(None) if classes is None else classes
    layers = network.config.layers
    names = network.config.layer_names
    following = layers[names.index(linear.name) + 1 : names.index(network.output) + 1]
    if {layer.kind for layer in following} - {"relu", "dropout", "linear"}:
        return network.scores(units, after=linear.name)[:, wanted]
    if not following:
        return as_float32(units)[:, wanted]
    for layer in following:
        if layer.kind == "relu":
            units = jax.nn.relu(units)
        elif layer.kind == "linear":
            module = network.parameters(layer.name)
            kernel, bias = module.kernel[...], module.bias[...]
            if layer.name == network.output:
                kernel, bias = kernel[:, wanted], bias[wanted]
            product = _product(units, kernel, module.precision)
            units = (product + as_float32(bias)[None]).astype(units.dtype)
    return as_float32(units)


def _product(
    x: Float[Array, "n k"], kernel: Float[Array, "k o"], precision: Any
) -> Float[Array, "n o"]:
    """`x @ kernel` where many columns of x are zero, as behind a ReLU in all variants of an image.

    The product goes by the other columns: a block at a time, as many blocks as there are.
    """
    count = x.shape[1]
    size = _BLOCK if count % _BLOCK == 0 else count
    used = (x != 0).any(axis=0)
    order = jnp.argsort(~used, stable=True)

    def block(i: int | Array, total: Array) -> Array:
        taken = lax.dynamic_slice_in_dim(order, i * size, size)
        return total + as_float32(lax.dot(x[:, taken], kernel[taken], precision=precision))

    needed = (used.sum() + size - 1) // size
    # A loop of known length has a derivative.
    return lax.fori_loop(
        0,
        count // size,
        lambda i, total: lax.cond(i < needed, block, lambda _, total: total, i, total),
        as_float32(lax.full_like(x, 0, shape=(x.shape[0], kernel.shape[1]))),
    )
