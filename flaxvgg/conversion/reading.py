"""From what the user typed to the reader that understands it."""

import dataclasses
import importlib.metadata
from pathlib import Path

from flaxvgg.conversion.readers.flax import read_flax
from flaxvgg.conversion.readers.keras import read_keras
from flaxvgg.conversion.readers.onnx import read_onnx
from flaxvgg.conversion.readers.torch import read_published, read_torch
from flaxvgg.conversion.source_weights import SourceError, SourceWeights
from flaxvgg.files.choices import choose
from flaxvgg.network.provenance import PREPROCESSING, Preprocessing
from flaxvgg.weights.checkpoint import is_checkpoint
from flaxvgg.weights.file_kinds import UnknownKind, file_kind
from flaxvgg.weights.published import WeightsError, find_published, is_pathlike, names


def read_source(
    name: str, arch: str | None = None, preprocessing: str | None = None, prefix: str = ""
) -> SourceWeights:
    """Read weights by the name of a published set, by a path, or as DISTRIBUTION:FILE.

    The last means a file in an installed Python distribution, which is not imported. `arch` is
    only needed where the weights do not tell, `preprocessing` (a name in PREPROCESSING) where they
    were trained with another recipe than their format suggests, `prefix` where a PyTorch file holds
    several VGGs. Raises SourceError for anything that cannot be read, and for weights of another
    architecture than `arch`.
    """
    if preprocessing is not None and preprocessing not in PREPROCESSING:
        raise SourceError(
            f"unknown preprocessing {preprocessing!r}: {choose(preprocessing, PREPROCESSING)}"
        )
    recipe = None if preprocessing is None else PREPROCESSING[preprocessing]
    try:
        record = None if Path(name).exists() else find_published(name, arch)
    except WeightsError as error:
        raise SourceError(str(error)) from None
    source = read_published(record) if record else _read_file(_locate(name), arch, recipe, prefix)
    if arch is not None and source.arch != arch:
        raise SourceError(f"{name} holds a {source.arch}, not a {arch}")
    if recipe is not None:
        recipe = source.front(recipe)
        source.provenance = dataclasses.replace(source.provenance, preprocessing=recipe, guess="")
    return source


def _read_file(
    path: Path, arch: str | None, recipe: Preprocessing | None, prefix: str
) -> SourceWeights:
    if is_checkpoint(path):
        return read_flax(path)
    try:
        kind = file_kind(path)
    except UnknownKind as error:
        raise SourceError(f"{path} {error}") from None
    match kind:
        case "onnx":
            return read_onnx(path, recipe)
        case "keras":
            return read_keras(path, recipe)
    return read_torch(path, arch, recipe, prefix)


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
    if is_pathlike(name):
        raise SourceError(f"{name} does not exist")
    raise SourceError(
        f"no published weights {name!r}, and there is no such file: {choose(name, names())}"
    )
