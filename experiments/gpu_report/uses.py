"""What else a network is used for: LPIPS, attributions, a prepared model, an exported program.

And where the time of the forward pass goes, by XLA's own account.
"""

import collections
import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.gpu_report import subject, torch_side
from experiments.gpu_report.speed import COMPILED, EAGER, OURS, Bench, Calls, Row, tuned, waiting
from experiments.gpu_report.subject import HIGHEST, Mode
from experiments.gpu_report.torch_lpips import LPIPS
from experiments.gpu_report.torch_side import Networks
from flaxvgg.attribution.methods import attribute
from flaxvgg.conversion.jax_export import to_jax_export
from flaxvgg.conversion.rule import keeps_rule, ratio_of
from flaxvgg.network.model import VGG
from flaxvgg.network.prepared import prepare
from flaxvgg.perceptual.lpips import lpips
from flaxvgg.perceptual.published import TAPS, lpips_weights

VALUE, GRADIENT = "LPIPS", "LPIPS and its gradient"
_ARCH = "vgg16"  # LPIPS's, whatever the plan's
_SHOWN = 15  # operations of a profile
_CALLS = 3  # that are profiled


class Uses:
    """Checks and timings beside those of `Bench`, whose network and weights they have."""

    def __init__(self, bench: Bench):
        self.bench, self.plan = bench, bench.plan

    @cached_property
    def _trunk(self) -> tuple[Any, subject.Weights, Networks]:
        if self.plan.arch == _ARCH:
            return self.bench.config, self.bench.weights, self.bench.networks
        config = subject.config_of(self.plan, _ARCH)
        weights = subject.random_weights(config)
        return config, weights, torch_side.networks_of(config, weights)

    def _distance(self, mode: Mode) -> Callable[[jax.Array, jax.Array], jax.Array]:
        config, weights, _ = self._trunk
        model = subject.model_of(config, weights, mode)

        def distance(a: jax.Array, b: jax.Array) -> jax.Array:
            with warnings.catch_warnings():  # that these are not LPIPS's weights: halves of them
                warnings.simplefilter("ignore")
                return lpips(model, a, b, value_range=(-1, 1))

        return distance

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        shape = 2, self.plan.sparsity_batch, self.plan.size, self.plan.size, 3
        a, b = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        return a, b

    def lpips(self, mode: Mode) -> list[Row]:
        """The distance of pairs, and that with its derivative by one of the images."""
        images = self._pairs()
        ours = [subject.on_device(x, mode) for x in images]
        theirs = [torch_side.tensor(x, torch_side.dtype_of(mode)) for x in images]
        distance = self._distance(mode)
        value = jax.jit(lambda a, b: distance(a, b).sum())
        slope = jax.jit(jax.value_and_grad(lambda a, b: distance(a, b).sum()))
        eager = _lpips_of(self._trunk[2].in_mode(mode))
        torch._dynamo.reset()
        compiled = torch.compile(eager, backend=self.plan.backend, dynamic=False)

        def back(network: Any) -> None:
            image = theirs[0].clone().requires_grad_(True)
            network(image, theirs[1]).sum().backward()

        values: Calls = {OURS: lambda: jax.block_until_ready(value(*ours))}
        slopes: Calls = {OURS: lambda: jax.block_until_ready(slope(*ours))}
        for name, network in ((EAGER, eager), (COMPILED, compiled)):
            values[name] = waiting(lambda network=network: network(*theirs))
            slopes[name] = waiting(lambda network=network: back(network), grad=True)
        with tuned(mode):
            return [
                row
                for what, calls in ((VALUE, values), (GRADIENT, slopes))
                for row in self.bench.timed(what, len(theirs[0]), mode, calls, values[EAGER])
            ]

    def attribution(self, method: str, mode: Mode, **options: Any) -> list[Row]:
        """One class of one image; PyTorch's is the plain gradient."""
        images = subject.noise(1, (self.plan.size, self.plan.size))
        x, model = subject.on_device(images, mode), self.bench.model(mode)
        theirs, network = torch_side.tensor(images), self.bench.network(HIGHEST)

        def gradient() -> None:
            image = theirs.clone().requires_grad_(True)
            network(image)[0, 0].backward()

        calls: Calls = {
            OURS: lambda: jax.block_until_ready(attribute(model, x, 0, method, **options).values)
        }
        if method == "saliency":
            calls[EAGER] = waiting(gradient, grad=True)
        what = " ".join([method, *map(str, options.values())])
        with tuned(mode):
            return self.bench.timed(what, 1, mode, calls, waiting(lambda: network(theirs)))

    def prepared(self, mode: Mode) -> list[Row]:
        """The forward pass of a prepared model, which has nothing to gain here, nor to lose."""
        size, batch = (self.plan.size, self.plan.size), min(self.plan.forward_batches)
        images = subject.noise(batch, size)
        x, model = subject.on_device(images, mode), self.bench.model(mode)
        theirs, network = torch_side.tensor(images), self.bench.network(HIGHEST)
        ours = subject.forward_of(prepare(model, size))
        calls: Calls = {OURS: lambda: jax.block_until_ready(ours(x))}
        with tuned(mode):
            beside = waiting(lambda: network(theirs))
            return self.bench.timed("forward, prepared", batch, mode, calls, beside)

    def check_lpips(self) -> list[Row]:
        """The distance, by the numbers rule."""
        images = self._pairs()
        ours = jax.jit(self._distance(HIGHEST))(*(subject.on_device(x, HIGHEST) for x in images))
        found = []
        for network in self._trunk[2]:
            dtype = next(network.parameters()).dtype
            with torch_side.arithmetic(HIGHEST), torch.no_grad():
                found.append(_lpips_of(network)(*(torch_side.tensor(x, dtype) for x in images)))
        return [_checked("LPIPS", "distance", ours, *found)]

    def check_exported(self) -> list[Row]:
        """Logits by the program that `jax.export` makes for several platforms, run on this one."""
        size = self.plan.size, self.plan.size
        model: VGG = self.bench.model(HIGHEST)
        exported = to_jax_export(model, "logits", size=size, platforms=["cpu", "cuda"])
        images = subject.noise(2, size)
        ours = exported.call(subject.on_device(images, HIGHEST))
        found = []
        for network in self.bench.networks:
            dtype = next(network.parameters()).dtype
            with torch_side.arithmetic(HIGHEST), torch.no_grad():
                found.append(network(torch_side.tensor(images, dtype)))
        return [_checked("jax.export", "logits", ours, *found)]

    def profile(self, mode: Mode) -> list[Row]:
        """Milliseconds of a forward pass of the largest batch by operation, the longest first."""
        batch = max(self.plan.forward_batches)
        x = subject.on_device(subject.noise(batch, (self.plan.size, self.plan.size)), mode)
        forward = subject.forward_of(self.bench.model(mode))
        jax.block_until_ready(forward(x))
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(_CALLS):
                    jax.block_until_ready(forward(x))
            traces = [*Path(folder).rglob("*.xplane.pb")]
            spent = _operations(jax.profiler.ProfileData.from_file(str(traces[0])))
        total = sum(spent.values())
        return [
            {
                "what": f"forward, batch {batch}",
                "mode": mode.name,
                "operation": name,
                "ms": nanoseconds / 1e6 / _CALLS,
                "share": nanoseconds / total,
            }
            for name, nanoseconds in spent.most_common(_SHOWN)
        ]


def _lpips_of(network: torch.nn.Module) -> LPIPS:
    weights = lpips_weights("0.1")
    features: Any = network.features
    return LPIPS(features, [weights[tap] for tap in TAPS]).requires_grad_(False)


def _checked(head: str, what: str, ours: Any, exact: torch.Tensor, theirs: torch.Tensor) -> Row:
    found = torch_side.shared(jnp.asarray(ours))
    error, peer = (torch_side.relative_error(x, exact) for x in (found, theirs))
    return {
        "head": head,
        "method": what,
        "shape": list(found.shape),
        "error": error,
        "peer_error": peer,
        "ratio": ratio_of(error, peer),
        "holds": keeps_rule(error, peer),
    }


def _operations(profile: Any) -> collections.Counter[str]:
    """Nanoseconds by operation: of the device's streams, or of a CPU's threads."""
    on_gpu = [plane for plane in profile.planes if "GPU" in plane.name]
    spent: collections.Counter[str] = collections.Counter()
    for plane in on_gpu or profile.planes:
        for line in plane.lines:
            if on_gpu and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                known = dict(event.stats)
                if on_gpu or "hlo_op" in known:
                    spent[str(known.get("hlo_op", event.name))] += event.duration_ns
    return spent
