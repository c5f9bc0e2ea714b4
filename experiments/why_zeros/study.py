"""The whole study: every explanation, measured one after the other."""

import json
from types import ModuleType
from typing import Any

import numpy as np

from experiments.why_zeros import (
    detail,
    information,
    initialisation,
    negatives,
    pooling,
    preprocessing,
    silence,
    size,
)
from experiments.why_zeros.subject import Subject
from flaxvgg.commands.console import step

# Each has CLAIM, METHOD, measure(subject), and verdict(found) and table(found) of what that gave.
EXPLANATIONS: dict[str, ModuleType] = {
    "a": negatives,
    "b": initialisation,
    "c": detail,
    "d": size,
    "e": preprocessing,
    "f": pooling,
    "g": information,
    "h": silence,
}


def run(subject: Subject) -> dict[str, Any]:
    """A JSON value with every number of the study."""
    provenance = subject.model.provenance
    results: dict[str, Any] = {
        "arch": subject.model.config.arch,
        "weights": provenance.source,
        "sha256": provenance.sha256,
        "preprocessing": provenance.preprocessing.name,
        "photos": subject.names,
        "map": _map(subject),
    }
    for letter, explanation in EXPLANATIONS.items():
        with step(f"({letter})") as found:
            results[letter] = explanation.measure(subject)
            found.append(explanation.CLAIM)
    # Six decimals tell everything, and keep the file small.
    return json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 6))


def _map(subject: Subject) -> dict[str, Any]:
    """Where pool5 of the first photo is not zero: the bits of (h, w, channels)."""
    features = subject.activations(["pool5"], slice(0, 1))["pool5"][0]
    return {
        "photo": subject.names[0],
        "shape": list(features.shape),
        "non_zero": int(np.count_nonzero(features)),
        "bits": np.packbits(features != 0).tobytes().hex(),
    }
