"""Checkpoints: an Orbax directory, or one .safetensors file that PyTorch reads too.

Both record the architecture, the provenance, the dtypes, and a CRC-32 of all that: of the header,
and of every 16 MiB of every parameter, with its dtype and shape. A damaged one is refused. (Those
of format 1 have no checksums.) A save either replaces what was there or leaves it alone, and who
reads meanwhile gets the old one or the new one.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flaxvgg.files.addresses import address
from flaxvgg.files.nesting import parse_json, shallow
from flaxvgg.files.records import first_line, os_error
from flaxvgg.files.remote_folders import brought, check_place_at, save_at
from flaxvgg.files.replacing import (
    WriteError,
    check_place,
    followed,
    kind_of,
    read_whole,
    replace_whole,
    restore,
    sweep,
)
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.processes import is_first, meet, told_by_first
from flaxvgg.network.provenance import Provenance
from flaxvgg.network.sharding import whole
from flaxvgg.weights.checksums import Checksum, checksum_of_text, checksums
from flaxvgg.weights.file_kinds import UnknownKind, file_kind
from flaxvgg.weights.mapping import (
    MappingError,
    arrays_from_torch,
    build,
    model_arrays,
    torch_stream,
)
from flaxvgg.weights.orbax_options import ORBAX_DAMAGE, alone, foreign_files, together

_FORMAT = 2
_FORMATS = (1, 2)
_SAVED = "flaxvgg: a model is saved"


class CheckpointError(ValueError):
    """A path holds no checkpoint that can be read; the message is one line that says why."""


def save(model: VGG, path: str | os.PathLike[str]) -> None:
    """Write the model to an Orbax directory, or to one file where the path ends in .safetensors.

    The .safetensors file has torchvision's names and layouts, so that PyTorch's `load_state_dict`
    takes it as it is. The path may be an address (s3://, gs://); a symbolic link is followed. An
    interrupted save leaves what was there; a killed one also what it wrote beside it, which the
    next save there removes. Of several processes all have to call it, and the first one writes,
    however the model is sharded. Raises CheckpointError where the path holds something that is no
    checkpoint, or cannot be written; for an address also LockedError and RemoteError.

    >>> flaxvgg.save(model, "model.safetensors")
    >>> flaxvgg.load("model.safetensors").config.arch
    'vgg11'
    """
    if url := address(path):
        if jax.process_count() > 1:
            raise CheckpointError(f"{url}: several processes save into a folder: copy it there")
        check_target(Path(path))
        return save_at(url, lambda here: save(model, here))
    path = Path(path).absolute()
    if model.prepared_for:
        what = "a prepared model is not saved: save the model that flaxvgg.prepare was given"
        raise CheckpointError(what)
    model = whole(model)
    header = _header(model)
    write = _safetensors_save if path.suffix == ".safetensors" else _orbax_save
    if not is_first():
        return _help(path, model, header)
    try:
        restore(followed(path))
        check_target(path)
        sweep(followed(path).parent)
        replace_whole(path, lambda target: write(Path(told_by_first(str(target))), model, header))
    except WriteError as error:
        raise CheckpointError(str(error)) from None
    meet(_SAVED)


def _help(path: Path, model: VGG, header: dict[str, Any]) -> None:
    """Take part in what the first of several processes writes: Orbax wants all of them."""
    target = Path(told_by_first(""))
    if path.suffix != ".safetensors":
        _orbax_save(target, model, header)
    meet(_SAVED)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = "highest",
) -> VGG:
    """The model that `save` wrote; `dtype` (default: as saved) and `precision` as in `vgg16`.

    The path may be an address. Raises CheckpointError where it holds no checkpoint of flaxvgg, or a
    damaged one; for an address also GoneError and RemoteError.

    >>> flaxvgg.save(model, "checkpoint")
    >>> flaxvgg.load("checkpoint").config.num_classes
    3
    """
    with brought(path) as here:
        found = Path(here).absolute()
        return read_whole(found, lambda: _load(found, dtype, precision), CheckpointError)


def _load(path: Path, dtype: DTypeLike | None, precision: jax.lax.PrecisionLike) -> VGG:
    header, arrays = _open(path)
    try:
        config = VGGConfig.from_json(header["config"])
        provenance = Provenance.from_json(header["provenance"])
        dtypes = [_floating(header[name]) for name in ("dtype", "param_dtype")]
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged, in its header: {error!r}") from None
    try:
        return build(
            config,
            arrays(config, header.get("checksums")),
            dtype=dtypes[0] if dtype is None else dtype,
            param_dtype=dtypes[1],
            precision=precision,
            provenance=provenance,
        )
    except MappingError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def is_checkpoint(path: Path) -> bool:
    """Whether the path holds a checkpoint that `save` wrote; only its header is looked at."""
    path = path.absolute()
    try:
        read_whole(path, lambda: _open(path), CheckpointError)
    except CheckpointError:
        return False
    return True


def check_target(path: Path) -> None:
    """Raise CheckpointError where no checkpoint can be saved.

    That is in a directory that does not exist; over a directory that is no checkpoint, or that
    holds other files too, which would be lost; and over a file where it is to be a directory.
    """
    is_file = path.suffix in _FILES
    try:
        if url := address(path):
            return check_place_at(url, is_file)
        kind = check_place(path)
    except WriteError as error:
        raise CheckpointError(str(error)) from None
    if kind == "file" and not is_file:
        raise CheckpointError(f"{path} is a file: choose another name for the checkpoint directory")
    if kind == "directory" and (is_file or not is_checkpoint(path)):
        raise CheckpointError(f"{path} is a directory and no checkpoint: choose another name")
    foreign = foreign_files(followed(path)) if kind == "directory" else []
    if foreign:
        more = f" and {len(foreign) - 3} more" if foreign[3:] else ""
        raise CheckpointError(
            f"{path} also holds {', '.join(foreign[:3])}{more}, which a save would delete: move "
            "that away, or choose another name"
        )
    if not is_file and not _is_text(followed(path)):
        raise CheckpointError(f"{path}: {_NO_TEXT}")


_FILES = (".safetensors", ".pth", ".pt")
_NO_TEXT = "Orbax needs names in UTF-8: choose another one, or a .safetensors file"


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(model: VGG) -> dict[str, Any]:
    conv = model.conv_stack.conv1_1
    return {
        "format": _FORMAT,
        "config": model.config.to_json(),
        "provenance": model.provenance.to_json(),
        "dtype": jnp.dtype(conv.dtype).name,
        "param_dtype": jnp.dtype(conv.param_dtype).name,
    }


# What a value of another type than was written runs into.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)


def _floating(name: object) -> np.dtype:
    if not isinstance(name, str) or not jnp.issubdtype(jnp.dtype(name), jnp.floating):
        raise ValueError(f"{name!r} is no floating-point dtype")
    return jnp.dtype(name)


def _checked_header(path: Path, header: Any) -> dict[str, Any]:
    if header is None:
        raise CheckpointError(
            f"{path} was not written by flaxvgg: convert it with flaxvgg convert {path} --out ..."
        )
    if not isinstance(header, dict) or "config" not in header:
        raise CheckpointError(f"{path} is damaged, in its header")
    if header.get("format") not in _FORMATS:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')}; this flaxvgg reads "
            f"{' and '.join(map(str, _FORMATS))}"
        )
    if header["format"] > 1 and header.get("checksum") != _header_checksum(header):
        raise CheckpointError(f"{path} is damaged: its header has a wrong checksum")
    return header


def _with_checksums(header: dict[str, Any], checksums: Mapping[str, str]) -> dict[str, Any]:
    header = header | {"checksums": dict(checksums)}
    return header | {"checksum": _header_checksum(header)}


def _header_checksum(header: Mapping[str, Any]) -> str:
    told = {name: value for name, value in header.items() if name != "checksum"}
    return checksum_of_text(json.dumps(told, sort_keys=True))


def _checked(
    path: Path, arrays: Iterable[tuple[str, np.ndarray]], expected: Any
) -> dict[str, np.ndarray]:
    """The arrays by name. Raises CheckpointError with those that differ from what was saved."""
    kept: dict[str, np.ndarray] = {}

    def keep() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in arrays:
            kept[name] = array
            yield name, array

    if expected is None:  # format 1
        return dict(arrays)
    found = checksums(keep())  # of each while the next one is read
    names = sorted(found.keys() | expected)
    wrong = [name for name in names if found.get(name) != expected.get(name)]
    if wrong:
        named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if wrong[3:] else "")
        raise CheckpointError(f"{path} is damaged: not what was saved: {named}")
    return kept


_Arrays = Callable[[VGGConfig, Any], dict[tuple[str, ...], Any]]


def _open(path: Path) -> tuple[dict[str, Any], _Arrays]:
    """The header of a checkpoint, and a function that reads its arrays."""
    try:
        restore(followed(path))
        kind = kind_of(followed(path))
    except WriteError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if not kind:
        raise CheckpointError(f"{path} does not exist")
    if kind == "other":
        raise CheckpointError(f"{path} is neither a file nor a directory")
    if kind == "directory":
        return _orbax_open(path)
    try:
        found = file_kind(path)
    except UnknownKind as error:
        raise CheckpointError(f"{path} {error}") from None
    if found != "safetensors":
        raise CheckpointError(
            f"{path} is no checkpoint of flaxvgg, but other weights ({found}): convert it with "
            f"flaxvgg convert {path} --out ..."
        )
    return _safetensors_open(path)


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
    table: dict[str, Any] = {}
    start, written = 0, {}
    for entry, dtype, _ in torch_stream(model):
        stop = start + math.prod(entry.torch_shape) * dtype.itemsize
        table[entry.torch] = {
            "dtype": _SAFETENSORS_DTYPES[dtype.name],
            "shape": entry.torch_shape,
            "data_offsets": (start, stop),
        }
        start, written[entry.torch] = stop, Checksum(dtype, entry.torch_shape)

    def contents() -> bytes:
        told = json.dumps(_with_checksums(header, {name: str(x) for name, x in written.items()}))
        text = json.dumps({"__metadata__": {"format": "pt", "flaxvgg": told}} | table).encode()
        text += b" " * (-len(text) % 8)  # the bytes begin at a multiple of 8
        return len(text).to_bytes(8, "little") + text

    with target.open("wb") as file:
        file.write(contents())  # room for them: the checksums come last, and take as much
        for entry, _, blocks in torch_stream(model):
            for block in blocks:
                written[entry.torch].add(block)
                file.write(block.view(np.uint8).data if block.ndim else block.tobytes())
        file.seek(0)
        file.write(contents())


def _safetensors_open(path: Path) -> tuple[dict[str, Any], _Arrays]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = parse_json((file.metadata() or {}).get("flaxvgg", "null"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, in its header: {error}") from None

    def arrays(config: VGGConfig, expected: Any) -> dict[tuple[str, ...], Any]:
        with safe_open(path, "numpy") as file:
            read = ((name, file.get_tensor(name)) for name in file.keys())
            return arrays_from_torch(config, _checked(path, read, expected))

    return _checked_header(path, header), arrays


def _orbax_save(target: Path, model: VGG, header: dict[str, Any]) -> None:
    from orbax.checkpoint import v1 as ocp

    arrays = model_arrays(model)
    if jax.process_count() > 1:  # as Orbax takes them that no process shares with another
        arrays = {path: np.asarray(array) for path, array in arrays.items()}
    values = ((".".join(path), np.asarray(array)) for path, array in arrays.items())
    header = _with_checksums(header, checksums(values))
    tree = nnx.traversals.unflatten_mapping(arrays)
    with together():
        try:
            ocp.save(target, tree, custom_metadata={"flaxvgg": header})
        except ValueError as error:
            raise os_error(error) from None


def _orbax_open(path: Path) -> tuple[dict[str, Any], _Arrays]:
    from orbax.checkpoint import v1 as ocp

    if not _is_text(path):
        raise CheckpointError(f"{path}: {_NO_TEXT}")
    try:  # ocp.is_orbax_checkpoint is true of any directory
        with alone():
            metadata = ocp.metadata(path)
        custom = shallow(metadata.custom_metadata or {})
    except ORBAX_DAMAGE as error:
        raise CheckpointError(
            f"{path} is no Orbax checkpoint, or a damaged one: {first_line(error)}"
        ) from None
    header = _checked_header(path, custom.get("flaxvgg"))

    def arrays(config: VGGConfig, expected: Any) -> dict[tuple[str, ...], Any]:
        # Read as NumPy arrays, which JAX adopts: restoring to JAX arrays takes 2.5 times as long.
        stored = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), metadata.metadata
        )
        try:
            with alone():
                found = dict(nnx.traversals.flatten_mapping(ocp.load(path, stored)))
        except ORBAX_DAMAGE as error:
            raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None
        _checked(path, ((".".join(name), array) for name, array in found.items()), expected)
        return found

    return header, arrays
