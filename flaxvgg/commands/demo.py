"""flaxvgg demo: what the network sees in a few photos."""

from pathlib import Path
from typing import Annotated

import typer

from flaxvgg.commands.console import clear_errors, finish
from flaxvgg.commands.options import Arch, Json, Size, Weights, load_model, parse_size


def demo(
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos; by default those in scikit-image.")
    ] = None,
    weights: Weights = "IMAGENET1K_V1_CONVOLUTIONS",
    arch: Arch = "vgg16",
    size: Size = "224x224",
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Show what the network sees in a few photos: features, zeros by layer, and a picture.

    Without --weights it fetches torchvision's own convolutions, 64 MB, once. Exit code 1 says that
    some photos could not be read.
    """
    with clear_errors(f"{out} is as it was"):
        from flaxvgg.commands.demonstration import run_demo

        problems = run_demo(
            lambda: load_model(weights, arch), photos, parse_size(size), out, as_json
        )
        finish(problems)
