"""What is streamed: features, counts of zeros, class activation maps, and distances of pairs."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.methods import explain
from flaxvgg.cam.photos import Plan, best_classes
from flaxvgg.evaluation.localisation import box_accuracies, box_hits, pointing_game
from flaxvgg.images.loading import fit_boxes
from flaxvgg.network.config import SMALLEST_IMAGE, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.outputs import check_outputs, outputs
from flaxvgg.perceptual.photos import NETWORK_METRICS, PIXELS, STRETCHED, pixel_metric
from flaxvgg.perceptual.published import check_trunk
from flaxvgg.sparsity.counting import count_images, counted_layers, total_counts
from flaxvgg.sparsity.exact import FloatSum, carried
from flaxvgg.sparsity.report import SparsityReport, Totals
from flaxvgg.streaming.run import Job, Looked, Rows
from flaxvgg.streaming.source import Item, Source
from flaxvgg.streaming.store import DONE, Store, StoreError

_TOLERANCE = 15  # pixels off an object that count as on it, as usual


def features_job(model: VGG, names: Sequence[str]) -> Job:
    """`flaxvgg.network.outputs.outputs` of every image: layers, "gap", "logits".

    bfloat16 becomes float32, which Zarr knows. Raises ValueError for an unknown layer.
    """
    wanted = check_outputs(model.config, names)

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        found = outputs(model, images, wanted)
        return Looked({name: _stored(x) for name, x in found.items()}, {})

    return Job("features", model, {"layers": list(wanted)}, look)


def sparsity_job(model: VGG, layers: Iterable[str] | None) -> Job:
    """`zeros` and `values` (N, layers) of every image, and what `measure_sparsity` adds up.

    Raises ValueError for an unknown layer.
    """
    names = counted_layers(model.config, layers)
    image = jax.ShapeDtypeStruct((1, SMALLEST_IMAGE, SMALLEST_IMAGE, 3), np.float32)

    def zeros(model: VGG, images: Array) -> list[Array]:
        return [layer.zeros for layer in count_images(model, images, names).values()]

    channels = [x.shape[1] for x in jax.eval_shape(zeros, model, image)]

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        counts = count_images(model, images, names)
        totals = total_counts(model, counts, valid).totals
        zeros = jnp.stack(
            [layer.zeros.sum(axis=1, dtype=jnp.int32) for layer in counts.values()], axis=1
        )
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
        model,
        {"layers": list(names), "channels": channels},
        look,
        add=lambda name, a, b: np.maximum(a, b) if name == "largest" else a + b,
        axes=lambda name, count: ["layer"],
    )


def read_sparsity(store: Store) -> SparsityReport:
    """The report of all images that a store of `sparsity_job` has counted.

    Raises StoreError for another store, and where nothing has been counted yet.
    """
    check_job(store, "sparsity")
    total: Rows = {}
    for unit in store.sums():
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


def zeros_by_photo(store: Store) -> dict[str, Float[np.ndarray, " n"]]:
    """The fraction of zeros of each image that was counted (N,), by layer."""
    seen = store.status == DONE
    zeros, values = store.read("zeros")[seen], store.read("values")[seen]
    return dict(zip(store.settings["layers"], (zeros / values).T, strict=True))


def maps_job(model: VGG, plan: Plan) -> Job:
    """Raw maps (N, K, h, w) of every image by method, or by method and layer where it has several.

    Beside them `class` (N, K), -1 for weights that know none, `score`, and for each method `flag`
    (`flaxvgg.Flag`). `plan` is as `flaxvgg.cam.photos.plan_maps` gives it.
    """

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        classes = wanted_classes(model, plan, images)
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
    return Job("maps", model, settings, look, axes=_map_axes)


def wanted_classes(model: VGG, plan: Plan, images: Array) -> Any:
    """The classes that a plan wants of these images; None for a model without a head."""
    if isinstance(plan.classes, tuple):
        return np.array(plan.classes)
    return best_classes(model, images, plan.classes) if model.config.head else None


def localisation_job(model: VGG, source: Source, plan: Plan, size: tuple[int, int] | None) -> Job:
    """How well the maps of each image's own classes find their boxes; no map is kept.

    Rows: `class` (N, K), the classes of an image that have boxes, -1 behind the last, and for each
    method `{method}_hit` (N, K): 1 where its maximum is on an object or at most 15 pixels away, 0
    where it is not, -1 where there is nothing to find. The accuracies of `read_localisation` are
    added up. Boxes are brought to the size that the network sees, and cut there.

    Raises ValueError for a source without boxes, and for classes that the model has not.
    """
    if source.boxes is None:
        raise ValueError(
            "there are no boxes: pass VOCdevkit/VOC2007, or a manifest with the columns left, top, "
            "right, bottom"
        )
    number = _model_classes(model, source)
    given, recipe = source.boxes, model.preprocessing
    most = max(1, *map(len, given))

    def ask(row: int) -> np.ndarray:
        asked = np.zeros(most, np.int32)
        classes = sorted(given[row])
        asked[: len(classes)] = [number[x] for x in classes]
        return asked

    def look(model: VGG, images: Float[Array, "n h w 3"], valid: Array, asked: Array) -> Looked:
        maps = {
            method: explain(model, images, asked, method, plan.layers, plan.convention)
            for method in plan.methods
        }
        return Looked({name: found.heatmaps(images.shape[1:3]) for name, found in maps.items()}, {})

    def judge(rows: Rows, items: Sequence[Item]) -> tuple[Rows, Rows]:
        shape = len(items), most
        found: Rows = {"class": np.full(shape, -1, np.int32)}
        sums: Rows = {}
        pairs = []
        for i, item in enumerate(items):
            for k, label in enumerate(sorted(given[item.row])):
                boxes = fit_boxes(source.boxes_on(item, label), item.size, size, recipe)
                if len(boxes):
                    found["class"][i, k] = number[label]
                    pairs.append((i, k, boxes))
        for method, heat in rows.items():
            hits = found[f"{method}_hit"] = np.full(shape, -1, np.int8)
            for i, k, boxes in pairs:
                hits[i, k] = pointing_game(heat[i, k][None], [boxes], _TOLERANCE)
            finite = [pair for pair in pairs if np.isfinite(heat[pair[:2]]).all()]
            counts = np.zeros((4, 1000), np.int64)
            if finite:
                maps = np.stack([heat[i, k] for i, k, _ in finite])
                counts += box_hits(maps, [boxes for *_, boxes in finite])
            sums[f"{method}_boxes"] = counts
        return found, sums

    settings = {"methods": plan.methods, "layers": plan.layers, "convention": plan.convention}
    return Job("localisation", model, settings, look, ask, judge, axes=lambda name, count: ["k"])


def read_localisation(store: Store) -> dict[str, dict[str, float]]:
    """By method: "pointing game" (mean over classes), "MaxBoxAcc", "MaxBoxAccV2", and "maps".

    Raises StoreError for a store of another job, and where there was nothing to find.
    """
    check_job(store, "localisation")
    classes = store.read("class")
    there = classes >= 0
    if not there.any():
        raise StoreError(f"{store.path}: no object was to be found in the images that are done")
    units = list(store.sums())
    result = {}
    for method in store.settings["methods"]:
        hits = store.read(f"{method}_hit")
        by_class = [hits[classes == label].mean() for label in np.unique(classes[there])]
        counts = np.sum([unit[f"{method}_boxes"] for unit in units], axis=0)
        accuracy, v2 = box_accuracies(counts, int(there.sum()))
        result[method] = {
            "pointing game": float(np.mean(by_class)),
            "MaxBoxAcc": accuracy,
            "MaxBoxAccV2": v2,
            "maps": int(there.sum()),
        }
    return result


def compare_job(model: VGG, metrics: Sequence[str]) -> Job:
    """How far apart the images of every pair are (N,), by metric; for a source of `Pairs`.

    `metrics` are as `flaxvgg.perceptual.photos.parse_metrics` gives them; pairs are stretched to a
    size, not cropped. Raises ValueError where the network is none of LPIPS and DISTS.
    """
    of_network = {name: NETWORK_METRICS[name] for name in metrics if name in NETWORK_METRICS}
    of_pixels = [name for name in metrics if name not in of_network]
    for name in of_network:
        check_trunk(model, name.upper())

    def look(model: VGG, pairs: Float[Array, "n 2 h w 3"], valid: Array, asked: Array) -> Looked:
        a, b = pairs[:, 0], pairs[:, 1]
        found = {name: f(model, a, b, value_range=PIXELS) for name, f in of_network.items()}
        return Looked(found, {})

    def judge(rows: Rows, items: Sequence[Item]) -> tuple[Rows, Rows]:
        for name in of_pixels:
            rows |= {name: np.array([pixel_metric(name, *item.pixels) for item in items])}
        return rows, {}

    settings = {"metrics": list(metrics)}
    return Job("compare", model, settings, look, judge=judge, recipe=STRETCHED, each=(2,))


def read_distances(store: Store) -> dict[str, Float[np.ndarray, " n"]]:
    """The values of the pairs that have been compared so far (N,), by metric.

    Raises StoreError for another store.
    """
    check_job(store, "compare")
    done = store.status == DONE
    names = store.settings["metrics"] if done.any() else ()
    return {name: store.read(name)[done] for name in names}


def _model_classes(model: VGG, source: Source) -> dict[int, int]:
    """The model's class for each of the source's that has boxes: the same name, or number."""
    wanted = sorted({label for found in source.boxes or () for label in found})
    count = model.config.num_classes
    if not source.classes:
        missing = [str(label) for label in wanted if label >= count]
        number = {label: label for label in wanted}
    else:
        # A class without a name of the model's may be one of its numbers.
        names = {str(i): i for i in range(count)}
        names |= {name.lower(): i for i, name in enumerate(model.classes)}
        missing = [source.classes[x] for x in wanted if source.classes[x].lower() not in names]
        number = {x: names.get(source.classes[x].lower(), 0) for x in wanted}
    if missing:
        raise ValueError(
            f"the model has no class {', '.join(missing[:5])}: boxes are judged for the classes "
            "of the model, by name; train a head with them (flaxvgg train)"
        )
    return number


def _map_axes(name: str, count: int) -> list[str]:
    """The K classes, and height and width of a map."""
    return ["k", f"{name}_y", f"{name}_x"][:count]


def _stored(x: Array) -> Array:
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def check_job(store: Store, job: str) -> None:
    """Raise StoreError for a store of another job."""
    if store.settings["job"] != job:
        raise StoreError(f"{store.path} has {store.settings['job']}, and no {job}")
