"""Sections `start` and `overhead`: what is paid before anything is computed, and at every call."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from experiments.bench.steps import Row, Step, Study, of_shape
from experiments.bench.tools import EAGER, FAST
from experiments.gpu_report import subject
from experiments.gpu_report.subject import HIGHEST
from experiments.timing import Call, Report
from flaxvgg.network.model import VGG

STARTS = {
    "python": "pass",
    "flaxvgg": "import flaxvgg; flaxvgg.vgg16; flaxvgg.VGG",
    "flaxvgg --help": "from flaxvgg.commands.cli import app; app(['--help'])",
    "torch + torchvision": "import torch, torchvision",
    "jax + flax": "import jax, flax.nnx",
}
NOTHING = "model and image"
FLAT = "its arrays and image"
ONE = "image"
_SMALL = (32, 32)


def start(study: Study) -> Iterator[Step]:
    """Fresh interpreters."""

    def contest(report: Report) -> list[Row]:
        calls = {name: partial(_run, STARTS[name]) for name in study.plan.starts}
        return study.contest("a fresh interpreter", calls, study.plan.starts[-1], report)

    yield Step("fresh interpreters", contest, 4)


def _run(code: str) -> None:
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def overhead(study: Study) -> Iterator[Step]:
    """What one jitted call costs in Python and in JAX, with nothing to compute."""

    def contest(report: Report) -> list[Row]:
        model = study.tools.models[FAST]
        x = subject.on_device(subject.noise(1, _SMALL), HIGHEST)
        arrays = jax.tree.leaves(model)
        calls: dict[str, Call] = {
            NOTHING: lambda: jax.block_until_ready(_nothing(model, x)),
            FLAT: lambda: jax.block_until_ready(_nothing(arrays, x)),
            ONE: lambda: jax.block_until_ready(_nothing((), x)),
        }
        repeats = study.plan.repeats
        case = "overhead of a call"
        rows = study.contest(case, calls, NOTHING, lambda done: report(done / 2), repeats)
        whole = (1, _SMALL)
        tools = {x: study.tools.runner(x, "forward", whole).call for x in (FAST, EAGER)}
        return rows + study.contest(of_shape(whole), tools, EAGER, report)

    yield Step("dispatch", contest)


def _first_value(model: VGG | Any, images: jax.Array) -> jax.Array:
    return images[0, 0, 0, 0]


_nothing = jax.jit(_first_value, keep_unused=True)  # all arrays are handed over, none is read
