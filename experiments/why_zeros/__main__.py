"""python -m experiments.why_zeros: eight explanations for the zeros in VGG's features, tested."""

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
        str, typer.Option(help="A checkpoint, file or name, as `python -m convert` takes them.")
    ] = REAL_WEIGHTS,
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path(
        "build/why_zeros"
    ),
) -> None:
    """Test what people say about the zeros in VGG's features, with numbers and a figure.

    Writes results.json, why_zeros.png and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        _study(weights, out)


def _study(weights: str, out: Path) -> None:
    from experiments.why_zeros import pictures

    pictures.sources()  # says what to install, before something else fails for the lack of it

    from experiments.why_zeros import figure, report, study
    from experiments.why_zeros.subject import Effort, Subject
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert
    from flaxvgg.files.replacing import write_atomically

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder")
    with step("reading") as found:
        model = convert(read_source(weights))
        found += [model.config.arch, model.provenance.source]
    subject = Subject(model, pictures.photos(), Effort())
    results = study.run(subject)
    picture = figure.draw(results)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        (out / "results.json").absolute(),
        lambda target: target.write_text(study.to_text(results), "utf-8"),
    )
    write_atomically(
        (out / "why_zeros.png").absolute(), lambda target: picture.savefig(target, format="png")
    )
    write_atomically(
        (out / "README.md").absolute(),
        lambda target: target.write_text(report.readme(results), "utf-8"),
    )
    console.print(f"look at {out / 'why_zeros.png'} and {out / 'README.md'}", style="bold")


if __name__ == "__main__":
    sys.exit(app())
