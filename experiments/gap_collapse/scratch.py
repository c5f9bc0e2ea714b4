"""From random weights: which heads train, which collapse, at which learning rate."""

from typing import Any

import flaxvgg
from experiments.gap_collapse.cures import (
    CURES,
    Report,
    as_trained,
    follow,
    initialised,
    random_batch,
    sgd,
)
from experiments.gap_collapse.effort import Effort

RATES = (0.01, 0.1, 1.0)
CLASSES = 20


def compare(effort: Effort, report: Report) -> list[dict[str, Any]]:
    """A row for each head and learning rate, over several initialisations and batches."""
    arch, channels = effort.small_arch, effort.small_channels
    rows = []
    for i, cure in enumerate(CURES):
        config = cure.config(arch, CLASSES, channels)
        for j, rate in enumerate(RATES):
            report(f"{cure.name}, learning rate {rate:g}", (i + j / len(RATES)) / len(CURES))
            trainer, losses, states = None, [], []
            for seed in range(effort.seeds):
                batch = random_batch(4, effort.small_size, CLASSES, seed)
                weights = initialised(cure, arch, channels, batch.labels, seed=seed)
                model = flaxvgg.from_torch(arch, weights, config=config, precision="default")
                trainer = trainer or flaxvgg.Trainer.of(model, sgd(rate, stack=True))
                state, found = follow(trainer, model, [batch] * effort.small_steps)
                diagnosis = flaxvgg.diagnose(as_trained(trainer, state), *batch)
                losses.append([*found, diagnosis.loss])
                states.append(diagnosis.state)
            rows.append({"head": cure.name, "rate": rate, "losses": losses, "states": states})
    return rows
