"""Score-CAM and its kin, and Ablation-CAM: what the scores do with a channel, or without it.

All run many passes, for all classes at once, in chunks of a fixed size, so that memory does not
grow with the number of channels, or of samples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.cam.conventions import Convention, scale
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.options import Integration, NoisyMasks
from flaxvgg.cam.targets import Targets
from flaxvgg.images.resizing import resize
from flaxvgg.network.config import Layer

Images = Float[Array, "n h w 3"]
Activations = Float[Array, "n i j c"]
Weights = Float[Array, "n k c"]

_CHUNK = 32  # inputs in one pass
_BLOCK = 256  # units of a linear layer's input that are multiplied at once


def score_cam_weights(
    network: Network,
    images: Images,
    activations: Activations,
    targets: Targets,
    convention: Convention,
) -> Weights:
    """The softmax over channels of the scores of the masked image (Wang et al. 2020, 1910.01279).

    A mask is a channel enlarged to the image and scaled to [0, 1]. The paper subtracts the score of
    a baseline, which cancels in the softmax.
    """

    def vary(mask: Array, channels: Array, sample: Array) -> Array:
        return mask

    return _weights(network, images, activations, targets, convention, vary, 1)


def is_cam_weights(
    network: Network,
    images: Images,
    activations: Activations,
    targets: Targets,
    convention: Convention,
    options: Integration,
) -> Weights:
    """Score-CAM's with scores averaged over strengths of the mask (Naidu et al. 2020, 2010.03023).

    Of S samples, the mask of sample i = 1 ... S counts (1 + ... + i) / S times, as in torchcam: up
    to (S + 1) / 2 times the image.
    """

    def vary(mask: Array, channels: Array, sample: Array) -> Array:
        strength = (sample + 1) * (sample + 2) / (2 * options.samples)
        return mask * strength.astype(mask.dtype)

    return _weights(network, images, activations, targets, convention, vary, options.samples)


def ss_cam_weights(
    network: Network,
    images: Images,
    activations: Activations,
    targets: Targets,
    convention: Convention,
    options: NoisyMasks,
) -> Weights:
    """Score-CAM's with scores averaged over noisy masks (Wang et al. 2020, arXiv:2006.14255).

    Normal noise is added to the scaled mask, as in torchcam. That of sample i and channel c is
    drawn from `fold_in(fold_in(key, i), c)` of `jax.random`, for all images alike.
    """
    size = images.shape[1:3]

    def vary(mask: Array, channels: Int[Array, "n c"], sample: Array) -> Array:
        key = jax.random.fold_in(options.key, sample)

        def noise(channel: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, channel), size, jnp.float32)

        added = options.noise * jax.vmap(noise)(channels[0])
        return mask + added[None].astype(mask.dtype)

    arguments = network, images, activations, targets, convention, vary, options.samples
    return _weights(*arguments, constant_alike=False)


def _weights(
    network: Network,
    images: Images,
    activations: Activations,
    targets: Targets,
    convention: Convention,
    vary: Callable[[Array, Int[Array, "n c"], Array], Array],
    samples: int,
    constant_alike: bool = True,
) -> Weights:
    """The softmax over channels of the mean over samples of the scores of the masked images.

    `vary` changes the masks (N, c, H, W) of some channels (N, c) for a sample. A constant channel
    masks everything: one pass serves all of those, and the loop ends with the last channel that
    varies, unless `constant_alike` says that this depends on the sample; all images then have their
    channels in the same order.
    """
    n, height, width, _ = images.shape
    channels = jnp.moveaxis(activations, -1, 1)
    count = activations.shape[-1]
    varies = channels.max(axis=(2, 3)) > channels.min(axis=(2, 3))
    if not constant_alike:
        varies = jnp.ones_like(varies)
    order = jnp.argsort(~varies, axis=1, stable=True)  # channels that vary come first
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

        def add(sample: int | Array, total: Array) -> Array:
            varied = vary(mask, taken, jnp.asarray(sample))[..., None]
            masked = images[:, None] * varied.astype(images.dtype)
            found = network.scores(masked.reshape(-1, height, width, 3)).reshape(n, chunk, -1)
            return total + _of_targets(found, targets)

        total = lax.fori_loop(0, samples, add, jnp.zeros_like(scores[..., :chunk]))
        images_at, targets_at = jnp.arange(n)[:, None, None], jnp.arange(scores.shape[1])
        at = images_at, targets_at[None, :, None], taken[:, None]
        return scores.at[at].set(total / samples)

    _, nothing = targets.scores(network.scores(jnp.zeros_like(images)))
    scores = jnp.broadcast_to(nothing[..., None], (n, nothing.shape[1], count))
    needed = (varies.sum(axis=1).max() + chunk - 1) // chunk
    # A loop of known length has a derivative.
    scores = lax.fori_loop(
        0,
        -(-count // chunk),
        lambda i, scores: lax.cond(i < needed, passes, lambda _, scores: scores, i, scores),
        scores,
    )
    return jax.nn.softmax(scores, axis=-1)


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
