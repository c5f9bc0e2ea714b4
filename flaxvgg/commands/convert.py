"""flaxvgg convert SOURCE --out PATH: weights from elsewhere to a checkpoint, and back."""

from pathlib import Path
from typing import Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import (
    accept_any_text,
    clear_errors,
    console,
    errors,
    show,
    step,
)
from flaxvgg.files.addresses import named


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of PyTorch, safetensors, ONNX or Keras, whatever its name; a folder or an "
            "index of several (model.safetensors.index.json); a checkpoint of flaxvgg; a "
            "torchvision name (VGG16_Weights.IMAGENET1K_V1); or DISTRIBUTION:FILE for a file in an "
            "installed Python package. A file, and what flaxvgg saved there, also at s3:// or gs://."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="An Orbax directory; a .safetensors file (read by flaxvgg and by PyTorch); or a "
            ".pth file for torchvision's load_state_dict; also at s3:// or gs://."
        ),
    ],
    arch: Annotated[
        str | None, typer.Option(help="vgg11 ... vgg19_bn; told from the weights unless given.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Round the weights to float32, bfloat16 or float16.")
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="torchvision, features or keras; told from the source.")
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(help="Of several VGGs in a file, the one whose names begin with this."),
    ] = "",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Run every layer beside PyTorch or ONNX Runtime, and write only if all agree.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Convert VGG weights to a checkpoint of flaxvgg, or a checkpoint back to PyTorch.

    Exit code 0: written, and verified where that was asked for. 1: the verification failed, and
    nothing was written. 2: bad input, and nothing was written.
    """
    accept_any_text()
    with clear_errors(f"{named(out)} is as it was"):
        from flaxvgg.files.remote_folders import brought

        with brought(source) as here:
            agreed = _convert(str(here), out, arch, dtype, preprocessing, prefix, verify, as_json)
    raise typer.Exit(0 if agreed else 1)


def _convert(
    name: str,
    out: Path,
    arch: str | None,
    dtype: str | None,
    preprocessing: str | None,
    prefix: str,
    verify: bool,
    as_json: bool,
) -> bool:
    from flaxvgg.commands.tables import facts, model_facts
    from flaxvgg.commands.verification import print_verification, verification_json
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import check_out, write
    from flaxvgg.conversion.target import convert as to_model
    from flaxvgg.network.config import check_arch

    if arch is not None:
        check_arch(arch)
    check_out(out)
    with step("reading") as found:
        source = read_source(name, arch, preprocessing, prefix)
        found += [source.arch, source.provenance.source]
    with step("converting") as found:
        model = to_model(source, dtype)
        found.append(f"{len(model.config.layers)} layers")
    checks = {}
    if verify:
        from flaxvgg.conversion.verify import verification_images
        from flaxvgg.conversion.verify import verify as run

        with step("verifying") as found:
            images, what = verification_images(model.preprocessing)
            anew = read_source(name, arch, preprocessing, prefix)
            checks = run(model, anew, images)
            source.notes = tuple(dict.fromkeys(source.notes + anew.notes))
            found += [*checks, f"on {what}"]
        print_verification(console, checks)
        if not all(check.holds for peer in checks.values() for check in peer):
            errors.print(f"not verified: {named(out)} was not written", style="red")
            return False
    with step("writing") as found:
        write(model, out)
        found.append(named(out))
    rows = model_facts(model) | {"written": named(out)}
    show(lambda: facts(rows), rows | {"verified": verification_json(checks)}, as_json=as_json)
    return True
