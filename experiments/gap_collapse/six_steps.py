"""The report of the collapse, reproduced: the same six steps in PyTorch and here."""

from typing import Any

import jax.numpy as jnp
import torch

import flaxvgg
from experiments.gap_collapse.cures import (
    DISEASE,
    Batch,
    Cure,
    Report,
    initialised,
    random_batch,
    sgd,
)
from experiments.gap_collapse.effort import Effort
from experiments.gap_collapse.peer import Network, channels_first
from flaxvgg.network.model import VGG

CASES = (
    (DISEASE, 1.0),
    (DISEASE, 0.1),
    (Cure("no ReLU"), 1.0),
    (Cure("ReLU, FC", last="relu", fc=True), 1.0),
)
STEPS = 6
CLASSES = 20


def reproduce(effort: Effort, report: Report) -> list[dict[str, Any]]:
    """Every case in both frameworks: what is true before each step, and after the last."""
    arch, channels = effort.arch, effort.channels
    batch = random_batch(4, effort.size, CLASSES, seed=0)
    found = []
    for i, (cure, rate) in enumerate(CASES):
        report(f"{cure.name}, learning rate {rate:g}", i / len(CASES))
        weights = initialised(cure, arch, channels, batch.labels, seed=0)
        config = cure.config(arch, CLASSES, channels)
        network = Network(config)
        network.load_state_dict(weights)
        ours, diagnosis = here(flaxvgg.from_torch(arch, weights, config=config), batch, rate)
        found.append(
            {
                "head": cure.name,
                "rate": rate,
                "ours": ours,
                "pytorch": in_pytorch(network, batch, rate),
                "state": diagnosis.state,
                "diagnosis": str(diagnosis),
            }
        )
    return found


def here(model: VGG, batch: Batch, rate: float) -> tuple[list[dict[str, float]], flaxvgg.Diagnosis]:
    """Each step with `flaxvgg.Trainer`, and what `flaxvgg.diagnose` says in the end."""
    images, labels = map(jnp.asarray, batch)
    trainer = flaxvgg.Trainer.of(model, sgd(rate, stack=True))
    state, found = trainer.start(model), []
    for _ in range(STEPS + 1):  # what a step tells was true before it
        zeros = (trainer.scores(state, images) == 0).mean()
        state, metrics = trainer.step(state, images, labels)
        found.append({**{name: float(x) for name, x in metrics.items()}, "zeros": float(zeros)})
    return found, flaxvgg.diagnose(trainer.model(state), *batch)


def in_pytorch(network: torch.nn.Module, batch: Batch, rate: float) -> list[dict[str, float]]:
    """The same steps of the same network, as one writes them in PyTorch."""
    images, labels = channels_first(batch.images), torch.tensor(batch.labels)
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    found = []
    for _ in range(STEPS + 1):
        optimiser.zero_grad()
        scores = network(images)
        loss = torch.nn.functional.multilabel_soft_margin_loss(scores, labels)
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [x.grad for x in network.parameters() if x.grad is not None]
        )
        optimiser.step()
        found.append(
            {
                "loss": float(loss.detach()),
                "gradient_norm": float(norm),
                "largest_score": float(scores.detach().abs().max()),
                "zeros": float((scores == 0).float().mean()),
            }
        )
    return found
