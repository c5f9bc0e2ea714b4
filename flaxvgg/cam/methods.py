"""`explain`: what is asked for is checked, and the maps are computed in one program."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from flaxvgg.cam.conventions import Convention, ConventionName
from flaxvgg.cam.explanation import Explanation
from flaxvgg.cam.formulas import FEATURE_METHODS
from flaxvgg.cam.maps import layer_maps, maps_of_scores
from flaxvgg.cam.names import find_name
from flaxvgg.cam.options import OPTIONS, NoOptions, options_of
from flaxvgg.cam.targets import Classes, Targets
from flaxvgg.heads.replacement import score_maps
from flaxvgg.network.config import VGGConfig, listed
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, Images

MethodName = Literal[
    "cam",
    "grad_cam",
    "grad_cam++",
    "xgrad_cam",
    "hires_cam",
    "layer_cam",
    "elementwise_grad_cam",
    "eigen_grad_cam",
    "finer_cam",
    "shapley_cam",
    "refine_cam",
    "smooth_grad_cam++",
    "score_cam",
    "ss_cam",
    "is_cam",
    "ablation_cam",
    "eigen_cam",
    "fem",
    "kpca_cam",
    "deep_feature_factorisation",
    "full_grad",
    "fully_convolutional",
]
METHODS: tuple[str, ...] = get_args(MethodName)
# Other names that methods have; case, hyphens, underscores and spaces do not matter.
ALIASES = {
    "gradcampp": "grad_cam++",
    "gradcam elementwise": "elementwise_grad_cam",
    "fullgrad cam": "full_grad",
    "smooth gradcampp": "smooth_grad_cam++",
    "feature explanation method": "fem",
    "dff": "deep_feature_factorisation",
    "deep feature factorization": "deep_feature_factorisation",
    "score map": "fully_convolutional",
}

_POOLED = ("avg_pool", "global_avg_pool", "flatten", "windows")


def explain(
    model: VGG,
    images: Images,
    classes: Classes = None,
    method: MethodName | str = "grad_cam",
    layer: str | Sequence[str] | None = None,
    convention: ConventionName = "paper",
    **options: Any,
) -> Explanation:
    """Class activation maps: where in the images (N, H, W, 3) the evidence for a class is.

    `classes` are None for each image's top one, a class by number or name, a list of them for every
    image, an array (N, K) with K classes for each image, "all", or a function from logits (N, C) to
    scores (N, K): a difference of two classes, a probability, a log-odds. `method` is one of
    `flaxvgg.METHODS`, however it is spelled ("Grad-CAM++"); `flaxvgg.cam` defines them in
    `formulas`, `contrasts`, `smoothing`, `masking` and `factorisation`, and their `options` in
    `options` ("smooth_grad_cam++" and "ss_cam" need a `key`). `layer` is a named layer that gives
    maps, or several, whose maps are joined; None is the last ReLU before the pooling (relu5_3), for
    "cam" the layer that is pooled, for "refine_cam" the last ReLU of every block. `convention` is
    "paper", "grad-cam" or "torchcam" (`flaxvgg.cam.conventions`).

    Returns an `Explanation`: raw signed `maps` (N, K, h, w), `heatmaps(size)`, `flags`. It is a
    pure function under one `jax.jit`, compiled once for the shapes, the method, the layers and the
    convention: other images, classes or weights are no new program. A function is part of the
    program: a lambda that is made anew at each call compiles anew, but for a
    `jax.tree_util.Partial`, whose arguments are data. "eigen_cam", "kpca_cam" and "fem" know no
    classes and work without a head, and so does "deep_feature_factorisation", whose K maps are
    those of `concepts`. A score map, of a fully-convolutional head, counts as its mean.

    Raises ValueError for an unknown method, option, layer, class or convention, for an option that
    is missing, for "cam" without a GAP head, for a layer behind the pooling, and for no images.

    >>> explanation = flaxvgg.explain(model, images, classes=[0, 2], method="grad_cam++")
    >>> explanation.maps.shape, explanation.heatmaps((64, 64)).shape
    ((2, 2, 4, 4), (2, 2, 64, 64))
    >>> difference = lambda logits: logits[:, :1] - logits[:, 1:2]
    >>> flaxvgg.explain(model, images, difference).maps.shape
    (2, 1, 4, 4)
    """
    config = model.config
    method = find_name(method, METHODS, ALIASES)
    extra = options_of(method, OPTIONS.get(method, NoOptions), options)
    chosen = Convention.named(convention)
    images = check_images(images, model.preprocessing)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, H, W, 3), not {images.shape}")
    if images.shape[0] == 0:
        raise ValueError("no images: the batch is empty")
    check_evaluating(model)
    layers = _layers(config, method, layer)
    targets = Targets()
    if method == "deep_feature_factorisation":
        if classes is not None:
            raise ValueError(f"{method!r} finds concepts, of no class: pass concepts=5, no classes")
    elif config.head or method not in FEATURE_METHODS:
        outputs = config.head_output.outputs
        targets = Targets.of(classes, images.shape[0], outputs, model.classes)
    if method == "finer_cam" and targets.function is not None:
        raise ValueError("'finer_cam' compares classes: pass them, or a function to 'grad_cam'")
    images = jnp.asarray(images)
    if method == "fully_convolutional":
        found = maps_of_scores(score_maps(model, images), targets)
    else:
        stacks = model.conv_stack, model.head
        found = layer_maps(stacks, images, targets, extra, config, method, layers, chosen)
    maps, explained, scores = found
    if scores is None:  # not computed, so that jax_debug_nans does not take it for a mistake
        with jax.debug_nans(False):
            scores = jnp.full(explained.shape, jnp.nan, jnp.float32)
    return Explanation(
        maps, explained, jnp.asarray(scores), method, layers, convention, images.shape[1:3]
    )


def _layers(config: VGGConfig, method: str, layer: str | Sequence[str] | None) -> tuple[str, ...]:
    """The paper's names of the layers whose maps are wanted, in the order asked for."""
    layers = config.layers
    pooled = next((i for i, x in enumerate(layers) if x.kind in _POOLED), len(layers))
    maps = layers[:pooled]
    if method == "cam":
        kinds = [x.kind for x in layers[pooled:] if x.kind != "softmax"]
        if kinds not in (["global_avg_pool", "flatten", "linear"], ["global_avg_pool", "flatten"]):
            raise ValueError(
                '"cam" needs global average pooling and one linear layer or none after it: '
                "flaxvgg.with_gap(model, num_classes, rngs=rngs)"
            )
        default = choices = [maps[-1].name]
    elif method in ("full_grad", "fully_convolutional"):
        if layer is not None:
            raise ValueError(f"{method!r} takes no layer: it uses the whole network")
        return ()
    else:
        choices = [x.name for x in maps]
        default = [x.name for x in maps if x.kind == "relu"][-1:]
        if method == "refine_cam":
            pools = [i for i, x in enumerate(maps) if x.kind == "max_pool"]
            default = list(dict.fromkeys([maps[i - 1].name for i in pools] + default))
    names = default if layer is None else [layer] if isinstance(layer, str) else listed(layer)
    if not names:
        raise ValueError("no layer was given: pass at least one name")
    resolved = tuple(dict.fromkeys(config.resolve(name) for name in names))
    wrong = [name for name in resolved if name not in choices]
    if wrong:
        raise ValueError(f"{method!r} has no map at {wrong[0]!r}: choose from {', '.join(choices)}")
    return resolved


def check_evaluating(model: VGG) -> None:
    """Raise ValueError in training mode, in which an image's scores depend on chance or batch."""
    for stack in (model.conv_stack, model.head):
        for layer in stack.layers:
            module: Any = getattr(stack, layer.name, None)
            training = layer.kind == "dropout" and not module.deterministic and module.rate > 0
            if training or (layer.kind == "batch_norm" and not module.use_running_average):
                raise ValueError("the model is in training mode: call model.eval() first")
