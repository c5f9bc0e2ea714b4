"""The command line of flaxvgg: a table of contents; each command is a module of its own."""

import typer

from flaxvgg.commands.attribute import attribute
from flaxvgg.commands.cam import cam
from flaxvgg.commands.compare import compare
from flaxvgg.commands.console import (
    PlainGroup,
    accept_any_text,
    keep_compiled,
    show_warnings_of,
)
from flaxvgg.commands.convert import convert
from flaxvgg.commands.demo import demo
from flaxvgg.commands.features import features
from flaxvgg.commands.info import info
from flaxvgg.commands.sparsity import sparsity
from flaxvgg.commands.train import train
from flaxvgg.commands.view import view
from flaxvgg.images.finding import PassedOver

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
    show_warnings_of(PassedOver)


for command in (demo, features, sparsity, cam, attribute, compare, view, train, convert, info):
    app.command()(command)
