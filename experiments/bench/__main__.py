"""python -m experiments.bench: what flaxvgg takes, beside every tool that does the same."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.running import Program
from flaxvgg.commands.console import clear_errors, console

app = Program()


@app.command()
def main(
    sections: Annotated[
        str, typer.Option(help="Names of sections, with commas; by default all.")
    ] = "",
    arch: Annotated[str | None, typer.Option(help="vgg11 ... vgg19_bn; by default vgg16.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="How often a case is timed at most.", min=1)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Cores and threads of every tool; by default all.", min=1)
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="All of it once, small.")] = False,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("build/bench"),
) -> None:
    """Time flaxvgg beside PyTorch, ONNX Runtime, OpenVINO, ncnn, MNN, Keras, grad-cam, torchcam.

    Writes results.json and README.md, anew after every section, and pictures. The machine should
    have nothing else to do.
    """
    # Before anything is imported that starts threads: as many as the process may use cores.
    if threads is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # Before JAX and Keras are imported. What was compiled before is no first call. PyTorch shares a
    # GPU: JAX must not take most of it.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with clear_errors(f"{out} has what was measured until then"):
        from experiments.bench import ratios, run

        chosen = sections.split(",") if sections else None
        plan = run.plan_of(arch, rounds, tiny=tiny, threads=threads)
        command = shlex.join(["python", "-m", "experiments.bench", *sys.argv[1:]])
        results = run.run(plan, chosen, out, command)
    for aim in ratios.aims(results):
        verdict = "holds" if aim.holds else "missed"
        line = f"{verdict:6}  {aim.what}: {aim.measured}, to be {aim.bound}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"look at {out / 'README.md'}", style="bold", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
