"""What the viewer of a page shows, as JSON values: `viewer.js` reads them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.files.foreign import plain
from flaxvgg.plotting.page.packing import jpeg, maps_value

# What is coloured: values above zero; from the lowest one on; or both signs, around zero.
Kind = Literal["zero", "lowest", "signed"]


class Method(NamedTuple):
    """What maps are of, and the layers that there are maps of; "" where it has no name."""

    name: str
    kind: Kind
    layers: tuple[str, ...]


class Sort(NamedTuple):
    """What photos can be sorted by: a key of theirs, its name, and the order to begin with."""

    key: str
    name: str
    down: bool = False
    percent: bool = False


class Look(NamedTuple):
    """What can be shown at one side: a picture, alone or under the maps of a method."""

    name: str
    picture: int
    method: int | None


def photo_value(
    name: str,
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    maps: Sequence[Sequence[Float[np.ndarray, "k _ _"]]],
    factors: Sequence[Sequence[int]],
    **told: Any,
) -> dict[str, Any]:
    """A photo with its maps by method and layer, each so many times smaller.

    `told` may have `labels`, `scores` and `probabilities` of the classes, `flags` by method and
    class, `keys` to sort by, `facts`, `channels`.
    """
    packed = [
        [maps_value(x, factor) for x, factor in zip(layers, by, strict=True)]
        for layers, by in zip(maps, factors, strict=True)
    ]
    return {
        "name": plain(name),
        "size": list(pictures[0].shape[:2]),
        "pictures": [jpeg(pixels) for pixels in pictures],
        "maps": packed,
        **{key: finite(value) for key, value in told.items()},
    }


def viewer_value(
    methods: Sequence[Method],
    photos: Sequence[Mapping[str, Any]] | None,
    sorts: Sequence[Sort] = (),
    looks: Sequence[Look] = (),
    start: tuple[int, int] | None = None,
    scales: Sequence[str] = (),
    **told: Any,
) -> dict[str, Any]:
    """The viewer of photos, or with None of those that a server has.

    `told` may have `layer`, the first one shown, `slider` for layers in an order, `threshold`,
    `score`, what a class's score is called, and whether there are `channels`.
    """
    looks = looks or [Look("photo", 0, None)]
    if len(looks) == 1:
        looks = [*looks, *(Look(method.name, 0, i) for i, method in enumerate(methods))]
    start = start or ((1, 2) if len(methods) > 1 else (len(looks) - 1, 0))
    described = [method._asdict() for method in methods]
    found: dict[str, Any] = {"methods": described}
    if photos is not None:
        found["photos"] = list(photos)
        for i, method in enumerate(described):
            method["ranges"] = [_range(photos, i, j) for j in range(len(method["layers"]))]
    classes = max((len(photo.get("labels", ())) for photo in photos or ()), default=2)
    scales = scales or [
        name
        for name, is_of_use in (
            ("photo", classes > 1),
            ("map", True),
            ("all", photos is not None and len(photos) > 1),
        )
        if is_of_use
    ]
    sorts = [*sorts, Sort("name", "name")] if photos is None or len(photos) > 1 else list(sorts)
    first = [Sort("", "their order")] if photos is not None else []
    return found | {
        "looks": [look._asdict() for look in looks],
        "start": list(start),
        "swipe": 100 if len(methods) == 1 and start[1] == 0 else 50,
        "scales": list(scales),
        "sorts": [sort._asdict() for sort in [*first, *sorts]],
        **told,
    }


def finite(value: Any) -> Any:
    """A JSON value: None where a number is not finite, texts as they can be shown."""
    if isinstance(value, Mapping):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [finite(x) for x in value]
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _range(photos: Sequence[Mapping[str, Any]], method: int, layer: int) -> list[float] | None:
    ranges = [
        x
        for photo in photos
        for maps in photo["maps"][method][layer : layer + 1]
        for x in maps["ranges"]
        if x is not None
    ]
    return [min(x for x, _ in ranges), max(x for _, x in ranges)] if ranges else None
