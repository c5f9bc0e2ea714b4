"""python -m experiments.skip_zeros: what it saves to skip the zeros of pool5 in fc6."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.real_weights import REAL_WEIGHTS
from flaxvgg.commands.console import clear_errors, console, step

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    weights: Annotated[
        str, typer.Option(help="Weights of a vgg16, as `python -m convert` takes them.")
    ] = REAL_WEIGHTS,
    repeats: Annotated[int, typer.Option(help="How often each is timed.", min=1)] = 15,
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path(
        "build/skip_zeros"
    ),
) -> None:
    """Time fc6 with and without its zeros on eight photos.

    Writes results.json, skip_zeros.png and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        _run(weights, repeats, out)


def _run(weights: str, repeats: int, out: Path) -> None:
    from experiments.skip_zeros import figure, report, study
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert
    from flaxvgg.images.samples import sample_photos

    photos = sample_photos()
    if not photos:
        raise ValueError("the photos are in scikit-image: pip install scikit-image")
    with step("reading") as found:
        networks = study.networks(convert(read_source(weights)))
        found.append(networks.skipping.provenance.source)
    with step("timing") as found:
        results = study.study(networks, photos, repeats)
        found.append(f"{len(photos)} photos, {repeats} turns")
    text, picture = report.readme(results), figure.draw(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (out / "README.md").write_text(text, "utf-8")
    picture.savefig(out / "skip_zeros.png")
    console.print(text, highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(app())
