"""The counts of a whole data set: what adds up, and how it is read."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxvgg.drawn import Drawn, has_values
from flaxvgg.network.config import VGGConfig
from flaxvgg.sparsity.exact import FloatSum, add_counts, add_floats, count_to_host, float_to_host


class Totals(NamedTuple):
    """Sums over images in the digits of `flaxvgg.sparsity.exact`, one column a count, in order.

    `counts` has the images, each layer's values, then zeros and silent of all channels of all
    layers, negatives and zeros in front of all channels of the ReLUs. `floats` has the sums in
    front of these, and the squares; `largest` is that of all channels of all layers.
    """

    counts: Int[Array, "k counts"]
    floats: FloatSum
    largest: Float[Array, " channels"]


@jax.jit
def _add(a: Totals, b: Totals) -> Totals:
    return Totals(
        counts=add_counts(a.counts, b.counts),
        floats=add_floats(a.floats, b.floats),
        largest=jnp.maximum(a.largest, b.largest),
    )


class LayerSummary(NamedTuple):
    """What is zero in one layer over all images counted: arrays of one entry a channel.

    `values` is how many values were seen, `zeros` how many of them are exactly 0, `silent` the
    number of images in which the channel is zero everywhere, `largest` the largest value. For a
    ReLU, `negatives_before` and `zeros_before` count the values in front of it that are below 0
    and exactly 0; `sum_before` and `square_before` are their sum and sum of squares. They are None
    for other layers. Counts are int64, sums float64.
    """

    name: str
    kind: str
    images: int
    values: Int[np.ndarray, " c"]
    zeros: Int[np.ndarray, " c"]
    silent: Int[np.ndarray, " c"]
    largest: Float[np.ndarray, " c"]
    negatives_before: Int[np.ndarray, " c"] | None = None
    zeros_before: Int[np.ndarray, " c"] | None = None
    sum_before: Float[np.ndarray, " c"] | None = None
    square_before: Float[np.ndarray, " c"] | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.zeros)

    @property
    def zero_fraction(self) -> float:
        """The fraction of all values that is exactly zero."""
        return float(self.zeros.sum() / self.values.sum())

    @property
    def dead(self) -> Bool[np.ndarray, " c"]:
        """Channels that are zero everywhere in every image."""
        return self.silent == self.images

    @property
    def firing(self) -> Float[np.ndarray, " c"]:
        """The fraction of images in which each channel is not zero everywhere."""
        return 1 - self.silent / self.images

    def row(self) -> dict[str, Any]:
        """The layer as plain numbers, summed over channels.

        `silent` is the mean number of channels that are silent in an image, `dead` the number of
        those that are in every one.
        """
        row: dict[str, Any] = {
            "layer": self.name,
            "kind": self.kind,
            "channels": self.channels,
            "images": self.images,
            "values": int(self.values.sum()),
            "zeros": int(self.zeros.sum()),
            "zero_fraction": self.zero_fraction,
            "silent": float(self.silent.sum() / self.images),
            "dead": int(self.dead.sum()),
            "largest": float(self.largest.max()),
        }
        for name in ("negatives_before", "zeros_before", "sum_before", "square_before"):
            array = getattr(self, name)
            row[name] = None if array is None else array.sum().item()
        return row

    def by_channel(self) -> dict[str, np.ndarray]:
        """The arrays by name, those that are None left out."""
        return {k: v for k, v in self._asdict().items() if isinstance(v, np.ndarray)}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["totals"],
    meta_fields=["config", "source", "layers", "channels"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class SparsityReport(Drawn):
    """What is zero by layer and channel, over all images counted; a pytree.

    `report.layer(name)` reads a layer, `for layer in report` reads all; `report + other` is exact.
    `layers` are the names as they were asked for, `channels` how many each has.

    >>> report = flaxvgg.measure_sparsity(model, images) + flaxvgg.measure_sparsity(model, images)
    >>> report.images, report.layer("pool5").name
    (4, 'pool5')
    """

    totals: Totals
    config: VGGConfig
    source: str
    layers: tuple[str, ...]
    channels: tuple[int, ...]

    def __repr__(self) -> str:
        about = f"{self.arch}, {self.source}"
        if not has_values(self):
            return f"SparsityReport({about}: {', '.join(self.layers)})"
        zeros = [f"{layer.name} {layer.zero_fraction:.1%}" for layer in self]
        some = zeros if len(zeros) < 5 else [*zeros[:2], "...", *zeros[-2:]]
        return f"SparsityReport({about}: {self.images:,} images; zeros {', '.join(some)})"

    def __add__(self, other: "SparsityReport") -> "SparsityReport":
        """The report of both sets of images, in any order. Raises ValueError for other layers."""
        if not isinstance(other, SparsityReport):
            return NotImplemented
        if jax.tree.structure(self) != jax.tree.structure(other):  # which holds all but the totals
            raise ValueError(
                f"reports add up only of the same network and layers: {self.arch} "
                f"({self.source}) with {', '.join(self.layers)}; {other.arch} ({other.source}) "
                f"with {', '.join(other.layers)}"
            )
        totals = jax.tree.map(_beside, other.totals, self.totals)
        return dataclasses.replace(self, totals=_add(self.totals, totals))

    def __radd__(self, other: int) -> "SparsityReport":
        """0 + report, so that `sum` works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __iter__(self) -> Iterator[LayerSummary]:
        """Every layer, in the order asked for."""
        return iter(self._summaries)

    @property
    def arch(self) -> str:
        """The architecture, e.g. `vgg16`."""
        return self.config.arch

    @property
    def images(self) -> int:
        """Number of images counted."""
        return self._summaries[0].images

    def layer(self, name: str) -> LayerSummary:
        """One layer by any of its names. Raises ValueError for one that was not counted."""
        if name in self.layers:
            return self._summaries[self.layers.index(name)]
        paper = self.config.resolve(name)
        for summary in self:
            if self.config.resolve(summary.name) == paper:
                return summary
        raise ValueError(f"{name} was not counted: choose from {', '.join(self.layers)}")

    @cached_property
    def _summaries(self) -> tuple[LayerSummary, ...]:
        """The totals on the host, cut into layers in the order in which `Totals` has them."""
        kinds = {layer.name: layer.kind for layer in self.config.layers}
        kind = [kinds[self.config.resolve(name)] for name in self.layers]
        widths = self.channels
        relus = [w if k == "relu" else 0 for w, k in zip(widths, kind, strict=True)]
        ones = [1] * len(widths)
        counts = _cut(count_to_host(self.totals.counts), [1], ones, widths, widths, relus, relus)
        floats = _cut(float_to_host(self.totals.floats), relus, relus)
        (largest,) = _cut(np.asarray(self.totals.largest), widths)
        (images,), values, zeros, silent, negatives, zeros_before = counts
        summaries = []
        for i, name in enumerate(self.layers):
            summary = LayerSummary(
                name=name,
                kind=kind[i],
                images=int(images[0]),
                values=np.full_like(zeros[i], values[i][0]),
                zeros=zeros[i],
                silent=silent[i],
                largest=largest[i],
            )
            if kind[i] == "relu":
                summary = summary._replace(
                    negatives_before=negatives[i],
                    zeros_before=zeros_before[i],
                    sum_before=floats[0][i],
                    square_before=floats[1][i],
                )
            summaries.append(summary)
        return tuple(summaries)

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer, of plain numbers, as `pandas.DataFrame` takes them."""
        return [layer.row() for layer in self]

    def to_json(self) -> dict[str, Any]:
        """A JSON value: `rows`, and each layer's counts by channel.

        Numbers that JSON does not know are the texts "nan", "inf" and "-inf".
        """
        layers = [
            layer.row() | {"by_channel": {k: v.tolist() for k, v in layer.by_channel().items()}}
            for layer in self
        ]
        report = {"arch": self.arch, "source": self.source, "images": self.images}
        return _as_json(report | {"layers": layers})

    def to_markdown(self) -> str:
        """A table with one row a layer."""
        lines = [
            "| layer | channels | zeros | of | negative before | zero before "
            "| channels silent in an image | in all | largest |",
            "|---|" + "---:|" * 8,
        ]
        for row in self.rows():
            before = ("", "")
            if row["negatives_before"] is not None:
                before = (
                    f"{row['negatives_before'] / row['values']:.2%}",
                    f"{row['zeros_before']:,}",
                )
            cells = [
                row["layer"],
                f"{row['channels']}",
                f"{row['zero_fraction']:.2%}",
                f"{row['values']:,}",
                *before,
                f"{row['silent']:.1f}",
                f"{row['dead']}",
                f"{row['largest']:.4g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _cut(array: np.ndarray, *parts: Sequence[int]) -> list[list[np.ndarray]]:
    """The array cut into pieces of these widths, one behind the other, part by part."""
    pieces = iter(np.split(array, np.cumsum([width for part in parts for width in part])))
    return [[next(pieces) for _ in part] for part in parts]


def _beside(array: Array, other: Array) -> Array:
    """The array on the devices of the other one, where both are known already."""
    if isinstance(array, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return array
    return jax.device_put(array, other.sharding)


def _as_json(value: Any) -> Any:
    match value:
        case dict():
            return {key: _as_json(item) for key, item in value.items()}
        case list():
            return [_as_json(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
