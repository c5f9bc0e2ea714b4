"""Zeros in a collection of photos: the totals, the spread over photos, and examples to look at."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from flaxvgg.files.foreign import shown
from flaxvgg.images.batches import stream_photos
from flaxvgg.images.loading import ImageError
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Provenance
from flaxvgg.sparsity.counting import (
    LayerCounts,
    count_images,
    counted_layers,
    total_counts,
)
from flaxvgg.sparsity.report import SparsityReport
from flaxvgg.versions import versions
from flaxvgg.watching import Watcher

_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Example:
    """One photo to look at: its pixels as the network was given them, and what it made of them.

    `maps` are all feature maps of one layer; `where` is, for some layers, the fraction of channels
    that are zero at each place.
    """

    photo: Path
    pixels: UInt8[np.ndarray, "h w 3"]
    maps: Float32[np.ndarray, "y x c"]
    where: dict[str, Float32[np.ndarray, "_ _"]]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What counting found in photos.

    `report` has the totals of all `photos` counted, `zeros` the fraction of zeros of each photo
    (N,) by layer. The `examples` are the first few photos, with the maps of the layer `mapped`.
    `problems` has a line for each photo that could not be read, and `left` is the number of photos
    that were not looked at, because somebody stopped the counting.
    """

    report: SparsityReport
    photos: tuple[Path, ...]
    zeros: dict[str, Float[np.ndarray, " n"]]
    examples: tuple[Example, ...]
    mapped: str
    problems: tuple[str, ...]
    left: int
    size: tuple[int, int]
    dtype: str
    provenance: Provenance

    @property
    def partial(self) -> bool:
        """Whether there are photos that nobody has looked at."""
        return self.left > 0

    @property
    def title(self) -> str:
        """What was counted, in a line, and whether it is only a part."""
        total = len(self.photos) + len(self.problems) + self.left
        many = "photo" if total == 1 else "photos"
        counted = f"partial: {len(self.photos)} of {total}" if self.partial else len(self.photos)
        height, width = self.size
        source = f"{self.report.arch}, {self.provenance.source}"
        return f"{source}: {counted} {many} at {height}x{width}"

    def to_json(self) -> dict[str, Any]:
        """A JSON value with everything but the examples."""
        return {
            "partial": self.partial,
            "photos_not_looked_at": self.left,
            "problems": list(map(shown, self.problems)),
            "size": list(self.size),
            "dtype": self.dtype,
            "sha256": self.provenance.sha256,
            "preprocessing": dataclasses.asdict(self.provenance.preprocessing),
            "versions": versions(),
            "photos": [shown(photo) for photo in self.photos],
            "zero_fraction_by_photo": {name: z.tolist() for name, z in self.zeros.items()},
            **self.report.to_json(),
        }


def survey_photos(
    model: VGG,
    photos: Sequence[Path],
    layers: Iterable[str] | None,
    size: tuple[int, int],
    stopped: Callable[[], bool] = lambda: False,
    watch: Watcher = Watcher(),
    each: Callable[[Example], None] = lambda example: None,
) -> Survey:
    """Count the zeros of all photos, or until `stopped()` after a batch.

    `each` is given every photo as an example, of which the survey keeps only the first few.

    `layers` are names as `VGG.activations` takes them, by default every ReLU and max pooling.
    Memory is constant but for a few numbers a photo. Raises ImageError where no photo can be read,
    ValueError for unknown layers.
    """
    names = counted_layers(model.config, layers)
    located = _located(model.config, names)
    mapped = located[-1]

    def look(model: VGG, images: Float[Array, "n h w 3"]) -> dict[str, Any]:
        # XLA finds that this is the forward pass of the counts, and runs it once.
        taps = model.activations(images, located)
        where = {name: jnp.mean(taps[name] == 0, axis=-1, dtype=jnp.float32) for name in located}
        maps = taps[mapped].astype(jnp.float32)
        return {"counts": count_images(model, images, names), "maps": maps, "where": where}

    report: SparsityReport | None = None
    zeros: list[dict[str, np.ndarray]] = []
    counted: list[Path] = []
    examples: list[Example] = []
    problems: list[str] = []
    for batch in stream_photos(look, model, photos, size, "counting", problems, watch):
        found = batch.outputs
        counts = {name: found["counts"][name] for name in names}  # jax.jit sorts the keys
        total = total_counts(model, counts)
        report = total if report is None else report + total
        zeros.append(zeros_by_photo(counts))
        counted += batch.photos
        for i, photo in enumerate(batch.photos):
            where = {name: shares[i] for name, shares in found["where"].items()}
            example = Example(photo, batch.pixels[i], found["maps"][i], where)
            each(example)
            if len(examples) < _EXAMPLES:
                examples.append(example)
        if stopped():
            break
    if report is None:
        raise ImageError(*problems)
    return Survey(
        report=report,
        photos=tuple(counted),
        zeros={name: np.concatenate([part[name] for part in zeros]) for name in zeros[0]},
        examples=tuple(examples),
        mapped=mapped,
        problems=tuple(problems),
        left=len(photos) - len(counted) - len(problems),
        size=size,
        dtype=np.dtype(model.conv_stack.conv1_1.dtype).name,
        provenance=model.provenance,
    )


def zeros_by_photo(counts: Mapping[str, LayerCounts]) -> dict[str, Float[np.ndarray, " n"]]:
    """The fraction of zeros of each photo (N,) by layer."""
    return {
        name: np.asarray(layer.zeros).sum(axis=1, dtype=np.int64)
        / (layer.values * layer.zeros.shape[1])
        for name, layer in counts.items()
    }


def _located(config: VGGConfig, layers: Sequence[str]) -> list[str]:
    """The layers whose zeros are located: the last ReLU of each block, or else its last layer.

    Of the layers asked for, where feature maps are among them.
    """
    maps = {layer.name: layer for layer in config.conv_stack}
    names = [name for name in layers if config.resolve(name) in maps]
    names = names or [layer.name for layer in config.conv_stack if layer.kind == "relu"]

    def rank(name: str) -> tuple[bool, int]:
        paper = config.resolve(name)
        return maps[paper].kind == "relu", config.layer_names.index(paper)

    # relu5_3 is in block 5. Of two in a block the later one in this order stays.
    blocks = {_digit(config.resolve(name)): name for name in sorted(names, key=rank)}
    return [blocks[block] for block in sorted(blocks)]


def _digit(name: str) -> str:
    return next(filter(str.isdigit, name))
