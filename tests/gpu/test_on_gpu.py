"""Parity, maps and determinism on an NVIDIA GPU; what is slow or timed is in gpu_report."""

import shutil
from typing import Any

import pytest

pytestmark = [
    pytest.mark.gpu,
    # Asking the driver's own tool costs nothing where there is none, unlike importing PyTorch.
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    """The report's steps by section and name, each ready to run."""
    import os

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import torch

    assert torch.cuda.is_available(), "PyTorch sees no CUDA device: install it for CUDA"
    assert jax.default_backend() in ("gpu", "cuda"), (
        "JAX sees no CUDA device: pip install 'jax[cuda13]'"
    )
    from experiments.gpu_report.study import sections
    from experiments.gpu_report.subject import FULL

    return {section.name: list(section.steps) for section in sections(FULL, None, 600)}


def _verdicts(name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    from experiments.gpu_report import targets
    from experiments.gpu_report.subject import FULL

    plan = {"forward_batches": FULL.forward_batches, "several": FULL.several}
    results = {"cuda": True, "plan": plan, "sections": {name: {"rows": rows}}}
    judged = targets.judge(results)
    return {t["target"]: t["verdict"] for t in judged if t["verdict"] != targets.MISSING}


@pytest.mark.parametrize("at", range(4))  # vgg16 at 224 px, one image and eight; two others
def test_parity(study: dict[str, Any], at: int):
    verdicts = _verdicts("parity", study["parity"][at].run())
    assert len(verdicts) == 7
    assert set(verdicts.values()) == {"pass"}, verdicts


def test_maps(study: dict[str, Any]):
    rows = [row for step in study["maps"] for row in step.run()]
    assert len(rows) == len(study["maps"])
    assert [row for row in rows if not row["holds"]] == []


def test_the_same_to_the_bit_with_deterministic_algorithms(study: dict[str, Any]):
    rows = study["determinism"][0].run()
    fixed = [row for row in rows if row["deterministic"] and row["tool"] == "jax"]
    assert fixed
    assert all(row["repeats_equal"] and row["processes_equal"] for row in fixed), fixed
