"""Data sets larger than memory into a Zarr store, exactly once."""

from flaxvgg.streaming.faithfulness import faithfulness_job, read_faithfulness
from flaxvgg.streaming.jobs import (
    features_job,
    localisation_job,
    maps_job,
    read_localisation,
    read_sparsity,
    sparsity_job,
    zeros_by_photo,
)
from flaxvgg.streaming.run import Job, Looked, Streamed, stream
from flaxvgg.streaming.source import Source, find_source
from flaxvgg.streaming.store import Store, StoreError

__all__ = [
    "Job",
    "Looked",
    "Source",
    "Store",
    "StoreError",
    "Streamed",
    "faithfulness_job",
    "features_job",
    "find_source",
    "localisation_job",
    "maps_job",
    "read_faithfulness",
    "read_localisation",
    "read_sparsity",
    "sparsity_job",
    "stream",
    "zeros_by_photo",
]
