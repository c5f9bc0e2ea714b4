"""python -m experiments.bench_training: what a step of training takes, beside PyTorch's."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import torch
import torchvision
import typer
from flax import nnx
from rich.progress import Progress

import flaxvgg
from experiments.running import Program, write_results
from experiments.timing import Call, Case, Report, measure
from experiments.torch_device import DEVICE
from flaxvgg.commands.console import clear_errors, console

app = Program()
CLASSES = 20
# What is trained: the rate of the convolutions, as a part of the head's.
TRAINED = {"everything": 1.0, "the head alone": 0.0}


@app.command()
def main(
    arch: Annotated[str, typer.Option(help="vgg11 ... vgg19.")] = "vgg16",
    batch: Annotated[int, typer.Option(help="Images in a step.")] = 8,
    sizes: Annotated[str, typer.Option(help="Heights of square images, with commas.")] = "112,224",
    rounds: Annotated[int, typer.Option(help="How often everything is timed.")] = 7,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(
        "build/bench_training"
    ),
) -> None:
    """Time one step of SGD on a GAP head, in turns with the same step in PyTorch.

    Writes results.json and README.md. The machine should have nothing else to do.
    """
    with clear_errors(f"{out} is as it was"):
        results = run(arch, batch, [int(size) for size in sizes.split(",")], rounds)
        write_results(out, results, readme, packages=["torch"])
    console.print(table(results), highlight=False, markup=False, soft_wrap=True)


def run(arch: str, batch: int, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Everything that is measured, as JSON."""
    load = [round(os.getloadavg()[0], 2)]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("timing", total=1.0)
        rows = timings(
            arch, batch, sizes, rounds, lambda done: progress.update(task, completed=done)
        )
    load.append(round(os.getloadavg()[0], 2))
    return {"arch": arch, "batch": batch, "rounds": rounds, "load": load, "results": rows}


def timings(
    arch: str, batch: int, sizes: Sequence[int], rounds: int, report: Report
) -> list[dict[str, Any]]:
    """A row for each size and for what is trained: the ratio is ours to PyTorch's, by round."""
    model = getattr(flaxvgg, arch)(num_classes=1, precision="default", rngs=nnx.Rngs(0))
    gap = flaxvgg.with_gap(model, CLASSES, rngs=nnx.Rngs(1))
    cases = []
    for size in sizes:
        data = examples(batch, size)
        for trained, rate in TRAINED.items():
            calls = ours(gap, *data, rate), theirs(gap, arch, *data, rate)
            cases.append(Case(trained, size, "", *calls))
    rows = []
    for measured in measure(cases, rounds, report):
        row = measured.to_json()
        rows.append(
            {
                "trained": row["method"],
                "size": row["classes"],
                "ratio": row["passes"],
                "seconds": row["seconds"],
                "pytorch_seconds": row["forward_seconds"],
                "first_call_seconds": row["first_call_seconds"],
            }
        )
    return rows


def examples(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (N, size, size, 3), and labels (N, K) of which a tenth are 1."""
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, size, size, 3)).astype(np.float32)
    return images, (random.random((batch, CLASSES)) < 0.1).astype(np.float32)


def ours(gap: flaxvgg.VGG, images: np.ndarray, labels: np.ndarray, rate: float) -> Call:
    """A step of ours; it returns when the loss is there."""
    options = flaxvgg.Optimisation(optimiser="sgd", learning_rate=1e-3, stack_rate=rate)
    trainer = flaxvgg.Trainer.of(gap, options)
    state, x, y = trainer.start(gap), jnp.asarray(images), jnp.asarray(labels)

    def step() -> float:
        nonlocal state
        state, metrics = trainer.step(state, x, y)
        return float(metrics["loss"])

    return step


def theirs(
    gap: flaxvgg.VGG, arch: str, images: np.ndarray, labels: np.ndarray, rate: float
) -> Call:
    """The same step in PyTorch, from the same weights."""
    features = getattr(torchvision.models, arch)(init_weights=False).features
    network = torchvision.models.VGG(features, init_weights=False)
    network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    network.classifier = torch.nn.Linear(512, CLASSES)
    tensors = flaxvgg.to_torch(gap).items()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors})
    network.features.requires_grad_(rate > 0)
    network.to(DEVICE)
    trained = [x for x in network.parameters() if x.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-3)
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(DEVICE)
    y = torch.from_numpy(labels).to(DEVICE)

    def step() -> float:
        optimiser.zero_grad()
        loss = torch.nn.functional.multilabel_soft_margin_loss(network(x), y)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def table(results: dict[str, Any]) -> str:
    """Seconds of a step here and there, and their ratio: median, least and most."""
    lines = [
        "| trained | images | flaxvgg, s | PyTorch, s | flaxvgg / PyTorch |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in results["results"]:
        middle, least, most = (f"{x:.2f}" for x in row["ratio"])
        lines.append(
            f"| {row['trained']} | {results['batch']} of {row['size']}x{row['size']} | "
            f"{row['seconds']:.2f} | {row['pytorch_seconds']:.2f} | "
            f"{middle} ({least} to {most}) |"
        )
    return "\n".join(lines)


def readme(results: dict[str, Any]) -> str:
    """The page of the benchmark."""
    first = ", ".join(f"{row['first_call_seconds']:.0f}" for row in results["results"])
    before, after = results["load"]
    return f"""\
# What a training step takes

```sh
python -m experiments.bench_training          # on a machine with nothing else to do
```

{results["arch"]} with a GAP head for {CLASSES} classes, plain SGD, multilabel soft margin loss,
float32, precision "default"; the same weights and images in PyTorch, eager. Every step is timed
right after PyTorch's, in {results["rounds"]} rounds: the ratio's median, and least to most.

{table(results)}

The first step, with compilation: {first} s. On a CPU the convolutions and both their derivatives
are flaxvgg's own (`flaxvgg/ops/native`). Load of the machine before and after:
{before:.1f} and {after:.1f}.
"""


if __name__ == "__main__":
    app()
