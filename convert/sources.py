"""From what the user typed to the reader that understands it."""

import dataclasses
import importlib.metadata
from pathlib import Path

from convert.readers.flax import read_flax
from convert.readers.keras import read_keras
from convert.readers.onnx import read_onnx
from convert.readers.torch import find_published, read_published, read_torch
from convert.source import Source, SourceError
from flaxvgg.checkpoint import is_checkpoint
from flaxvgg.provenance import PREPROCESSING


def read_source(name: str, arch: str | None = None, preprocessing: str | None = None) -> Source:
    """Read weights by the name of a published set, by a path, or as DISTRIBUTION:FILE.

    The last means a file in an installed Python distribution, which is not imported. `arch` is
    only needed where the weights do not tell, `preprocessing` (a name in PREPROCESSING) where they
    were trained with another recipe than their format suggests. Raises SourceError for anything
    that cannot be read, and for weights of another architecture than `arch`.
    """
    if preprocessing is not None and preprocessing not in PREPROCESSING:
        raise SourceError(f"unknown preprocessing {preprocessing!r}: {', '.join(PREPROCESSING)}")
    record = find_published(name, arch)
    source = read_published(record) if record else _read_file(_locate(name), arch)
    if arch is not None and source.arch != arch:
        raise SourceError(f"{name} holds a {source.arch}, not a {arch}")
    if preprocessing is not None:
        recipe = PREPROCESSING[preprocessing]
        source.provenance = dataclasses.replace(source.provenance, preprocessing=recipe)
    return source


def _read_file(path: Path, arch: str | None) -> Source:
    if is_checkpoint(path):
        return read_flax(path)
    match path.suffix:
        case ".onnx":
            return read_onnx(path)
        case ".h5" | ".hdf5" | ".keras":
            return read_keras(path)
        case ".pth" | ".pt" | ".bin" | ".safetensors" | ".ckpt" | ".gz":
            return read_torch(path, arch)
    if path.is_dir():
        raise SourceError(f"{path} is a directory and no checkpoint of flaxvgg")
    raise SourceError(
        f"{path}: what is it? Weights end in .pth, .safetensors, .onnx, .h5, .weights.h5 or .keras"
    )


def _locate(name: str) -> Path:
    path = Path(name)
    if path.exists():
        return path
    distribution, _, file = name.partition(":")
    if file:
        try:
            found = Path(importlib.metadata.distribution(distribution).locate_file(file))
        except importlib.metadata.PackageNotFoundError:
            raise SourceError(
                f"{name}: there is no such file, and no installed distribution {distribution!r}"
            ) from None
        if found.exists():
            return found
        raise SourceError(f"{name}: {distribution} is installed but has no file {file}")
    raise SourceError(f"{name} does not exist, and is not the name of published weights")
