"""The whole study: the collapse in both frameworks, and the cures, twice."""

import dataclasses
import json
import math
import time
from typing import Any

import flaxvgg
from experiments.gap_collapse import pretrained, scratch, six_steps
from experiments.gap_collapse.cures import Report
from experiments.gap_collapse.effort import Effort
from flaxvgg.network.model import VGG

HALTED = 1e-4  # the loss is ln 2 within that


def run(model: VGG, effort: Effort, report: Report) -> dict[str, Any]:
    """A JSON value with every number of the study."""
    start = time.perf_counter()
    config = model.config
    model = flaxvgg.from_torch(
        config.arch,
        flaxvgg.to_torch(model),
        config=config,
        precision="default",
        provenance=model.provenance,
    )
    results = {
        "weights": model.provenance.source,
        "arch": config.arch,
        "effort": dataclasses.asdict(effort),
        "six_steps": six_steps.reproduce(effort, report),
        "scratch": scratch.compare(effort, report),
        "pretrained": pretrained.compare(model, effort, report),
        "seconds": time.perf_counter() - start,
    }
    # Eight digits tell float32 numbers apart; a zero remains one that was exact.
    return json.loads(
        json.dumps(results),
        parse_float=lambda number: float(f"{float(number):.8g}"),
        parse_constant=lambda name: None,  # NaN and Infinity are no JSON
    )


def unmet(results: dict[str, Any]) -> list[str]:
    """What should have come out of the six steps, in either framework, and did not."""
    missed = []
    for case in results["six_steps"]:
        for framework in ("ours", "pytorch"):
            steps = case[framework]
            name = f"{framework}: {case['head']}, learning rate {case['rate']:g}"
            if (case["head"], case["rate"]) == ("ReLU", 1.0):
                missed += [
                    f"{name}: loss {step['loss']}, gradient norm {step['gradient_norm']}, "
                    f"{step['zeros']:.0%} of the scores 0 after {i} steps"
                    for i, step in enumerate(steps)
                    if i >= 3 and not _is_collapsed(step)
                ]
            if (case["head"], case["rate"]) == ("no ReLU", 1.0) and steps[-1]["loss"] >= 0.61:
                missed.append(f"{name}: loss {steps[-1]['loss']} after {len(steps) - 1} steps")
    return missed


def _is_collapsed(step: dict[str, float]) -> bool:
    at_rest = abs(step["loss"] - math.log(2)) < HALTED
    return at_rest and step["zeros"] == 1 and step["gradient_norm"] == 0
