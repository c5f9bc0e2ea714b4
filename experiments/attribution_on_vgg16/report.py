"""The page of the experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def table(results: Results) -> str:
    """A row for each method."""
    head = ["method", "peak on the object", "relevance on it", "rank accuracy", "sparseness"]
    head += ["like itself, random from fc8", "all random", "passes, one class", "eight classes"]
    head += ["beside", "apart by", "its passes"]
    lines = [_line(head), _line(["---", *["---:"] * 8, "---", *["---:"] * 2])]
    for row in results["methods"]:
        cells = [
            row["method"],
            _percent(row["on_object"]),
            _percent(row["mass"]),
            _percent(row["rank"]),
            f"{row['sparseness']:.2f}",
            f"{row['similar'][0]:.2f}",
            f"{row['similar'][-1]:.2f}",
            _range(row["passes"]),
            _range(row["passes_of_eight"]),
            *(
                [row["peer"], f"{row['apart']:.1e}", _range(row["passes_of_peer"])]
                if row["peer"]
                else ["", "", ""]
            ),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def readme(results: Results) -> str:
    """The page of the experiment."""
    effort = results["effort"]
    rows = results["methods"]
    best = max(rows, key=lambda row: row["mass"])
    insensitive = [row["method"] for row in rows if row["similar"][-1] > 0.5]
    return _PAGE.format(
        table=table(results),
        weights=results["weights"],
        pairs=results["pairs"],
        scenes=results["scenes"],
        chance=_percent(results["chance"]),
        quantus=results["quantus"],
        apart_on=results["apart_on"],
        best=best["method"],
        best_mass=_percent(best["mass"]),
        insensitive=", ".join(insensitive) or "none of them",
        layers=", ".join(results["randomised"]),
        **{name: effort[name] for name in ("samples", "window", "blur", "randomised", "rounds")},
    )


def _range(passes: Sequence[float]) -> str:
    middle, least, most = passes
    return f"{middle:.3g} ({least:.3g} to {most:.3g})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_PAGE = """\
# Which attribution finds the object, and which looks at the network at all?

```sh
python -m experiments.attribution_on_vgg16     # on a machine with nothing else to do
```

{scenes} scenes of two objects each, so {pairs} (image, class) pairs: "where is the cat?", with the
other object beside it. The convolutions are
{weights}; fc6, fc7 and fc8 are
fitted to parts of the same things on other backgrounds, as in
[cam_on_vgg16](../cam_on_vgg16/README.md), so that the answer is known.

{table}

![Every method on objects in scenes](attribution_on_vgg16.png)

- **On the object**: the peak of the positive part, smoothed by {blur:g} pixels (pointing game); the
  part of the positive relevance inside the object's box (relevance mass accuracy); and how many of
  the K most relevant pixels are in the box of K pixels. A map without any knowledge has {chance} of
  each. The most relevance on the object has {best}, with {best_mass}. Quantus's figures of the
  same maps differ by at most {quantus:.0e}: in the rank accuracy of maps with equal pixels, such as
  the zeros behind a ReLU, of which each counts others first.
- **Sparseness** is the Gini index of the magnitudes: 0 for a constant map, 1 for a single pixel.
- **Like itself** is the randomisation test (Adebayo et al. 2018): rank correlation of magnitudes
  between the map of the network and that of the same network with fc8 drawn anew, and with every
  layer drawn anew ({layers}, in
  this order, on {randomised} images, of which the picture shows one). A method whose maps stay
  alike does not show what the network has learned. Above 0.5 at the end: {insensitive}.
- **Apart by**: the largest difference from that package's map of the same image and class, of its
  largest magnitude, on {apart_on}. Both are float32: a unit that is zero but for rounding may be
  open in one alone, and then single pixels of a gradient go another way.
- **Passes** are each tool's own forward passes of the same network on the same image, in {rounds}
  rounds: median, least and most. RISE has {samples} masks, occlusion windows of {window} pixels and
  half of that as stride, integrated gradients 25 steps, SmoothGrad 25 samples. Many images at once
  take less than one after the other, so that a mask or window costs less than a pass.

![The randomisation test](randomisation.png)
"""
