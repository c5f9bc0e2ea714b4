"""python -m experiments.streaming: does streaming keep the model busy, and in how much memory?"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from experiments.running import Program, write_results
from experiments.streaming.report import readme, sources_table, table
from experiments.streaming.study import Plan, disk, memory_of, sources, speed
from flaxvgg.commands.console import clear_errors, console, step

app = Program()


@app.command()
def main(
    weights: Annotated[
        str, typer.Option(help="As `flaxvgg features` takes them; by default real convolutions.")
    ] = "build/vgg16-real",
    images: Annotated[int, typer.Option(help="JPEG files of 224x224 to stream.")] = 2000,
    most: Annotated[int, typer.Option(help="Images for the memory: these, and a quarter.")] = 4000,
    rounds: Annotated[int, typer.Option(help="How often the speed is measured.")] = 2,
    size: Annotated[int, typer.Option(help="Height and width that the network sees.")] = 224,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("build/streaming"),
    memory: Annotated[
        Path | None, typer.Option(hidden=True, help="Stream this folder, and print the peak.")
    ] = None,
) -> None:
    """Stream a folder of photos into a store, beside the same batches from memory.

    Writes results.json and README.md. The machine should have nothing else to do.
    """
    with clear_errors(f"{out} is as it was"):
        plan = Plan(weights, images, rounds, size)
        if memory is not None:
            print(json.dumps(memory_of(plan, memory)))
            return
        load = [round(os.getloadavg()[0], 2)]
        found = {"weights": Path(weights).name, "images": images, "rounds": rounds, "size": size}
        with tempfile.TemporaryDirectory() as folder:
            for kind, measure in ("speed", speed), ("disk", disk), ("sources", sources):
                with step(kind):
                    found[kind] = measure(plan, Path(folder))
            with step("memory"):
                found["memory"] = [_memory(plan, n, Path(folder)) for n in (most // 4, most)]
        found["load"] = [*load, round(os.getloadavg()[0], 2)]
        write_results(out, found, readme, packages=("tensorstore", "zarr", "grain"))
    for lines in table(found), sources_table(found):
        console.print(lines, highlight=False, markup=False, soft_wrap=True)


def _memory(plan: Plan, images: int, folder: Path) -> dict[str, float]:
    """What a process of its own takes for so many images."""
    from experiments.streaming.study import photos

    made = photos(images, folder / f"photos{images}")
    command = [sys.executable, "-m", "experiments.streaming", "--memory", str(made)]
    command += ["--weights", plan.weights, "--size", str(plan.size)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"images": images} | json.loads(told.splitlines()[-1])


if __name__ == "__main__":
    app()
