"""What streams: N images with names and labels, from folders, tables, archives and data sets."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from flaxvgg.files.addresses import address, below, folder_of
from flaxvgg.files.remote import THREADS, Object
from flaxvgg.images.archives import Archives
from flaxvgg.images.array_records import ArrayRecords
from flaxvgg.images.datasets import Box, is_pascal_voc, pascal_voc
from flaxvgg.images.finding import (
    SUFFIXES,
    TABLES,
    by_folder,
    images_below,
    is_archive,
    is_array_record,
)
from flaxvgg.images.fingerprint import UNKNOWN, content_of, content_of_file
from flaxvgg.images.hugging_face import SOURCE, read_dataset
from flaxvgg.images.label_tables import label_table
from flaxvgg.images.loading import AnyPath, ImageError, find_images, fit_image, open_turned, upright
from flaxvgg.images.objects import Deferred, Objects, images_below_address
from flaxvgg.images.orientation import orientation, upright_boxes
from flaxvgg.images.shards import shards_below, written_out
from flaxvgg.images.table_files import DatasetError
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.streaming.manifest import Manifest, labels_of, manifest_of, read_manifest

Labels = Int[np.ndarray, " n"] | Bool[np.ndarray, "n k"]


@runtime_checkable
class RandomAccess(Protocol):
    """What Grain calls a random access data source; its `MapDataset` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Item(NamedTuple):
    """One image as the network takes it, or a pair; with its label; or without pixels, a `problem`.

    `size` is the (height, width) that the image had before it was fitted, upright; `turned` the
    orientation (EXIF, 1 to 8) that it was stored in. `content` is what `flaxvgg.images.fingerprint`
    makes of its bytes: UNKNOWN where they could not be read, this time.
    """

    row: int
    pixels: UInt8[np.ndarray, "*pair h w 3"]
    size: tuple[int, int]
    label: Any
    problem: str
    content: int
    turned: int = 1


