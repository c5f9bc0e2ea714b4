"""python -m experiments.from_pytorch: a DataLoader before flaxvgg, PyTorch and more behind it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from flaxvgg.commands.console import clear_errors, console, step

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    weights: Annotated[
        str, typer.Option(help="A checkpoint, file or name, as `python -m convert` takes them.")
    ] = REAL_WEIGHTS,
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path(
        "build/from_pytorch"
    ),
) -> None:
    """Feed flaxvgg from PyTorch's DataLoader by DLPack, and PyTorch and scikit-learn from flaxvgg.

    Writes results.json, README.md and from_pytorch.png.
    """
    with clear_errors(f"{out} is as it was"):
        _run(weights, out)


def _run(weights: str, out: Path) -> None:
    from experiments.composed.picture import to_png
    from experiments.from_pytorch import figure, report, study
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert
    from flaxvgg.files.folders import check_folder, write_bytes

    check_folder(out)
    with step("reading") as found:
        model = convert(read_source(weights))
        found += [model.config.arch, model.provenance.source]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("features, classifiers, speed", total=1.0)
        results = study.study(
            model, study.Effort(), lambda done: progress.update(bar, completed=done)
        )
    files = {
        "results.json": (json.dumps(results, indent=1) + "\n").encode(),
        "README.md": report.readme(results).encode(),
        "from_pytorch.png": to_png(figure.draw(results)),
    }
    for name, data in files.items():
        write_bytes(out / name, data)
    console.print(report.readme(results), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(app())
