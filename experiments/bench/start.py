"""Sections `start` and `overhead`: what is paid before anything is computed, and at every call."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from experiments.bench.steps import Row, Step, Study
from experiments.bench.tools import EAGER, FAST
from experiments.gpu_report import subject
from experiments.gpu_report.subject import HIGHEST
from experiments.timing import Call, Report
from flaxvgg.model import VGG

JAX_ALONE = "import jax + flax"
STARTS = {
    "python alone": "pass",
    "import flaxvgg, its models": "import flaxvgg; flaxvgg.vgg16; flaxvgg.VGG",
    "flaxvgg --help": "from flaxvgg.cli import app; app(['--help'])",
    JAX_ALONE: "import jax, flax.nnx",
    "import torch + torchvision": "import torch, torchvision",
}
NOTHING = "takes model and image, does nothing"
FLAT = "the same, from a list of arrays"
ONE = "takes one array, does nothing"
WHOLE = "the network on 32x32"
_SMALL = (32, 32)


def start(study: Study) -> Iterator[Step]:
    """Fresh interpreters."""

    def contest(report: Report) -> list[Row]:
        calls = {name: partial(_run, code) for name, code in STARTS.items()}
        return study.contest("a fresh interpreter", calls, JAX_ALONE, report)

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
        tools = {
            WHOLE: study.tools.runner(FAST, "forward", (1, _SMALL)).call,
            f"{WHOLE}, {EAGER}": study.tools.runner(EAGER, "forward", (1, _SMALL)).call,
        }
        return rows + study.contest(WHOLE, tools, f"{WHOLE}, {EAGER}", report)

    yield Step("dispatch", contest)


def _first_value(model: VGG | Any, images: jax.Array) -> jax.Array:
    return images[0, 0, 0, 0]


_nothing = jax.jit(_first_value, keep_unused=True)  # all arrays are handed over, none is read
