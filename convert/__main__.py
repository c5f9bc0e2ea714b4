"""python -m convert: what `flaxvgg convert` runs, from a clone."""

import sys

from flaxvgg.commands.convert import app

if __name__ == "__main__":
    sys.exit(app())
