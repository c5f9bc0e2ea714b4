"""What turns a raw map into a heat map: the papers' way, and that of the two PyTorch packages.

A convention chooses everything that the packages do differently at once: the eps in the weights,
where negative values are cut off, how a map is normalised and resized, and how the maps of several
layers become one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.files.choices import choose
from flaxvgg.images.resizing import Interpolation, resize

ConventionName = Literal["paper", "grad-cam", "torchcam"]


@dataclasses.dataclass(frozen=True)
class Convention:
    """How one source of class activation maps computes what its formulas leave open.

    A heat map is clamped at zero, scaled to [0, 1] as (x - min) / (max + eps), resized, joined with
    those of other layers, and, where `rescale` says so, scaled again.
    """

    name: ConventionName
    plus_plus_alpha: Literal["paper", "none"] = "paper"
    plus_plus_eps: float = 0.0
    xgrad_eps: float = 0.0
    ablation_by_magnitude: bool = True
    finer_alpha: float = 0.6
    finer_by_probability: bool = False  # how references are weighted
    shapley_by_probability: bool = True  # the score of a class
    smooth_by_last: bool = False  # SmoothGrad-CAM++ by the last sample, not the mean
    smooth_eps: float = 0.0
    mask: Literal["resize then scale", "scale then resize"] = "resize then scale"
    mask_corners: bool = False
    mask_eps: float = 0.0
    full_grad_channels: bool = False
    full_grad_corners: bool = False
    clamp_cam: bool = True
    scale_eps: float = 0.0
    rescale: bool = True
    native_size: bool = False
    fusion: Literal["mean", "max"] = "mean"
    layer_cam_gain: float | None = None  # gamma of tanh(gamma map), before LayerCAMs are joined

    @classmethod
    def named(cls, name: str) -> "Convention":
        """The convention of that name. Raises ValueError for an unknown one, with the choices."""
        if name not in CONVENTIONS:
            raise ValueError(f"no convention {name!r}: {choose(name, CONVENTIONS)}")
        return CONVENTIONS[name]

    def heatmaps(
        self,
        layer_maps: Sequence[Float[Array, "n k _ _"]],
        method: str,
        size: tuple[int, int],
        interpolation: Interpolation = "linear",
        *,
        shared: bool = False,
    ) -> Float[Array, "n k H W"]:
        """Raw maps of one or several layers as heat maps in [0, 1], (N, K, H, W).

        Maps are `shared` in scale by the classes of an image, or each has its own.
        """
        scaled = []
        between = scale_together if shared else scale
        for maps in layer_maps:
            heat = between(rectify(maps) if self.clamps(method) else maps, self.scale_eps)
            if method == "layer_cam" and self.layer_cam_gain is not None and len(layer_maps) > 1:
                heat = jnp.tanh(self.layer_cam_gain * heat)
            scaled.append(resize(heat, size, interpolation))
        stacked = jnp.stack(scaled)
        if method == "refine_cam":
            joined = self._product(stacked)
        else:
            joined = stacked.max(axis=0) if self.fusion == "max" else stacked.mean(axis=0)
        if self.rescale:
            joined = between(rectify(joined), self.scale_eps)
        return jnp.clip(joined, 0, 1)  # cubic resizing overshoots

    def _product(self, heat: Float[Array, "layers n k h w"]) -> Float[Array, "n k h w"]:
        """RefineCAM's, of maps that are each scaled at that size where maps are scaled again."""
        each = scale(rectify(heat), self.scale_eps) if self.rescale else heat
        return scale(each.prod(axis=0), self.scale_eps)

    def clamps(self, method: str) -> bool:
        """Whether the method's maps are cut off at zero before they are scaled."""
        return method != "cam" or self.clamp_cam


def rectify(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ReLU that leaves NaN as it is: XLA's maximum on a CPU may turn it into 0."""
    return jnp.where(x < 0, 0, x)


def scale_together(maps: Float[Array, "n k h w"], eps: float) -> Float[Array, "n k h w"]:
    """`scale` with the extremes of all K maps of an image; of those that are finite."""
    finite = jnp.isfinite(maps).all(axis=(-2, -1), keepdims=True)
    low = jnp.where(finite, maps, jnp.inf).min(axis=(-3, -2, -1), keepdims=True)
    high = jnp.where(finite, maps, -jnp.inf).max(axis=(-3, -2, -1), keepdims=True)
    top = jnp.where(high > low, high - low, 0) + eps
    return jnp.where(finite, (maps - low) / jnp.where(top == 0, 1, top), jnp.nan)


def scale(maps: Float[Array, "... h w"], eps: float, axes: tuple[int, ...] = (-2, -1)) -> Array:
    """(x - min) / (max + eps), with the maximum of x - min; 0 where x is constant.

    What is not finite stays so: NaN is no heat.
    """
    risen = maps - maps.min(axis=axes, keepdims=True)
    top = risen.max(axis=axes, keepdims=True) + eps
    return risen / jnp.where(top == 0, 1, top)


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        # The papers' formulas, without eps. Zhou's CAM is not clamped; LayerCAM joins by eqs. 8, 9.
        Convention(
            "paper", clamp_cam=False, full_grad_corners=True, fusion="max", layer_cam_gain=2.0
        ),
        # grad-cam 1.5
        Convention(
            "grad-cam",
            plus_plus_eps=1e-6,
            xgrad_eps=1e-7,
            ablation_by_magnitude=False,
            finer_alpha=1.0,
            finer_by_probability=True,
            shapley_by_probability=False,
            mask_corners=True,
            mask_eps=1e-8,
            full_grad_channels=True,
            scale_eps=1e-7,
        ),
        # torchcam 0.5: the division in its Grad-CAM++ works on a copy and has no effect.
        Convention(
            "torchcam",
            plus_plus_alpha="none",
            xgrad_eps=1e-8,
            smooth_by_last=True,
            smooth_eps=1e-8,
            mask="scale then resize",
            mask_eps=1e-8,
            clamp_cam=False,
            scale_eps=1e-8,
            rescale=False,
            native_size=True,
            fusion="max",
            layer_cam_gain=2.0,
        ),
    )
}
