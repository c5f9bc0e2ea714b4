"""Is the result the same to the bit when it is computed again, here and in another process?

Deterministic algorithms are chosen when a process starts (XLA_FLAGS, CUBLAS_WORKSPACE_CONFIG), so
that each setting is a process of its own: `python -m experiments.gpu_report.determinism`. Nothing
here imports PyTorch unless it is PyTorch that is asked.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = 3
_FLAGS = {
    ("jax", True): {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"},
    ("torch", True): {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
}

Digests = dict[str, list[str]]  # of REPEATS runs, by what was computed


def measure(plan_name: str, timeout: float) -> list[dict[str, Any]]:
    """Run every child of the plan, all at once, and say what was equal to the bit."""
    from experiments.gpu_report.subject import FULL, TINY

    plan = TINY if plan_name == "tiny" else FULL
    running = [(child, _start(plan_name, *child)) for child in plan.children]
    until = time.monotonic() + timeout
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for child, process in running:
        found.setdefault(child, []).append(_answer(process, until - time.monotonic()))
    return [row for (tool, fixed), answers in found.items() for row in _rows(tool, fixed, answers)]


def _answer(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    """What a process found, or why it found nothing."""
    try:
        output, errors = process.communicate(timeout=max(timeout, 0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": "took too long"}
    if process.returncode:
        return {"failed": " ".join(errors.strip().splitlines()[-1:])[:300]}
    return json.loads(output)


def _start(plan_name: str, framework: str, deterministic: bool) -> subprocess.Popen[str]:
    options = ["--deterministic"] if deterministic else []
    extra = _FLAGS.get((framework, deterministic), {})
    flags = f"{os.environ.get('XLA_FLAGS', '')} {extra.get('XLA_FLAGS', '')}".strip()
    return subprocess.Popen(
        [sys.executable, "-m", __name__, framework, "--plan", plan_name, *options],
        cwd=Path(__file__).parents[2],
        env=os.environ | extra | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _rows(tool: str, fixed: bool, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for answer in answers:
        if "failed" in answer:
            what = f"failed: {answer['failed']}"
            row = {"tool": tool, "deterministic": fixed, "what": what, "warnings": []}
            return [row | {"repeats_equal": False, "processes": 0, "processes_equal": None}]
    first = answers[0]["digests"]
    return [
        {
            "tool": tool,
            "deterministic": fixed,
            "what": what,
            "repeats_equal": all(len(set(a["digests"][what])) == 1 for a in answers),
            "processes": len(answers),
            "processes_equal": all(a["digests"][what] == first[what] for a in answers)
            if len(answers) > 1
            else None,
            "warnings": answers[0]["warnings"] if what.endswith("training step") else [],
        }
        for what in first
    ]


def _digest(*arrays: Any) -> str:
    import numpy as np

    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def _repeated(plan: Any, mode: Any, calls: dict[str, Callable[[], str]]) -> Digests:
    return {
        f"{mode.name}: {what}": [calls[what]() for _ in range(REPEATS)]
        for what in plan.computed_again
    }


def of_jax(plan: Any) -> Digests:
    """The digests of logits, maps and parameters after a step, by flaxvgg."""
    import jax

    from experiments.gpu_report import subject
    from flaxvgg.cam.methods import explain
    from flaxvgg.training.trainer import Trainer

    config = subject.config_of(plan, plan.arch)
    weights = subject.random_weights(config)
    images, labels = subject.training_batch(plan)
    found: Digests = {}
    for mode in plan.repeated:
        model = subject.model_of(config, weights, mode)
        x = subject.on_device(images, mode)
        forward = subject.forward_of(model)

        def step(model=subject.model_of(config, weights, mode, stored="float32")) -> str:
            trainer = Trainer.of(model, subject.TRAINING)
            state, _ = trainer.step(trainer.start(model), images, labels)
            return _digest(*jax.tree.leaves(state.trained))

        calls: dict[str, Callable[[], str]] = {
            "forward": lambda x=x, f=forward: _digest(f(x)),
            "Grad-CAM": lambda x=x, m=model: _digest(explain(m, x[:1], [0]).maps),
            "training step": step,
        }
        found |= _repeated(plan, mode, calls)
    return found


def of_torch(plan: Any) -> Digests:
    """The same by PyTorch."""
    import torch

    from experiments.gpu_report import subject, torch_maps, torch_side

    config = subject.config_of(plan, plan.arch)
    networks = torch_side.networks_of(config, subject.random_weights(config))
    images, labels = map(torch.from_numpy, subject.training_batch(plan))
    labels = labels.to(torch_side.DEVICE)
    found: Digests = {}
    for mode in plan.repeated:
        network = networks.in_mode(mode)
        x = torch_side.tensor(images.numpy(), torch_side.dtype_of(mode))

        def digest(*tensors: torch.Tensor) -> str:
            return _digest(*(tensor.detach().float().cpu().numpy() for tensor in tensors))

        def step(mode=mode, x=x.float()) -> str:
            torch.manual_seed(0)  # of dropout
            stepped = torch_side.Training(networks.single, mode)
            stepped(x, labels)
            return digest(*stepped.network.parameters())

        def forward(network=network, x=x) -> str:
            with torch.no_grad():
                return digest(network(x))

        def grad_cam(network=network, x=x) -> str:
            return digest(torch_maps.hooked_grad_cam(network, x[:1], [0]))

        calls = {"forward": forward, "Grad-CAM": grad_cam, "training step": step}
        with torch_side.arithmetic(mode):
            found |= _repeated(plan, mode, calls)
    return found


def main() -> None:
    """Print the digests of one framework as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("framework", choices=("jax", "torch"))
    parser.add_argument("--plan", choices=("full", "tiny"), required=True)
    parser.add_argument("--deterministic", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from experiments.gpu_report.subject import FULL, TINY

    plan = TINY if arguments.plan == "tiny" else FULL
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if arguments.framework == "torch":
            import torch

            # What has no deterministic algorithm warns, and is written down.
            torch.use_deterministic_algorithms(arguments.deterministic, warn_only=True)
            digests = of_torch(plan)
        else:
            digests = of_jax(plan)
    said = sorted({str(w.message) for w in caught if "deterministic" in str(w.message)})
    print(json.dumps({"digests": digests, "warnings": said}))


if __name__ == "__main__":
    main()
