"""Weights that only the converter reads, where a path is taken: Keras, ONNX, and unknown names.

The converter lies above this package, and is looked up when such a file is read.
"""

import dataclasses
import importlib
from pathlib import Path

import jax
from jax.typing import DTypeLike

from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import WeightsError
from flaxvgg.weights.file_kinds import UnknownKind, file_kind
from flaxvgg.weights.mapping import MappingError, rebuild


def is_foreign(path: Path) -> bool:
    """Whether a file is one of Keras or ONNX."""
    try:
        return file_kind(path) in ("keras", "onnx")
    except UnknownKind:
        return False


def converted(
    path: Path,
    arch: str | None,
    *,
    source: str = "",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = "highest",
    dropout: float | None = None,
) -> VGG:
    """The model that `flaxvgg convert` makes of a file. Raises WeightsError or MappingError."""
    reading = importlib.import_module("flaxvgg.conversion.reading")
    target = importlib.import_module("flaxvgg.conversion.target")
    try:
        model = target.convert(reading.read_source(str(path), arch))
    except MappingError:
        raise
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"reading {path.name} needs {error.name}: pip install {error.name}"
        ) from None
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if source:
        model.provenance = dataclasses.replace(model.provenance, source=source)
    return rebuild(
        model, dropout=dropout, param_dtype=param_dtype, dtype=dtype, precision=precision
    )
