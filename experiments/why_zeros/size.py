"""(d) The image has the wrong size."""

import dataclasses

import numpy as np

from experiments.why_zeros import pictures
from experiments.why_zeros.subject import Subject, count, spread, zeros
from experiments.why_zeros.text import Table, percent, points, spread_of

CLAIM = "The image has the wrong size"
METHOD = (
    "Photos are stretched to each size, as their recipe says; “mirrored” continues the photo of "
    "the first size by its mirror images, so that the image is larger, and nothing in it."
)

# What a reader counted in pool5 of one image of 375x1242 pixels.
READER = {"images": "375x1242, a reader's image", "values": 214016, "non_zero": 26721}


def measure(subject: Subject) -> dict:
    """Zeros of the same photos at several sizes, and at the border and inside of pool5."""
    recipe = subject.recipe
    smooth = dataclasses.replace(recipe, interpolation="bilinear")
    first, *others = subject.effort.sizes
    images = {
        _shown(first): subject.pixels,
        f"{_shown(first)}, resized bilinearly": pictures.load(subject.paths, first, smooth),
        f"{_shown(others[0])}, not enlarged but mirrored": mirrored(subject.pixels, others[0]),
        **{_shown(size): pictures.load(subject.paths, size, recipe) for size in others},
    }
    rows = []
    for name, pixels in images.items():
        counts = count(subject.model, pixels, layers=["pool5"])
        found = zeros(counts, "pool5")
        rows.append(
            {
                "images": name,
                "values": counts["pool5"].values * counts["pool5"].zeros.shape[1],
                "zeros": found.tolist(),
                "pool5": spread(found),
                # Photo by photo.
                "more": spread(found - np.array(rows[0]["zeros"])) if rows else None,
            }
        )
    zero = subject.activations(["pool5"])["pool5"] == 0
    border = np.ones(zero.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    return {
        "sizes": rows,
        "reader": READER,
        "border": float(zero[:, border].mean()),
        # A map so small that it is all border has no inside.
        "inside": None if border.all() else float(zero[:, ~border].mean()),
    }


def mirrored(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (N, h, w, 3) continued by their mirror images to (N, H, W, 3): larger, as sharp."""
    _, h, w, _ = pixels.shape
    above, left = (size[0] - h) // 2, (size[1] - w) // 2
    around = ((0, 0), (above, size[0] - h - above), (left, size[1] - w - left), (0, 0))
    return np.pad(pixels, around, mode="symmetric")


def verdict(found: dict) -> str:
    """One sentence."""
    first, _, mirror, *larger = found["sizes"]
    reader = found["reader"]
    theirs = 1 - reader["non_zero"] / reader["values"]
    low, high = larger[-1]["pool5"]["min"], larger[-1]["pool5"]["max"]
    alone = mirror["more"]["mean"]
    edge = (
        ""
        if found["inside"] is None
        else f"; of pool5's border, where zeros are padded, {percent(found['border'])} are zero, "
        f"of its inside {percent(found['inside'])}"
    )
    return (
        f"{'False' if alone < 0.01 else 'In part'}: {percent(first['pool5']['mean'])} at "
        f"{first['images']}, and with the photos enlarged "
        + ", ".join(f"{percent(row['pool5']['mean'])} at {row['images']}" for row in larger)
        + f", but {percent(mirror['pool5']['mean'])} at {mirror['images']}{edge}; the reader's "
        f"{reader['non_zero']:,} of {reader['values']:,} non-zero are {percent(theirs)} zeros, "
        f"our photos at {larger[-1]['images']} have {100 * low:.1f} to {percent(high)}."
    )


def table(found: dict) -> Table:
    """One row a size."""
    header = [
        "photos at", "values in pool5", "non-zero (mean)", "zeros in pool5 (range)",
        "difference, points",
    ]  # fmt: skip
    rows = [
        [
            row["images"],
            f"{row['values']:,}",
            f"{row['values'] * (1 - row['pool5']['mean']):,.0f}",
            spread_of(row["pool5"]),
            "" if row["more"] is None else points(row["more"]),
        ]
        for row in found["sizes"]
    ]
    reader = found["reader"]
    theirs = percent(1 - reader["non_zero"] / reader["values"])
    last = [reader["images"], f"{reader['values']:,}", f"{reader['non_zero']:,}", theirs, ""]
    return header, [*rows, last]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
