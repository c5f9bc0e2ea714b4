"""What is measured: fc6 of one image with and without its zeros, and what that is of the whole."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.timing import cores
from flaxvgg.images.loading import load_images
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.sparsity.counting import count_images
from flaxvgg.weights.mapping import build, entries, model_arrays

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
Timings = dict[str, list[float]]


class Networks(NamedTuple):
    """The same vgg16 twice: the weights are shared."""

    skipping: VGG  # as it is
    dense: VGG  # its linear layers read their whole kernels: XLA's product


def networks(convolutions: VGG, seed: int = 0) -> Networks:
    """The model's convolutions with torchvision's initial classifier: N(0, 0.01), biases 0."""
    config = VGGConfig.classifier(convolutions.config.arch)
    rng = np.random.default_rng(seed)
    arrays = dict(model_arrays(convolutions))
    for entry in entries(config):
        if entry.path[0] == "head":
            scale = np.float32(0.01 if entry.path[-1] == "kernel" else 0)
            values = rng.standard_normal(entry.shape, np.float32)
            arrays[entry.path] = jnp.asarray(np.multiply(values, scale, out=values))
    skipping, dense = (
        build(config, arrays, provenance=convolutions.provenance) for _ in Networks._fields
    )
    for name in ("fc6", "fc7", "fc8"):
        getattr(dense.head, name).dot_general = jax.lax.dot_general
    return Networks(skipping, dense)


@jax.jit
def _flattened(model: VGG, images: jax.Array) -> jax.Array:
    return model.activations(images, ["flatten"])["flatten"]


@jax.jit
def _fc6(model: VGG, vector: jax.Array) -> jax.Array:
    return model.head.fc6(vector)


@jax.jit
def _logits(model: VGG, images: jax.Array) -> jax.Array:
    return model(images)


def study(found: Networks, photos: Sequence[Path], repeats: int) -> dict[str, Any]:
    """A JSON value with every number."""
    import torch

    images = np.asarray(load_images(photos, preprocessing=found.skipping.preprocessing))
    vectors = np.asarray(_flattened(found.skipping, images))
    kernel = np.asarray(found.skipping.head.fc6.kernel[...])
    weight = torch.from_numpy(np.array(kernel.T, order="C"))

    bias = torch.zeros(len(weight))

    def contenders(vector: np.ndarray) -> dict[str, Callable[[], Any]]:
        ours, theirs = jnp.asarray(vector[None]), torch.from_numpy(vector[None].copy())
        return {
            "skip": lambda: _fc6(found.skipping, ours),
            "dense": lambda: _fc6(found.dense, ours),
            "torch": lambda: torch.nn.functional.linear(theirs, weight, bias),
        }

    by_photo = {}
    for photo, vector in zip(photos, vectors, strict=True):
        by_photo[photo.stem] = {
            "nonzero": float((vector != 0).mean()),
            "time": summary(interleaved(contenders(vector), repeats)),
            "error": _errors(contenders(vector), vector, kernel),
        }
    return {
        "weights": found.skipping.provenance.source,
        "cores": cores(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "repeats": repeats,
        "photos": by_photo,
        "sweep": _sweep(found, len(kernel), repeats),
        "whole": _whole(found, images[:1], repeats),
        "rows_of_a_batch": rows_of_a_batch(vectors != 0),
        "convolutions": _convolutions(found.skipping, images),
    }


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> Timings:
    """Seconds of each call, in turns, so that a busy machine is unfair to none."""
    times: Timings = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: Timings) -> dict[str, dict[str, Any]]:
    """Median milliseconds, and quartiles of the time in units of the first contender's."""
    first = np.array(next(iter(times.values())))
    found = {}
    for name, seconds in times.items():
        ratios = np.quantile(np.array(seconds) / first, [0.25, 0.5, 0.75])
        found[name] = {"ms": 1e3 * float(np.median(seconds)), "ratio": ratios.tolist()}
    return found


def _errors(
    contenders: Mapping[str, Callable[[], Any]], vector: np.ndarray, kernel: np.ndarray
) -> dict[str, float]:
    """Root mean square errors against float64, relative to its root mean square."""
    (rows,) = vector.nonzero()
    truth = vector[rows].astype(np.float64) @ kernel[rows].astype(np.float64)
    return {
        name: float(np.linalg.norm(np.asarray(call())[0] - truth) / np.linalg.norm(truth))
        for name, call in contenders.items()
    }


def _sweep(found: Networks, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Times by the fraction of non-zeros, which lie anywhere."""
    rng = np.random.default_rng(0)
    points = []
    for fraction in FRACTIONS:
        x = rng.random(rows, np.float32) * (rng.random(rows) < fraction)
        x = jnp.asarray(x[None].astype(np.float32))
        calls = {
            "skip": lambda x=x: _fc6(found.skipping, x),
            "dense": lambda x=x: _fc6(found.dense, x),
        }
        points.append({"nonzero": fraction, "time": summary(interleaved(calls, repeats))})
    return points


def _whole(found: Networks, image: np.ndarray, repeats: int) -> dict[str, Any]:
    """The forward pass of one image, from the photo to the logits."""
    x = jnp.asarray(image)
    calls = {
        "dense": lambda: _logits(found.dense, x),
        "skipping": lambda: _logits(found.skipping, x),
    }
    return summary(interleaved(calls, repeats))


def rows_of_a_batch(nonzero: np.ndarray) -> dict[str, float]:
    """By batch size, the mean fraction of rows that meet a non-zero in some image of the batch.

    `nonzero` is (N, K); every batch that can be made of the N images counts.
    """
    return {
        str(size): float(
            np.mean(
                [
                    nonzero[list(batch)].any(axis=0).mean()
                    for batch in itertools.combinations(range(len(nonzero)), size)
                ]
            )
        )
        for size in (1, 2, 4, 8)
        if size <= len(nonzero)
    }


def _convolutions(model: VGG, images: np.ndarray) -> dict[str, float]:
    """Of the products in all convolutions: how many meet a zero, and a channel that is all zero."""
    counts = count_images(model, images)
    total = zero = silent = 0.0
    before = None
    for layer in model.config.conv_stack:
        if layer.kind == "conv":
            size = counts[layer.name.replace("conv", "relu")].values
            products = size * layer.kernel**2 * layer.inputs * layer.outputs
            total += products
            if before is not None:
                zero += products * float(before.zero_fraction.mean())
                silent += products * float(before.silent.mean())
        elif layer.name in counts:
            before = counts[layer.name]
    return {"meet_a_zero": zero / total, "meet_a_silent_channel": silent / total}
