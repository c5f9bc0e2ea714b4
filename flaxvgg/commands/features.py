"""flaxvgg features: the features of photos, as arrays."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flaxvgg.commands.console import Shown, clear_errors, console, say_left_out
from flaxvgg.commands.options import (
    Arch,
    Batch,
    Distributed,
    Photos,
    StoredSize,
    Weights,
    is_store,
    load_model,
    parse_size,
)
from flaxvgg.files.foreign import plain

if TYPE_CHECKING:
    from flaxvgg.network.model import VGG
    from flaxvgg.streaming.run import Job
    from flaxvgg.streaming.source import Source


def features(
    photos: Photos,
    weights: Weights = "IMAGENET1K_V1",
    arch: Arch = "vgg16",
    layers: Annotated[
        str,
        typer.Option(
            help="Layers, comma-separated, by the paper's, PyTorch's or Keras's names; logits, gap."
        ),
    ] = "pool5",
    size: StoredSize = "224x224",
    out: Annotated[
        Path, typer.Option(help="Where the arrays go: a .npz file, or a .zarr store.")
    ] = Path("features.npz"),
    batch: Batch = None,
    distributed: Distributed = False,
) -> None:
    """Write the features of photos: one array a layer, and the GAP vectors.

    A .zarr store takes any number of photos: rerun the command to resume. Exit code 1 says that
    some could not be read.
    """
    with clear_errors(f"{out} is as it was"):
        if is_store(out, batch, distributed):
            from flaxvgg.commands.streaming import Setting, end, into_store
            from flaxvgg.streaming.jobs import features_job

            setting = Setting(out, batch, distributed)

            def job(model: "VGG", source: "Source", hw: tuple[int, int] | None) -> "Job":
                return features_job(model, layers.split(","))

            end(into_store(job, photos, weights, arch, size, setting))
            return
        from flaxvgg.commands.tables import features_table
        from flaxvgg.files.arrays import check_npz, save_npz
        from flaxvgg.images.batches import extract
        from flaxvgg.images.loading import find_images

        hw = parse_size(size)
        check_npz(out)
        paths = find_images(photos)
        model = load_model(weights, arch)
        problems: list[str] = []
        arrays = extract(model, paths, layers.split(","), hw, problems, Shown())
        save_npz(out, arrays)
        console.print(features_table(model, arrays))
        console.print(f"written: {plain(str(out))}", highlight=False)
        say_left_out(problems)
        if problems:
            raise typer.Exit(1)