@dataclasses.dataclass(frozen=True)
class Source:
    """N images by number.

    `images[i]` is a path below `root`, or what `Source.of_grain` says. `names` are unique. `labels`
    are class numbers (N,), or (N, K) with a column for each class, or None; `classes` their names,
    where they are known. `boxes` has for each image those of each class, in pixels of the file,
    `box_sizes` the (height, width) of the image that they are said to be of, where that is said.
    `texts` is what a store is to note of each image besides its name, by array. `is_remote` says
    that images are behind addresses, and many can be waited for at once.
    """

    images: RandomAccess
    names: Sequence[str]
    root: Path | None = None
    labels: Labels | None = None
    classes: tuple[str, ...] = ()
    boxes: Sequence[Mapping[int, tuple[Box, ...]]] | None = None
    box_sizes: Sequence[tuple[int, int] | None] | None = None
    texts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    is_remote: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of_grain(
        cls,
        dataset: RandomAccess,
        names: Sequence[str] | None = None,
        classes: Sequence[str] = (),
    ) -> "Source":
        """A `grain.MapDataset`, or any sequence, of {"image": ..., "label": ...}.

        An image is 8-bit RGB (H, W, 3), a Pillow image, the bytes of an image file, or a path. A
        label is a class number, or a vector with an entry for each class, or left out. Names are
        the images' numbers, unless they are given. Raises ValueError for another kind of element.
        """
        if not len(dataset):
            raise ValueError("the data set is empty")
        first = dataset[0]
        if not isinstance(first, Mapping) or "image" not in first:
            raise ValueError('elements must be {"image": ..., "label": ...}')
        found = [str(i) for i in range(len(dataset))] if names is None else list(names)
        if len(found) != len(dataset) or len(set(found)) != len(found):
            raise ValueError(f"names must be unique, and one for each of {len(dataset)} images")
        return cls(dataset, found, classes=tuple(classes))

    @classmethod
    def of_hugging_face(cls, dataset: Any) -> "Source":
        """A `datasets.Dataset`: its images as they are in files, labels and names of classes.

        The image is in the column `image`, or the only one of that type; the label in `label` or
        `labels`, or the only `ClassLabel`. Names are the paths that the data set has of its images,
        or numbers. Raises DatasetError for what is none, such as all splits at once.
        """
        table = label_table(SOURCE, read_dataset(dataset))
        return _listed(manifest_of(SOURCE, table), Path.cwd())

    @property
    def threads(self) -> int:
        """How many threads read at once."""
        return THREADS if self.is_remote else os.cpu_count() or 1

    @property
    def label_shape(self) -> tuple[int, ...] | None:
        """() for one class an image, (K,) for any of K classes, None for no labels."""
        if self.labels is not None:
            return self.labels.shape[1:]
        if isinstance(self.images, ArrayRecords):
            return self.images.label_shape
        try:
            first = None if self.root is not None else self.images[0].get("label")
        except ImageError:  # a table's, which has no labels there
            return None
        return None if first is None else np.shape(first)

    def read(self, row: int, size: tuple[int, int] | None, recipe: Preprocessing) -> Item:
        """One image at `size` = (H, W), or at its own for None."""
        nothing = np.zeros((0, 0, 3), np.uint8)
        known = None if self.labels is None else self.labels[row]
        try:
            element, own_label = self._element(row)
        except ImageError as error:  # of the file that holds many of them
            return Item(row, nothing, (0, 0), known, str(error), UNKNOWN)
        label = own_label if self.labels is None else known
        content = UNKNOWN
        try:
            if isinstance(element, Deferred):
                element, content = element.fetch()
            else:
                content = _content(element, own_label)
            image, turned = _opened(element)
            pixels = fit_image(image, size, recipe)
            if content == UNKNOWN and isinstance(element, str | os.PathLike):
                raise ImageError("cannot be read: it could be only for a moment")
        except ImageError as error:
            # The store has the name already, and is the same wherever the images lie.
            prefix = "image" if isinstance(element, bytes) else element
            problem = str(error).removeprefix(f"{prefix}: ")
            if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
                content = UNKNOWN  # the system gave nothing, whatever is in the file
            return Item(row, nothing, (0, 0), label, problem, content)
        return Item(row, pixels, (image.height, image.width), label, "", content, turned)

    def content(self, row: int) -> int:
        """The content of an image as it is now, and of the label that comes with it."""
        try:
            return _content(*self._element(row))
        except ImageError:
            return UNKNOWN

    def _element(self, row: int) -> tuple[Any, Any]:
        """What holds an image: a path, or what a data set gives, with the label given there."""
        element = self.images[row]
        if self.root is not None:
            url = below(self.root, element)
            return (Deferred(Object(url)) if url else self.root / element), None
        if isinstance(element, Mapping):
            return element["image"], element.get("label")
        return element, None

    def boxes_on(self, item: Item, label: int) -> Int[np.ndarray, "g 4"]:
        """The boxes of a class in an image that was read, as they lie on it upright, unfitted."""
        if self.boxes is None:
            raise ValueError("there are no boxes")
        said = None if self.box_sizes is None else self.box_sizes[item.row]
        given = self.boxes[item.row]
        # All of them at once: one alone may be in the stored image by chance.
        all_boxes = np.array([box for found in given.values() for box in found])
        turned = upright_boxes(all_boxes, item.size, item.turned, said)
        return turned[[label == x for x, found in given.items() for _ in found]]


