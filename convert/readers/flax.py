"""Reader of our own checkpoints, for the way back to PyTorch or into the other format."""

from pathlib import Path

from convert.source import Source, SourceError
from flaxvgg.checkpoint import load
from flaxvgg.mapping import to_torch


def read_flax(path: Path) -> Source:
    """Weights of a checkpoint that `flaxvgg.save` wrote. Raises SourceError for a damaged one."""
    try:
        model = load(path)
    except ValueError as error:
        raise SourceError(str(error)) from None
    return Source(model.config.arch, to_torch(model), model.provenance)
