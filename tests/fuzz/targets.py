"""Everything that is fuzzed."""

from tests.fuzz.cases import Inputs
from tests.fuzz.commands import command_targets
from tests.fuzz.hostile import hostile_cases
from tests.fuzz.readers import reader_targets


def inputs(seed: int) -> Inputs:
    """All inputs of one seed."""
    return Inputs(seed, [*reader_targets(), *command_targets()], list(hostile_cases()))
