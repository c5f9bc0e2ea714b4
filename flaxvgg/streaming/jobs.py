"""What is streamed: features, counts of zeros, and class activation maps."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.methods import explain
from flaxvgg.cam_photos import Plan, best_classes
from flaxvgg.config import SMALLEST_IMAGE, VGGConfig
from flaxvgg.exact import FloatSum, carried
from flaxvgg.extraction import check_outputs, outputs
from flaxvgg.model import VGG
from flaxvgg.sparsity import count_images, counted_layers, total_counts
from flaxvgg.sparsity_report import SparsityReport, Totals
from flaxvgg.streaming.run import Job, Looked, Rows
from flaxvgg.streaming.store import Store, StoreError


def features_job(model: VGG, names: Sequence[str]) -> Job:
    """`flaxvgg.extraction.outputs` of every image: layers, "gap", "logits".

    bfloat16 becomes float32, which Zarr knows. Raises ValueError for an unknown layer.
    """
    wanted = check_outputs(model.config, names)

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        found = outputs(model, images, wanted)
        return Looked({name: _stored(x) for name, x in found.items()}, {})

    return Job("features", {"layers": list(wanted)}, look)


def sparsity_job(model: VGG, layers: Iterable[str] | None) -> Job:
    """`zeros` and `values` (N, layers) of every image, and what `measure_sparsity` adds up.

    Raises ValueError for an unknown layer.
    """
    names = counted_layers(model.config, layers)
    image = jax.ShapeDtypeStruct((1, SMALLEST_IMAGE, SMALLEST_IMAGE, 3), np.float32)
    shapes = jax.eval_shape(partial(count_images, layers=names), model, image)
    channels = [shapes[name].zeros.shape[1] for name in names]

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        counts = count_images(model, images, names)
        totals = total_counts(model, counts, valid).totals
        zeros = jnp.stack([layer.zeros.sum(axis=1) for layer in counts.values()], axis=1)
        values = [layer.values * layer.zeros.shape[1] for layer in counts.values()]
        sums = {
            "counts": totals.counts,
            "digits": totals.floats.digits,
            "special": totals.floats.special,
            "largest": totals.largest,
        }
        values = jnp.broadcast_to(jnp.array(values, jnp.int32), zeros.shape)
        return Looked({"zeros": zeros, "values": values}, sums)

    return Job(
        "sparsity",
        {"layers": list(names), "channels": channels},
        look,
        add=lambda name, a, b: np.maximum(a, b) if name == "largest" else a + b,
        axes=lambda name, count: ["layer"],
    )


def read_sparsity(store: Store) -> SparsityReport:
    """The report of all images that a store of `sparsity_job` has counted.

    Raises StoreError for another store, and where nothing has been counted yet.
    """
    _check(store, "sparsity")
    total: Rows = {}
    for unit, done in zip(store.sums(), store.done(), strict=True):
        if done:
            for name, x in unit.items():
                x = x.astype(np.int64) if name in ("counts", "digits") else x
                if name in total:
                    x = np.maximum(total[name], x) if name == "largest" else total[name] + x
                total[name] = x
    if not total or not total["counts"].any():
        raise StoreError(f"{store.path}: no image in it has been counted")
    totals = Totals(
        carried(total["counts"]),
        FloatSum(carried(total["digits"]), total["special"]),
        total["largest"],
    )
    told = store.settings
    config, source = VGGConfig.from_json(told["config"]), told["weights"]["source"]
    layers, channels = tuple(told["layers"]), tuple(told["channels"])
    return SparsityReport(totals, config, source, layers, channels)


def maps_job(plan: Plan) -> Job:
    """Raw maps (N, K, h, w) of every image by method, or by method and layer where it has several.

    Beside them `class` (N, K), -1 for weights that know none, `score`, and for each method `flag`
    (`flaxvgg.Flag`). `plan` is as `flaxvgg.cam_photos.plan_maps` gives it.
    """

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        classes: Any = None
        if isinstance(plan.classes, tuple):
            classes = np.array(plan.classes)
        elif model.config.head:
            classes = best_classes(model, images, plan.classes)
        rows = {}
        for method in plan.methods:
            found = explain(model, images, classes, method, plan.layers, plan.convention)
            rows |= {"class": found.classes, "score": found.scores}
            rows[f"{method}_flag"] = found.flags
            several = len(found.layer_maps) > 1
            for layer, maps in zip(found.layers or ("",), found.layer_maps, strict=True):
                rows[f"{method}_{layer}" if several else method] = _stored(maps)
        return Looked(rows, {})

    settings = dataclasses.asdict(plan)
    del settings["size"]
    return Job("maps", settings, look, axes=_map_axes)


def _map_axes(name: str, count: int) -> list[str]:
    """The K classes, and height and width of a map."""
    return ["k", f"{name}_y", f"{name}_x"][:count]


def _stored(x: Array) -> Array:
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def _check(store: Store, job: str) -> None:
    if store.settings["job"] != job:
        raise StoreError(f"{store.path} has {store.settings['job']}, and no {job}")
