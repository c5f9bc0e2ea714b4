"""python -m experiments.style_transfer: one photo in the style of another, beside PyTorch."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_model, write_results
from flaxvgg.commands.console import clear_errors, console

if TYPE_CHECKING:
    from experiments.style_transfer.study import Pictures

app = Program()
WEIGHT = 100.0
EVERY = 100  # steps between two pictures


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/style_transfer"),
    size: Annotated[int, typer.Option(help="Pixels of a side.", min=32)] = 128,
    steps: Annotated[int, typer.Option(help="Steps of L-BFGS, a multiple of 100.", min=1)] = 300,
    adam_steps: Annotated[int, typer.Option(help="Steps of Adam.", min=1)] = 50,
    weight: Annotated[float, typer.Option(help="How much the style counts.")] = WEIGHT,
    rounds: Annotated[int, typer.Option(help="Rounds of the speed.", min=1)] = 7,
) -> None:
    """Paint one photo in the style of another by L-BFGS, here and in PyTorch.

    Writes results.json, style_transfer.png, a picture for every hundred steps, and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        from experiments.composed.picture import to_png
        from experiments.style_transfer import figure, report
        from experiments.style_transfer.study import study
        from flaxvgg.files.folders import check_folder
        from flaxvgg.images.samples import sample_photos

        every = min(EVERY, steps)
        if steps % every:
            raise ValueError(f"--steps is a multiple of {EVERY}, not {steps}")
        check_folder(out)
        photos = {path.stem: path for path in sample_photos()}
        if not photos:
            raise ValueError("the photos are in scikit-image: pip install scikit-image")
        model = read_model(weights)
        results, pictures = study(
            model,
            *(photos["chelsea"], photos["ihc"]),
            size=size,
            steps=steps,
            every=every,
            adam_steps=adam_steps,
            weight=weight,
            rounds=rounds,
            say=console.print,
        )
        drawn = {"style_transfer.png": to_png(figure.draw(results, pictures))} | _single(pictures)
        packages = ["optax", "torch"]
        write_results(out, results, report.readme, drawn, model=model, packages=packages)
        finish(out, "style_transfer.png", missed(results))


def _single(pictures: "Pictures") -> dict[str, bytes]:
    """Every image that came out, as a file of its own."""
    from PIL import Image

    files = {}
    for name, pixels in pictures.items():
        if "steps" in name:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", optimize=True)
            tool, _, step = name.removesuffix(" steps").partition(", ")
            files[f"{tool.lower()}_{step}.png"] = file.getvalue()
    return files


def missed(results: dict[str, Any]) -> list[str]:
    """The aims that were missed, in words."""
    aims = {}
    for name, one in results["errors"].items():
        ours, theirs = (one["errors"][tool] for tool in ("flaxvgg", "PyTorch"))
        for what, least in {"loss": 2e-7, "gradient": 2e-6}.items():
            aims[f"{what} at {name} by the numbers rule"] = ours[what] <= max(
                1.5 * theirs[what], least
            )
    aims["Adam's losses within 1 %"] = results["adam_apart"] <= 1e-2
    last = results["last"]
    aims["L-BFGS ends as low as PyTorch's, within a tenth"] = (
        last["flaxvgg"] <= 1.1 * last["PyTorch"]
    )
    return [name for name, held in aims.items() if not held]


if __name__ == "__main__":
    sys.exit(app())
