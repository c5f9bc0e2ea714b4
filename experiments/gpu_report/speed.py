"""Times of flaxvgg and PyTorch in turns, each call waited for, and the memory that they take.

Every call stands beside an eager forward pass of PyTorch on the same images, in the same round
(`experiments.timing`). torch.compile and CUDA graphs get what suits them: channels last,
cuDNN's benchmark, fixed shapes.
"""

import contextlib
import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from experiments.gpu_report import subject, torch_maps, torch_side
from experiments.gpu_report.subject import HIGHEST, Mode, Plan, Weights
from experiments.gpu_report.torch_side import NO_CUDA, Networks
from experiments.timing import Call, Case, Measured
from experiments.timing import measure as measure_cases
from experiments.torch_device import DEVICE, wait
from flaxvgg.cam.conventions import CONVENTIONS
from flaxvgg.cam.maps import layer_maps
from flaxvgg.cam.methods import explain
from flaxvgg.cam.options import NoOptions
from flaxvgg.cam.targets import Targets
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.sparsity.counting import measure_sparsity
from flaxvgg.training.trainer import Trainer

Row = dict[str, Any]
Calls = dict[str, Call]  # by the tool
OURS = "flaxvgg"
EAGER = "PyTorch eager"
LAST = "PyTorch channels last"
COMPILED = "torch.compile"
COMPILED_LAST = "torch.compile channels last"
GRAPH = "CUDA graph"
HOOKS = "PyTorch hooks"


