"""`attribute`: what is asked for is checked, and the attributions are computed in one program."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.attribution import (
    deep_lift,
    gradients,
    integrated,
    occlusion,
    propagated,
    rise,
    smoothing,
)
from flaxvgg.attribution.attribution import Attribution
from flaxvgg.attribution.method import Found, Method
from flaxvgg.cam.methods import check_evaluating
from flaxvgg.cam.names import find_name
from flaxvgg.cam.network import Network
from flaxvgg.cam.options import options_of
from flaxvgg.cam.targets import Classes, Targets
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, Images
from flaxvgg.ops.sharding import spread_by_xla

_METHODS: Mapping[str, Method] = {
    **propagated.METHODS,
    **gradients.METHODS,
    **integrated.METHODS,
    **smoothing.METHODS,
    **deep_lift.METHODS,
    **occlusion.METHODS,
    **rise.METHODS,
}
MethodName = Literal[
    "lrp",
    "guided_backprop",
    "deconvolution",
    "guided_grad_cam",
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "smooth_grad",
    "var_grad",
    "deep_lift",
    "occlusion",
    "rise",
]
ATTRIBUTIONS: tuple[str, ...] = get_args(MethodName)
OPTIONS: dict[str, type] = {name: method.options for name, method in _METHODS.items()}


def attribute(
    model: VGG,
    images: Images,
    classes: Classes = None,
    method: MethodName | str = "lrp",
    **options: Any,
) -> Attribution:
    """What every pixel of the images (N, H, W, 3) contributed to the scores of classes.

    `classes` are None for each image's top one, a class by number or name, a list of them for every
    image, an array (N, K), "all", or a function from logits (N, C) to scores (N, K). `method` is
    one of `flaxvgg.ATTRIBUTIONS`; `options` are those of the method, and where it says so they are
    explained:

    - "lrp", layer-wise relevance propagation: `composite`, `layers` whose relevance is wanted too,
      `sums` of every layer's (`attribution.propagated`, `attribution.composites`)
    - "guided_grad_cam": `layer`, `interpolation`; "guided_backprop" and "deconvolution" have none
    - "saliency": `signed` (`attribution.gradients`); "input_x_gradient" has none
    - "integrated_gradients": `baseline`, `steps`, `quadrature`, `steps_at_once`
      (`attribution.integrated`), with `details["convergence_delta"]` (N, K)
    - "smooth_grad", "var_grad": `key`, `samples`, `noise`, `samples_at_once`
      (`attribution.smoothing`)
    - "deep_lift": `baseline`, `convention` (`attribution.deep_lift`), with
      `details["convergence_delta"]`
    - "occlusion": `window`, `stride`, `baseline` (`attribution.occlusion`)
    - "rise": `key`, `samples`, `grid`, `p` (`attribution.rise`)

    Returns an `Attribution`: signed `values` (N, K, H, W, 3), `heatmaps()`. It is a pure function
    under one `jax.jit`: other images, classes or weights are no new program.

    Raises ValueError for an unknown method, option or class, for an option that cannot be, for a
    random method without a key, for a model without a head, for one in training mode, and for no
    images.

    >>> flaxvgg.attribute(model, images, classes=[0, 2], method="saliency").values.shape
    (2, 2, 64, 64, 3)
    """
    method = find_name(method, ATTRIBUTIONS)
    config = model.config
    chosen = options_of(method, _METHODS[method].options, options)
    chosen = _METHODS[method].settle(chosen, model)
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


def option_names(method: str) -> tuple[str, ...]:
    """The names of a method's options. Raises ValueError for an unknown method, with the choices.

    >>> flaxvgg.attribution.methods.option_names("saliency")
    ('signed',)
    """
    fields = dataclasses.fields(OPTIONS[find_name(method, ATTRIBUTIONS)])
    return tuple(field.name for field in fields)


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
