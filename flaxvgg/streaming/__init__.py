"""Data sets larger than memory into a Zarr store, exactly once."""

from flaxvgg.streaming.faithfulness import faithfulness_job, read_faithfulness
from flaxvgg.streaming.jobs import (
    compare_job,
    features_job,
    localisation_job,
    maps_job,
    read_distances,
    read_localisation,
    read_sparsity,
    sparsity_job,
    zeros_by_photo,
)
from flaxvgg.streaming.pairs import Pairs, pairs_source
from flaxvgg.streaming.run import Job, Looked, Streamed, stream
from flaxvgg.streaming.source import Source, find_source
from flaxvgg.streaming.store import Store, StoreError

__all__ = [
    "Job",
    "Looked",
    "Pairs",
    "Source",
    "Store",
    "StoreError",
    "Streamed",
    "compare_job",
    "faithfulness_job",
    "features_job",
    "find_source",
    "localisation_job",
    "maps_job",
    "pairs_source",
    "read_distances",
    "read_faithfulness",
    "read_localisation",
    "read_sparsity",
    "sparsity_job",
    "stream",
    "zeros_by_photo",
]
