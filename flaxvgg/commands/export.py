"""flaxvgg export: a model as a file that others run, without flaxvgg."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import clear_errors, console, step
from flaxvgg.commands.options import load_model, parse_size
from flaxvgg.files.choices import choose
from flaxvgg.files.foreign import plain


def export(
    out: Annotated[
        Path,
        typer.Option(
            help="FILE.jaxexport, for jax.export.deserialize on CPUs, NVIDIA GPUs and TPUs; or "
            "FILE.onnx."
        ),
    ],
    weights: options.Weights = "IMAGENET1K_V1",
    arch: options.Arch = "vgg16",
    what: Annotated[
        str | None,
        typer.Option(
            help="features or logits; for .jaxexport also gap, explain and lpips. By default "
            "logits, and features for weights without a classifier."
        ),
    ] = None,
    size: options.Size = "224x224",
    method: Annotated[
        str | None, typer.Option(help="For explain: the method, e.g. grad_cam.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="For explain: class numbers, comma-separated; by default the top one."),
    ] = None,
    value_range: Annotated[
        str | None, typer.Option(help="For lpips: the range of the images, e.g. 0,1.")
    ] = None,
) -> None:
    """Write a model as a program for others: of JAX, without flaxvgg, or as ONNX.

    It takes any number of images, normalised as the weights expect it (`flaxvgg info`): (N, H, W,
    3) for .jaxexport, (N, 3, H, W) for .onnx.
    """
    with clear_errors(f"{out} is as it was"):
        from flaxvgg.files.folders import write_bytes

        if out.suffix not in (".jaxexport", ".onnx"):
            raise ValueError(f"--out is FILE.jaxexport or FILE.onnx, not {out}")
        _check_what(what, out)
        hw, given = parse_size(size), _options(what, method, classes, value_range)
        model = load_model(weights, arch)
        what = what or ("logits" if model.config.head else "features")
        with step("exporting") as found:
            if out.suffix == ".onnx":
                from flaxvgg.conversion.onnx_export import to_onnx

                data = to_onnx(model, what, hw)
            else:
                from flaxvgg.conversion.jax_export import to_jax_export

                data = bytes(to_jax_export(model, what, size=hw, **given).serialize())
            found.append(f"{what} at {hw[0]}x{hw[1]}")
        with step("writing") as found:
            write_bytes(out, data)
            found.append(f"{len(data) / 1e6:.0f} MB")
        console.print(f"written: {plain(str(out))}", highlight=False)


def _check_what(what: str | None, out: Path) -> None:
    """Raise ValueError for what there is no program of, before any weights are read."""
    from flaxvgg.conversion.jax_export import WHATS
    from flaxvgg.conversion.onnx_export import OUTPUTS

    if what is None or what in (OUTPUTS if out.suffix == ".onnx" else WHATS):
        return
    if what in WHATS:
        raise ValueError(f"--what {what} is for .jaxexport: an .onnx has {' or '.join(OUTPUTS)}")
    raise ValueError(f"no function {what!r}: {choose(what, WHATS)}")


def _options(
    what: str | None, method: str | None, classes: str | None, value_range: str | None
) -> dict[str, Any]:
    """The options of `explain` or `lpips`. Raises ValueError for those of another one."""
    wanted = {"--method": method, "--classes": classes} if what != "explain" else {}
    wanted |= {"--value-range": value_range} if what != "lpips" else {}
    for name, value in wanted.items():
        if value is not None:
            of = "lpips" if name == "--value-range" else "explain"
            raise ValueError(f"{name} is for --what {of}")
    if what == "lpips":
        if value_range is None:
            raise ValueError("--what lpips needs --value-range, e.g. --value-range 0,1")
        return {"value_range": tuple(_numbers("--value-range", value_range, float))}
    found: dict[str, Any] = {} if method is None else {"method": method}
    if classes is not None:
        found["classes"] = _numbers("--classes", classes, int)
    return found


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} is numbers, comma-separated, not {text!r}") from None