class Bench:
    """One network on both sides, and its timings."""

    def __init__(self, plan: Plan, config: VGGConfig, weights: Weights, networks: Networks):
        self.plan, self.config, self.weights, self.networks = plan, config, weights, networks

    def model(self, mode: Mode, **stored: str) -> VGG:
        """Our network in this mode."""
        return subject.model_of(self.config, self.weights, mode, **stored)

    def network(self, mode: Mode, *, last: bool = False) -> torch.nn.Module:
        """torchvision's in this mode, its ReLUs in place as it has them."""
        network = copy.deepcopy(self.networks.in_mode(mode))
        for module in network.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = True
        return network.to(memory_format=torch.channels_last) if last else network

    def forward(self, batch: int, mode: Mode) -> list[Row]:
        """Logits of a batch, by every tool."""
        size = (self.plan.size, self.plan.size)
        images = subject.noise(batch, size)
        x, ours = subject.on_device(images, mode), subject.forward_of(self.model(mode))
        theirs = torch_side.tensor(images, torch_side.dtype_of(mode))
        last = theirs.to(memory_format=torch.channels_last)
        network, network_last = self.network(mode), self.network(mode, last=True)
        torch._dynamo.reset()
        calls: Calls = {
            OURS: lambda: jax.block_until_ready(ours(x)),
            EAGER: waiting(lambda: network(theirs)),
            LAST: waiting(lambda: network_last(last)),
        }
        compiled = self._compiled(network_last)
        calls[COMPILED_LAST] = waiting(lambda: compiled(last))
        if batch == max(self.plan.forward_batches):
            plain = self._compiled(network)
            calls[COMPILED] = waiting(lambda: plain(theirs))
        with tuned(mode):
            if DEVICE.type == "cuda":
                calls[GRAPH] = _graphed(network_last, last)
            rows = self.timed("forward", batch, mode, calls, calls[EAGER])
        if DEVICE.type != "cuda":
            rows.append(_without("forward", batch, mode, GRAPH))
        flops = 2 * batch * subject.multiplications(self.config, size)
        return [_with_tflops(row, flops) for row in rows]

    def cam(self, method: str, classes: int, mode: Mode) -> list[Row]:
        """Maps of one image, for so many classes."""
        images = subject.noise(1, (self.plan.size, self.plan.size))
        x, model = subject.on_device(images, mode), self.model(mode)
        theirs, network = torch_side.tensor(images, torch_side.dtype_of(mode)), self.network(mode)
        wanted = list(range(classes))
        calls: Calls = {
            OURS: lambda: jax.block_until_ready(explain(model, x, wanted, method).maps),
            EAGER: waiting(lambda: torch_maps.maps_of(network, theirs, wanted, method), grad=True),
        }
        if method == "grad_cam":
            hooked = torch_maps.hooked_grad_cam
            calls[HOOKS] = waiting(lambda: hooked(network, theirs, wanted), grad=True)
        rounds = self.plan.slow_rounds if method in self.plan.slow_cams else self.plan.rounds
        beside = waiting(lambda: network(theirs))
        with tuned(mode):
            return self.timed(f"{method}, {classes} cl.", 1, mode, calls, beside, rounds)

    def sparsity(self, mode: Mode) -> list[Row]:
        """Zeros by channel of every ReLU and pooling layer, and negatives before the ReLUs."""
        batch = self.plan.sparsity_batch
        images = subject.noise(batch, (self.plan.size, self.plan.size))
        x, model = subject.on_device(images, mode), self.model(mode)
        theirs, network = torch_side.tensor(images, torch_side.dtype_of(mode)), self.network(mode)
        calls: Calls = {
            OURS: lambda: jax.block_until_ready(measure_sparsity(model, x)),
            EAGER: waiting(lambda: count_zeros(network, theirs)),
        }
        with tuned(mode):
            beside = waiting(lambda: network(theirs))
            return self.timed("sparsity", batch, mode, calls, beside)

    def training(self, mode: Mode) -> list[Row]:
        """One step of SGD with momentum on all parameters, dropout on."""
        images, labels = subject.training_batch(self.plan)
        x, y = torch_side.tensor(images), torch.from_numpy(labels).to(DEVICE)
        last = x.to(memory_format=torch.channels_last)
        eager = torch_side.Training(self.networks.single, mode)
        eager_last = torch_side.Training(self.networks.single, mode, torch.channels_last)
        compiled = torch_side.Training(self.networks.single, mode, torch.channels_last)
        torch._dynamo.reset()
        compiled.scores = self._compiled(compiled.network)
        calls: Calls = {
            OURS: self._our_steps(mode),
            EAGER: waiting(lambda: eager(x, y), grad=True),
            LAST: waiting(lambda: eager_last(last, y), grad=True),
            COMPILED_LAST: waiting(lambda: compiled(last, y), grad=True),
        }
        network = self.network(mode)
        forward = torch_side.tensor(images, torch_side.dtype_of(mode))
        with tuned(mode):
            beside = waiting(lambda: network(forward))
            return self.timed("training step", self.plan.train_batch, mode, calls, beside)

    def _our_steps(self, mode: Mode) -> Call:
        images, labels = subject.training_batch(self.plan)
        model = self.model(mode, stored="float32")
        trainer = Trainer.of(model, subject.TRAINING)
        batch = subject.on_device(images, mode), subject.on_device(labels, HIGHEST)
        held = [trainer.start(model)]  # a step takes the old state's memory

        def step() -> None:
            held[0], metrics = trainer.step(held[0], *batch)
            jax.block_until_ready((held[0], metrics))

        return step

    def ceilings(self) -> list[Row]:
        """TFLOP/s of one large matrix product in each mode, the better of both frameworks."""
        n = self.plan.matrix
        rows = []
        a = np.random.default_rng(0).standard_normal((n, n), np.float32)
        for mode in self.plan.timed:
            x = subject.on_device(a, mode)
            product = jax.jit(
                lambda x, precision=mode.precision: jax.numpy.dot(x, x, precision=precision)
            )
            theirs = torch.from_numpy(a).to(DEVICE, torch_side.dtype_of(mode))
            calls: Calls = {
                OURS: lambda x=x, f=product: jax.block_until_ready(f(x)),
                EAGER: waiting(lambda m=theirs: m @ m),
            }
            with tuned(mode):
                found = self.timed(f"product of {n} x {n}", 1, mode, calls, calls[EAGER])
            rows += [_with_tflops(row, 2 * n**3) for row in found]
        return rows

    def memory(self) -> list[Row]:
        """GB beyond weights and inputs: XLA's plan of the program, and PyTorch's peak in a call."""
        if DEVICE.type != "cuda":
            return [{"what": "memory", "tool": tool, "note": NO_CUDA} for tool in (OURS, EAGER)]
        rows: list[Row] = []
        for mode in self.plan.timed:
            planned = self.planned_memory(mode)
            with tuned(mode):
                for what, call in self._of_torch(mode).items():
                    common = {"what": what, "mode": mode.name}
                    rows.append({**common, "tool": OURS, "gb": planned[what]})
                    rows.append({**common, "tool": EAGER, "gb": peak(call)})
        return rows

    def _of_torch(self, mode: Mode) -> Calls:
        """What `planned_memory` plans, as PyTorch does it."""
        batch, size = max(self.plan.forward_batches), (self.plan.size, self.plan.size)
        network = self.network(mode, last=True)
        images = torch_side.tensor(subject.noise(batch, size), torch_side.dtype_of(mode))
        last, one = images.to(memory_format=torch.channels_last), images[:1].contiguous()
        wanted = list(range(self.plan.several))
        hooked = torch_maps.hooked_grad_cam
        inputs, labels = subject.training_batch(self.plan)
        x, y = torch_side.tensor(inputs), torch.from_numpy(labels).to(DEVICE)
        step = torch_side.Training(self.networks.single, mode)
        return {
            f"forward, batch {batch}": waiting(lambda: network(last)),
            f"grad_cam, {len(wanted)} cl.": waiting(
                lambda: hooked(network, one, wanted), grad=True
            ),
            "training step": waiting(lambda: step(x, y), grad=True),
        }

    def planned_memory(self, mode: Mode) -> dict[str, float]:
        """GB of results and temporaries that our programs are compiled to use."""
        plan, model = self.plan, self.model(mode)
        batch, size = max(plan.forward_batches), (plan.size, plan.size)
        many, one = (subject.on_device(subject.noise(n, size), mode) for n in (batch, 1))
        classes = Targets(jax.numpy.arange(plan.several, dtype=jax.numpy.int32)[None])
        layer = [x.name for x in self.config.conv_stack if x.kind == "relu"][-1]
        stacks = model.conv_stack, model.head
        static = NoOptions(), self.config, "grad_cam", (layer,), CONVENTIONS["paper"]
        trained = self.model(mode, stored="float32")
        trainer = Trainer.of(trained, subject.TRAINING)
        images, labels = subject.training_batch(plan)
        structure, state = nnx.split(model)
        logits = jax.jit(lambda state, x: nnx.merge(structure, state)(x))
        programs = {
            f"forward, batch {batch}": logits.lower(state, many),
            f"grad_cam, {plan.several} cl.": layer_maps.lower(stacks, one, classes, *static),
            "training step": jax.jit(Trainer.step, static_argnums=0, donate_argnums=1).lower(
                trainer, trainer.start(trained), subject.on_device(images, mode), labels
            ),
        }
        found = {}
        for what, lowered in programs.items():
            needs: Any = lowered.compile().memory_analysis()
            extra = needs.output_size_in_bytes - needs.alias_size_in_bytes
            found[what] = (needs.temp_size_in_bytes + extra) / 1e9
        return found

    def _compiled(self, network: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return torch.compile(network, backend=self.plan.backend, dynamic=False)

    def timed(
        self,
        what: str,
        batch: int,
        mode: Mode,
        calls: Calls,
        beside: Call,
        rounds: int | None = None,
    ) -> list[Row]:
        """The calls of every tool in turns, each behind the one that it stands beside."""
        cases = [Case(what, batch, tool, call, beside) for tool, call in calls.items()]
        found = measure_cases(cases, rounds or self.plan.rounds, lambda done: None)
        return [_row(measured, mode) for measured in found]


@contextlib.contextmanager
def tuned(mode: Mode) -> Iterator[None]:
    """PyTorch in this mode, with cuDNN's algorithms chosen by trial, as XLA chooses its own."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with torch_side.arithmetic(mode):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def ratio(rows: Iterable[Row], ours: Row, tool: str) -> float | None:
    """How many times as fast as a tool: the median of the rounds, in which both were timed."""
    same = ("what", "batch", "mode")
    for row in rows:
        if row["tool"] == tool and all(row[key] == ours[key] for key in same) and row["ms"]:
            pairs = zip(row["rounds_ms"], ours["rounds_ms"], strict=True)
            return statistics.median(theirs / own for theirs, own in pairs)
    return None


def _row(measured: Measured, mode: Mode) -> Row:
    rounds = [1e3 * wall for wall, _ in measured.calls]
    return {
        "what": measured.case.method,
        "batch": measured.case.classes,
        "mode": mode.name,
        "tool": measured.case.tool,
        "ms": statistics.median(rounds),
        "forwards": measured.passes()[0],
        "first_call_s": measured.first_call,
        "rounds_ms": rounds,
    }


def _without(what: str, batch: int, mode: Mode, tool: str) -> Row:
    common = {"what": what, "batch": batch, "mode": mode.name, "tool": tool}
    return {**common, "ms": None, "note": NO_CUDA}


def _with_tflops(row: Row, flops: float) -> Row:
    return row | {"tflops": flops / row["ms"] / 1e9 if row["ms"] else None}


def waiting(function: Callable[[], object], *, grad: bool = False) -> Call:
    """The call, and then the wait for the GPU."""

    def call() -> None:
        with torch.set_grad_enabled(grad):
            function()
        wait()

    return call


def _graphed(network: torch.nn.Module, images: torch.Tensor) -> Call:
    """The forward pass recorded as a CUDA graph, and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        network(images)
    return waiting(graph.replay)


def peak(call: Call) -> float:
    """GB that PyTorch holds at most during the second call, beyond what it held before."""
    call()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def count_zeros(network: Any, images: torch.Tensor) -> Sequence[torch.Tensor]:
    """What `measure_sparsity` counts, written plainly."""
    counts: list[torch.Tensor] = []

    def by_channel(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).sum(dim=2) if x.ndim == 4 else x.long()

    x = images
    for module in (*network.features, network.avgpool, torch.nn.Flatten(), *network.classifier):
        if isinstance(module, torch.nn.ReLU):
            number = x.float()
            counts += [by_channel(x < 0), by_channel(number), by_channel(number**2)]
        x = module(x)
        if isinstance(module, torch.nn.ReLU | torch.nn.MaxPool2d):
            counts.append(by_channel(x == 0))
            counts.append(x.flatten(2).amax(dim=2) if x.ndim == 4 else x)
    return counts
