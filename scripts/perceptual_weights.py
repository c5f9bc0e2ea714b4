"""python scripts/perceptual_weights.py: the weights of LPIPS and DISTS, as the package has them.

Reads the files of the installed packages lpips and torchmetrics, as they were published (by their
SHA-256), without torch and without executing their pickles, and writes
flaxvgg/perceptual/weights.safetensors.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxvgg.files.replacing import write_atomically
from flaxvgg.weights.published import sha256
from flaxvgg.weights.torch_files import MappedFile, read_torch_file

TARGET = Path(__file__).parents[1] / "flaxvgg" / "perceptual" / "weights.safetensors"
TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
CHANNELS = (64, 128, 256, 512, 512)


class Source(NamedTuple):
    """A file of a package, and its digest."""

    distribution: str
    version: str
    file: str
    sha256: str
    licence: str


SOURCES = {
    "lpips 0.1": Source(
        "lpips",
        "0.1.4",
        "lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "BSD-2-Clause",
    ),
    "lpips 0.0": Source(
        "lpips",
        "0.1.4",
        "lpips/weights/v0.0/vgg.pth",
        "b9e4236260c3dd988fc79d2a48d645d885afcbb21f9fd595e6744cf7419b582c",
        "BSD-2-Clause",
    ),
    "dists": Source(
        "torchmetrics",
        "1.9.0",
        "torchmetrics/functional/image/dists_models/weights.pt",
        "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        "MIT",
    ),
}


def read(source: Source) -> dict[str, np.ndarray]:
    """The arrays of a file, if it is the published one."""
    file = importlib.metadata.distribution(source.distribution).locate_file(source.file)
    path = Path(str(file))
    if sha256(path) != source.sha256:
        raise SystemExit(
            f"{path} is not that of {source.distribution} {source.version}: install that version"
        )
    tensors = read_torch_file(path, MappedFile(path))
    return {name: np.array(value, np.float32) for name, value in tensors.items()}


def main() -> None:
    """Write the file."""
    from safetensors.numpy import save_file

    arrays = {}
    for name, source in SOURCES.items():
        found = read(source)
        if name == "dists":
            arrays |= {f"{name} {part}": found[part].reshape(-1) for part in ("alpha", "beta")}
            continue
        for i, (tap, width) in enumerate(zip(TAPS, CHANNELS, strict=True)):
            arrays[f"{name} {tap}"] = found[f"lin{i}.model.1.weight"].reshape(width)
    told = {name: source._asdict() for name, source in SOURCES.items()}
    metadata = {"sources": json.dumps(told, sort_keys=True)}
    write_atomically(TARGET, lambda target: save_file(arrays, target, metadata))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, SHA-256 {sha256(TARGET)}")


if __name__ == "__main__":
    main()
