"""How much of a network is zero: exact counts by layer and channel, in one forward pass."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from flaxvgg.network.config import VGGConfig, listed
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, AnyArray, Images, LayerStack, run_layers
from flaxvgg.ops.sharding import spread_by_xla
from flaxvgg.sparsity.exact import MAX_TERMS, sum_counts, sum_floats
from flaxvgg.sparsity.report import SparsityReport, Totals

_Stacks = tuple[LayerStack, LayerStack]


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
@dataclasses.dataclass(frozen=True, eq=False)
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
    model: VGG, images: Images, layers: Iterable[str] | None = None
) -> dict[str, LayerCounts]:
    """The counts of each image by itself, keyed by the layers' names as they were asked for.

    See `measure_sparsity`, which adds them up.
    """
    names = counted_layers(model.config, layers)
    counts = _count(model.config, (model.conv_stack, model.head), _batch(model, images), names)
    return dict(zip(names, counts, strict=True))


def measure_sparsity(
    model: VGG, images: Images, layers: Iterable[str] | None = None
) -> SparsityReport:
    """The counts of all images (N, H, W, 3) together, in one compiled forward pass.

    `layers` are names as `VGG.activations` takes them; by default every ReLU and max pooling. New
    weights of the same network are not compiled anew. Reports add up, so a data set of any size
    streams through in constant memory:

        report = sum(measure_sparsity(model, images) for images in batches)

    Adding is exact: the counts, and the float32 sums that each image gives, are added as integers,
    in any order and on any devices, and do not overflow. What one image gives is float32
    arithmetic. On a CPU its sums are taken in the same order in every batch. Its activations can
    differ by rounding where XLA computes another batch size in another order: seen on a CPU at
    precision "highest" on maps of up to 20 positions, and in the fully-connected layers. There a
    zero may flip, so that measuring two halves may differ from measuring the whole batch.

    Raises ValueError for unknown layers, for no images or more than 32768, and for images that are
    not (N, H, W, 3).

    >>> report = flaxvgg.measure_sparsity(model, images, ["relu5_2", "pool5"])
    >>> report.images, report.layer("pool5").values.sum()
    (2, np.int64(4096))
    """
    names = counted_layers(model.config, layers)
    stacks = (model.conv_stack, model.head)
    report = _measure(model.config, stacks, _batch(model, images), names)
    return dataclasses.replace(report, source=model.provenance.source)


def total_counts(
    model: VGG, counts: Mapping[str, LayerCounts], valid: Bool[AnyArray, " n"] | None = None
) -> SparsityReport:
    """The report of images that `count_images` has counted one by one, for the same model.

    Only of those that are `valid`, where that is given.
    """
    report = _total(model.config, list(counts.values()), tuple(counts), valid)
    return dataclasses.replace(report, source=model.provenance.source)


def counted_layers(config: VGGConfig, layers: Iterable[str] | None) -> tuple[str, ...]:
    """The layers to count: those asked for, none twice, or else every ReLU and max pooling.

    Raises ValueError for unknown names, and where there are none.
    """
    if layers is None:
        layers = [layer.name for layer in config.layers if layer.kind in ("relu", "max_pool")]
    names = tuple(dict.fromkeys(listed(layers)))
    if not names:
        raise ValueError("layers is empty: name at least one, or leave it out for all")
    for name in names:
        config.resolve(name)
    return names


def _batch(model: VGG, images: Images) -> Array:
    images = check_images(images, model.preprocessing)
    shape = tuple(images.shape)
    is_known = len(shape) == 4 and isinstance(shape[0], int)  # or it is a symbol
    if len(shape) != 4 or (is_known and not 1 <= shape[0] <= MAX_TERMS):
        raise ValueError(
            f"images must have shape (N, H, W, 3) with N from 1 to {MAX_TERMS}, not {shape}; "
            "reports of several batches add up"
        )
    return jnp.asarray(images)


@partial(jax.jit, static_argnums=(0, 3))
def _count(
    config: VGGConfig, stacks: _Stacks, images: Array, names: tuple[str, ...]
) -> list[LayerCounts]:
    # The weights are arguments, and without their provenance: new ones are not compiled anew.
    return spread_by_xla(partial(_counted, config, names), images, stacks)


def _counted(
    config: VGGConfig, names: tuple[str, ...], images: Array, stacks: _Stacks
) -> list[LayerCounts]:
    layers = [config.resolve(name) for name in names]
    relus = {layer.name for layer in config.layers if layer.kind == "relu"}
    in_front = dict(zip(config.layer_names[1:], config.layer_names, strict=False))
    # A ReLU is counted by its input: it gives exactly 0 where that is negative or 0.
    counted = [in_front[layer] if layer in relus else layer for layer in layers]
    outputs = run_layers(stacks, images, set(counted))
    return [
        _count_layer(outputs[name], is_relu=layer in relus)
        for layer, name in zip(layers, counted, strict=True)
    ]


def _count_layer(x: Array, *, is_relu: bool) -> LayerCounts:
    maps = x.reshape(x.shape[0], *([1, 1] if x.ndim == 2 else x.shape[1:-1]), x.shape[-1])
    values = maps.shape[1] * maps.shape[2]
    found = lax.platform_dependent(maps, cpu=_tally_by_rows, default=_tally)
    if not is_relu:
        return LayerCounts(values, found.zeros, found.largest)
    return LayerCounts(
        values=values,
        zeros=found.zeros + found.negatives,
        largest=jax.nn.relu(found.largest),
        negatives_before=found.negatives,
        zeros_before=found.zeros,
        sum_before=found.sums,
        square_before=found.squares,
    )


class _Tally(NamedTuple):
    """What some values come to."""

    negatives: Array
    zeros: Array
    largest: Array
    sums: Array
    squares: Array


_NOTHING = _Tally(*map(np.int32, (0, 0)), *map(np.float32, (-np.inf, 0, 0)))


def _each(x: Array) -> _Tally:
    number = x.astype(jnp.float32)
    negative, zero = (x < 0).astype(jnp.int32), (x == 0).astype(jnp.int32)
    return _Tally(negative, zero, number, number, number * number)


def _both(a: _Tally, b: _Tally) -> _Tally:
    return _Tally(
        negatives=a.negatives + b.negatives,
        zeros=a.zeros + b.zeros,
        largest=jnp.maximum(a.largest, b.largest),
        sums=a.sums + b.sums,
        squares=a.squares + b.squares,
    )


def _tally(maps: Float[Array, "n h w c"]) -> _Tally:
    """The tally of every image and channel: arrays (N, C)."""
    return lax.reduce(_each(maps), _NOTHING, _both, (1, 2))


_ROWS = 4  # taken in one step: fewer cost more steps, more gain nothing


def _tally_by_rows(maps: Float[Array, "n h w c"]) -> _Tally:
    """`_tally`, three to twenty times as fast on a CPU: a row stays in the cache for all counts.

    What is added to what does not depend on the number of images, as it does in XLA's own sums.
    """
    n, h, w, c = maps.shape

    def add_row(tally: _Tally, i: int | Array) -> _Tally:
        return _both(tally, _each(lax.dynamic_index_in_dim(maps, i, axis=1, keepdims=False)))

    def add_rows(step: int | Array, tally: _Tally) -> _Tally:
        return reduce(add_row, [step * _ROWS + i for i in range(_ROWS)], tally)

    tally = _Tally(*(lax.full_like(maps, start, start.dtype, (n, w, c)) for start in _NOTHING))
    tally = lax.fori_loop(0, h // _ROWS, add_rows, tally)
    tally = reduce(add_row, range(h // _ROWS * _ROWS, h), tally)
    return lax.reduce(tally, _NOTHING, _both, (1,))


@partial(jax.jit, static_argnums=(0, 3))
def _measure(
    config: VGGConfig, stacks: _Stacks, images: Array, names: tuple[str, ...]
) -> SparsityReport:
    def measured(images: Array, stacks: _Stacks) -> SparsityReport:
        return _total(config, _counted(config, names, images, stacks), names)

    return spread_by_xla(measured, images, stacks, result=PartitionSpec())


@partial(jax.jit, static_argnums=(0, 2))
def _total(
    config: VGGConfig,
    layers: Sequence[LayerCounts],
    names: tuple[str, ...],
    valid: Array | None = None,
) -> SparsityReport:
    relus = [layer for layer in layers if layer.sum_before is not None]
    n = layers[0].zeros.shape[0]
    counts = [
        jnp.ones((n, 1), jnp.int32),
        *(jnp.full((n, 1), layer.values, jnp.int32) for layer in layers),
        *(layer.zeros for layer in layers),
        *(layer.silent.astype(jnp.int32) for layer in layers),
        *(layer.negatives_before for layer in relus),
        *(layer.zeros_before for layer in relus),
    ]
    floats = [
        jnp.zeros((n, 0), jnp.float32),  # where no ReLU was asked for
        *(layer.sum_before for layer in relus),
        *(layer.square_before for layer in relus),
    ]
    seen = jnp.ones((n, 1), bool) if valid is None else jnp.reshape(valid, (n, 1))
    largest = [jnp.where(seen, layer.largest, -jnp.inf).max(axis=0) for layer in layers]
    totals = Totals(
        counts=sum_counts(jnp.where(seen, jnp.concatenate(counts, axis=1), 0)),
        floats=sum_floats(jnp.where(seen, jnp.concatenate(floats, axis=1), 0.0)),
        largest=jnp.concatenate(largest),
    )
    channels = tuple(layer.zeros.shape[-1] for layer in layers)
    return SparsityReport(totals, config, source="", layers=names, channels=channels)
