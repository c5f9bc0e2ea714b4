"""Archives of images: tar shards and zip files, damaged anywhere."""

import gzip
import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from flaxvgg.images.loading import ImageError
from flaxvgg.images.table_files import DatasetError
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming.source import find_source
from tests.fuzz.cases import Arrays, Seed, Target, in_place

_DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, ValueError)


def archive_targets() -> list[Target]:
    """Shards with class numbers beside the images, and zip files with folders for classes."""
    files = {f"{i:03}.png": _image(i) for i in range(3)}
    files |= {f"{i:03}.cls": str(2 * i).encode() for i in range(3)}
    shard = _tar(files)
    seeds = [
        Seed("shard.tar", shard),
        Seed("shard.tar.gz", gzip.compress(shard, mtime=0)),
        Seed("photos.zip", _zip({"cat/a.png": _image(3), "dog/b.png": _image(4)})),
    ]
    errors = (DatasetError, ImageError)
    return [Target("archive", 4, seeds, errors, _read, _truth, in_place)]


def _image(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (33 + number, 35), (40 * number, 9, 200)).save(file, "PNG")
    return file.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def _read(path: Path) -> Arrays:
    source = find_source(path)
    items = [source.read(i, None, PREPROCESSING["torchvision"]) for i in range(len(source))]
    assert all(item.problem or item.pixels.size for item in items)
    return {
        name.replace("/", "|"): item.pixels
        for name, item in zip(source.names, items, strict=True)
        if not item.problem
    }


def _truth(data: bytes, path: Path, whole: bytes) -> Arrays:
    """Every member as the standard library unpacks it, of those that are images."""
    found: dict[str, bytes] = {}
    if path.suffix == ".zip":  # what stands before a zip archive does no harm
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                try:
                    found[info.filename] = archive.read(info)
                except _DAMAGE:
                    found[info.filename] = b""
    else:
        plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            for member in archive:
                if member.isreg():
                    found[member.name] = plain[member.offset_data :][: member.size]
    images = {}
    for name, content in found.items():
        if not name.endswith(".png"):
            continue
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
                opened.verify()
            with Image.open(io.BytesIO(content)) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except (OSError, SyntaxError, ValueError):
            continue
        if min(pixels.shape[:2]) >= 32:
            images[name.removeprefix("./").replace("/", "|")] = pixels
    return images
