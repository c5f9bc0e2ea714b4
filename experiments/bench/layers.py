"""Section `layers`: every convolution by itself, beside what the machine can do at most."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from experiments.bench.plan import Shape
from experiments.bench.steps import Row, Step, Study
from experiments.bench.tools import EAGER, FAST, OURS, PREPARED, inferring
from experiments.gpu_report import torch_side
from experiments.gpu_report.speed import tuned
from experiments.gpu_report.subject import HIGHEST
from experiments.timing import Call, Report
from experiments.torch_device import DEVICE
from flaxvgg.network.config import Layer
from flaxvgg.ops import native
from flaxvgg.ops.convolution import conv3x3_block, pack, packed_block

XLA = "XLA's convolution"
PRODUCT, TRIAD = "matrix product", "triad"
_FLOAT = 4  # bytes


def layers(study: Study) -> Iterator[Step]:
    """Each convolution with its bias on random maps; of those with equal shapes, the first."""
    yield Step("ceilings", partial(_ceilings, study), 1)
    for batch in study.plan.layer_batches:
        for same, size in _shapes(study):
            step = partial(_contest, study, same, (batch, size))
            yield Step(f"{_title(same)}, batch {batch}", step, 0.3 + batch / 10)


def _shapes(study: Study) -> list[tuple[list[Layer], tuple[int, int]]]:
    """The convolutions by shape, with the size of their maps."""
    (height, width), found = study.plan.size, {}
    for layer in study.tools.config.conv_stack:
        if layer.kind == "max_pool":
            height, width = height // 2, width // 2
        elif layer.kind == "conv":
            key = layer.inputs, layer.outputs, height, width
            found.setdefault(key, []).append(layer)
    return [(same, key[2:]) for key, same in found.items()]


def _title(same: list[Layer]) -> str:
    return f"{same[0].name} to {same[-1].name}" if len(same) > 1 else same[0].name


def _contest(study: Study, same: list[Layer], shape: Shape, report: Report) -> list[Row]:
    layer, (batch, (height, width)) = same[0], shape
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((batch, height, width, layer.inputs)).astype(np.float32)
    x = jax.block_until_ready(jnp.asarray(maps))
    calls: dict[str, Call] = {}
    for tool, model in study.tools.models.items():
        module = getattr(model.conv_stack, layer.name)
        calls[tool] = partial(_waited, _ours, module, x)
        if tool == OURS and native.IS_AVAILABLE and jax.default_backend() == "cpu":
            packed = jax.block_until_ready(pack(module.kernel[...], height, width))
            calls[PREPARED] = partial(_waited, _prepared, (module, packed), x)
    module: Any = getattr(study.tools.models[FAST].conv_stack, layer.name)
    calls[XLA] = partial(_waited, _xla, (module.kernel[...], module.bias[...]), x)
    theirs, conv = torch_side.tensor(maps), study.tools.eager.get_submodule(layer.torch)
    functional = torch.nn.functional.conv2d
    calls[EAGER] = inferring(lambda: functional(theirs, conv.weight, conv.bias, padding=1))
    with tuned(HIGHEST):
        rows = study.contest(f"{_title(same)}, batch {batch}", calls, EAGER, report)
    places, weights = batch * height * width, layer.kernel**2 * layer.inputs * layer.outputs
    values = places * (layer.inputs + layer.outputs) + weights
    more = {
        "layer": _title(same),
        "layers": len(same),
        "batch": batch,
        "flops": 2 * places * weights,
        "bytes": _FLOAT * values,
    }
    if PREPARED in calls:
        more["products"] = _products(layer, height, width)
    return [row | more for row in rows]


def _products(layer: Layer, height: int, width: int) -> float:
    """Products that it takes for an output and a pair of channels, where direct sums take 9."""
    places, _, _ = native.packing(height, width, layer.inputs, layer.outputs)
    return {1: 9.0, 16: 4.0, 24: 3.0}[places]


def _ceilings(study: Study, report: Report) -> list[Row]:
    n, length = study.plan.matrix, study.plan.vector
    a = np.random.default_rng(0).standard_normal((n, n), np.float32)
    x, theirs = jnp.asarray(a), torch.from_numpy(a).to(DEVICE)
    calls: dict[str, Call] = {
        OURS: lambda: jax.block_until_ready(_product(x)),
        EAGER: inferring(lambda: theirs @ theirs),
    }
    with tuned(HIGHEST):
        rows = study.contest(PRODUCT, calls, EAGER, lambda done: report(done / 2), rounds=5)
    for row in rows:
        row["flops"] = 2 * n**3
    first, second, third = (torch.ones(length, device=DEVICE) for _ in range(3))
    triad = inferring(lambda: torch.add(first, second, alpha=2.0, out=third))
    return rows + [
        row | {"bytes": 3 * _FLOAT * length}
        for row in study.contest(TRIAD, {EAGER: triad}, EAGER, report, rounds=9)
    ]


def _waited(function: Any, weights: Any, x: jax.Array) -> object:
    return jax.block_until_ready(function(weights, x))


@jax.jit
def _ours(module: Any, x: jax.Array) -> jax.Array:
    settings = {"relu": False, "pool": False, "precision": module.precision}
    return conv3x3_block(x, module.kernel[...], module.bias[...], **settings)


@jax.jit
def _prepared(weights: tuple[Any, jax.Array], x: jax.Array) -> jax.Array:
    module, packed = weights
    kernel, bias = module.kernel[...], module.bias[...]
    settings = {"relu": False, "pool": False, "precision": module.precision}
    return packed_block(x, kernel, packed, bias, **settings)


@jax.jit
def _xla(weights: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = weights
    layouts = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layouts)
    return y + bias[None, None, None]


@jax.jit
def _product(x: jax.Array) -> jax.Array:
    return jnp.dot(x, x, precision="highest")
