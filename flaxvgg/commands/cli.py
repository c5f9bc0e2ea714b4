"""The command line of flaxvgg: a table of contents; each command is a module of its own."""

from typing import Annotated

import typer

from flaxvgg import __version__
from flaxvgg.commands.attribute import attribute
from flaxvgg.commands.cam import cam
from flaxvgg.commands.compare import compare
from flaxvgg.commands.console import (
    PlainGroup,
    accept_any_text,
    console,
    keep_compiled,
    show_warnings_of,
)
from flaxvgg.commands.convert import convert
from flaxvgg.commands.demo import demo
from flaxvgg.commands.export import export
from flaxvgg.commands.features import features
from flaxvgg.commands.info import info
from flaxvgg.commands.layers import layers
from flaxvgg.commands.sparsity import sparsity
from flaxvgg.commands.train import train
from flaxvgg.commands.view import view
from flaxvgg.images.finding import PassedOver

app = typer.Typer(
    cls=PlainGroup,
    help="torchvision's VGG in JAX: features, zeros and maps of your photos.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(wanted: bool) -> bool:
    if wanted:
        console.print(f"flaxvgg {__version__}", highlight=False)
        raise typer.Exit()
    return wanted


@app.callback()
def prepare(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version."),
    ] = False,
) -> None:
    accept_any_text()
    keep_compiled()
    show_warnings_of(PassedOver)


_ON_PHOTOS = demo, features, sparsity, cam, attribute, compare, view, train

for command in (*_ON_PHOTOS, convert, export, layers, info):
    app.command()(command)
