"""(e) The image was preprocessed wrongly."""

import dataclasses
import warnings

from experiments.why_zeros.subject import Subject, count, spread, zeros
from experiments.why_zeros.text import Table, percent, points, spread_of
from flaxvgg.network.provenance import PREPROCESSING, Preprocessing

CLAIM = "The image was preprocessed wrongly"
METHOD = "The same pixels, normalised in different ways."


def recipes(right: Preprocessing) -> dict[str, Preprocessing]:
    """The right recipe and what people do instead; how images are resized stays the same."""

    def but(**changes) -> Preprocessing:
        return dataclasses.replace(right, **changes)

    swapped = "RGB" if right.channels == "BGR" else "BGR"
    other = PREPROCESSING["torchvision" if right.divisor == 1 else "keras"]
    none, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    means = PREPROCESSING["keras"].mean
    return {
        "right": right,
        f"{swapped} for {right.channels}": but(channels=swapped),
        "no means subtracted": but(mean=none),
        "0 to 1, no means": but(divisor=255.0, mean=none, std=one),
        "0 to 1, then means": but(divisor=255.0, mean=means, std=one),
        f"{other.name}'s": dataclasses.replace(
            other, fit=right.fit, interpolation=right.interpolation
        ),
    }


def measure(subject: Subject) -> dict:
    """Zeros in pool5 of the same photos under each recipe."""
    right = zeros(subject.counts, "pool5")
    rows = []
    for name, recipe in recipes(subject.recipe).items():
        with warnings.catch_warnings():  # it is wrong on purpose
            warnings.filterwarnings("ignore", "images from .* than what these weights")
            counts = count(subject.model, subject.pixels, recipe, ["pool5"])
        found = zeros(counts, "pool5")
        rows.append(
            {
                "recipe": name,
                "zeros": found.tolist(),
                "pool5": spread(found),
                "more": spread(found - right),  # photo by photo
            }
        )
    return {"recipes": rows}


def verdict(found: dict) -> str:
    """One sentence."""
    right, swap, *others = found["recipes"]
    more = max(others, key=lambda row: row["more"]["mean"])
    less = min(others, key=lambda row: row["more"]["mean"])
    alike = " (then every photo has the same)" if more["pool5"]["sd"] < 0.001 else ""
    hidden = ", which no count of zeros shows" if abs(swap["more"]["mean"]) < 0.01 else ""
    innocent = right["pool5"]["mean"] > 0.8
    return (
        f"{'False' if innocent else 'In part'}: with the right preprocessing "
        f"{percent(right['pool5']['mean'])} are zero; {swap['recipe']} changes "
        f"{100 * swap['more']['mean']:+.1f} points{hidden}; "
        f"“{more['recipe']}” {100 * more['more']['mean']:+.1f}{alike}, and "
        f"“{less['recipe']}” {100 * less['more']['mean']:+.1f}."
    )


def table(found: dict) -> Table:
    """One row a recipe."""
    header = ["preprocessing", "zeros in pool5 (range)", "difference, points"]
    return header, [
        [row["recipe"], spread_of(row["pool5"]), points(row["more"]) if i else ""]
        for i, row in enumerate(found["recipes"])
    ]
