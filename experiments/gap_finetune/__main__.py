"""python -m experiments.gap_finetune: a GAP head on real convolutions, fitted, trained, tested."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from experiments.running import Out, Program, Weights, finish, read_fast_model, write_results
from flaxvgg.commands.console import clear_errors, console

if TYPE_CHECKING:
    from experiments.gap_finetune.study import Effort, Run
    from flaxvgg.network.model import VGG

_STEPS = ("features", "training", "maps")

app = Program()


@app.command()
def main(
    weights: Weights = REAL_WEIGHTS,
    out: Out = Path("build/gap_finetune"),
) -> None:
    """Fit a GAP head to composed scenes, fine-tune it, and test its class activation maps.

    Writes results.json, README.md, gap_finetune.png, and the fitted head of the first seed with its
    card: sample_head.safetensors and sample_head.md. Exit code 1 says that an aim was missed.
    """
    with clear_errors(f"{out} is as it was"):
        _finetune(weights, out)


def _finetune(weights: str, out: Path) -> None:
    from experiments.composed.picture import to_png
    from experiments.gap_finetune import figure, report, study
    from experiments.gap_finetune.embedding import card, embed
    from flaxvgg.files.folders import check_folder
    from flaxvgg.heads.sample_head import write_head

    check_folder(out)
    model = read_fast_model(weights)
    effort = study.Effort()
    start = time.perf_counter()
    runs = [_run(model, effort, seed) for seed in effort.seeds]
    results = study.results_of(model, effort, runs)
    console.print(f"{len(runs)} seeds in {time.perf_counter() - start:.0f} s", highlight=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("sample head: features", total=1.0)
        head = embed(model, runs[0], effort, lambda done: progress.update(task, completed=done))
    pictures = {
        "gap_finetune.png": to_png(figure.draw(runs[0].seen)),
        "sample_head.md": card(head).encode(),
    }
    write_results(out, results, report.readme, pictures, model=model)
    write_head(out / "sample_head.safetensors", head)
    console.print(report.table(results), highlight=False, markup=False, soft_wrap=True)
    finish(out, "gap_finetune.png", study.unmet(results))


def _run(model: "VGG", effort: "Effort", seed: int) -> "Run":
    from experiments.gap_finetune import study

    with Progress(console=console, transient=True) as progress:
        tasks = {name: progress.add_task(f"seed {seed}: {name}", total=1.0) for name in _STEPS}
        return study.run(
            model, effort, seed, lambda name, done: progress.update(tasks[name], completed=done)
        )


if __name__ == "__main__":
    sys.exit(app())
