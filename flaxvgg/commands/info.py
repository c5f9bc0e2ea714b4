"""flaxvgg info: versions and devices, or what a checkpoint or a store records."""

from pathlib import Path
from typing import Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import clear_errors, show


def info(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint or a .zarr store, to see what it records; also at s3:// or gs://."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show versions and devices, or what a checkpoint or a store records."""
    with clear_errors("nothing was changed"):
        from flaxvgg.commands.tables import environment_facts, facts, model_facts

        if checkpoint is None:
            rows = environment_facts()
        elif checkpoint.suffix == ".zarr":
            from flaxvgg.commands.streaming import store_facts
            from flaxvgg.streaming.store import Store

            rows = store_facts(Store(checkpoint))
        else:
            from flaxvgg.weights.checkpoint import load

            rows = model_facts(load(checkpoint))
        show(lambda: facts(rows), rows, as_json=as_json)
