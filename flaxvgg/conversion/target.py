"""From a source to a model, and from a model to the file that was asked for."""

import dataclasses
import importlib.metadata
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import flaxvgg
from flaxvgg.conversion.source_weights import SourceError, SourceWeights
from flaxvgg.files.addresses import address
from flaxvgg.files.choices import choose
from flaxvgg.files.remote_folders import save_at
from flaxvgg.files.replacing import sweep, write_atomically
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.weights.checkpoint import check_target, save
from flaxvgg.weights.mapping import arrays_from_torch, build, config_for, entries, to_torch

DTYPES = ("float32", "bfloat16", "float16")
_FOREIGN = (".onnx", ".h5", ".hdf5", ".keras", ".bin", ".npz", ".zip")


def check_out(out: Path) -> None:
    """Raise ValueError, before any work is done, where `out` cannot be written."""
    if out.suffix in _FOREIGN:
        raise SourceError(
            f"{out}: flaxvgg writes an Orbax directory, .safetensors or .pth, not {out.suffix}"
        )
    check_target(out if address(out) else out.absolute())


def convert(source: SourceWeights, dtype: str | None = None) -> VGG:
    """The model of a source, whose state dict is emptied on the way.

    Parameters keep their dtype unless `dtype` names another. Raises MappingError with every entry
    that does not fit, and SourceError for an unknown `dtype`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SourceError(f"unknown dtype {dtype!r}: {choose(dtype, DTYPES)}")
    config, left_out = config_for(source.arch, source.state_dict)
    for name in left_out:
        del source.state_dict[name]
    param_dtype = None if dtype is None else jnp.dtype(dtype)
    arrays = arrays_from_torch(config, source.state_dict, param_dtype, source.release)
    return build(
        config,
        arrays,
        param_dtype=arrays["conv_stack", "conv1_1", "kernel"].dtype,
        provenance=dataclasses.replace(
            source.provenance.noting(*source.notes), versions=_versions()
        ),
    )


def write(model: VGG, out: Path) -> None:
    """Write a checkpoint, or a .pth file that torchvision's `load_state_dict(strict=True)` takes.

    A model without a classifier gets the all-NaN one that torchvision publishes such weights with.
    """
    if url := address(out):
        check_target(out)
        save_at(url, lambda here: write(model, here))
    elif out.suffix in (".pth", ".pt"):
        sweep(out.absolute().parent)
        write_atomically(out.absolute(), lambda target: _write_pth(model, target))
    else:
        save(model, out)


def _write_pth(model: VGG, target: Path) -> None:
    import torch

    tensors = {}
    for name, array in to_torch(model).items():
        if array.dtype == jnp.bfloat16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    if not model.config.head:
        for entry in entries(VGGConfig.classifier(model.config.arch)):
            # One NaN, expanded: torch.save keeps what is behind a tensor, four bytes here.
            nan = torch.tensor(float("nan")).expand(entry.torch_shape)
            tensors.setdefault(entry.torch, nan)
    torch.save(tensors, target)


def _versions() -> tuple[tuple[str, str], ...]:
    names = ("flax", "jax", "numpy", "orbax-checkpoint", "safetensors")
    versions = tuple((name, importlib.metadata.version(name)) for name in names)
    return (("flaxvgg", flaxvgg.__version__), *versions)
