"""Whether the maps of every image show what the network uses, as numbers; no map is kept."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.methods import explain
from flaxvgg.cam.photos import Plan
from flaxvgg.evaluation.complexity import complexity, sparseness
from flaxvgg.evaluation.faithfulness import areas, blurred
from flaxvgg.evaluation.road import road
from flaxvgg.images.loading import normalise
from flaxvgg.network.model import VGG
from flaxvgg.streaming.jobs import check_job, wanted_classes
from flaxvgg.streaming.run import Job, Looked, Rows
from flaxvgg.streaming.source import Item
from flaxvgg.streaming.store import Store, StoreError

MEASURES = ("deletion", "insertion", "road", "sparseness", "complexity")


def faithfulness_job(model: VGG, plan: Plan, *, steps: int = 224, seed: int = 0) -> Job:
    """Measures of each image's maps: `{method}_{measure}` (N, K), for each of `MEASURES`.

    Beside them `class` (N, K). "road" is `Road.combined`, whose noise for an image depends on
    `seed` and the number of the image alone. A map that is not finite has NaN, one of zeros no
    sparseness. `plan` is as `flaxvgg.cam.photos.plan_maps` gives it, `steps` as `flaxvgg.deletion`
    takes it: an image takes 2 (steps + 1) + 19 passes for each class and method. ROAD's imputation
    runs on the host. Raises ValueError for a model without a head and for no steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    _ = model.config.head_output  # a ValueError that says how to get one

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        classes = wanted_classes(model, plan, images)
        network = (model.conv_stack, model.head), model.config, "softmax"
        rows: dict[str, Array] = {}
        for method in plan.methods:
            found = explain(model, images, classes, method, plan.layers, plan.convention)
            heat, rows["class"] = found.heatmaps(images.shape[1:3]), found.classes
            rows[f"{method}_heat"] = heat
            for name, (start, finish) in {
                "deletion": (images, jnp.zeros_like(images)),
                "insertion": (blurred(images), images),
            }.items():
                of_class = [
                    areas(*network, start, finish, heat[:, k], found.classes[:, k], steps)
                    for k in range(heat.shape[1])
                ]
                finite = jnp.isfinite(heat).all(axis=(2, 3))
                rows[f"{method}_{name}"] = jnp.where(finite, jnp.stack(of_class, axis=1), jnp.nan)
        return Looked(rows, {})

    def judge(rows: Rows, items: Sequence[Item]) -> tuple[Rows, Rows]:
        kept = {name: x for name, x in rows.items() if not name.endswith("_heat")}
        for method in plan.methods:
            heat = rows[f"{method}_heat"]
            for name in MEASURES[2:]:
                kept[f"{method}_{name}"] = np.full(heat.shape[:2], np.nan, np.float32)
            for i, k in np.argwhere(np.isfinite(heat).all(axis=(2, 3))):
                image = normalise(items[i].pixels[None], model.preprocessing)
                key = jax.random.fold_in(jax.random.key(seed), items[i].row)
                one = heat[i, k][None]
                debiased = road(model, image, one, rows["class"][i, k : k + 1], key=key)
                found = debiased.combined, sparseness(one), complexity(one)
                for name, values in zip(MEASURES[2:], found, strict=True):
                    kept[f"{method}_{name}"][i, k] = values[0]
        return kept, {}

    settings = dataclasses.asdict(plan) | {"steps": steps, "seed": seed}
    del settings["size"]
    return Job("faithfulness", model, settings, look, judge=judge, axes=lambda name, count: ["k"])


def read_faithfulness(store: Store) -> dict[str, dict[str, float]]:
    """By method the mean of each of `MEASURES`, over all maps that have one, and "maps".

    Raises StoreError for a store of another job, and where no map has been judged yet.
    """
    check_job(store, "faithfulness")
    result: dict[str, dict[str, float]] = {}
    for method in store.settings["methods"]:
        found = {name: store.read(f"{method}_{name}") for name in MEASURES}
        known = np.isfinite(found["deletion"])
        if not known.any():
            raise StoreError(f"{store.path}: no map of {method} has been judged")
        means = {name: float(np.nanmean(values)) for name, values in found.items()}
        result[method] = means | {"maps": int(known.sum())}
    return result
