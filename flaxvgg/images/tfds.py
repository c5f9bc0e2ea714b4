"""What TFDS notes beside the records of a data set: `features.json`, and names of classes.

    imagenet/5.1.0/features.json                     which feature is what
    imagenet/5.1.0/label.labels.txt                  a name in each line
    imagenet/5.1.0/imagenet-train.array_record-00000-of-01024

A feature within another has both names with a slash between them (`objects/bbox`), and a hyphen in
the name of its file (`objects-label.labels.txt`). A bounding box is (ymin, xmin, ymax, xmax) in
parts of the image's height and width. (https://www.tensorflow.org/datasets/features)
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flaxvgg.files.nesting import parse_json
from flaxvgg.images.table_files import DatasetError

Kind = Literal["image", "label", "box"]


class _Feature(NamedTuple):
    """A feature that is of use: its key in a record, what it is, and how many classes it has.

    `listed` says whether a record may have any number of it.
    """

    key: str
    kind: Kind
    listed: bool
    classes: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """Under which keys a record has its image, its classes, and its boxes with theirs.

    Keys are empty where there is nothing; `classes` are the names of the class numbers, of which
    an image may have `several`.
    """

    image: str = "image"
    label: str = "label"
    box: str = ""
    box_label: str = ""
    classes: tuple[str, ...] = ()
    several: bool = False

    @property
    def difficult(self) -> str:
        """The key that tells of the objects that an evaluation leaves out, as Pascal VOC's does."""
        return f"{_above(self.box)}is_difficult"


def description_in(folder: Path) -> Description | None:
    """What `features.json` in a folder says; None where there is none. Raises DatasetError."""
    path = folder / "features.json"
    try:
        told = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DatasetError(path, [f"it cannot be read ({error}): get it again"]) from None
    try:
        found = list(_features(_content(told)))
    except (LookupError, TypeError, AttributeError, ValueError):
        raise DatasetError(path, ["it describes no features of TFDS: get it again"]) from None
    image = _chosen(found, "image", ("image",))
    if image is None:
        raise DatasetError(path, ["no feature `image` in it, and not one image alone"])
    box = _chosen(found, "box", ())
    of_box = [x for x in found if box and x.kind == "label" and _above(x.key) == _above(box.key)]
    box_label = of_box[0] if len(of_box) == 1 else None
    label = _chosen([x for x in found if x not in of_box], "label", ("label", "labels"))
    named = label or box_label
    return Description(
        image.key,
        label.key if label else "",
        box.key if box and box_label else "",
        box_label.key if box_label else "",
        _names(folder, named) if named else (),
        bool(named and named.listed),
    )


def _content(told: Any) -> Mapping[str, Any]:
    """The features by name; older files have them as text within."""
    if "content" in told:
        content = told["content"]
        return (json.loads(content) if isinstance(content, str) else content)["features"]
    return told["featuresDict"]["features"]


def _features(told: Mapping[str, Any], above: str = "", listed: bool = False) -> Iterator[_Feature]:
    for name, given in told.items():
        key, feature, is_listed = above + name, given, listed
        while "sequence" in feature:
            feature, is_listed = feature["sequence"]["feature"], True
        if "featuresDict" in feature:
            yield from _features(feature["featuresDict"]["features"], f"{key}/", is_listed)
        elif "image" in feature:
            yield _Feature(key, "image", is_listed)
        elif "classLabel" in feature:
            count = int(feature["classLabel"].get("numClasses", 0))
            yield _Feature(key, "label", is_listed, count)
        elif str(feature.get("pythonClassName")).endswith("BBoxFeature"):
            yield _Feature(key, "box", is_listed)


def _chosen(found: list[_Feature], kind: Kind, names: tuple[str, ...]) -> _Feature | None:
    """The feature of this kind with one of the names, or the only one."""
    of_kind = [x for x in found if x.kind == kind]
    named = [x for x in of_kind if x.key in names]
    return named[0] if named else of_kind[0] if len(of_kind) == 1 else None


def _above(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _names(folder: Path, feature: _Feature) -> tuple[str, ...]:
    path = folder / f"{feature.key.replace('/', '-')}.labels.txt"
    try:
        found = [line.strip() for line in path.read_text("utf-8").split("\n")]
    except FileNotFoundError:
        return tuple(map(str, range(feature.classes)))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(path, [f"it cannot be read ({error}): get it again"]) from None
    return tuple(filter(None, found))
