"""python -m experiments.attribution_on_vgg16: methods of attribution, side by side."""

import sys
from pathlib import Path

from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_model, write_results
from flaxvgg.commands.console import clear_errors, console

_STEPS = {"features": 10, "classifier": 20, "maps": 40, "random": 20, "costs": 10}

app = Program()


@app.command()
def main(weights: Weights = REAL_WEIGHTS, out: Out = Path("build/attribution_on_vgg16")) -> None:
    """Compare attributions: do they find the object, do they depend on the network, at what cost.

    Writes results.json, README.md, attribution_on_vgg16.png and randomisation.png.
    """
    with clear_errors(f"{out} is as it was"):
        _compare(weights, out)


def _compare(weights: str, out: Path) -> None:
    from experiments.attribution_on_vgg16 import figure, report, study
    from experiments.composed.picture import to_png
    from flaxvgg.files.folders import check_folder

    check_folder(out)
    model = read_model(weights)
    with Progress(console=console, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=1.0) for name in _STEPS}
        results, shown, (tested, pixels) = study.run(
            model, study.Effort(), lambda name, done: progress.update(tasks[name], completed=done)
        )
    pictures = {
        "attribution_on_vgg16.png": to_png(figure.draw(shown)),
        "randomisation.png": to_png(tested.plot(pixels)),
    }
    write_results(out, results, report.readme, pictures, model=model)
    console.print(report.table(results), highlight=False, markup=False, soft_wrap=True)
    finish(out, "attribution_on_vgg16.png")


if __name__ == "__main__":
    sys.exit(app())
