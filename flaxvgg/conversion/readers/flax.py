"""Reader of our own checkpoints, for the way back to PyTorch or into the other format."""

from pathlib import Path

from flaxvgg.conversion.source_weights import SourceError, SourceWeights
from flaxvgg.weights.checkpoint import load
from flaxvgg.weights.mapping import to_torch


def read_flax(path: Path) -> SourceWeights:
    """Weights of a checkpoint that `flaxvgg.save` wrote. Raises SourceError for a damaged one."""
    try:
        model = load(path)
    except ValueError as error:
        raise SourceError(str(error)) from None
    return SourceWeights(model.config.arch, to_torch(model), model.provenance)
