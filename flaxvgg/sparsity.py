"""How much of a network is zero: exact counts by layer and channel, over any number of images."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxvgg.config import VGGConfig
from flaxvgg.exact import (
    MAX_TERMS,
    ExactSum,
    add_counts,
    add_sums,
    count_to_host,
    sum_counts,
    sum_floats,
    sum_to_host,
)
from flaxvgg.model import VGG, AnyArray, LayerStack, check_images, run_layers


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "zeros",
        "largest",
        "negatives_before",
        "zeros_before",
        "sum_before",
        "square_before",
    ],
    meta_fields=["values"],
)
@dataclasses.dataclass(frozen=True)
class LayerCounts:
    """What is zero in one layer, by image and channel: arrays (N, C).

    `values` is the number of positions of a channel (h*w; 1 for vectors), `zeros` how many of them
    are exactly 0, `largest` the largest value. For a ReLU, `negatives_before` and `zeros_before`
    count the values in front of it that are below 0 and exactly 0, `sum_before` and `square_before`
    are their sum and sum of squares in float32; None for other layers. NaN is neither zero nor
    negative; it shows in `largest` and in the sums.
    """

    values: int
    zeros: Int[AnyArray, "n c"]
    largest: Float[AnyArray, "n c"]
    negatives_before: Int[AnyArray, "n c"] | None = None
    zeros_before: Int[AnyArray, "n c"] | None = None
    sum_before: Float[AnyArray, "n c"] | None = None
    square_before: Float[AnyArray, "n c"] | None = None

    @property
    def silent(self) -> Bool[AnyArray, "n c"]:
        """Channels that are zero everywhere in an image."""
        return self.zeros == self.values

    @property
    def zero_fraction(self) -> Float[AnyArray, " n"]:
        """The fraction of zeros of each image."""
        return self.zeros.mean(axis=-1, dtype=jnp.float32) / self.values


def count_images(
    model: VGG, images: Float[AnyArray, "n h w 3"], layers: Iterable[str] | None = None
) -> dict[str, LayerCounts]:
    """The counts of each image by itself, keyed by the layers' names as they were asked for.

    `layers` are names as `VGG.activations` takes them; by default every ReLU and max pooling. One
    compiled forward pass, which serves all weights of the architecture. Raises ValueError for
    unknown layers and for images that are not (N, H, W, 3).
    """
    names = counted_layers(model.config, layers)
    counts = _count(model.config, (model.conv_stack, model.head), _batch(images), names)
    return dict(zip(names, counts, strict=True))


def measure_sparsity(
    model: VGG, images: Float[AnyArray, "n h w 3"], layers: Iterable[str] | None = None
) -> "SparsityReport":
    """The counts of all images together; reports of other images can be added.

    `layers` are names as `VGG.activations` takes them; by default every ReLU and max pooling. One
    compiled forward pass, which serves all weights of the architecture. A data set of any size
    streams through in constant memory:

        report = sum(measure_sparsity(model, images) for images in batches)

    Raises ValueError for unknown layers and for images that are not (N, H, W, 3).
    """
    names = counted_layers(model.config, layers)
    totals = _measure(model.config, (model.conv_stack, model.head), _batch(images), names)
    return SparsityReport(totals, model.config, model.provenance.source, names)


def total_counts(model: VGG, counts: Mapping[str, LayerCounts]) -> "SparsityReport":
    """The report of images that `count_images` has counted one by one, for the same model."""
    totals = _total([counts[name] for name in counts])
    return SparsityReport(totals, model.config, model.provenance.source, tuple(counts))


class LayerSummary(NamedTuple):
    """What is zero in one layer over all images counted: arrays of one entry a channel.

    The fields are those of `LayerCounts`, added up; `silent` is the number of images in which the
    channel is zero everywhere. Counts are int64, sums float64.
    """

    name: str
    kind: str
    images: int
    values: Int[np.ndarray, " c"]
    zeros: Int[np.ndarray, " c"]
    silent: Int[np.ndarray, " c"]
    largest: Float[np.ndarray, " c"]
    negatives_before: Int[np.ndarray, " c"] | None
    zeros_before: Int[np.ndarray, " c"] | None
    sum_before: Float[np.ndarray, " c"] | None
    square_before: Float[np.ndarray, " c"] | None

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


class _Before(NamedTuple):
    negatives: Int[Array, "k c"]
    zeros: Int[Array, "k c"]
    sums: ExactSum
    squares: ExactSum


class _Totals(NamedTuple):
    """Sums over images: the channels of all layers, or of all ReLUs, one behind the other."""

    images: Int[Array, " k"]
    values: tuple[Int[Array, " k"], ...]  # of each layer; its shapes tell the channels
    zeros: tuple[Int[Array, "k c"], ...]
    silent: tuple[Int[Array, "k c"], ...]
    largest: tuple[Float[Array, " c"], ...]
    before: tuple[_Before | None, ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["totals"],
    meta_fields=["config", "source", "layers"],
)
@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """Zeros by layer and channel over all images counted: a pytree, exact, and it adds up.

    `layers` are the names as they were asked for; `report.layer(name)` gives a layer's counts.
    """

    totals: Any
    config: VGGConfig
    source: str
    layers: tuple[str, ...]

    def __add__(self, other: "SparsityReport") -> "SparsityReport":
        """The report of both sets of images; the order does not matter."""
        if not isinstance(other, SparsityReport):
            return NotImplemented
        mine, theirs = ((report.config, report.source, report.layers) for report in (self, other))
        if mine != theirs:
            raise ValueError("reports add up only of the same weights and the same layers")
        return dataclasses.replace(self, totals=_add(self.totals, other.totals))

    def __radd__(self, other: int) -> "SparsityReport":
        """0 + report, so that `sum` works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @property
    def arch(self) -> str:
        """The architecture, e.g. `vgg16`."""
        return self.config.arch

    @property
    def images(self) -> int:
        """Number of images counted."""
        return int(count_to_host(self.totals.images))

    def layer(self, name: str) -> LayerSummary:
        """The counts of one layer, by any of its names. Raises ValueError for one not counted."""
        paper = self.config.resolve(name)
        places = [i for i, known in enumerate(self.layers) if self.config.resolve(known) == paper]
        if not places:
            raise ValueError(f"{name} was not counted: choose from {', '.join(self.layers)}")
        i = self.layers.index(name) if name in self.layers else places[0]
        totals, before = self.totals, self.totals.before[i]
        zeros = count_to_host(totals.zeros[i])
        return LayerSummary(
            name=self.layers[i],
            kind=_kinds(self.config)[paper],
            images=self.images,
            values=np.full_like(zeros, count_to_host(totals.values[i])),
            zeros=zeros,
            silent=count_to_host(totals.silent[i]),
            largest=np.asarray(totals.largest[i]),
            negatives_before=None if before is None else count_to_host(before.negatives),
            zeros_before=None if before is None else count_to_host(before.zeros),
            sum_before=None if before is None else sum_to_host(before.sums),
            square_before=None if before is None else sum_to_host(before.squares),
        )

    def __iter__(self) -> Iterator[LayerSummary]:
        """The layers' counts, in the order in which they were asked for."""
        return map(self.layer, self.layers)

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer, of plain numbers, for `pandas.DataFrame` or a table."""
        return [_row(layer) for layer in self]

    def to_json(self) -> dict[str, Any]:
        """A JSON value: the totals of each layer, and its counts by channel."""
        return {
            "arch": self.arch,
            "source": self.source,
            "images": self.images,
            "layers": [
                _row(layer) | {"by_channel": {k: v.tolist() for k, v in _arrays(layer).items()}}
                for layer in self
            ],
        }

    def to_markdown(self) -> str:
        """A table with one row a layer."""
        lines = [
            "| layer | channels | values | zeros | negative before | zero before "
            "| silent channels an image | dead channels | largest |",
            "|---|" + "---:|" * 8,
        ]
        for layer, row in zip(self, self.rows(), strict=True):
            before = ["", ""]
            if layer.negatives_before is not None and layer.zeros_before is not None:
                total = layer.values.sum()
                before = [
                    f"{layer.negatives_before.sum() / total:.2%}",
                    f"{layer.zeros_before.sum():,}",
                ]
            cells = [
                layer.name,
                str(layer.channels),
                f"{row['values']:,}",
                f"{layer.zero_fraction:.2%}",
                *before,
                f"{row['silent']:.1f}",
                str(row["dead"]),
                f"{row['largest']:.4g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _arrays(layer: LayerSummary) -> dict[str, np.ndarray]:
    return {k: v for k, v in layer._asdict().items() if isinstance(v, np.ndarray)}


def _row(layer: LayerSummary) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": layer.name,
        "kind": layer.kind,
        "channels": layer.channels,
        "images": layer.images,
        "values": int(layer.values.sum()),
        "zeros": int(layer.zeros.sum()),
        "zero_fraction": layer.zero_fraction,
        "silent": float(layer.silent.sum() / layer.images),
        "dead": int(layer.dead.sum()),
        "largest": float(layer.largest.max()),
    }
    for name in ("negatives_before", "zeros_before"):
        counts = getattr(layer, name)
        row[name] = None if counts is None else int(counts.sum())
    for name in ("sum_before", "square_before"):
        sums = getattr(layer, name)
        row[name] = None if sums is None else float(sums.sum())
    return row


def _kinds(config: VGGConfig) -> dict[str, str]:
    return {layer.name: layer.kind for layer in config.layers}


def counted_layers(config: VGGConfig, layers: Iterable[str] | None) -> tuple[str, ...]:
    """The layers to count: those asked for, none twice, or else every ReLU and max pooling.

    Raises ValueError for unknown names, and where there are none.
    """
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names: [{layers!r}]")
    if layers is None:
        layers = [layer.name for layer in config.layers if layer.kind in ("relu", "max_pool")]
    names = tuple(dict.fromkeys(layers))
    if not names:
        raise ValueError("layers is empty: name at least one, or leave it out for all")
    for name in names:
        config.resolve(name)
    return names


def _batch(images: AnyArray) -> Array:
    check_images(images)
    if images.ndim != 4 or not 1 <= len(images) <= MAX_TERMS:
        raise ValueError(
            f"images must have shape (N, H, W, 3) with N from 1 to {MAX_TERMS}, not "
            f"{tuple(images.shape)}"
        )
    return jnp.asarray(images)


@partial(jax.jit, static_argnums=(0, 3))
def _count(
    config: VGGConfig, stacks: tuple[LayerStack, LayerStack], images: Array, names: tuple[str, ...]
) -> list[LayerCounts]:
    """The counts of each image. The weights are arguments: new ones are not compiled anew."""
    layers = [config.resolve(name) for name in names]
    relus = {layer for layer in layers if _kinds(config)[layer] == "relu"}
    before = dict(zip(config.layer_names[1:], config.layer_names, strict=False))
    outputs = run_layers(stacks, images, set(layers) | {before[relu] for relu in relus})
    return [
        _count_layer(outputs[layer], outputs[before[layer]] if layer in relus else None)
        for layer in layers
    ]


def _count_layer(output: Array, before: Array | None) -> LayerCounts:
    def count(found: Array) -> Array:
        return found.sum(axis=1, dtype=jnp.int32)

    maps = _positions(output)
    counts = LayerCounts(maps.shape[1], count(maps == 0), maps.max(axis=1).astype(jnp.float32))
    if before is None:
        return counts
    x = _positions(before).astype(jnp.float32)
    return dataclasses.replace(
        counts,
        negatives_before=count(x < 0),
        zeros_before=count(x == 0),
        sum_before=x.sum(axis=1),
        square_before=(x * x).sum(axis=1),
    )


def _positions(x: Array) -> Array:
    """(N, h*w, C) of maps, (N, 1, C) of vectors."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


