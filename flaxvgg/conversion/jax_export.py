"""What a model computes as a program of StableHLO, which JAX runs without flaxvgg."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import export

from flaxvgg.cam.methods import explain
from flaxvgg.files.choices import choose
from flaxvgg.network.model import VGG
from flaxvgg.perceptual.lpips import lpips

What = Literal["features", "logits", "gap", "explain", "lpips"]
WHATS = get_args(What)
PLATFORMS = ("cpu", "cuda", "tpu")


def to_jax_export(
    model: VGG,
    what: What = "features",
    *,
    size: tuple[int, int] = (224, 224),
    platforms: Sequence[str] = PLATFORMS,
    **options: Any,
) -> export.Exported:
    """What a model computes, with its weights, for any number of images of `size` (H, W).

    `what` is "features", "logits" or "gap", functions of images (N, H, W, 3) that
    `model.preprocessing` has normalised; "explain", of such images too, a dictionary with `maps`
    (N, K, h, w), `scores` and `classes` (N, K); or "lpips", of two batches of images, distances
    (N,). `options` are those of `flaxvgg.explain` and `flaxvgg.lpips`.

    `.serialize()` gives bytes; `jax.export.deserialize(bytes).call(images)` runs them on each of
    the `platforms`, with jax alone. No operation of flaxvgg is in it: on a CPU it is as fast as
    XLA's own convolutions, and equal to ours within rounding.

    Raises ValueError for another `what`, and what the functions themselves raise.

    >>> exported = flaxvgg.to_jax_export(model, "logits", size=(64, 64), platforms=["cpu"])
    >>> jax.export.deserialize(exported.serialize()).call(images).shape
    (2, 3)
    """
    if what not in WHATS:
        raise ValueError(f"no function {what!r}: {choose(what, WHATS)}")
    if options and what not in ("explain", "lpips"):
        raise ValueError(f"{what!r} takes no options, and {', '.join(options)} was given")

    def explained(images: jax.Array) -> dict[str, jax.Array]:
        found = explain(model, images, **options)
        return {"maps": found.maps, "scores": found.scores, "classes": found.classes}

    functions = {
        "features": model.features,
        "logits": lambda images: model(images),
        "gap": model.gap,
        "explain": explained,
        "lpips": lambda a, b: lpips(model, a, b, **options),
    }
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *size, 3), jnp.float32)
    given = (images, images) if what == "lpips" else (images,)
    return export.export(jax.jit(functions[what]), platforms=tuple(platforms))(*given)
