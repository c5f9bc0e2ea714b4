"""python -m experiments.gap_finetune: a GAP head on real convolutions, fitted, trained, tested."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from experiments.real_weights import REAL_WEIGHTS
from flaxvgg.commands.console import clear_errors, console, step

if TYPE_CHECKING:
    from experiments.gap_finetune.study import Effort, Run
    from flaxvgg.network.model import VGG

_STEPS = ("features", "training", "maps")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    weights: Annotated[
        str, typer.Option(help="A checkpoint, file or name, as `python -m convert` takes them.")
    ] = REAL_WEIGHTS,
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path(
        "build/gap_finetune"
    ),
) -> None:
    """Fit a GAP head to composed scenes, fine-tune it, and test its class activation maps.

    Writes results.json, README.md, gap_finetune.png, and the fitted head of the first seed with its
    card: sample_head.safetensors and sample_head.md. Exit code 1 says that an aim was missed.
    """
    with clear_errors(f"{out} is as it was"):
        missed = _finetune(weights, out)
    if missed:
        raise typer.Exit(1)


def _finetune(weights: str, out: Path) -> list[str]:
    import flaxvgg
    from experiments.composed.picture import to_png
    from experiments.gap_finetune import figure, report, study
    from experiments.gap_finetune.embedding import card, embed
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert
    from flaxvgg.files.folders import check_folder, write_bytes
    from flaxvgg.heads.sample_head import write_head

    check_folder(out)
    with step("reading") as found:
        read = convert(read_source(weights))
        found += [read.config.arch, read.provenance.source]
    # XLA's own convolution: twice as fast on a CPU, and nothing here hangs on the last bit.
    model = flaxvgg.from_torch(
        read.config.arch,
        flaxvgg.to_torch(read),
        precision="default",
        provenance=read.provenance,
    )
    effort = study.Effort()
    start = time.perf_counter()
    runs = [_run(model, effort, seed) for seed in effort.seeds]
    results = study.results_of(model, effort, runs)
    console.print(f"{len(runs)} seeds in {time.perf_counter() - start:.0f} s", highlight=False)
    head = embed(runs[0], effort)
    files = {
        "results.json": (json.dumps(results, indent=1) + "\n").encode(),
        "README.md": report.readme(results).encode(),
        "gap_finetune.png": to_png(figure.draw(runs[0].seen)),
        "sample_head.md": card(head).encode(),
    }
    for name, data in files.items():
        write_bytes(out / name, data)
    write_head(out / "sample_head.safetensors", head)
    console.print(report.table(results), highlight=False, markup=False, soft_wrap=True)
    missed = study.unmet(results)
    for line in missed:
        console.print(f"missed: {line}", style="red", highlight=False)
    console.print(f"look at {out / 'gap_finetune.png'} and {out / 'README.md'}", style="bold")
    return missed


def _run(model: "VGG", effort: "Effort", seed: int) -> "Run":
    from experiments.gap_finetune import study

    with Progress(console=console, transient=True) as progress:
        tasks = {name: progress.add_task(f"seed {seed}: {name}", total=1.0) for name in _STEPS}
        return study.run(
            model, effort, seed, lambda name, done: progress.update(tasks[name], completed=done)
        )


if __name__ == "__main__":
    sys.exit(app())
