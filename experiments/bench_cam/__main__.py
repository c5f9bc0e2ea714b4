"""python -m experiments.bench_cam: what every CAM method costs, beside grad-cam and torchcam."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from flax import nnx
from rich.progress import Progress

import flaxvgg
from experiments.bench_cam import ours, report
from experiments.running import Program, write_results
from experiments.timing import Case, Report, measure
from flaxvgg.commands.console import clear_errors, console, step
from flaxvgg.files.folders import check_folder
from flaxvgg.plotting.figures import png

app = Program()
TOOLS = {"flaxvgg": "highest", "flaxvgg default": "default"}
CHANNELS = 32  # of Score-CAM, and of the packages' Ablation-CAM; the rest is reckoned
_MEMORY = ("grad_cam", "grad_cam++", "xgrad_cam", "hires_cam", "layer_cam")


@app.command()
def main(
    arch: Annotated[str, typer.Option(help="vgg11 ... vgg19_bn.")] = "vgg16",
    size: Annotated[int, typer.Option(help="Height and width of the image, in pixels.")] = 224,
    rounds: Annotated[int, typer.Option(help="How often everything is timed.")] = 5,
    methods: Annotated[str, typer.Option(help="Names of methods, with commas.")] = ",".join(
        ours.METHODS
    ),
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("build/bench_cam"),
) -> None:
    """Time every class activation map in forward passes of the same network.

    Writes results.json, README.md and costs.png. The machine should have nothing else to do.
    """
    with clear_errors(f"{out} is as it was"):
        chosen = methods.split(",")
        unknown = [name for name in chosen if name not in ours.METHODS]
        if unknown or rounds < 1:
            choices = ", ".join(ours.METHODS)
            raise ValueError(f"rounds must be at least 1, and methods be among {choices}")
        check_folder(out)
        results = run(arch, size, rounds, chosen)
        drawn = {"costs.png": png(report.costs_figure(results))}
        packages = "torch", "grad-cam", "torchcam"
        write_results(out, results, report.readme, drawn, packages=packages)
    console.print(report.costs_table(results), highlight=False, markup=False, soft_wrap=True)
    console.print(f"look at {out / 'README.md'} and {out / 'costs.png'}", style="bold")


def run(
    arch: str, size: int, rounds: int, methods: Sequence[str], classes: int = 1000
) -> dict[str, Any]:
    """Everything that is measured, as JSON."""
    load = [round(os.getloadavg()[0], 2)]
    images = ours.random_images(size)
    model = getattr(flaxvgg, arch)(num_classes=classes, rngs=nnx.Rngs(0))
    with step("memory") as found:  # before PyTorch takes its part
        memory = {
            method: ours.peak_memory(model, images, method)
            for method in _MEMORY
            if method in methods
        }
        found.append(f"{len(memory)} methods, all {classes} classes")
    weights = flaxvgg.to_torch(model)
    with step("compiling") as found:
        few = ours.with_few_channels(model.config, weights, CHANNELS, "default")
        compiled = {method: ours.compilations(few, images, method) for method in methods}
        found.append("counted")

    from experiments.bench_cam import peers

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("timing", total=1.0)
        results = timings(
            *(model.config, weights, images, rounds, methods, peers.TOOLS),
            report=lambda done: progress.update(task, completed=done),
        )
    load.append(round(os.getloadavg()[0], 2))
    return {
        "arch": arch,
        "size": size,
        "rounds": rounds,
        "load": load,
        "forward": _forward(results),
        "results": results,
        "memory": memory,
        "compilations": compiled,
    }


def timings(
    config: flaxvgg.VGGConfig,
    weights: ours.StateDict,
    images: np.ndarray,
    rounds: int,
    methods: Sequence[str],
    packages: Sequence[str],
    *,
    all_classes: bool = True,
    report: Report,
) -> list[dict[str, Any]]:
    """Every method in both precisions and in these packages, by `Measured.to_json`.

    Where `all_classes` is set, what depends on the number of classes is timed for all of them too.
    """
    from experiments.bench_cam import peers

    every: list[Case] = []
    for tool, precision in TOOLS.items():
        model = ours.model_of(config, weights, precision)
        few = ours.with_few_channels(config, weights, CHANNELS, precision)
        every += ours.cases(model, few, CHANNELS, images, methods, tool, all_classes=all_classes)
    network = peers.network(config, weights)
    every += peers.cases(network, images, CHANNELS, methods, packages)
    every.sort(key=lambda case: methods.index(case.method))  # what is compared runs together
    return [measured.to_json() for measured in measure(every, rounds, report)]


def _forward(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of one forward pass in each tool, of all that were timed; the least."""
    seconds: dict[str, list[float]] = {}
    for row in results:
        if row["method"] != "cam":  # its network has another head
            tool = "PyTorch" if row["tool"] in ("grad-cam", "torchcam") else row["tool"]
            seconds.setdefault(tool, []).append(row["forward_seconds"])
    least = {tool: min(values) for tool, values in seconds.items()}
    unit = least.get("PyTorch", float("nan"))
    return {
        tool: {"seconds": value, "of_pytorch": round(value / unit, 3)}
        for tool, value in least.items()
    }


if __name__ == "__main__":
    app()
