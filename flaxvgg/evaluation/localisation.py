"""Whether a heat map finds the object: the pointing game, boxes, pixels, and relevance.

Boxes are (left, top, right, bottom) in whole pixels; right and bottom are the first ones outside.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxvgg.evaluation.outlines import right_levels
from flaxvgg.network.model import AnyArray

Boxes = Sequence[Int[AnyArray, "_ 4"]] | Int[AnyArray, "n _ 4"]
"""One array (G, 4) for each image, of its G boxes; an array (N, G, 4) where all have as many."""

_THRESHOLDS = np.arange(0, 1, 0.001)  # of the published evaluation
# By the largest value of a map in 8 bits: many thresholds make one level.
_LEVELS = (_THRESHOLDS * np.arange(256)[:, None]).astype(int)


def pointing_game(
    heatmaps: Float[AnyArray, "n h w"],
    targets: Bool[AnyArray, "n h w"] | Boxes,
    tolerance: int | float = 0,
) -> float:
    """The fraction of maps (N, H, W) with their maximum on the object (Zhang et al. 2016).

    `targets` are boolean masks (N, H, W), or boxes. A maximum off the object hits too if the
    nearest pixel of it is at most `tolerance` pixels away, centre to centre; 15 is usual.
    The maps are of any scale and sign. Of several maxima the first in reading order counts. A map
    that is constant (thus a zero one), or not finite, points nowhere: a miss.

    The paper's figure (arXiv:1608.00507) is the mean over classes of this fraction. Raises
    ValueError for other shapes, for no maps, for an image without a target, for a box that is empty
    or not inside the image, and for a negative tolerance.

    >>> heat, boxes = np.eye(8)[None], [np.array([[0, 0, 3, 3]])]
    >>> flaxvgg.pointing_game(heat, boxes)
    1.0
    """
    maps = _maps(heatmaps)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of pixels from 0, not {tolerance}")
    objects = _objects(targets, maps.shape)
    pairs = zip(maps, objects, strict=True)
    return float(np.mean([_hits(heatmap, mask, tolerance) for heatmap, mask in pairs]))


def max_box_acc(heatmaps: Float[AnyArray, "n h w"], boxes: Boxes) -> float:
    """MaxBoxAcc (Choe et al. 2020, arXiv:2001.07437): how often the map's box is right.

    A map (N, H, W) in [0, 1] is cut at a threshold, and the box around its largest component is
    right if its IoU with one of the image's `boxes` is at least 0.5. The fraction of images that
    are right is taken at the threshold at which it is highest for the whole data set.

    As the published evaluation has it: the map becomes 8 bits (255 x, rounded down); a pixel is in
    if it is above t times the map's maximum, rounded down, for t = 0, 0.001, ... 0.999; components
    include diagonal neighbours; the largest is the one whose outline, drawn through the centres of
    its pixels, encloses most, holes included, and of equals the lowest; the box takes in one more
    column on the right and one more row below, inside the image. There maps and boxes come at
    224x224. Unlike there, a zero map has no box, and not that of the top left pixel.
    The boxes of all thresholds are found at once, on the device.

    Raises ValueError for other shapes, no maps, values outside [0, 1] or NaN, an image without a
    box, and a box that is empty or not inside the image.

    >>> heat = np.pad(np.ones((1, 20, 20)), [(0, 0), (6, 6), (6, 6)])
    >>> flaxvgg.max_box_acc(heat, [np.array([[6, 6, 26, 26]])])
    1.0
    """
    return box_accuracies(_box_hits(heatmaps, boxes), len(heatmaps))[0]


def max_box_acc_v2(heatmaps: Float[AnyArray, "n h w"], boxes: Boxes) -> float:
    """MaxBoxAccV2 (Choe et al. 2020, arXiv:2001.07437): any box of the map, at three IoUs.

    `max_box_acc` with the boxes of all outlines, those of holes included, of which the best counts;
    and the mean of that for an IoU of at least 0.3, 0.5 and 0.7, each at its own best threshold.
    Raises ValueError where `max_box_acc` does.

    >>> heat = np.pad(np.ones((1, 20, 20)), [(0, 0), (6, 6), (6, 6)])
    >>> round(flaxvgg.max_box_acc_v2(heat, [np.array([[6, 6, 26, 26]])]), 3)
    1.0
    """
    return box_accuracies(_box_hits(heatmaps, boxes), len(heatmaps))[1]


def box_hits(heatmaps: Float[AnyArray, "n h w"], boxes: Boxes) -> Int[np.ndarray, "4 thresholds"]:
    """How many of the maps (N, H, W) have a right box at each threshold: counts that add up.

    The first row is for `max_box_acc`, the others for `max_box_acc_v2` at IoU 0.3, 0.5 and 0.7.
    Those of the parts of a data set, added up, are what `box_accuracies` takes. Raises ValueError
    as they do.
    """
    return _box_hits(heatmaps, boxes)


def _box_hits(heatmaps: Any, boxes: Any) -> Int[np.ndarray, "4 thresholds"]:
    maps = _heatmaps(heatmaps)
    given = _boxes(boxes, maps.shape)
    images = np.stack([(x.astype(np.float64) * 255).astype(np.uint8) for x in maps])
    levels = _LEVELS[images.max(axis=(1, 2))]
    right = right_levels(images, given)
    return np.take_along_axis(right, levels[:, None], axis=2).sum(axis=0)


def box_accuracies(hits: Int[np.ndarray, "4 thresholds"], maps: int) -> tuple[float, float]:
    """MaxBoxAcc and MaxBoxAccV2 of so many maps, from what `box_hits` counted in them."""
    first, *others = hits.max(axis=1) / maps
    return float(first), float(np.mean(others))


def pxap(
    heatmaps: Float[AnyArray, "n h w"],
    masks: Bool[AnyArray, "n h w"],
    ignore: Bool[AnyArray, "n h w"] | None = None,
) -> float:
    """PxAP (Choe et al. 2020, arXiv:2001.07437): average precision over the pixels of all maps.

    How far maps (N, H, W) in [0, 1] rank the pixels of the object above others, in the whole data
    set at once. As in the published evaluation, values are told apart in steps of 0.001, and pixels
    of `ignore` do not count, but for those of an object.

    Raises ValueError for other shapes, no maps, values outside [0, 1] or NaN, and masks that are
    false everywhere.

    >>> heat = np.pad(np.ones((1, 40, 40)), [(0, 0), (12, 12), (12, 12)])
    >>> flaxvgg.pxap(heat, heat > 0)
    1.0
    """
    maps = _heatmaps(heatmaps)
    objects = _masks(masks, maps.shape, "masks")
    others = ~objects
    if ignore is not None:
        others &= ~_masks(ignore, maps.shape, "ignore")
    if not objects.any():
        raise ValueError("masks are false everywhere: there is no object to find")
    # 1 has a step of its own.
    steps = np.append(_THRESHOLDS, [1, 2])
    found = np.zeros((2, len(_THRESHOLDS) + 1))
    for heatmap, *parts in zip(maps, objects, others, strict=True):
        values = heatmap.astype(np.float64)
        found += [np.histogram(values[part], steps)[0] for part in parts]
    hits, misses = found[:, ::-1]
    shown = np.cumsum(hits + misses)
    precision = np.cumsum(hits) / np.maximum(shown, 1)
    return float((precision * hits).sum() / hits.sum())


def relevance_mass_accuracy(
    heatmaps: Float[AnyArray, "n h w"], targets: Bool[AnyArray, "n h w"] | Boxes
) -> Float[np.ndarray, " n"]:
    """The part (N,) of each map's relevance that is on the object (Arras et al. 2022).

    In [0, 1], of maps (N, H, W) of any scale. Negative relevance counts as none, as where the paper
    (arXiv:2003.07258) takes the positive part, so that the parts add up to 1; Quantus adds signed
    values. NaN for a map without positive values. `targets` and errors are those of
    `pointing_game`, and ValueError is raised for maps that are not finite.

    >>> heat, boxes = np.eye(8)[None], [np.array([[0, 0, 2, 2]])]
    >>> flaxvgg.relevance_mass_accuracy(heat, boxes)
    array([0.25])
    """
    maps = _finite_maps(heatmaps)
    objects = _objects(targets, maps.shape)
    positive = np.maximum(maps.astype(np.float64), 0)
    inside = np.where(objects, positive, 0).sum(axis=(1, 2))
    total = positive.sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0)


def relevance_rank_accuracy(
    heatmaps: Float[AnyArray, "n h w"], targets: Bool[AnyArray, "n h w"] | Boxes
) -> Float[np.ndarray, " n"]:
    """How many (N,) of the K most relevant pixels are on the object, which has K, as a fraction.

    Of maps (N, H, W) of any scale and sign; of equal values the first in reading order count.
    Arras et al. 2022 (arXiv:2003.07258), as Quantus's `RelevanceRankAccuracy`. `targets` and errors
    are those of `relevance_mass_accuracy`.

    >>> heat, boxes = np.eye(8)[None], [np.array([[0, 0, 2, 2]])]
    >>> flaxvgg.relevance_rank_accuracy(heat, boxes)
    array([0.5])
    """
    maps = _finite_maps(heatmaps)
    objects = _objects(targets, maps.shape).reshape(len(maps), -1)
    hottest_first = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")
    sizes = objects.sum(axis=1)
    ranked = np.take_along_axis(objects, hottest_first, axis=1)
    taken = np.arange(objects.shape[1]) < sizes[:, None]
    return (ranked & taken).sum(axis=1) / sizes


def centre_gaussian(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """A map (H, W) that knows only that objects are central, the baseline of Choe et al. 2020.

    A Gaussian whose standard deviation is half the image on either axis; float32, in (0, 1]. As
    its level lines are the same for any other, that hardly matters to what is measured here.
    Raises ValueError for sizes under 1.

    >>> heat = flaxvgg.centre_gaussian(5, 7)
    >>> divmod(int(heat.argmax()), 7)
    (2, 3)
    """
    if min(height, width) < 1:
        raise ValueError(f"no map has {height}x{width} pixels")
    y, x = ((2 * np.arange(size) + 1) / size - 1 for size in (height, width))
    return np.exp(-(y[:, None] ** 2 + x**2) / 2).astype(np.float32)


def _hits(heatmap: np.ndarray, mask: Bool[np.ndarray, "h w"], tolerance: int | float) -> bool:
    if not np.isfinite(heatmap).all() or heatmap.min() == heatmap.max():
        return False
    peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
    distances = np.linalg.norm(np.argwhere(mask) - peak, axis=1)
    return bool(distances.min() <= tolerance)


def _maps(heatmaps: AnyArray) -> np.ndarray:
    maps = np.asarray(heatmaps)
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"heatmaps must have shape (N, H, W), none of them 0, not {maps.shape}")
    return maps


def _finite_maps(heatmaps: AnyArray) -> np.ndarray:
    maps = _maps(heatmaps)
    wrong = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if len(wrong):
        raise ValueError(f"heat map {wrong[0]} is not finite")
    return maps


def _heatmaps(heatmaps: AnyArray) -> np.ndarray:
    maps = _maps(heatmaps)
    wrong = np.flatnonzero(~((maps >= 0) & (maps <= 1)).all(axis=(1, 2)))
    if len(wrong):
        raise ValueError(f"heat map {wrong[0]} has values outside [0, 1], or NaN")
    return maps


def _objects(targets: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "n h w"]:
    """The pixels of each image's objects, of masks or boxes; never none."""
    if not (isinstance(targets, AnyArray) and targets.dtype == bool):
        return _filled(_boxes(targets, shape), shape)
    objects = _masks(targets, shape, "targets")
    empty = np.flatnonzero(~objects.any(axis=(1, 2)))
    if len(empty):
        raise ValueError(f"no target in image {empty[0]}: leave out images without the object")
    return objects


