"""(a) The convolution's result is negative there, and ReLU makes every negative number a zero."""

import itertools
import math

import numpy as np

from experiments.why_zeros.subject import Subject, zeros
from experiments.why_zeros.text import Table, millions, percent

CLAIM = "The convolution's results are negative there"
METHOD = (
    "Counts before and after each ReLU, over all photos; a normal distribution with the "
    "layer's mean and standard deviation would have the last column below zero."
)

EDGES = np.linspace(-5, 5, 81)  # of the histograms, in standard deviations; zero is an edge


def measure(subject: Subject) -> dict:
    """Exact counts before and after each ReLU, and histograms of what is before."""
    config = subject.model.config
    before = {b.name: a.name for a, b in itertools.pairwise(config.conv_stack) if b.kind == "relu"}
    after_pool = {relu: zeros(subject.counts, pool) for pool, relu in subject.before_pools.items()}
    layers = []
    for relu, conv in before.items():
        found = subject.counts[relu]
        values = found.values * found.zeros.size
        mean = _total(found.sum_before) / values
        sd = math.sqrt(_total(found.square_before) / values - mean**2)
        layers.append(
            {
                "layer": conv,
                "values": values,
                "negative_before": int(_total(found.negatives_before)),
                "zero_before": int(_total(found.zeros_before)),
                "zero_after": int(_total(found.zeros)),
                "mean": mean,
                "sd": sd,
                "normal_predicts": 0.5 * math.erfc(mean / sd / math.sqrt(2)),
                "zero_after_pooling": float(after_pool[relu].mean())
                if relu in after_pool
                else None,
            }
        )
    counts = _histograms(subject, [row["layer"] for row in layers], [row["sd"] for row in layers])
    for row, histogram in zip(layers, counts, strict=True):
        row["histogram"] = histogram
    return {"photos": len(subject.paths), "layers": layers}


def _histograms(subject: Subject, layers: list[str], sds: list[float]) -> list[list[int]]:
    """Of each layer, over all photos; the outermost bins hold everything beyond."""
    found = np.zeros((len(layers), len(EDGES) - 1), np.int64)
    for i in range(len(subject.pixels)):
        taps = subject.activations(layers, slice(i, i + 1))
        for k, (layer, sd) in enumerate(zip(layers, sds, strict=True)):
            scaled = np.clip(taps[layer] / np.float32(sd), EDGES[0], EDGES[-1])
            found[k] += np.histogram(scaled, EDGES)[0]
    return found.tolist()


def verdict(found: dict) -> str:
    """One sentence."""
    layers = found["layers"]
    zero, negative, exact = (
        sum(row[key] for row in layers) for key in ("zero_after", "negative_before", "zero_before")
    )
    last = layers[-1]
    holds = zero == negative + exact and negative > 0.999 * zero
    return (
        f"{'True' if holds else 'Not the whole story'}: of the {millions(zero)} zeros after the "
        f"{len(layers)} ReLUs, {negative:,} were negative before them and {exact:,} exactly zero; "
        f"{last['layer']} is on average {-last['mean'] / last['sd']:.2f} standard deviations below "
        f"zero, and {percent(last['negative_before'] / last['values'])} of it is negative."
    )


def table(found: dict) -> Table:
    """One row a convolution."""
    header = [
        "layer", "values", "negative", "exactly 0", "zeros after ReLU", "after pooling",
        "mean / sd", "a normal distribution would give",
    ]  # fmt: skip
    return header, [
        [
            row["layer"],
            f"{row['values']:,}",
            percent(row["negative_before"] / row["values"]),
            f"{row['zero_before']:,}",
            percent(row["zero_after"] / row["values"]),
            "" if row["zero_after_pooling"] is None else percent(row["zero_after_pooling"]),
            f"{row['mean'] / row['sd']:.2f}",
            percent(row["normal_predicts"]),
        ]
        for row in found["layers"]
    ]


def _total(counts) -> float:
    return np.asarray(counts, np.float64).sum()  # whole numbers are exact up to 2^53
