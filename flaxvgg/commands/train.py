"""flaxvgg train: a head of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import Shown, clear_errors, errors, say_where, stoppable
from flaxvgg.commands.options import load_model
from flaxvgg.commands.processes import join_processes
from flaxvgg.files.addresses import named

if TYPE_CHECKING:
    from flaxvgg.network.model import VGG


def train(
    config: Annotated[
        Path, typer.Option(help="A TOML file: the images, the weights, how to train.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The folder for the model, checkpoints and curves, or s3://BUCKET/NAME, gs://..."
        ),
    ] = Path("run"),
    distributed: options.Distributed = False,
    decoders: options.Decoders = None,
) -> None:
    """Train a global average pooling head, and the convolutions if wanted, on your own images.

    Rerun the command to resume a run that was stopped or killed, by as many processes or others,
    or, with more epochs, to extend a finished one. Ctrl-C, and SIGTERM, stop after the step and
    keep it. All devices, of all processes, share each batch.
    """
    with clear_errors(f"the checkpoints in {named(out)} are as they were"):
        if distributed:
            join_processes()
        from flaxvgg.files.folders import write_bytes
        from flaxvgg.network.processes import is_first
        from flaxvgg.plotting.figures import check_drawing, png
        from flaxvgg.plotting.training import curves_figure
        from flaxvgg.training.run import train as train_run
        from flaxvgg.training.settings import read_run

        check_drawing()

        run = read_run(config)
        model = run.model

        def load() -> "VGG":
            return load_model(
                model.weights, model.arch, dtype=model.dtype, precision=model.precision
            )

        with stoppable() as stop:
            trained = train_run(load, run, out, stop.is_set, watch=Shown(), decoders=decoders or 0)
        if is_first():
            write_bytes(out / "curves.png", png(curves_figure(trained.rows, trained.metric)))
            say_where(out / "curves.png")
        if trained.steps < trained.of:
            if is_first():
                at = f"stopped after step {trained.steps} of {trained.of}"
                errors.print(f"{at}: rerun the command to resume")
            raise typer.Exit(130)
