"""python -m experiments.skip_zeros: what it saves to skip the zeros of pool5 in fc6."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, read_model, write_results
from flaxvgg.commands.console import clear_errors, console, step

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    repeats: Annotated[int, typer.Option(help="How often each is timed.", min=1)] = 15,
    out: Out = Path("build/skip_zeros"),
) -> None:
    """Time fc6 with and without its zeros on eight photos.

    Writes results.json, skip_zeros.png and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        _run(weights, repeats, out)


def _run(weights: str, repeats: int, out: Path) -> None:
    from experiments.skip_zeros import figure, report, study
    from flaxvgg.images.samples import sample_photos
    from flaxvgg.plotting.figures import png

    photos = sample_photos()
    if not photos:
        raise ValueError("the photos are in scikit-image: pip install scikit-image")
    model = read_model(weights)
    networks = study.networks(model)
    with step("timing") as found:
        results = study.study(networks, photos, repeats)
        found.append(f"{len(photos)} photos, {repeats} turns")
    pictures = {"skip_zeros.png": png(figure.draw(results))}
    write_results(out, results, report.readme, pictures, model=model)
    console.print(report.readme(results), highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(app())
