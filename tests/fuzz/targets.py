"""Everything that is fuzzed."""

from tests.fuzz.cases import Inputs
from tests.fuzz.checkpoints import checkpoint_targets
from tests.fuzz.data import data_targets
from tests.fuzz.hostile import hostile_cases
from tests.fuzz.images import image_targets
from tests.fuzz.labels import label_targets
from tests.fuzz.weights import weight_targets


def inputs(seed: int) -> Inputs:
    """All inputs of one seed."""
    targets = [*image_targets(), *weight_targets(), *checkpoint_targets(), *label_targets()]
    targets += data_targets()
    return Inputs(seed, targets, list(hostile_cases()))
