"""python -m experiments.cam_on_vgg16: three ways to a class activation map, side by side."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from flaxvgg.commands.console import clear_errors, console, step

_STEPS = {"features": 30, "classifier": 25, "maps": 35, "costs": 10}  # their part of the time

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    weights: Annotated[
        str,
        typer.Option(
            help="IMAGENET1K_V1, or a file as `python -m convert` takes it. Weights without a "
            "classifier get one that is fitted here."
        ),
    ] = REAL_WEIGHTS,
    arch: Annotated[
        str, typer.Option(help="What the weights are of: vgg11 ... vgg19_bn.")
    ] = "vgg16",
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path(
        "build/cam_on_vgg16"
    ),
) -> None:
    """Compare Grad-CAM, fully-convolutional score maps, and CAM on a GAP head.

    Writes results.json, README.md and cam_on_vgg16.png.
    """
    with clear_errors(f"{out} is as it was"):
        _compare(weights, arch, out)


def _compare(weights: str, arch: str, out: Path) -> None:
    import flaxvgg
    from experiments.cam_on_vgg16 import figure, report, study
    from experiments.composed.picture import to_png
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert
    from flaxvgg.files.folders import check_folder, write_bytes

    check_folder(out)
    with step("reading") as found:
        read = convert(read_source(weights, arch))
        found += [read.config.arch, read.provenance.source]
    # XLA's own convolution: where a map peaks does not hang on the last bit.
    model = flaxvgg.from_torch(
        arch, flaxvgg.to_torch(read), precision="default", provenance=read.provenance
    )
    with Progress(console=console, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=1.0) for name in _STEPS}
        results, shown = study.run(
            model, study.Effort(), lambda name, done: progress.update(tasks[name], completed=done)
        )
    picture = to_png(figure.draw(shown))
    page = report.readme(results)
    for name, data in {
        "results.json": (json.dumps(results, indent=1) + "\n").encode(),
        "README.md": page.encode(),
        "cam_on_vgg16.png": picture,
    }.items():
        write_bytes(out / name, data)
    console.print(report.table(results), highlight=False, markup=False, soft_wrap=True)
    console.print(f"look at {out / 'cam_on_vgg16.png'} and {out / 'README.md'}", style="bold")


if __name__ == "__main__":
    sys.exit(app())
