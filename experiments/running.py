"""How every experiment begins and ends: its options, its weights, and the files that it leaves."""

import datetime
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flaxvgg.commands.console import PlainCommand, console, step
from flaxvgg.files.folders import write_bytes

if TYPE_CHECKING:
    from flaxvgg.network.model import VGG

Weights = Annotated[
    str, typer.Option(help="A checkpoint, file or name, as `flaxvgg convert` takes them.")
]
Out = Annotated[Path, typer.Option(help="The folder for what is made.")]


class Program(typer.Typer):
    """A command line of one command, whose errors show what was typed as text."""

    def __init__(self):
        super().__init__(
            add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
        )

    def command(self, *args: Any, **kwargs: Any) -> Any:
        return super().command(*args, cls=PlainCommand, **kwargs)


def read_model(weights: str, arch: str | None = None, dtype: str | None = None) -> "VGG":
    """The model of some weights, and a line that says which these are."""
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.conversion.target import convert

    with step("reading") as found:
        model = convert(read_source(weights, arch), dtype)
        found += [model.config.arch, model.provenance.source]
    return model


def read_fast_model(weights: str, arch: str | None = None) -> "VGG":
    """`read_model` with XLA's own convolution, for what does not hang on the last bit.

    It is twice as fast on a CPU.
    """
    import flaxvgg

    read = read_model(weights, arch)
    return flaxvgg.from_torch(
        read.config.arch,
        flaxvgg.to_torch(read),
        precision="default",
        provenance=read.provenance,
    )


def write_results(
    out: Path,
    results: dict[str, Any],
    readme: Callable[[Any], str],
    pictures: Mapping[str, bytes] | None = None,
    *,
    model: "VGG | None" = None,
    packages: Sequence[str] = (),
) -> str:
    """results.json, README.md and the pictures, each whole, once all of them are made; the page.

    The results get "made": on what, when, with which versions (of `packages` too), and of which
    weights where `model` is given. The page is what `readme` makes of them, and says so at its end.
    """
    results = results | {"made": _made(model, packages)}
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in results.items()]
    text = page(readme, results)
    files = {
        "results.json": ("{\n" + ",\n".join(parts) + "\n}\n").encode(),
        "README.md": text.encode(),
        **(pictures or {}),
    }
    for name, data in files.items():
        write_bytes(out / name, data)
    return text


def page(readme: Callable[[Any], str], results: dict[str, Any]) -> str:
    """README.md as `write_results` leaves it."""
    made = results.get("made")
    if made is None:  # of before it was noted
        return readme(results)
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        f"Made on {made['date']} on {_cores(made['cores'])} of {made['processor']}",
        f"with Python {made['python']}, {versions}.",
    ]
    if "sha256" in made:
        lines.append(f"The file of the weights has the SHA-256 {made['sha256']}.")
    return readme(results).rstrip() + "\n\n" + "\n".join(lines) + "\n"


def _made(model: "VGG | None", packages: Sequence[str]) -> dict[str, Any]:
    from experiments.timing import machine
    from flaxvgg.versions import versions

    found = versions() | {name: importlib.metadata.version(name) for name in packages}
    made = {"date": datetime.date.today().isoformat(), **machine(), "versions": found}
    return made if model is None else made | {"sha256": model.provenance.sha256}


def finish(out: Path, picture: str, missed: Sequence[str] = ()) -> None:
    """Say what was missed, and where the results are; exit code 1 where something was missed."""
    for line in missed:
        console.print(f"missed: {line}", style="red", highlight=False)
    console.print(f"look at {out / picture} and {out / 'README.md'}", style="bold")
    if missed:
        raise typer.Exit(1)


def _cores(count: str | int) -> str:
    return f"{count} core{'' if str(count) == '1' else 's'}"
