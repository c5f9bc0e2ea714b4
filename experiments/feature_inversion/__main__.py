"""python -m experiments.feature_inversion: what each layer of VGG16 keeps of a photo."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_model, write_results
from flaxvgg.commands.console import clear_errors, console

app = Program()
SMOOTHNESS = 0.02


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/feature_inversion"),
    size: Annotated[int, typer.Option(help="Pixels of a side.", min=32)] = 80,
    steps: Annotated[int, typer.Option(help="Steps of Adam for each layer.", min=1)] = 200,
    smoothness: Annotated[
        float, typer.Option(help="How much total variation counts.")
    ] = SMOOTHNESS,
) -> None:
    """Find images that have a photo's features, layer by layer.

    Writes results.json, feature_inversion.png and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        from experiments.composed.picture import to_png
        from experiments.feature_inversion import figure, report
        from experiments.feature_inversion.study import study
        from flaxvgg.files.folders import check_folder
        from flaxvgg.images.samples import sample_photos

        check_folder(out)
        photos = sample_photos(2)
        if not photos:
            raise ValueError("the photos are in scikit-image: pip install scikit-image")
        model = read_model(weights)
        options = {"size": size, "steps": steps, "smoothness": smoothness}
        results, pictures = study(model, photos[-1], **options, say=console.print)
        drawn = {"feature_inversion.png": to_png(figure.draw(results, pictures))}
        write_results(out, results, report.readme, drawn, model=model, packages=["optax"])
        finish(out, "feature_inversion.png")


if __name__ == "__main__":
    sys.exit(app())
