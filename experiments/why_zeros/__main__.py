"""python -m experiments.why_zeros: eight explanations for the zeros in VGG's features, tested."""

import sys
from pathlib import Path

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_model, write_results
from flaxvgg.commands.console import clear_errors

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/why_zeros"),
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
    from flaxvgg.files.folders import check_folder
    from flaxvgg.plotting.figures import png

    check_folder(out)
    model = read_model(weights)
    subject = Subject(model, pictures.photos(), Effort())
    results = study.run(subject)
    drawn = {"why_zeros.png": png(figure.draw(results))}
    write_results(out, results, report.readme, drawn, model=model)
    finish(out, "why_zeros.png")


if __name__ == "__main__":
    sys.exit(app())
