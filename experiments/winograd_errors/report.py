"""The tables and sentences of the study, as README.md."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.winograd_errors.study import FOUR, SMALL, THREE
from experiments.winograd_errors.sums import COMPENSATED, PLAIN, WIDE

_SIZES = (224, 112, 56, 28, 14, 7)
Row = dict[str, Any]


def label_of(row: Row) -> str:
    """Algorithm and points."""
    return f"{row['algorithm']}: {row['points']}"


def readme(results: dict[str, Any]) -> str:
    """Everything there is to say, in Markdown."""
    rows, peers = results["sums"], results["peer_errors"]
    errors = ", ".join(f"{layer} {error:.2g}" for layer, error in peers.items())
    few = [row for row in rows if row["sums"] in (PLAIN.name, WIDE.name, COMPENSATED.name)]
    ways = [r for r in rows if label_of(r) in (_label(SMALL), _label(THREE), _label(FOUR))]
    return f"""# What Winograd's algorithms err, by points and by sums

One 3x3 convolution of VGG16 is computed by F(m x m, 3x3) in NumPy as a processor would, with fused
multiply-adds, on {len(results["photos"])} photos at 224x224. Given is its error against float64
(root mean squares) in units of PyTorch's own float32 error on the same values, which depends on the
processor: {errors}.
Kernels are transformed in float64 and rounded once, and so are inputs and results, unless said
otherwise. F(2x2) and F(2x4) with compensated sums are the convolution of `flaxvgg/ops/native`, to
the bit (`tests/test_winograd_errors.py`).

![Errors by points and by sums](errors.png)

{_findings(results)}

## By points

Before the ReLU; in brackets the largest of the layers after it. PyTorch's errors are larger where
results are larger, and a Winograd tile's are the same for all its results, so what is left after
the ReLU compares less well. "products" are those for one output and one channel.

{_table(few, ["algorithm", "points", "products", "sums"])}

## By sums

{_table(ways, ["algorithm", "sums"])}

## Transforms in float32

"once" is float64 rounded once, "steps" is float32 rounded at every step, where points ±a share
their even and odd parts. With {COMPENSATED.name}.

{_table(results["transforms"], ["algorithm", "inputs", "results"])}

## Points ±a, ±b

With {COMPENSATED.name}, before the ReLU.

![Errors by a and b](scan.png)

## Whole networks

The error of pool5 in PyTorch's own, photo by photo. Sums are {COMPENSATED.name} unless
it says otherwise. The first layer is flaxvgg's, whose sums are float64. Errors of late layers count
most.

{_networks(results["network"])}

Products for one output and one channel, on square maps of so many pixels (tiles that are not whole
are computed whole):

{_products()}

## Sources

Lavin & Gray 2016 ([arXiv:1509.09308](https://arxiv.org/abs/1509.09308)): the algorithms, with
points 0, ±1, ±2. Barabasz et al. 2018 ([arXiv:1803.10986](https://arxiv.org/abs/1803.10986)): their
error depends on points and on the order of sums. Alam et al. 2022
([arXiv:2201.10369](https://arxiv.org/abs/2201.10369)): points -1/c, -c, c, 1/c. The weights are
those of {results["weights"]}. Made by `python -m experiments.winograd_errors`.
"""


def _findings(results: dict[str, Any]) -> str:
    rows = results["sums"]

    def of(sums: str, test: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        return [row for row in rows if row["sums"] == sums and test(row)]

    best = [
        min(of(COMPENSATED.name, lambda row, m=m: row["algorithm"] == m), key=_mean)
        for m in ("F(4x4)", "F(3x3)")
    ]
    said = "; ".join(f"{label_of(row)} ({_range(row)})" for row in best)
    extra = [
        row["before_relu"][layer] / wide["before_relu"][layer] - 1
        for row, wide in zip(of(COMPENSATED.name), of(WIDE.name), strict=True)
        for layer in row["before_relu"]
    ]
    steps = {
        (row["algorithm"], row["inputs"], row["results"]): _mean(row)
        for row in results["transforms"]
    }
    inputs, ends = (
        [steps[m, *kind] / steps[m, "once", "once"] - 1 for m in ("F(2x2)", "F(3x3)", "F(4x4)")]
        for kind in (("steps", "once"), ("once", "steps"))
    )
    plans = results["network"]["plans"]
    noise = results["without_structure"]
    kept = [plan for plan in plans[1:] if np.mean(plan["errors"]) <= 1]
    fewest = min(kept, key=lambda plan: plan["products"]) if kept else None
    whole = (
        "Of the plans whose pool5 errs no more than PyTorch's, the one with the fewest products "
        f'is "{fewest["plan"]}": {np.mean(fewest["errors"]):.2f} of PyTorch\'s error with '
        f"{plans[0]['products'] / fewest['products']:.2f} times fewer products than F(2x2)."
        if fewest
        else "None has a pool5 that errs no more than PyTorch's."
    )
    errs = ", ".join(f"{value:.2f} by {name}" for name, value in noise.items())
    return f"""- **flaxvgg takes F(2x4)** on large maps and F(2x2) on small ones. On maps without
  structure (normal values after a ReLU, 64 channels) the error in PyTorch's is {errs}:
  flaxvgg allows itself 1.5 anywhere.
- **Best points** by the mean over layers, with {COMPENSATED.name}: {said}.
- **A compensated float32 sum** beyond groups of 32 products errs {100 * np.mean(extra):.1f} %
  more than a float64 one ({100 * min(extra):.1f} to {100 * max(extra):.1f} %, over all layers
  and points), and needs no conversion.
- **Inputs transformed in float32** cost {_percent(inputs)} more error (F(2x2), F(3x3), F(4x4));
  **results** transformed in float32 {_percent(ends)}.
- **Whole networks.** {whole}"""


def _percent(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.0f} %" for value in values)


def _mean(row: Row) -> float:
    return float(np.mean(list(row["before_relu"].values())))


def _range(row: Row) -> str:
    values = row["before_relu"].values()
    return f"{min(values):.2f} to {max(values):.2f}"


def _label(tile: Any) -> str:
    return f"{tile.algorithm}: {tile.points}"


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    layers = list(rows[0]["before_relu"])
    lines = []
    for row in rows:
        cells = [f"{row[c]:.3g}" if c == "products" else str(row[c]) for c in columns]
        cells += [f"{row['before_relu'][layer]:.2f}" for layer in layers]
        lines.append([*cells, f"({max(row['after_relu'].values()):.2f})"])
    return _markdown([*columns, *layers, "after ReLU"], lines, len(columns))


def _networks(network: dict[str, Any]) -> str:
    lines = [
        [plan["plan"], f"{plan['products'] / 1e9:.2f}"]
        + [f"{error:.2f}" for error in plan["errors"]]
        for plan in network["plans"]
    ]
    return _markdown(["plan", "10^9 products", *network["photos"]], lines, 1)


def _products() -> str:
    lines = []
    for tile in (SMALL, THREE, FOUR):
        cells = [tile.algorithm]
        for size in _SIZES:
            count = math.ceil(size / tile.down.outputs) * math.ceil(size / tile.across.outputs)
            cells.append(f"{count * tile.down.size * tile.across.size / size**2:.2f}")
        lines.append(cells)
    return _markdown(["", *map(str, _SIZES)], lines, 1)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
