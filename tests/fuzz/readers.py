"""Everything that reads files; commands, which take longer, are in `tests.fuzz.targets`."""

from tests.fuzz.cases import Inputs, Target
from tests.fuzz.checkpoints import checkpoint_targets
from tests.fuzz.data import data_targets
from tests.fuzz.hostile import hostile_cases
from tests.fuzz.images import image_targets
from tests.fuzz.labels import label_targets
from tests.fuzz.weights import weight_targets


def reader_targets() -> list[Target]:
    """All readers."""
    targets = [*image_targets(), *weight_targets(), *checkpoint_targets(), *label_targets()]
    return targets + data_targets()


def inputs(seed: int) -> Inputs:
    """The inputs of one seed."""
    return Inputs(seed, reader_targets(), list(hostile_cases()))
