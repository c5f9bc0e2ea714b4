"""Checkpoints: an Orbax directory, or one .safetensors file that PyTorch reads too.

Both record the architecture, the provenance and the dtypes. A save either replaces what was at the
path or leaves it alone: everything is written beside it first.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flaxvgg.config import VGGConfig
from flaxvgg.mapping import MappingError, arrays_from_torch, build, model_arrays, torch_stream
from flaxvgg.model import VGG
from flaxvgg.provenance import Provenance

_FORMAT = 1


class CheckpointError(ValueError):
    """A path holds no checkpoint that can be read; the message is one line that says why."""


def save(model: VGG, path: str | os.PathLike[str]) -> None:
    """Write the model to an Orbax directory, or to one file where the path ends in .safetensors.

    The .safetensors file has torchvision's names and layouts, so that PyTorch's `load_state_dict`
    takes it as it is. An interrupted save leaves what was there before. Raises CheckpointError
    where the path holds something that is no checkpoint.
    """
    path = Path(path).absolute()
    header = _header(model)
    if path.suffix == ".safetensors":

        def write(target: Path) -> None:
            _safetensors_save(target, model, header)
    else:

        def write(target: Path) -> None:
            _orbax_save(target, model, header)

    write_atomically(path, write)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = "highest",
) -> VGG:
    """The model that `save` wrote; `dtype` (default: as saved) and `precision` as in `vgg16`.

    Raises CheckpointError where the path holds no checkpoint of flaxvgg, or a damaged one.
    """
    path = Path(path).absolute()
    header, arrays = _open(path)
    config = VGGConfig.from_json(header["config"])
    try:
        return build(
            config,
            arrays(config),
            dtype=jnp.dtype(dtype or header["dtype"]),
            param_dtype=jnp.dtype(header["param_dtype"]),
            precision=precision,
            provenance=Provenance.from_json(header["provenance"]),
        )
    except MappingError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def is_checkpoint(path: Path) -> bool:
    """Whether the path holds a checkpoint that `save` wrote; only its header is looked at."""
    try:
        _open(path.absolute())
    except CheckpointError:
        return False
    return True


def check_target(path: Path) -> None:
    """Raise CheckpointError where nothing can be saved.

    That is where the path is a directory that is no checkpoint, a file that is to be a directory,
    or in a directory that does not exist.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is no directory: create it first")
    if path.is_dir() and (path.suffix == ".safetensors" or not is_checkpoint(path)):
        raise CheckpointError(f"{path} is a directory and no checkpoint: choose another name")
    if path.is_file() and not path.suffix:
        raise CheckpointError(f"{path} is a file: choose another name for the checkpoint directory")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a path beside `path`, and move what it wrote into place when it returns.

    Raises CheckpointError as `check_target` does, before anything is written.
    """
    check_target(path)
    with _temporary(path, "new") as new, _temporary(path, "old") as old:
        write(new)
        try:
            if path.is_dir():
                path.rename(old)  # a directory cannot be renamed over another
            new.replace(path)
        except BaseException:  # an interruption between the two
            if old.exists() and not path.exists():
                old.rename(path)
            raise


@contextlib.contextmanager
def _temporary(path: Path, use: str) -> Iterator[Path]:
    temporary = path.with_name(f".{path.stem}.{use}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _header(model: VGG) -> dict[str, Any]:
    conv = model.conv_stack.conv1_1
    return {
        "format": _FORMAT,
        "config": model.config.to_json(),
        "provenance": model.provenance.to_json(),
        "dtype": jnp.dtype(conv.dtype).name,
        "param_dtype": jnp.dtype(conv.param_dtype).name,
    }


def _checked_header(path: Path, header: Any) -> dict[str, Any]:
    if not isinstance(header, dict) or "config" not in header:
        raise CheckpointError(
            f"{path} was not written by flaxvgg: convert it with python -m convert {path} --out ..."
        )
    if header["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header['format']}; this flaxvgg reads {_FORMAT}"
        )
    return header


_Arrays = Callable[[VGGConfig], dict[tuple[str, ...], Any]]


def _open(path: Path) -> tuple[dict[str, Any], _Arrays]:
    """The header of a checkpoint, and a function that reads its arrays."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    return _safetensors_open(path) if path.is_file() else _orbax_open(path)


_SAFETENSORS_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
}


def _safetensors_save(target: Path, model: VGG, header: dict[str, Any]) -> None:
    # The format is a JSON table of contents and the bytes. Written here, a block at a time, because
    # the library's writer wants every tensor in PyTorch's layout in memory at once: a second copy.
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "flaxvgg": json.dumps(header)}}
    stop = 0
    for entry, dtype, _ in torch_stream(model):
        start, stop = stop, stop + math.prod(entry.torch_shape) * dtype.itemsize
        table[entry.torch] = {
            "dtype": _SAFETENSORS_DTYPES[dtype.name],
            "shape": entry.torch_shape,
            "data_offsets": (start, stop),
        }
    contents = json.dumps(table).encode()
    contents += b" " * (-len(contents) % 8)  # the bytes begin at a multiple of 8
    with target.open("wb") as file:
        file.write(len(contents).to_bytes(8, "little") + contents)
        for _, _, blocks in torch_stream(model):
            for block in blocks:
                file.write(block.view(np.uint8).data if block.ndim else block.tobytes())


def _safetensors_open(path: Path) -> tuple[dict[str, Any], _Arrays]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {}).get("flaxvgg", "null"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from None

    def arrays(config: VGGConfig) -> dict[tuple[str, ...], Any]:
        with safe_open(path, "numpy") as file:
            return arrays_from_torch(config, {name: file.get_tensor(name) for name in file.keys()})

    return _checked_header(path, header), arrays


def _orbax_save(target: Path, model: VGG, header: dict[str, Any]) -> None:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Trained float32 weights compress by 7 %, which takes longer than writing them.
    context.array.saving.use_compression = False
    with context:
        tree = nnx.traversals.unflatten_mapping(model_arrays(model))
        ocp.save(target, tree, custom_metadata={"flaxvgg": header})


def _orbax_open(path: Path) -> tuple[dict[str, Any], _Arrays]:
    from orbax.checkpoint import v1 as ocp

    try:  # ocp.is_orbax_checkpoint is true of any directory
        metadata = ocp.metadata(path)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no Orbax checkpoint, or a damaged one: {first_line(error)}"
        ) from None
    header = _checked_header(path, (metadata.custom_metadata or {}).get("flaxvgg"))

    def arrays(config: VGGConfig) -> dict[tuple[str, ...], Any]:
        # Read as NumPy arrays, which JAX adopts: restoring to JAX arrays takes 2.5 times as long.
        stored = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), metadata.metadata
        )
        try:
            return dict(nnx.traversals.flatten_mapping(ocp.load(path, stored)))
        except (ValueError, OSError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None

    return header, arrays


def first_line(error: Exception) -> str:
    """The first line of an error of Orbax, without the specification that tensorstore appends."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]


def difference(stored: Any, run: Mapping[str, Any]) -> str:
    """The first option in which a run differs from the one that is stored."""
    stored = stored or {}
    for room, value in run.items():
        before = stored.get(room)
        if isinstance(value, dict) and isinstance(before, dict):
            for name, x in value.items():
                if before.get(name) != x:
                    return f"{room}.{name} was {before.get(name)!r}, and is {x!r}"
        elif before != value:
            return f"{room} was {before!r}, and is {value!r}"
    return "its options differ"
