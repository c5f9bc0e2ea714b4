"""`attribute`: what is asked for is checked, and the attributions are computed in one program."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.attribution import gradients, propagated
from flaxvgg.attribution.attribution import Attribution
from flaxvgg.attribution.method import Found, Method
from flaxvgg.cam.methods import check_evaluating
from flaxvgg.cam.network import Network
from flaxvgg.cam.targets import Classes, Targets
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, Images
from flaxvgg.ops.sharding import spread_by_xla

_METHODS: Mapping[str, Method] = {**propagated.METHODS, **gradients.METHODS}
ATTRIBUTIONS = tuple(_METHODS)


def attribute(
    model: VGG, images: Images, classes: Classes = None, method: str = "lrp", **options: Any
) -> Attribution:
    """What every pixel of the images (N, H, W, 3) contributed to the scores of classes.

    `classes` are None for each image's top one, a class by number or name, a list of them for every
    image, an array (N, K), "all", or a function from logits (N, C) to scores (N, K). `method` is
    one of `flaxvgg.ATTRIBUTIONS`; `options` are those of the method. "lrp", layer-wise relevance
    propagation, takes a `composite` (`flaxvgg.attribution.composites`), by default
    "epsilon_plus_flat", and `layers` whose relevance is wanted as well.

    Returns an `Attribution`: signed `values` (N, K, H, W, 3), `heatmaps()`. It is a pure function
    under one `jax.jit`: other images, classes or weights are no new program.

    Raises ValueError for an unknown method, option or class, for a model without a head, for one in
    training mode, and for no images.

    >>> flaxvgg.attribute(model, images, classes=[0, 2], method="saliency").values.shape
    (2, 2, 64, 64, 3)
    """
    if method not in _METHODS:
        raise ValueError(f"no method {method!r}: choose from {', '.join(ATTRIBUTIONS)}")
    known = [field.name for field in dataclasses.fields(_METHODS[method].options)]
    foreign = [name for name in options if name not in known]
    if foreign:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"{method!r} has no option {foreign[0]!r}: {takes}")
    config = model.config
    chosen = _METHODS[method].settle(_METHODS[method].options(**options), model)
    images = check_images(images, model.preprocessing)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, H, W, 3), not {images.shape}")
    if images.shape[0] == 0:
        raise ValueError("no images: the batch is empty")
    check_evaluating(model)
    outputs = config.head_output.outputs
    targets = Targets.of(classes, images.shape[0], outputs, model.classes)
    stacks = model.conv_stack, model.head
    found = _found(stacks, jnp.asarray(images), targets, chosen, config, method)
    return Attribution(*found, method)


@partial(jax.jit, static_argnames=("config", "method"))
def _found(
    stacks: Any,
    images: Float[Array, "n h w 3"],
    targets: Targets,
    options: Any,
    config: VGGConfig,
    method: str,
) -> Found:
    def found(images: Array, stacks: Any, targets: Targets, options: Any) -> Found:
        return _METHODS[method].find(Network(stacks, config), images, targets, options)

    return spread_by_xla(found, images, stacks, targets, options)
