"""python -m experiments.from_pytorch: a DataLoader before flaxvgg, PyTorch and more after it."""

import sys
from pathlib import Path

from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, read_model, write_results
from flaxvgg.commands.console import clear_errors, console

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/from_pytorch"),
) -> None:
    """Feed flaxvgg from PyTorch's DataLoader by DLPack, and PyTorch and scikit-learn from flaxvgg.

    Writes results.json, README.md and from_pytorch.png.
    """
    with clear_errors(f"{out} is as it was"):
        _run(weights, out)


def _run(weights: str, out: Path) -> None:
    from experiments.composed.picture import to_png
    from experiments.from_pytorch import figure, report, study
    from flaxvgg.files.folders import check_folder

    check_folder(out)
    model = read_model(weights)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("features, classifiers, speed", total=1.0)
        results = study.study(
            model, study.Effort(), lambda done: progress.update(bar, completed=done)
        )
    pictures = {
        "from_pytorch.png": to_png(figure.draw(results)),
    }
    packages = "torch", "torchvision", "scikit-learn"
    text = write_results(out, results, report.readme, pictures, model=model, packages=packages)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(app())
