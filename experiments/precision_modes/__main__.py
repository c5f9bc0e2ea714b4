"""python -m experiments.precision_modes: zeros and flips in float32, TF32-like and bfloat16."""

import sys
from pathlib import Path
from typing import Any

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, read_model, write_results
from flaxvgg.commands.console import clear_errors, console, step

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/precision_modes"),
) -> None:
    """Count the zeros of eight photos in each kind of arithmetic, and those that flip.

    Writes results.json and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        _run(weights, out)


def _run(weights: str, out: Path) -> None:
    import numpy as np

    from experiments.precision_modes.modes import compare
    from flaxvgg.images.loading import load_images
    from flaxvgg.images.samples import sample_photos

    photos = sample_photos()
    if not photos:
        raise ValueError("the photos are in scikit-image: pip install scikit-image")
    model = read_model(weights)
    with step("counting") as found:
        images = np.asarray(load_images(photos, preprocessing=model.preprocessing))
        rows = compare(model, images)
        found.append(f"{len(photos)} photos")
    results = {
        "weights": model.provenance.source,
        "photos": [photo.stem for photo in photos],
        "layers": rows,
    }
    write_results(out, results, readme, model=model)
    console.print(readme(results), highlight=False, markup=False, soft_wrap=True)


def readme(results: dict[str, Any]) -> str:
    """What there is to say, in Markdown."""
    import numpy as np

    from experiments.precision_modes.modes import MODES

    others = [mode for mode in MODES if mode != "highest"]
    lines = []
    for row in results["layers"]:
        cells = [row["layer"], f"{row['zeros']['highest']:.2%}"]
        for mode in others:
            cells += [f"{row['zeros'][mode]:.2%}", _per_million(np.mean(row["flips"][mode]))]
        lines.append(f"| {' | '.join(cells)} |")
    last = results["layers"][-1]
    spread = "; ".join(
        f"{mode} {_per_million(min(last['flips'][mode]))} "
        f"to {_per_million(max(last['flips'][mode]))}"
        for mode in others
    )
    heads = "".join(f" {mode}: zeros | flips |" for mode in others)
    modes = "\n".join(f"- `{mode}`: {what}." for mode, what in MODES.items())
    return f"""# Zeros in four kinds of arithmetic

How many values of a layer are zero in {len(results["photos"])} photos at 224x224, and how many of a
million are zero in a mode or at "highest", but not in both (flips). Coarser arithmetic moves
values across zero in both directions, so the fraction of zeros stays where it is.

| layer | highest: zeros |{heads}
|---|{"---:|" * (1 + 2 * len(others))}
{chr(10).join(lines)}

From photo to photo, flips of {last["layer"]} in a million: {spread}.

{modes}

TensorFloat-32 itself is a mode of NVIDIA's cards; here its rounding is done in software, on a CPU:
to nearest, ties to even, for both inputs of every convolution. The weights are those of
{results["weights"]}. Made by `python -m experiments.precision_modes`.
"""


def _per_million(rate: float) -> str:
    return f"{1e6 * rate:.2g}" if rate < 1e-5 else f"{1e6 * rate:,.0f}"


if __name__ == "__main__":
    sys.exit(app())
