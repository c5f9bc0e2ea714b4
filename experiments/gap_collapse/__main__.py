"""python -m experiments.gap_collapse: the collapse of a GAP head, and what cures it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.real_weights import REAL_WEIGHTS
from flaxvgg.commands.console import clear_errors, console, step

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    weights: Annotated[
        str, typer.Option(help="A checkpoint, file or name, as `python -m convert` takes them.")
    ] = REAL_WEIGHTS,
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path(
        "build/gap_collapse"
    ),
) -> None:
    """Let a score map collapse in PyTorch and here, and try every cure.

    Writes results.json, gap_collapse.png and README.md. Exit code 1 says that the collapse, or its
    absence without the ReLU, was not what it should be.
    """
    with clear_errors(f"{out} is as it was"):
        missed = _study(weights, out)
    if missed:
        raise typer.Exit(1)


def _study(weights: str, out: Path) -> list[str]:
    from experiments.composed.picture import to_png
    from experiments.gap_collapse import figure, report, study
    from experiments.gap_collapse.effort import Effort
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert
    from flaxvgg.files.folders import check_folder, write_bytes

    check_folder(out)
    with step("reading") as found:
        model = convert(read_source(weights))
        found += [model.config.arch, model.provenance.source]
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        results = study.run(
            model,
            Effort(),
            lambda what, done: progress.update(task, description=what, completed=done),
        )
    files = {
        "results.json": (json.dumps(results) + "\n").encode(),
        "README.md": report.readme(results).encode(),
        "gap_collapse.png": to_png(figure.draw(results)),
    }
    for name, data in files.items():
        write_bytes(out / name, data)
    console.print(report.answer(results), highlight=False, markup=False, soft_wrap=True)
    missed = study.unmet(results)
    for line in missed:
        console.print(f"missed: {line}", style="red", highlight=False)
    console.print(f"look at {out / 'gap_collapse.png'} and {out / 'README.md'}", style="bold")
    return missed


if __name__ == "__main__":
    sys.exit(app())