@partial(jax.jit, static_argnums=(0, 3))
def _measure(
    config: VGGConfig, stacks: tuple[LayerStack, LayerStack], images: Array, names: tuple[str, ...]
) -> _Totals:
    return _total(_count(config, stacks, images, names))


@jax.jit
def _total(counts: Sequence[LayerCounts]) -> _Totals:
    ones = jnp.ones(counts[0].zeros.shape[0], jnp.int32)
    return _Totals(
        images=sum_counts(ones),
        values=tuple(sum_counts(ones * layer.values) for layer in counts),
        zeros=tuple(sum_counts(layer.zeros) for layer in counts),
        silent=tuple(sum_counts(layer.silent.astype(jnp.int32)) for layer in counts),
        largest=tuple(layer.largest.max(axis=0) for layer in counts),
        before=tuple(
            None
            if layer.negatives_before is None
            else _Before(
                sum_counts(layer.negatives_before),
                sum_counts(layer.zeros_before),
                sum_floats(layer.sum_before),
                sum_floats(layer.square_before),
            )
            for layer in counts
        ),
    )


@jax.jit
def _add(a: _Totals, b: _Totals) -> _Totals:
    return _Totals(
        images=add_counts(a.images, b.images),
        values=tuple(map(add_counts, a.values, b.values)),
        zeros=tuple(map(add_counts, a.zeros, b.zeros)),
        silent=tuple(map(add_counts, a.silent, b.silent)),
        largest=tuple(map(jnp.maximum, a.largest, b.largest)),
        before=tuple(
            None
            if x is None or y is None
            else _Before(
                add_counts(x.negatives, y.negatives),
                add_counts(x.zeros, y.zeros),
                add_sums(x.sums, y.sums),
                add_sums(x.squares, y.squares),
            )
            for x, y in zip(a.before, b.before, strict=True)
        ),
    )
