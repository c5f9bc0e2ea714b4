"""What a run is trained on: every image, its classes and its content, in data.csv beside it.

A run that goes on has to go on with the same images; what differs is said by name.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flaxvgg.files.remote import THREADS
from flaxvgg.files.threads import in_threads
from flaxvgg.images.datasets import DatasetError, LabelledImages
from flaxvgg.images.fingerprint import UNKNOWN, Known, content_of_photo, relative_name, what_differs
from flaxvgg.images.inside import Inside
from flaxvgg.images.loading import ImageError, load_pixels
from flaxvgg.images.spooled import Fetched
from flaxvgg.network.processes import gathered, own_part
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.training.data import check_photo
from flaxvgg.training.settings import Run
from flaxvgg.watching import Watcher

_COLUMNS = ("part", "image", "labels", "content")


class Entry(NamedTuple):
    """An image: of the part "train" or "validation", by its path below the data set's folder."""

    part: str
    image: str
    known: Known


def take_inventory(
    run: Run,
    train: LabelledImages,
    validation: LabelledImages,
    recipe: Preprocessing,
    before: Iterable[Entry] = (),
    watch: Watcher = Watcher(),
) -> list[Entry]:
    """Every image of a run, once each that is not among those of `before` has been decoded.

    All processors read, of several processes each its part. Raises DatasetError with all images
    that cannot be trained or validated on, of several processes with those of its part.
    """
    seen = {entry.known.content for entry in before} - {UNKNOWN}

    def look(job: tuple[str, Path | Inside]) -> tuple[int, str]:
        part, path = job
        content = UNKNOWN
        try:
            content = content_of_photo(path)
            if content not in seen:
                if part == "train":
                    check_photo(path, run.data, recipe)
                else:
                    load_pixels(path, run.data.size, recipe)
        except ImageError as error:
            return content, f"{path}: {str(error).removeprefix(f'{path}: ')}"
        except OSError as error:
            return content, f"{path}: cannot be read: {error.strerror}"
        return content, ""

    jobs = [("train", path) for path in train.paths] + [
        ("validation", path) for path in validation.paths
    ]
    labels = [*_labels(train), *_labels(validation)]
    entries, problems = [], []
    own = [jobs[i] for i in own_part(len(jobs))]
    waited_for = any(isinstance(x, Inside) and isinstance(x.holds, Fetched) for _, x in own)
    threads = THREADS if waited_for else None
    looked = list(watch.each(in_threads(look, own, threads), "checking photos", len(own)))
    found = [x for part in gathered(json.dumps(looked).encode()) for x in json.loads(part)]
    for (part, path), named, (content, problem) in zip(jobs, labels, found, strict=True):
        if problem:
            problems.append(problem)
        root = (
            run.data.train
            if part == "train" or run.data.validation is None
            else run.data.validation
        )
        name = _name(path, root if root.is_dir() else root.parent)
        entries.append(Entry(part, name, Known(content, named)))
    if problems:
        raise DatasetError(run.data.train, problems)
    return entries


def _name(photo: Path | Inside, root: Path) -> str:
    return photo.name if isinstance(photo, Inside) else relative_name(photo, root)


def _labels(images: LabelledImages) -> list[tuple[str, ...]]:
    """The names of each image's classes."""
    return [
        tuple(name for name, there in zip(images.classes, row, strict=True) if there)
        for row in images.labels
    ]


def to_csv(entries: Iterable[Entry]) -> bytes:
    """data.csv: equal for the same images with the same labels and contents."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for part, image, known in entries:
        writer.writerow([part, image, ";".join(known.labels), f"{known.content:016x}"])
    return file.getvalue().encode()


def read_csv(path: Path) -> list[Entry]:
    """The images of a run from before; none where data.csv is missing or no such table."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        return [
            Entry(
                row["part"],
                row["image"],
                Known(int(row["content"], 16), tuple(filter(None, row["labels"].split(";")))),
            )
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        return []


def digest(entries: Iterable[Entry]) -> str:
    """What stands for all images of a run in its checkpoints."""
    return hashlib.sha256(to_csv(entries)).hexdigest()


def differences(before: Iterable[Entry], now: Iterable[Entry]) -> str:
    """In words, how the images differ; which of them are held out does not matter."""
    before, now = list(before), list(now)
    if not (_has_names_twice(before) or _has_names_twice(now)):
        return what_differs(_by_name(before), _by_name(now))
    told = []
    for part in "train", "validation":  # of folders of their own, in which names are alike
        of_part = [_by_name(x for x in entries if x.part == part) for entries in (before, now)]
        found = what_differs(*of_part)
        told += [f"to {part} on, {found}"] if found else []
    return "; ".join(told)


def _has_names_twice(entries: list[Entry]) -> bool:
    return len(_by_name(entries)) < len(entries)


def _by_name(entries: Iterable[Entry]) -> dict[str, Known]:
    return {entry.image: entry.known for entry in entries}
