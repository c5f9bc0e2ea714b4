"""Maps of classes as a page to look at them in: of `flaxvgg.explain`, of `flaxvgg.attribute`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.attribution.attribution import Attribution
from flaxvgg.attribution.photos import AttributedPhoto
from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.explanation import Explanation, Flag
from flaxvgg.cam.photos import FLAG_WORDS, ExplainedPhoto
from flaxvgg.network.model import AnyArray
from flaxvgg.plotting.cam import Activation, chances_of
from flaxvgg.plotting.figures import same_images
from flaxvgg.plotting.page.packing import factors
from flaxvgg.plotting.page.shell import page, viewer
from flaxvgg.plotting.page.viewing import Kind, Method, Sort, photo_value, viewer_value

MOST_PHOTOS = 500  # in a page
_MOST = 0.998  # of single pixels that are not yet of the last colour at first
Maps = Sequence[Float[np.ndarray, "k _ _"]]  # of one photo and method, by layer
_SORTS = (
    Sort("score", "logit of the first class", down=True),
    Sort("chance", "probability of the first class", down=True, percent=True),
)


def maps_page(
    result: Explanation | Attribution,
    images: AnyArray,
    names: Sequence[str] = (),
    *,
    photos: Sequence[str] = (),
    logits: AnyArray | None = None,
    activation: Activation = "softmax",
    beside: Sequence[Explanation | Attribution] = (),
) -> str:
    """The maps of N images over them, with other methods `beside`, of the same images and classes.

    `images` (N, H, W, 3) are pixels of 8 bits, or what the network was given. `names` are those of
    all classes, `photos` of the images. With the `logits` (N, C) of all classes, the probability of
    each stands beside its map, by the `activation`. Raises ValueError for other images or classes
    than were explained.
    """
    results = [result, *beside]
    labels = np.asarray(result.classes)
    if any(not np.array_equal(labels, np.asarray(other.classes)) for other in beside):
        raise ValueError("the results are of other classes: explain the same ones, in one order")
    found = [_maps(one) for one in results]
    methods = [method for method, _ in found]
    pictures = same_images(images, (len(labels), *_size(result)))
    of_first = [[x[0] for x in layers] for _, layers in found]
    by = _factors(of_first, len(labels))
    scores = np.asarray(result.scores)
    flags = [_flags(one) for one in results]
    values = []
    for i, picture in enumerate(pictures):
        chances = chances_of(
            None if logits is None else np.asarray(logits)[i], labels[i], activation
        )
        values.append(
            photo_value(
                photos[i] if photos else f"image {i}",
                [picture],
                [[x[i] for x in layers] for _, layers in found],
                by,
                labels=[
                    _name(label, k, names, result) for k, label in enumerate(labels[i].tolist())
                ],
                scores=scores[i],
                probabilities=chances,
                flags=[flag[i] for flag in flags],
                keys={"score": scores[i, 0], "chance": chances[0]},
            )
        )
    title = f"{len(labels)} images, {', '.join(method.name for method in methods)}"
    top = min(
        _top(found[i][1][0]) if isinstance(one, Attribution) else 1.0
        for i, one in enumerate(results)
    )
    return _page(methods, values, by, title, activation if logits is not None else "", top)


class _PhotosPage:
    """A page of photos with maps, which are added one after the other and packed at once."""

    def __init__(self, activation: Activation, count: int):
        self._activation, self._count = activation, count
        self._methods: list[Method] = []
        self._by: list[list[int]] = []
        self._photos: list[dict[str, Any]] = []

    def _add(
        self,
        name: str,
        pixels: UInt8[np.ndarray, "h w 3"],
        maps: Sequence[Maps],
        classes: np.ndarray,
        scores: Sequence[float],
        logits: Float[np.ndarray, " c"],
        **told: Any,
    ) -> None:
        self._by = self._by or _factors(maps, self._count)
        chances = chances_of(logits, classes, self._activation)
        value = photo_value(
            name,
            [pixels],
            maps,
            self._by,
            scores=list(scores),
            probabilities=chances,
            keys={"score": scores[0], "chance": chances[0]},
            **told,
        )
        self._photos.append(value)


class CamPage(_PhotosPage):
    """The page of explained photos, which are added one after the other."""

    def __init__(self, convention: str, activation: Activation, count: int):
        """For at most `count` photos."""
        super().__init__(activation, count)
        self._convention = convention

    def add(self, found: ExplainedPhoto) -> None:
        """Pack a photo and its maps; nothing else of it is kept."""
        maps = []
        self._methods = []
        for method, layers in found.layers.items():
            kind = _kind(method, self._convention)
            if len(layers) > 1:
                single = [found.raw[f"{method} {layer}"] for layer in layers]
                self._methods.append(Method(method, "zero", (_joined(layers), *layers)))
                maps.append([found.shared[method], *single])
            else:
                self._methods.append(Method(method, kind, layers or ("whole network",)))
                maps.append([found.raw[method]])
        first = next(iter(found.maps.values()))
        self._add(
            found.photo.name,
            found.pixels,
            maps,
            np.array([-1 if one.label is None else one.label for one in first]),
            [one.score for one in first],
            found.logits,
            labels=[one.name or "no class" for one in first],
            flags=[
                [FLAG_WORDS.get(one.flag, "") for one in of_method]
                for of_method in found.maps.values()
            ],
        )

    def html(self, title: str) -> str:
        """The page of all that was added."""
        return _page(self._methods, self._photos, self._by, title, self._activation)


class AttributionPage(_PhotosPage):
    """The page of attributed photos, which are added one after the other."""

    def __init__(self, activation: Activation, count: int):
        """For at most `count` photos."""
        super().__init__(activation, count)
        self._signed: dict[str, bool] = {}
        self._tops: dict[str, list[float]] = {}

    def add(self, found: AttributedPhoto) -> None:
        """Pack a photo and its maps; nothing else of it is kept."""
        for name, maps in found.maps.items():
            self._signed[name] = self._signed.get(name, False) or bool((maps < 0).any())
            self._tops.setdefault(name, []).append(_top(maps))
        self._add(
            found.photo.name,
            found.pixels,
            [[maps] for maps in found.maps.values()],
            np.array(found.labels),
            found.scores,
            found.logits,
            labels=list(found.names),
            flags=[_attribution_flags(maps) for maps in found.maps.values()],
        )

    def html(self, title: str) -> str:
        """The page of all that was added."""
        methods = [
            Method(name, "signed" if signed else "zero", ("pixels",))
            for name, signed in self._signed.items()
        ]
        top = min(float(np.median(tops)) for tops in self._tops.values())
        return _page(methods, self._photos, self._by, title, self._activation, top)


def _page(
    methods: Sequence[Method],
    photos: Sequence[dict[str, Any]],
    by: Sequence[Sequence[int]],
    title: str,
    activation: str,
    top: float = 1.0,
) -> str:
    sorts = [
        sort for sort in _SORTS if any(photo["keys"][sort.key] is not None for photo in photos)
    ]
    largest = max(x for factors in by for x in factors)
    means = f" Large maps are means of up to {largest}x{largest} places." if largest > 1 else ""
    told = f" Probabilities are the {activation} of all logits." if activation else ""
    body = (
        f'{viewer()}<p class="note">Maps are at their layers\' own size, in 256 steps, and drawn '
        "linearly enlarged; the threshold is a share of each map's own highest value."
        f"{means}{told}</p>"
    )
    return page(
        title,
        "Where the evidence is",
        body,
        {"viewer": viewer_value(methods, photos, sorts, top=top)},
    )


def _factors(maps: Sequence[Maps], photos: int) -> list[list[int]]:
    """By how much the maps of so many photos are made smaller, by method and layer."""
    sizes = [x.shape[1:] for layers in maps for x in layers]
    found = iter(factors(sizes, photos * len(maps[0][0])))
    return [[next(found) for _ in layers] for layers in maps]


def _maps(result: Explanation | Attribution) -> tuple[Method, list[np.ndarray]]:
    """What there is of a result: raw maps (N, K, h, w) by layer."""
    if isinstance(result, Attribution):
        values = np.asarray(result.values.sum(axis=-1))
        kind = "signed" if (values < 0).any() else "zero"
        return Method(result.method, kind, ("pixels",)), [values]
    raw = [np.asarray(maps) for maps in result.layer_maps]
    if len(raw) == 1:
        kind = _kind(result.method, result.convention)
        return Method(result.method, kind, result.layers or ("whole network",)), raw
    size = max(maps.shape[2] for maps in raw), max(maps.shape[3] for maps in raw)
    joined = np.asarray(result.heatmaps(size, shared=True))
    return Method(result.method, "zero", (_joined(result.layers), *result.layers)), [joined, *raw]


def _top(values: np.ndarray) -> float:
    """Where the colours of single pixels end at first, beside the largest: few are far larger."""
    found = np.abs(values[np.isfinite(values)])
    if not found.size or not found.max():
        return 1.0
    return max(round(float(np.quantile(found, _MOST) / found.max()), 2), 0.01)


def _joined(layers: Sequence[str]) -> str:
    return " + ".join(layers)


def _kind(method: str, convention: str) -> Kind:
    return "zero" if Convention.named(convention).clamps(method) else "lowest"


def _flags(result: Explanation | Attribution) -> list[list[str]]:
    if isinstance(result, Attribution):
        return [_attribution_flags(maps) for maps in np.asarray(result.values.sum(axis=-1))]
    return [[FLAG_WORDS.get(Flag(x), "") for x in row] for row in np.asarray(result.flags).tolist()]


def _attribution_flags(maps: Float[np.ndarray, "k h w"]) -> list[str]:
    """What is to be said of signed maps: of those that are not finite, or zero."""
    finite, zeros = (x.all(axis=(1, 2)) for x in (np.isfinite(maps), maps == 0))
    return [
        FLAG_WORDS[Flag.ZERO] if zero else "" if fine else FLAG_WORDS[Flag.NOT_FINITE]
        for fine, zero in zip(finite, zeros, strict=True)
    ]


def _size(result: Explanation | Attribution) -> tuple[int, int]:
    if isinstance(result, Attribution):
        return result.values.shape[2], result.values.shape[3]
    return result.image_size


def _name(label: int, k: int, names: Sequence[str], result: Explanation | Attribution) -> str:
    if label < 0:
        return f"score {k}" if isinstance(result, Attribution) else "no class"
    return names[label] if names else f"class {label}"
