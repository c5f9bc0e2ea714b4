"""flaxvgg features: the features of photos, as arrays."""

from pathlib import Path
from typing import Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import Shown, clear_errors, console, finish, show
from flaxvgg.commands.options import is_store, load_model, parse_size
from flaxvgg.files.addresses import named
from flaxvgg.files.foreign import plain


def features(
    photos: options.Photos,
    weights: options.Weights = "IMAGENET1K_V1",
    arch: options.Arch = "vgg16",
    layers: Annotated[
        str,
        typer.Option(
            help="Layers, comma-separated, by the paper's, PyTorch's or Keras's names; logits, gap."
        ),
    ] = "pool5",
    size: options.StoredSize = "224x224",
    out: Annotated[
        Path,
        typer.Option(
            help="Where the arrays go: a .npz file, or a .zarr store, also s3://BUCKET/NAME.zarr."
        ),
    ] = Path("features.npz"),
    batch: options.Batch = None,
    distributed: options.Distributed = False,
    decoders: options.Decoders = None,
    as_json: options.Json = False,
) -> None:
    """Write the features of photos: one array a layer, and the GAP vectors.

    A .zarr store takes any number of photos: rerun the command to resume. Exit code 1 says that
    some could not be read.
    """
    with clear_errors(f"{named(out)} is as it was"):
        if is_store(out, batch, distributed, decoders):
            from flaxvgg.commands.streaming import Setting, end, into_store
            from flaxvgg.streaming.jobs import features_job

            setting = Setting(out, batch, distributed, decoders)
            end(
                into_store(
                    lambda model, *_: features_job(model, layers.split(",")),
                    *(photos, weights, arch, size, setting),
                ),
                as_json,
            )
            return
        from flaxvgg.commands.tables import features_json, features_table
        from flaxvgg.files.arrays import check_npz, save_npz
        from flaxvgg.files.locking import alone_beside
        from flaxvgg.images.batches import extract
        from flaxvgg.images.loading import find_images

        hw = parse_size(size)
        check_npz(out)
        paths = find_images(photos)
        problems: list[str] = []
        with alone_beside(out):
            model = load_model(weights, arch)
            arrays = extract(model, paths, layers.split(","), hw, problems, Shown())
            save_npz(out, arrays)
        value = features_json(model, arrays, out)
        show(lambda: features_table(model, arrays), value, as_json=as_json)
        console.print(f"written: {plain(str(out))}", highlight=False)
        finish(problems)
