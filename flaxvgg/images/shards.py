"""Which files are the shards of one data set: by a pattern, by numbers in braces, or in a folder.

Shards are Parquet files, archives or ArrayRecord files. Where their names say how many there are,
as those of the Hugging Face hub and of TFDS do (`train-00003-of-00294.parquet`), one that is
missing is noticed.
"""

import collections
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxvgg.files.addresses import address
from flaxvgg.files.remote import matching
from flaxvgg.images.finding import files_below, is_archive, is_array_record
from flaxvgg.images.table_files import DatasetError

_SHARDS = (".parquet", ".tar")
_TFDS = re.compile(r"-\d+-of-\d+$")  # what TFDS puts behind the suffix
_MOST = 10**6  # shards: what a larger number says is not how many there are
_NUMBERED = re.compile(r"(?P<set>.*?)(?P<number>\d+)(-of-(?P<count>\d+)(-[0-9a-f]{16})?)?")


def written_out(paths: Sequence[Path]) -> list[Path]:
    """The paths, with those of shards written out that are given as one.

    `name-{000..012}.tar` is thirteen, as WebDataset has it; `train-*.parquet` all files that are
    called so, sorted. Raises DatasetError where no file is, and where one of a number is missing.
    """
    return [path for given in paths for path in _written_out(given)]


def _written_out(path: Path) -> Iterator[Path]:
    if not _may_be_shards(path) or path.exists():
        yield path
        return
    braces = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(path))
    if braces:
        before, first, last, after = braces.groups()
        for i in range(int(first), int(last) + 1):
            yield Path(f"{before}{i:0{len(first)}}{after}")
    elif glob.has_magic(str(path)):
        found = matching(path) if address(path) else sorted(map(Path, glob.glob(str(path))))
        if not found:
            raise DatasetError(path, ["no file is called so: check the pattern"])
        _check_whole(path, found)
        yield from found
    else:
        yield path


def shards_below(folder: Path) -> list[Path]:
    """The shards in a folder that has no images, and in those below it, sorted; [] without any.

    Raises DatasetError where they are of several sets, and where one of a number is missing.
    """
    found = files_below(folder, lambda x: x.name.endswith(_SHARDS) or is_array_record(x))
    sets: dict[tuple[Path, str, str], list[Path]] = collections.defaultdict(list)
    for path in found:
        numbered = _NUMBERED.fullmatch(_stem(path))
        name = numbered["set"] if numbered else path.stem
        sets[path.parent, name, _TFDS.sub("", path.suffix)].append(path)
    if len(sets) > 1:
        patterns = [
            os.path.join(
                parent,
                f"{name}*{suffix}{'*' if is_array_record(paths[0]) else ''}"
                if len(paths) > 1
                else paths[0].name,
            )
            for (parent, name, suffix), paths in sets.items()
        ]
        shown = ", ".join(patterns[:5]) + (", ..." if len(patterns) > 5 else "")
        raise DatasetError(folder, [f"shards of {len(sets)} sets in it: name one of {shown}"])
    if found:
        _check_whole(folder, found)
    return found


def _may_be_shards(path: Path) -> bool:
    """Whether a path, which may be a pattern of several, is named like shards."""
    name = path.name.lower()
    return is_archive(path) or path.suffix.lower() == ".parquet" or ".array" in name


def _stem(path: Path) -> str:
    """A shard's name without its suffix: with its number, wherever that stands."""
    return path.stem + "".join(_TFDS.findall(path.suffix))


def _check_whole(source: Path, found: Sequence[Path]) -> None:
    """Raise DatasetError where the names tell of shards that are not there."""
    numbered = [_NUMBERED.fullmatch(_stem(path)) for path in found]
    counts = {match["count"] for match in numbered if match}
    if len(counts) != 1 or None in counts or not all(numbered):
        return
    count = int(counts.pop())
    there = {int(match["number"]) for match in numbered if match}
    if len({match["set"] for match in numbered if match}) == 1 and len(there) < count <= _MOST:
        missing = [str(i) for i in range(count) if i not in there]
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        told = f"{len(there)} of {count} shards are there, and not {shown}"
        raise DatasetError(source, [f"{told}: get them, or name the others one by one"])
