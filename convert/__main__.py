"""python -m convert: what `flaxvgg convert` runs, from a clone."""

import sys

import typer

from flaxvgg.commands.console import PlainCommand
from flaxvgg.commands.convert import convert

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command(cls=PlainCommand)(convert)

if __name__ == "__main__":
    sys.exit(app())
