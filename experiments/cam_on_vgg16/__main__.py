"""python -m experiments.cam_on_vgg16: three ways to a class activation map, side by side."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_fast_model, write_results
from flaxvgg.commands.console import clear_errors, console

_STEPS = {"features": 30, "classifier": 25, "maps": 35, "costs": 10}  # their part of the time

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    arch: Annotated[
        str, typer.Option(help="What the weights are of: vgg11 ... vgg19_bn.")
    ] = "vgg16",
    out: Out = Path("build/cam_on_vgg16"),
) -> None:
    """Compare Grad-CAM, fully-convolutional score maps, and CAM on a GAP head.

    Writes results.json, README.md and cam_on_vgg16.png.
    """
    with clear_errors(f"{out} is as it was"):
        _compare(weights, arch, out)


def _compare(weights: str, arch: str, out: Path) -> None:
    from experiments.cam_on_vgg16 import figure, report, study
    from experiments.composed.picture import to_png
    from flaxvgg.files.folders import check_folder

    check_folder(out)
    model = read_fast_model(weights, arch)
    with Progress(console=console, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=1.0) for name in _STEPS}
        results, shown = study.run(
            model, study.Effort(), lambda name, done: progress.update(tasks[name], completed=done)
        )
    pictures = {"cam_on_vgg16.png": to_png(figure.draw(shown))}
    write_results(out, results, report.readme, pictures, model=model)
    console.print(report.table(results), highlight=False, markup=False, soft_wrap=True)
    finish(out, "cam_on_vgg16.png")


if __name__ == "__main__":
    sys.exit(app())
