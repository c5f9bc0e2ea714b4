"""Folders as they are found on disks: hidden, linked, in circles, locked, and names of any bytes.

A folder is described by a line for each thing in it, and these lines are damaged as files are:

    i cat/1.png     an image, each of another colour
    t notes.png     something else under such a name
    d dog           a folder
    l more>cat      a symbolic link, also to a folder that it is in
    p pipe.png      a pipe: who opens it waits for ever
    x cat           may not be read any more (which does not keep root from it)
    h photo.heic    what a phone makes
"""

import contextlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

from flaxvgg.images.datasets import DatasetError, image_folder
from flaxvgg.images.finding import SUFFIXES, find_images
from flaxvgg.images.loading import ImageError
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming.source import find_source
from tests.fuzz.cases import Arrays, Seed, Target

_LINES, _LINKS = 40, 4
_DEEPEST = 300  # folders: Python 3.11 removes no more than some hundreds within each other
LONG = b"n" * 251
TREES = (
    b"i cat/1.png\ni cat/deep/2.png\ni dog/3.jpg\nt dog/4.gif\ni dog/photo\n",
    b"i cat/1.png\ni dog/2.png\ni .git/3.png\nd .ipynb_checkpoints\ni __MACOSX/4.png\ni cat/.5.png",
    b"i cat/1.png\ni dog/2.png\nl cat/more>dog\nl dog/round>.\nl dog/last.png>cat/1.png\n",
    b"i a/[b] $x$.png\ni a/caf\xe9.png\ni a/\x1b[31m.png\ni b/%s.png\ni b/ \xe2\x80\xae.png" % LONG,
    b"i cat/1.png\np cat/pipe.png\np cat/pipe\nh cat/2.heic\ni dog/3.png\nt dog/x.txt\n",
)


def folder_targets() -> list[Target]:
    """The three ways to look for images in a folder."""
    seeds = [Seed("tree", tree) for tree in TREES]
    errors = (ImageError, DatasetError)
    return [
        Target("folder", 4, seeds, errors, _read_images, _true_images, place_tree),
        Target("classes", 4, seeds, errors, _read_classes, _true_classes, place_tree),
        Target("source", 4, seeds, errors, _read_source, _true_source, place_tree),
    ]


def place_tree(folder: Path, name: str, data: bytes) -> Path:
    """Make what the lines describe."""
    root = folder / name
    root.mkdir()
    links = 0
    for number, line in enumerate(data.split(b"\n")[:_LINES]):
        given, _, to = line[2:].partition(b">")
        place, target = _below(root, given), _below(root, to)
        if not place:
            continue
        with contextlib.suppress(OSError):  # what no file system takes
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if line[:1] == b"l" and target and links < _LINKS:
                os.symlink(target, place)
                links += 1
            elif line[:1] == b"d":
                os.mkdir(place)
            elif line[:1] == b"p":
                os.mkfifo(place)
            elif line[:1] == b"x":
                os.chmod(place, 0)
            elif not os.path.lexists(place):
                Path(os.fsdecode(place)).write_bytes(_content(line[:1], number))
    return root


def _below(root: Path, name: bytes) -> bytes:
    """The path of a name in the folder, and of none outside; empty where there can be none."""
    base = os.fsencode(root)
    path = os.path.normpath(base + b"/" + name)
    possible = path.startswith(base) and b"\0" not in path and path.count(b"/") <= _DEEPEST
    return path if possible else b""


def _content(kind: bytes, number: int) -> bytes:
    if kind == b"i":
        file = io.BytesIO()
        Image.new("RGB", (40, 36), _colour(number)).save(file, "PNG")
        return file.getvalue()
    return b"\0\0\0\x18ftypheic" if kind == b"h" else b"no image"


def _colour(number: int) -> tuple[int, int, int]:
    return (5 * number % 256, 255 - number, 7)


def is_whole(path: Path) -> bool:
    """Whether a photo is there that can be read."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and path.read_bytes().startswith(b"\x89PNG")
    except OSError:
        return False


def true_images(root: Path) -> list[Path]:
    """The images in a folder, by other means. Raises OSError where one in it cannot be read."""
    found = []

    def walk(folder: str, above: frozenset[str]) -> None:
        here = os.path.realpath(folder)
        for name in () if here in above else os.listdir(folder):
            path = os.path.join(folder, name)
            if _is_hidden(name):
                continue
            if os.path.isdir(path):
                walk(path, above | {here})
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES or (not suffix and is_whole(Path(path))):
                found.append(Path(path))

    walk(str(root), frozenset())
    return sorted(found)


def _is_hidden(name: str) -> bool:
    kept = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
    return name.startswith(".") or name in kept


def as_text(*lines: object) -> np.ndarray:
    """Lines as an array."""
    return np.frombuffer("\0".join(map(str, lines)).encode("utf-8", "surrogateescape"), np.uint8)


def _sure(read, root: Path, true) -> Arrays:
    """What is read; what is refused must be no more than the other way finds a fault with."""
    try:
        return read(root)
    except (ImageError, DatasetError) as error:
        try:
            found = true(b"", root, b"")
        except (OSError, LookupError):
            raise error from None
        raise AssertionError(f"refused, and there are {found}") from None


def _read_images(root: Path) -> Arrays:
    return _sure(lambda root: {"names": as_text(*find_images(root))}, root, _true_images)


def _true_images(data: bytes, root: Path, whole: bytes) -> Arrays:
    return {"names": as_text(*_some(true_images(root)))}


def _some(found: list[Path]) -> list[Path]:
    if not found:
        raise LookupError("no images")
    return found


def _read_classes(root: Path) -> Arrays:
    def read(root: Path) -> Arrays:
        found = image_folder(root)
        names = [found.classes[row.argmax()] for row in found.labels]
        return {"names": as_text(*found.paths), "classes": as_text(*names)}

    return _sure(read, root, _true_classes)


def _true_classes(data: bytes, root: Path, whole: bytes) -> Arrays:
    names = [name for name in os.listdir(root) if os.path.isdir(root / name)]
    folders = sorted(root / name for name in names if not _is_hidden(name))
    found = [(path, folder.name) for folder in folders for path in _some(true_images(folder))]
    if not found:
        raise LookupError("no folders")
    paths, classes = zip(*found, strict=True)
    return {"names": as_text(*paths), "classes": as_text(*classes)}


def _read_source(root: Path) -> Arrays:
    def read(root: Path) -> Arrays:
        source = find_source(root)
        items = [source.read(i, None, PREPROCESSING["torchvision"]) for i in range(len(source))]
        colours = [x.pixels[0, 0] if not x.problem else [0, 0, 0] for x in items]
        assert all("\n" not in item.problem for item in items)
        labels = [] if source.labels is None else [source.classes[x] for x in source.labels]
        return {
            "names": as_text(*source.names),
            "classes": as_text(*labels),
            "colours": np.array(colours, np.uint8),
        }

    return _sure(read, root, _true_source)


def _true_source(data: bytes, root: Path, whole: bytes) -> Arrays:
    names = [path.relative_to(root) for path in _some(true_images(root))]
    inside = all(len(name.parts) > 1 for name in names)
    colours = []
    for name in names:
        with contextlib.ExitStack() as opened:
            whole_one = is_whole(root / name)
            image = opened.enter_context(Image.open(root / name)) if whole_one else None
            colours.append(image.getpixel((0, 0)) if image else (0, 0, 0))
    return {
        "names": as_text(*names),
        "classes": as_text(*(name.parts[0] for name in names if inside)),
        "colours": np.array(colours, np.uint8),
    }
