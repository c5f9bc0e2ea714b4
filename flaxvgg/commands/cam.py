"""flaxvgg cam: where in photos the evidence for a class is.

`cam.photos.plan_maps` reads the options. Into a folder it is `cam_files.write_cams`, which goes by
`cam.photos.explain_photos` to `cam.methods.explain`; into a .zarr store `streaming.into_store`,
with `maps_job` or `localisation_job` of `flaxvgg.streaming.jobs`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import clear_errors, console, finish, say_where, show
from flaxvgg.commands.options import is_store, load_model, parse_size

if TYPE_CHECKING:
    from flaxvgg.network.model import VGG
    from flaxvgg.streaming.run import Job
    from flaxvgg.streaming.source import Source


def cam(
    photos: options.Photos,
    weights: options.Weights = "IMAGENET1K_V1",
    arch: options.Arch = "vgg16",
    method: Annotated[
        str | None,
        typer.Option(
            help="Methods, comma-separated (grad_cam, layer_cam, score_cam, ...), or all; by "
            "default grad_cam, and eigen_cam for weights without a classifier."
        ),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Class numbers or names, comma-separated; or each photo's top3.")
    ] = "top3",
    layer: Annotated[
        str | None,
        typer.Option(
            help="A layer, by the paper's, PyTorch's or Keras's name, or several, "
            "comma-separated, whose maps are joined; by default the last ReLU (relu5_3)."
        ),
    ] = None,
    convention: Annotated[
        str, typer.Option(help="How maps are weighted and scaled: paper, grad-cam or torchcam.")
    ] = "paper",
    size: options.StoredSize = "224x224",
    out: Annotated[
        Path,
        typer.Option(
            help="The folder for pictures, maps.npz, cam.json; or a .zarr store of maps, "
            "also s3://BUCKET/NAME.zarr."
        ),
    ] = Path("cam"),
    scale: Annotated[
        str,
        typer.Option(
            help="Whether the maps of a photo's classes share a scale (photo), or each map has its "
            "own (map)."
        ),
    ] = "photo",
    probability: options.Probability = "softmax",
    html: Annotated[
        bool, typer.Option("--html", help="Also cam.html, one page to look through all maps.")
    ] = False,
    localise: Annotated[
        bool,
        typer.Option(
            "--localise",
            help="For a .zarr store and photos with boxes: how well the maps of each photo's own "
            "classes find them, in place of the maps.",
        ),
    ] = False,
    batch: options.Batch = None,
    distributed: options.Distributed = False,
    decoders: options.Decoders = None,
    as_json: options.Json = False,
) -> None:
    """Show where in photos the evidence for a class is: class activation maps.

    Ctrl-C stops; photos that are done by then are kept, into a .zarr store rerun the command to
    resume. Exit code 1 says that some photos could not be read.
    """
    with clear_errors("nothing was written"):
        from flaxvgg.cam.conventions import Convention
        from flaxvgg.cam.photos import parse_methods, plan_maps

        methods = parse_methods(method)
        Convention.named(convention)
        layers = tuple(layer.split(",")) if layer is not None else None
        if is_store(out, batch, distributed, decoders, localise):
            from flaxvgg.commands.streaming import Setting, end, into_store, show_localisation
            from flaxvgg.streaming.jobs import localisation_job, maps_job

            if html:
                raise ValueError("--html needs a folder for the page: flaxvgg view shows a store")
            setting = Setting(out, batch, distributed, decoders)

            def job(model: "VGG", source: "Source", hw: tuple[int, int] | None) -> "Job":
                at = hw or (224, 224)
                plan = plan_maps(model, methods, classes, layers, convention, at)
                return (
                    localisation_job(model, source, plan, hw) if localise else maps_job(model, plan)
                )

            streamed = into_store(job, photos, weights, arch, size, setting)
            end(streamed, as_json, show_localisation(streamed.store) if localise else {})
            return
        from flaxvgg.commands.cam_files import Drawing, write_cams
        from flaxvgg.commands.tables import cam_table
        from flaxvgg.files.folders import check_apart, check_folder
        from flaxvgg.files.locking import alone_in
        from flaxvgg.images.loading import find_images
        from flaxvgg.plotting.figures import check_drawing

        hw = parse_size(size)
        drawing = Drawing.of(scale, probability, html)
        check_drawing()
        check_folder(out)
        paths = find_images(photos)
        check_apart(out, paths)
        with alone_in(out):
            model = load_model(weights, arch)
            plan = plan_maps(model, methods, classes, layers, convention, hw)
            if not model.config.head:
                without = ", ".join(plan.methods)
                console.print(f"{without} alone, without classes: {model.config.no_head_because}")
            written = write_cams(model, paths, plan, out, drawing)
        show(lambda: cam_table(written.maps, plan), written.record, as_json=as_json)
        best = next(iter(written.pictures)) if len(written.pictures) == 1 else out
        best = out / "cam.html" if html else best
        say_where(best)
        left = f"{written.left} of {len(paths)} photos were not looked at" if written.left else ""
        finish(written.problems, left)
