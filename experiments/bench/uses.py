"""Sections `activations`, `sparsity` and `memory`: what else a forward pass is for, and needs."""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import torch

from experiments.bench.plan import Shape
from experiments.bench.steps import Row, Step, Study, of_shape
from experiments.bench.tools import EAGER, ORT, Kind, inferring
from experiments.gpu_report import subject, torch_side
from experiments.gpu_report.speed import count_zeros, peak, tuned
from experiments.gpu_report.subject import HIGHEST
from experiments.memory import peak as resident_peak
from experiments.timing import Call, Report
from experiments.torch_device import DEVICE
from flaxvgg.network.model import VGG
from flaxvgg.sparsity.counting import measure_sparsity

HOOKS = "torch hooks"


def activations(study: Study) -> Iterator[Step]:
    """The outputs of all layers."""
    network = study.tools.networks.single
    batches = study.plan.activation_batches
    yield from _against(study, "activations", batches, _activations, HOOKS, _hooked, network)


def sparsity(study: Study) -> Iterator[Step]:
    """Zeros, negatives, sums and largest values of every ReLU and pooling, by channel."""
    network, batches = study.tools.eager, study.plan.sparsity_batches
    yield from _against(study, "sparsity", batches, measure_sparsity, EAGER, count_zeros, network)


def _against(
    study: Study,
    case: str,
    batches: Sequence[int],
    ours: Callable[[VGG, Any], object],
    peer: str,
    theirs: Callable[[Any, Any], object],
    network: Any,
) -> Iterator[Step]:
    """`ours` on both of our models, and `theirs` on PyTorch's network, for every batch."""

    def contest(batch: int, report: Report) -> list[Row]:
        shape = batch, study.plan.size
        images, calls = subject.noise(*shape), {}
        x = subject.on_device(images, HIGHEST)
        for tool, model in study.tools.models.items():
            calls[tool] = partial(_waited, ours, model, x)
        calls[peer] = inferring(partial(theirs, network, torch_side.tensor(images)))
        with tuned(HIGHEST):
            return study.contest(f"{case}, {of_shape(shape)}", calls, peer, report)

    for batch in batches:
        yield Step(f"batch {batch}", partial(contest, batch), 1 + batch / 2)


def memory(study: Study) -> Iterator[Step]:
    """Memory at the height of a forward pass, beyond what was held before it."""
    shape = study.plan.memory_batch, study.plan.size
    yield Step(of_shape(shape), partial(_peaks, study, shape), 1 + study.plan.memory_batch / 3)


def _peaks(study: Study, shape: Shape, report: Report) -> list[Row]:
    kind: Kind = "forward"
    case, tools = f"{kind}, {of_shape(shape)}", study.tools
    rows: list[Row] = []

    def add(tool: str, beyond: float | None, how: str) -> None:
        if study.can(tool, f"memory of {case}", "" if beyond is not None else "not Linux"):
            found = {"case": case, "tool": tool, "reference": EAGER}
            rows.append(found | {"beyond_gb": round(beyond or 0.0, 3), "how": how})
        report(len(rows) / 4)

    on_gpu = DEVICE.type == "cuda"
    for tool in (*tools.models, EAGER):
        call = tools.runner(tool, kind, shape).call
        if on_gpu and tool in tools.models:
            add(tool, _planned(tools.models[tool], shape), "XLA's plan")
        elif on_gpu:
            add(tool, peak(call), "the allocator's peak")
        else:
            call()  # the first one also holds what a compiler needs
            add(tool, _beyond(call), "second call")
    no = "its memory on a GPU is not asked for" if on_gpu else tools.reason(ORT, kind, shape)
    if study.can(ORT, f"memory of {case}", no):
        tools.forget_session()  # it keeps what its first call took
        gc.collect()
        add(ORT, _beyond(tools.runner(ORT, kind, shape).call), "first call of a session")
        tools.forget_session()
    return rows


def _beyond(call: Call) -> float | None:
    found = resident_peak(call)
    return found and found["peak"] - found["before"]


def _planned(model: VGG, shape: Shape) -> float:
    """GB of results and temporaries of the compiled program."""
    images = jax.ShapeDtypeStruct((shape[0], *shape[1], 3), "float32")
    run = jax.jit(lambda model, x: model(x))
    needs: Any = run.lower(model, images).compile().memory_analysis()
    return (needs.temp_size_in_bytes + needs.output_size_in_bytes) / 1e9


def _waited(function: Any, model: VGG, images: jax.Array) -> object:
    return jax.block_until_ready(function(model, images))


@jax.jit
def _activations(model: VGG, images: jax.Array) -> dict[str, jax.Array]:
    return model.activations(images, model.config.layer_names)


def _hooked(network: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of every module, by a hook on each; its ReLUs must not be in place."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output})

    leaves = [(name, x) for name, x in network.named_modules() if not list(x.children())]
    handles = [module.register_forward_hook(keep(name)) for name, module in leaves]
    network(images)
    for handle in handles:
        handle.remove()
    return found
