"""Tables, folders and archives: python -m tests.fuzzing --targets tests.fuzz.data."""

import tests.fuzz.narrow  # noqa: F401

# isort: split
from tests.fuzz.archives import archive_targets
from tests.fuzz.cases import Inputs, Target
from tests.fuzz.folders import folder_targets
from tests.fuzz.shards import shard_targets
from tests.fuzz.tables import table_targets


def data_targets() -> list[Target]:
    """What people have their photos in."""
    return [*folder_targets(), *table_targets(), *archive_targets(), *shard_targets()]


def inputs(seed: int) -> Inputs:
    """All inputs of one seed."""
    return Inputs(seed, data_targets())
