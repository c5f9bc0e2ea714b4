"""Weights in one file, or cut into several that an index names."""

from pathlib import Path

from flaxvgg.files.nesting import parse_json
from flaxvgg.network.provenance import WeightsError
from flaxvgg.weights.file_kinds import UnknownKind, file_kind, weights_in

_LONGEST = 255  # bytes of a file's name, on every file system


def files_of(path: Path) -> tuple[list[Path], set[str]]:
    """The path itself, or the files of the set that it names, and the tensors that are in them."""
    try:
        kind = file_kind(path)
        if kind == "folder":
            path = weights_in(path)
            kind = file_kind(path)
    except UnknownKind as error:
        raise WeightsError(f"{path} {error}") from None
    return _indexed(path) if kind == "index" else ([path], set())


def _indexed(path: Path) -> tuple[list[Path], set[str]]:
    """The files that an index names, which have to lie beside it, and what it says is in them."""
    try:
        where = parse_json(path.read_bytes())["weight_map"]
        names = sorted(set(where.values()))
        files = [path.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(
            f"{path} is no index of weights: name the .safetensors or .pth file itself"
        ) from None
    for name, file in zip(names, files, strict=True):
        if Path(name).name != name:
            raise WeightsError(f"{path} names {name!r}, which is no file beside it")
        if len(name.encode(errors="replace")) > _LONGEST or not file.is_file():
            raise WeightsError(f"{path} names {name!r:.300}, which is missing: download it too")
    if not files:
        raise WeightsError(f"{path} names no files")
    return files, set(where)
