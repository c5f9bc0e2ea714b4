"""python -m experiments.gap_collapse: the collapse of a GAP head, and what cures it."""

import sys
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_model, write_results
from flaxvgg.commands.console import clear_errors, console

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/gap_collapse"),
) -> None:
    """Let a score map collapse in PyTorch and here, and try every cure.

    Writes results.json, gap_collapse.png and README.md. Exit code 1 says that the collapse, or its
    absence without the ReLU, was not what it should be.
    """
    with clear_errors(f"{out} is as it was"):
        _study(weights, out)


def _study(weights: str, out: Path) -> None:
    from experiments.composed.picture import to_png
    from experiments.gap_collapse import figure, report, study
    from experiments.gap_collapse.effort import Effort
    from flaxvgg.files.folders import check_folder

    check_folder(out)
    model = read_model(weights)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        results = study.run(
            model,
            Effort(),
            lambda what, done: progress.update(task, description=what, completed=done),
        )
    pictures = {
        "gap_collapse.png": to_png(figure.draw(results)),
    }
    write_results(out, results, report.readme, pictures, model=model)
    console.print(report.answer(results), highlight=False, markup=False, soft_wrap=True)
    finish(out, "gap_collapse.png", study.unmet(results))


if __name__ == "__main__":
    sys.exit(app())
