"""Image files in folders: which they are, which are hidden, and which look like photos but are not.

One walk for all who look for images. Linked folders are followed; a link to a folder that one is in
is not. Hidden files and folders are left alone, and with them those in which systems and programs
keep copies: .git, .ipynb_checkpoints, .thumbnails, __MACOSX.
"""

import collections
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxvgg.files.addresses import address
from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.remote import objects_below

SUFFIXES = {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"}
SUFFIXES |= {".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
TABLES = {".csv", ".parquet", ".tsv"}
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
# What people keep among their photos and Pillow does not read, or only the preview of.
_LIKE_PHOTOS = {".heic", ".heif", ".hif", ".jxl", ".svg", ".pdf", ".psd", ".eps", ".ai", ".xcf"}
_LIKE_PHOTOS |= {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}
_LIKE_PHOTOS |= {".exr", ".hdr", ".ico", ".jxr", ".tga"}
_COPIES = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}

# How files begin: of the formats that are read, and of others with the words for them.
_READ = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
_OTHERS = {
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"8BPS": "a Photoshop file",
    b"PK\x03\x04": "a zip archive, or an office document",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull gets the file itself)",
}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class ImageError(ValueError):
    """Images that cannot be used; `problems` has one line for each."""

    def __init__(self, *problems: str):
        self.problems = problems
        many = f"{len(problems)} problems with images\n  " + "\n  ".join(problems)
        super().__init__(problems[0] if len(problems) == 1 else many)


class Found(NamedTuple):
    """Images of a folder, sorted; how many files like photos were passed over, by suffix; problems.

    `problems` has a line for each folder that cannot be read.
    """

    paths: list[Path]
    passed: collections.Counter[str]
    problems: list[str]


class PassedOver(UserWarning):
    """Files that look like photos and cannot be read were left out of what was found."""


def find_images(paths: AnyPath | Iterable[AnyPath]) -> list[Path]:
    """The image files among files and folders, none of them twice.

    A file stays as it is, whatever its name; a folder gives the files in it, and in folders below,
    that are named like images, sorted (hidden ones are left alone). Warns of
    photos in formats that cannot be read, with their count. Raises ImageError with every path that
    does not exist or cannot be read, every folder without images, and every table of images.

    >>> [photo.name for photo in flaxvgg.find_images(["cat.jpg", "photos"])]
    ['cat.jpg', 'dog.png']
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for path in as_paths(paths):
        if url := address(path):
            problems.append(f"{url}: what is behind an address goes into a store (--out NAME.zarr)")
            continue
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {unreachable(error).replace('file:', 'file or folder:')}")
            continue
        if is_folder:
            inside = images_in(path)
            problems += inside.problems
            found |= dict.fromkeys(inside.paths)
        elif path.suffix.lower() in TABLES:
            problems.append(
                f"{path}: a table of images: it goes, alone, into a store (--out NAME.zarr)"
            )
        elif is_archive(path):
            problems.append(f"{path}: an archive of images: it goes into a store (--out NAME.zarr)")
        else:
            found[path] = None
    if problems:
        raise ImageError(*problems)
    return list(found)


def images_in(folder: Path, tell: bool = True) -> Found:
    """The images of one folder, with a problem where there are none.

    Where it should `tell`, it warns of what was passed over.
    """
    found = images_below(folder)
    if tell:
        tell_passed_over(folder, found.passed)
    if not found.paths and not found.problems:
        passed = f"; {passed_over(found.passed)}" if found.passed else ""
        suffixes = " ".join(sorted(SUFFIXES))
        found.problems.append(f"{folder}: no image in this folder ({suffixes}){passed}")
    return found


def tell_passed_over(folder: AnyPath, passed: Mapping[str, int]) -> None:
    """Warn of files in a folder that look like photos and were passed over, if there are any."""
    if passed:
        warnings.warn(f"{os.fspath(folder)}: {passed_over(passed)}", PassedOver, stacklevel=3)


def is_archive(path: Path) -> bool:
    """Whether a file is named like an archive of images (`flaxvgg.images.archives`)."""
    return path.name.lower().endswith(ARCHIVES)


def is_array_record(path: Path) -> bool:
    """Whether a file is named like one of ArrayRecord (`flaxvgg.images.array_records`).

    TFDS puts the number of a shard behind it: `train.array_record-00003-of-00064`.
    """
    return re.search(r"\.array_?record(-\d+-of-\d+)?$", path.name.lower()) is not None


def by_folder(names: Sequence[str]) -> tuple[list[int] | None, tuple[str, ...]]:
    """Class numbers and classes by the topmost folder of each image; none where one is in none."""
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    if None in folders:
        return None, ()
    classes = tuple(sorted(set(folders)))
    numbers = {name: i for i, name in enumerate(classes)}
    return [numbers[folder] for folder in folders], classes


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's photos or classes."""
    return name.startswith(".") or name in _COPIES


def images_below(folder: Path) -> Found:
    """The images in a folder and in all below it."""
    found = Found([], collections.Counter(), [])
    for entry in _files(os.fspath(folder), (), found.problems):
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in SUFFIXES or (not suffix and _begins_like_an_image(entry)):
            found.paths.append(Path(entry.path))
        elif suffix in _LIKE_PHOTOS:
            found.passed[suffix] += 1
    found.paths.sort()
    return found


def files_below(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """The files in a folder and in all below it that are wanted, sorted; none hidden.

    The folder may be an address.
    """
    if url := address(folder):
        names = [name for name, _ in objects_below(url) if wanted(Path(name))]
        return [folder / name for name in names if not any(map(is_hidden, name.split("/")))]
    return sorted(filter(wanted, (Path(x.path) for x in _files(os.fspath(folder), (), []))))


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without the hidden ones."""
    return sorted(p for p in folder.iterdir() if not is_hidden(p.name) and p.is_dir())


def passed_over(passed: Mapping[str, int]) -> str:
    """What was passed over, in words; empty where there was nothing."""
    if not passed:
        return ""
    ordered = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    count = sum(passed.values())
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in ordered)
    them = "it" if count == 1 else "them"
    files = "file" if count == 1 else "files"
    return f"{count} {files} passed over: {kinds} (convert {them} to JPEG or PNG)"


def kind_of(start: bytes) -> str:
    """What begins so, in words, where it is a kind that people keep among photos; else empty."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        return "a HEIC photo"
    head = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    return next((words for magic, words in _OTHERS.items() if head.startswith(magic)), "")


def unreachable(error: OSError | ValueError) -> str:
    """Why a path leads to no file that can be opened."""
    match error:
        case FileNotFoundError():
            return "no such file: check the path"
        case PermissionError():
            return f"cannot be read: {error.strerror}: change its rights, or its folder's"
        case OSError():
            return f"cannot be read: {error.strerror}"
        case _:
            return "no path: a NUL character is in it"


def as_paths(paths: AnyPath | Iterable[AnyPath]) -> list[Path]:
    found = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not found:
        raise ImageError("no paths were given: pass at least one image file")
    return found


def _files(
    folder: str, above: tuple[tuple[int, int], ...], problems: list[str]
) -> Iterator[os.DirEntry[str]]:
    """The files below a folder; `above` are the folders that one is in, to notice loops."""
    try:
        status = os.stat(folder)
        here = status.st_dev, status.st_ino
        if here in above:
            return
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        problems.append(f"{folder}: {unreachable(error)}")
        return
    for entry in listed:
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that cannot be followed is a file that cannot be read
            is_folder = False
        if is_folder:
            yield from _files(entry.path, (*above, here), problems)
        else:
            yield entry


def _begins_like_an_image(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_READ) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
