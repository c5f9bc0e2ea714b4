"""flaxvgg sparsity: what is zero in photos, and why."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import (
    Shown,
    clear_errors,
    console,
    finish,
    say_where,
    show,
    step,
    stoppable,
)
from flaxvgg.commands.options import is_store, load_model, parse_size
from flaxvgg.files.addresses import named


def sparsity(
    photos: options.Photos,
    weights: options.Weights = "IMAGENET1K_V1",
    arch: options.Arch = "vgg16",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers, comma-separated, by the paper's, PyTorch's or Keras's names; "
            "by default every ReLU and pooling."
        ),
    ] = None,
    size: options.StoredSize = "224x224",
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for sparsity.json and three pictures; or a .zarr store, "
            "also s3://BUCKET/NAME.zarr."
        ),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="With a folder: sparsity.html, one page that has it all.")
    ] = False,
    batch: options.Batch = None,
    distributed: options.Distributed = False,
    decoders: options.Decoders = None,
    as_json: options.Json = False,
) -> None:
    """Count what is zero in photos, layer by layer, and show where and why.

    Ctrl-C stops the counting and reports what was counted, marked as partial; into a .zarr store,
    rerun the command to resume. Exit code 1 says that some photos could not be read.
    """
    with clear_errors(f"{named(out)} is as it was" if out else "nothing was written"):
        names = layers.split(",") if layers is not None else None
        if is_store(out, batch, distributed, decoders):
            from flaxvgg.commands.streaming import Setting, end, into_store, show_zeros
            from flaxvgg.streaming.jobs import sparsity_job

            setting = Setting(out, batch, distributed, decoders)
            if html:
                raise ValueError("--html needs a folder for the page, and not a .zarr store")
            streamed = into_store(
                lambda model, *_: sparsity_job(model, names),
                *(photos, weights, arch, size, setting),
            )
            end(streamed, as_json, show_zeros(streamed.store))
            return
        from flaxvgg.commands.sparsity_files import write_survey
        from flaxvgg.commands.tables import sparsity_table
        from flaxvgg.files.folders import check_apart, check_folder
        from flaxvgg.files.locking import alone_in
        from flaxvgg.images.loading import find_images
        from flaxvgg.plotting.figures import check_drawing
        from flaxvgg.plotting.webpage import Looks
        from flaxvgg.sparsity.summary import explanation
        from flaxvgg.sparsity.survey import survey_photos

        if html and out is None:
            raise ValueError("--html needs a folder for the page: add --out DIR")
        hw = parse_size(size)
        paths = find_images(photos)
        if out is not None:
            check_drawing()
            check_folder(out)
            check_apart(out, paths)
        with alone_in(out) if out is not None else contextlib.nullcontext():
            model = load_model(weights, arch)
            looks = Looks() if html else None
            each = looks.add if looks else lambda example: None
            with stoppable() as stop:
                survey = survey_photos(model, paths, names, hw, stop.is_set, Shown(), each)
            show(
                lambda: sparsity_table(survey.report, survey.zeros, survey.title),
                survey.to_json(),
                as_json=as_json,
            )
            for sentence in explanation(survey.report):
                console.print(sentence, highlight=False)
            if out is not None:
                with step("writing") as written:
                    written += write_survey(survey, out, looks)
                best = out / ("sparsity.html" if html else "sparsity.png")
                say_where(best)
        left = f"{survey.left} of the photos were not looked at" if survey.partial else ""
        finish(survey.problems, left)
