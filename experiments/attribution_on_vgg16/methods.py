"""The methods that are compared, each as a function of a model, images and classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

import flaxvgg
from flaxvgg.network.model import VGG

Maps = Float[Array, "n k h w"]
Explainer = Callable[[VGG, Array, Int[np.ndarray, "n k"]], Maps]


class Method(NamedTuple):
    """One way to a map (N, K, H, W) at the size of the image, of classes (N, K).

    Of a method that draws, `seeded` options are fixed, so that a map can be made again.
    """

    name: str
    maps: Explainer


def _attributed(method: str, **options: Any) -> Explainer:
    def maps(model: VGG, images: Array, classes: np.ndarray) -> Maps:
        return flaxvgg.attribute(model, images, classes, method, **options).values.sum(axis=-1)

    return maps


def _explained(method: str) -> Explainer:
    def maps(model: VGG, images: Array, classes: np.ndarray) -> Maps:
        size = images.shape[1], images.shape[2]
        return flaxvgg.explain(model, images, classes, method).heatmaps(size)

    return maps


def methods_of(samples: int, window: int) -> tuple[Method, ...]:
    """All of them; `samples` are those of methods that draw, `window` is occlusion's in pixels."""
    key = jax.random.key(0)
    lrp = partial(_attributed, "lrp")
    windows = {"window": (window, window), "stride": (window // 2, window // 2)}
    return (
        Method("saliency", _attributed("saliency")),
        Method("input x gradient", _attributed("input_x_gradient")),
        Method("integrated gradients", _attributed("integrated_gradients", steps=25)),
        Method("SmoothGrad", _attributed("smooth_grad", key=key, samples=25)),
        Method("deconvolution", _attributed("deconvolution")),
        Method("guided backprop", _attributed("guided_backprop")),
        Method("guided Grad-CAM", _attributed("guided_grad_cam")),
        Method("LRP epsilon-plus", lrp(composite="epsilon_plus")),
        Method("LRP epsilon-plus-flat", lrp(composite="epsilon_plus_flat")),
        Method("LRP epsilon-gamma-box", lrp(composite="epsilon_gamma_box")),
        Method("LRP alpha2-beta1-flat", lrp(composite="epsilon_alpha2_beta1_flat")),
        Method("excitation backprop", lrp(composite="excitation_backprop")),
        Method("occlusion", _attributed("occlusion", **windows)),
        Method("RISE", _attributed("rise", key=key, samples=samples)),
        Method("Grad-CAM", _explained("grad_cam")),
        Method("LayerCAM", _explained("layer_cam")),
    )
