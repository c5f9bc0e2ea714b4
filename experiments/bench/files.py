"""Section `checkpoint`: weights to a file and back, and converted, beside PyTorch's own."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import torch

import flaxvgg
from experiments.bench.steps import Row, Step, Study
from experiments.bench.tools import OURS, WIDTH
from experiments.timing import Call, Report
from flaxvgg.conversion.readers.torch import read_torch
from flaxvgg.conversion.target import convert

TORCH = "torch"


def checkpoint(study: Study) -> Iterator[Step]:
    """Saving, loading and converting the whole network, on a disk whose pages are in memory."""

    def contest(report: Report) -> list[Row]:
        tools = study.tools
        weights = {name: torch.from_numpy(value) for name, value in tools.weights.items()}
        if study.plan.network.width != WIDTH:  # nobody else's classifier is converted
            weights = {name: x for name, x in weights.items() if name.startswith("features.")}
        model = flaxvgg.from_torch(tools.config.arch, weights)
        network = copy.deepcopy(tools.networks.single).cpu()

        def load_torch() -> None:
            network.load_state_dict(torch.load(pth, weights_only=True), strict=False)

        with tempfile.TemporaryDirectory(dir=tools.folder) as name:
            folder = Path(name)
            file, directory, pth = folder / "a.safetensors", folder / "orbax", folder / "a.pth"
            save: dict[str, Call] = {
                f"{OURS} .safetensors": lambda: flaxvgg.save(model, file),
                f"{OURS} Orbax": lambda: flaxvgg.save(model, directory),
                TORCH: lambda: torch.save(weights, pth),
            }
            load: dict[str, Call] = {
                f"{OURS} .safetensors": lambda: jax.block_until_ready(flaxvgg.load(file)),
                f"{OURS} Orbax": lambda: jax.block_until_ready(flaxvgg.load(directory)),
                f"{OURS} converts .pth": lambda: jax.block_until_ready(
                    convert(read_torch(pth, tools.config.arch))
                ),
                TORCH: load_torch,
            }
            rows = study.contest("save", save, TORCH, lambda done: report(done / 2))
            return rows + study.contest("load", load, TORCH, lambda done: report((1 + done) / 2))

    yield Step("save, load, convert", contest, 4)