def find_source(paths: AnyPath | Sequence[AnyPath]) -> Source:
    """The images of a folder, of a manifest, of archives, or of photos and folders of photos.

    A folder of folders gives labels: those at the top name the classes. A folder that has
    `Annotations` and `JPEGImages` is Pascal VOC's (trainval), with boxes. A manifest is a .csv,
    .tsv or .parquet file (`flaxvgg.images.label_tables`). Parquet files may hold the images
    themselves, in one file or in several. An archive is a .tar, .tar.gz or .zip file
    (`flaxvgg.images.archives`), or several: folders in it name classes as well, or .cls files give
    their numbers. ArrayRecord files may be those of TFDS (`flaxvgg.images.array_records`). Shards
    are given one by one, as `train-*.parquet` or `train-{000..146}.tar`, or by their folder. Each
    but ArrayRecord files may be an address, s3://, gs:// or https://, and a manifest may list
    addresses. Raises ImageError where there are no images, DatasetError for a manifest, a shard or
    an archive that cannot be used, GoneError and RemoteError for addresses.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(p) for p in paths]
    given = written_out(given)
    found = _find(given)
    return dataclasses.replace(found, is_remote=True) if any(map(address, given)) else found


def _find(given: list[Path]) -> Source:
    if any(map(is_archive, given)):
        return _archives(given)
    if given and all(map(is_array_record, given)):
        records = ArrayRecords(given)  # their labels and boxes are read with them
        return Source(records, records.names, None, None, records.classes, records.boxes)
    suffixes = {"/" if path.is_dir() else path.suffix.lower() for path in given}
    if suffixes == {".parquet"} or (len(given) == 1 and suffixes <= TABLES):
        return _listed(read_manifest(*given), folder_of(given[0]))
    return _objects(given) if any(map(address, given)) else _photos(given)


def _listed(manifest: Manifest, root: Path) -> Source:
    """What a table lists; where the images are not inside it, they are below `root`."""
    names = list(manifest.images)
    told = manifest.labels, manifest.classes, manifest.boxes
    if manifest.inside is not None:
        return Source(manifest.inside, names, None, *told)
    return Source(names, names, root, *told, is_remote=any(map(address, names)))


def _photos(given: list[Path]) -> Source:
    root = given[0].absolute() if given else Path.cwd()
    if len(given) != 1 or not root.is_dir():
        names = [str(path) for path in find_images(given)]
        return Source(names, names, Path.cwd())
    if is_pascal_voc(root):
        voc = pascal_voc(root)
        names = [path.name for path in voc.paths]
        told = voc.labels.astype(bool), voc.classes, voc.boxes, voc.sizes
        return Source(names, names, root / "JPEGImages", *told)
    try:
        names = [path.relative_to(root).as_posix() for path in find_images(root)]
    except ImageError:
        shards = [] if images_below(root).paths else shards_below(root)
        if not shards:
            raise
        return find_source(shards)
    return Source(names, names, root, *_labels_by_folder(names))


def _labels_by_folder(names: list[str]) -> tuple[Int[np.ndarray, " n"] | None, tuple[str, ...]]:
    numbers, classes = by_folder(names)
    return None if numbers is None else np.array(numbers, np.int32), classes


def _objects(given: list[Path]) -> Source:
    """Images, or folders of them, behind addresses."""
    urls = [address(path) for path in given]
    if None in urls:
        raise ImageError(f"{given[urls.index(None)]}: what is on this machine goes alone")
    if len(given) == 1 and given[0].suffix.lower() not in SUFFIXES:
        try:
            names, images = images_below_address(str(urls[0]))
        except ImageError:
            shards = shards_below(given[0])
            if not shards:
                raise
            return _find(shards)
        return Source(images, names, None, *_labels_by_folder(names))
    names = [str(url) for url in urls]
    return Source(Objects(list(map(Object, names))), names)


def _archives(given: list[Path]) -> Source:
    """Images of archives. Raises DatasetError where something else is among them."""
    others = [path for path in given if not is_archive(path)]
    if others:
        raise DatasetError(others[0], ["an archive goes with archives alone, not with this"])
    found = Archives(given)
    numbers, classes = found.classes()
    labels = None if numbers is None else labels_of(given[0], numbers, len(classes))
    return Source(found, found.names, None, labels, classes)


def _content(element: Any, label: Any) -> int:
    """The content of what holds an image; UNKNOWN where it cannot be read."""
    try:
        match element:
            case np.ndarray() if element.dtype.hasobject:
                return UNKNOWN
            case bytes() | np.ndarray():
                return content_of(element, label)
            case Image.Image():
                return content_of(np.asarray(_opened(element)[0]), label)
            case Deferred():
                return element.content()
            case str() | os.PathLike():
                data = content_of_file(element).to_bytes(8, "little")
                return content_of(data, label)
    except (OSError, ValueError):  # among them ImageError, and names that can be none
        pass
    return UNKNOWN


def _opened(image: Any) -> tuple[Image.Image, int]:
    """An upright RGB image of what a data set may hold, and the orientation it was stored in."""
    match image:
        case np.ndarray():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ImageError(f"8-bit RGB (H, W, 3) is needed, not {image.dtype} {image.shape}")
            return Image.fromarray(image), 1
        case Image.Image():
            try:
                turned = orientation(image)
                return upright(image.copy()), turned
            except OSError as error:
                raise ImageError(f"damaged or truncated ({error}): get it again") from error
        case _:
            return open_turned(image)
