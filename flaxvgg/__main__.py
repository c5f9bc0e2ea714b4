"""python -m flaxvgg: the command line, where the script `flaxvgg` is not on the path."""

from flaxvgg.commands.cli import app

app(prog_name="flaxvgg")
