"""python -m experiments.winograd_errors: what Winograd's algorithms err, by points and by sums."""

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
    tiles: Annotated[int, typer.Option(help="Regions of a layer in a photo.", min=1)] = 8,
    images: Annotated[int, typer.Option(help="Photos that go through whole networks.")] = 2,
    out: Out = Path("build/winograd_errors"),
) -> None:
    """Compute layers of VGG16 by Winograd's algorithms in NumPy, and compare with float64.

    Writes results.json, errors.png, scan.png and README.md. Takes some minutes on one core.
    """
    with clear_errors(f"{out} is as it was"):
        _run(weights, tiles, images, out)


def _run(weights: str, tiles: int, images: int, out: Path) -> None:
    import numpy as np

    from experiments.winograd_errors import figure, network, report, study
    from flaxvgg.images.loading import load_images
    from flaxvgg.images.samples import sample_photos
    from flaxvgg.plotting.figures import png

    photos = sample_photos()
    if not photos:
        raise ValueError("the photos are in scikit-image: pip install scikit-image")
    model = read_model(weights)
    inputs = np.asarray(load_images(photos, preprocessing=model.preprocessing))
    with step("layers") as found:
        samples = study.samples(model, inputs, study.LAYERS, tiles, outputs=64)
        results = study.study(samples, *_scan())
        found.append(f"{len(results['sums'])} kinds of {len(samples)} layers")
    with step("networks") as found:
        plans = network.errors(model, inputs[:images], network.PLANS)
        found.append(f"{len(plans)} of {images} photos")
    results |= {
        "weights": model.provenance.source,
        "photos": [photo.stem for photo in photos],
        "network": {"photos": [photo.stem for photo in photos[:images]], "plans": plans},
    }
    pictures = {"errors.png": png(figure.errors(results)), "scan.png": png(figure.scan(results))}
    write_results(out, results, report.readme, pictures, model=model, packages=["torch"])
    console.print(report.readme(results), highlight=False, markup=False, soft_wrap=True)


def _scan() -> tuple[list[float], list[float]]:
    """The values of a and of b: sixteenths and eighths, which are float32 and so are products."""
    return [i / 16 for i in range(4, 17, 2)], [i / 8 for i in range(7, 19)]


if __name__ == "__main__":
    sys.exit(app())
