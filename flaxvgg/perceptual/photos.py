"""Photos beside their references, one pair after the other: what `flaxvgg compare` does."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.files.addresses import address, folder_of
from flaxvgg.files.choices import choose
from flaxvgg.files.remote import open_file
from flaxvgg.images.loading import ImageError, load_pixels
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.perceptual.dists import dists
from flaxvgg.perceptual.lpips import lpips
from flaxvgg.perceptual.pairs import check_pair
from flaxvgg.watching import Watcher

METRICS = ("lpips", "dists", "psnr", "ssim")
SIMILARITIES = ("psnr", "ssim")  # larger is nearer
NETWORK_METRICS = {"lpips": lpips, "dists": dists}
PIXELS = (0, 255)
# Photos of a size are stretched to it, not cropped: all of them counts.
STRETCHED = dataclasses.replace(PREPROCESSING["pixels"], name="stretched", interpolation="bilinear")
Pair = tuple[Path, Path]  # a reference, and what is compared with it
Pixels = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Compared:
    """A photo and its reference as they were compared, and how far apart they are, by metric.

    `where` is the spatial LPIPS distance (h, w), if it was asked for.
    """

    reference: Path
    photo: Path
    values: dict[str, float]
    pixels: Pixels
    where: Float[np.ndarray, "h w"] | None = None


def parse_metrics(text: str) -> tuple[str, ...]:
    """Metrics of a text such as "lpips,psnr". Raises ValueError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}: {choose(name, METRICS)}")
    return names


def read_pairs(table: Path) -> list[Pair]:
    """The pairs of a CSV file with the columns `reference` and `image`: paths, from its folder on.

    Raises ValueError for another table, and RemoteError where it is behind an address.
    """
    if not address(table) and not table.is_file():
        raise ValueError(f"{table}: no such file: check the path")
    try:
        with open_file(table) as file:
            text = io.StringIO((file.read() or b"").decode("utf-8-sig"), newline="")
        rows = list(csv.DictReader(text, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: no CSV file in UTF-8: {error}") from None
    root = folder_of(table)
    for line, row in enumerate(rows, start=2):
        if not row.get("reference") or not row.get("image"):
            raise ValueError(
                f"{table}: line {line} has no reference or no image: the first line must be "
                "reference,image, and each other one two paths"
            )
    if not rows:
        raise ValueError(f"{table}: there are no pairs in it")
    return [(root / row["reference"], root / row["image"]) for row in rows]


def compare_photos(
    model: VGG,
    pairs: Sequence[Pair],
    metrics: Sequence[str],
    size: tuple[int, int] | None,
    problems: list[str],
    *,
    where: bool = False,
    watch: Watcher = Watcher(),
) -> Iterator[Compared]:
    """Each pair with its values, as soon as they are there, at `size`, or at their own for None.

    Photos are stretched to a size, not cropped: all of them count. Pairs that cannot be read, or
    compared, are left out and noted in `problems`. With `where` there is a map of each.
    """
    known: Path | None = None
    first = np.zeros((0, 0, 3), np.uint8)
    for reference, photo in watch.each(pairs, "comparing", len(pairs)):
        try:
            if known != reference:
                first, known = load_pixels(reference, size, STRETCHED), reference
            second = load_pixels(photo, size, STRETCHED)
            check_pair(first, second, PIXELS)
            values = {name: _measured(name, model, first, second) for name in metrics}
            maps = lpips(model, first, second, value_range=PIXELS, spatial=True) if where else None
        except ImageError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(f"{photo}: {error}")
        else:
            found = None if maps is None else np.asarray(maps)
            yield Compared(reference, photo, values, second, found)


def nearest_first(found: Sequence[Compared], metric: str) -> list[Compared]:
    """The pairs sorted by a metric; those that are not numbers come last."""
    sign = -1 if metric in SIMILARITIES else 1

    def key(one: Compared) -> tuple[bool, float]:
        value = sign * one.values[metric]
        return math.isnan(value), value

    return sorted(found, key=key)


def pixel_metric(name: str, a: Pixels, b: Pixels) -> float:
    """ "psnr" or "ssim", by scikit-image; the first is infinite for equal images."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    if name == "ssim":
        return float(structural_similarity(a, b, channel_axis=-1, data_range=255))
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(a, b, data_range=255))


def _measured(name: str, model: VGG, a: Pixels, b: Pixels) -> float:
    if name in NETWORK_METRICS:
        return float(NETWORK_METRICS[name](model, a, b, value_range=PIXELS))
    return pixel_metric(name, a, b)