def _masks(masks: AnyArray, shape: tuple[int, ...], name: str) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.shape != shape:
        raise ValueError(
            f"{name} must be boolean, with the maps' shape {shape}, not {masks.dtype} {masks.shape}"
        )
    return masks


def _boxes(boxes: Any, shape: tuple[int, ...]) -> list[np.ndarray]:
    count, height, width = shape
    if len(boxes) != count:
        raise ValueError(f"boxes of {len(boxes)} images for {count} maps")
    found = [np.asarray(x) for x in boxes]
    for i, array in enumerate(found):
        integers = np.issubdtype(array.dtype, np.integer)
        if not integers or array.ndim != 2 or array.shape[1] != 4 or not len(array):
            raise ValueError(
                f"boxes of image {i} must be whole numbers (G, 4), at least one box, not "
                f"{array.dtype} {array.shape}"
            )
        for left, top, right, bottom in array.tolist():
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ValueError(
                    f"box {left, top, right, bottom} of image {i} is empty or not inside its "
                    f"{height} rows and {width} columns: boxes are (left, top, right, bottom), "
                    "right and bottom being the first pixels outside"
                )
    return [array.astype(int) for array in found]


def _filled(boxes: list[np.ndarray], shape: tuple[int, ...]) -> Bool[np.ndarray, "n h w"]:
    masks = np.zeros(shape, bool)
    for mask, array in zip(masks, boxes, strict=True):
        for left, top, right, bottom in array:
            mask[top:bottom, left:right] = True
    return masks
