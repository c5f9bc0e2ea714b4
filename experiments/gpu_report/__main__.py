"""python -m experiments.gpu_report: parity and speed on one NVIDIA GPU, beside PyTorch.

It needs what `_NEEDED` lists and nothing else, and uses argparse because typer may be missing where
a GPU is.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NEEDED = ("flax", "jax", "jaxtyping", "lazy_loader", "ml_dtypes", "numpy", "optax", "PIL")
_NEEDED += ("safetensors", "torch", "torchvision")
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")
_SECONDS = 390.0  # nothing is begun behind them: eight minutes less imports and one last step


def main(arguments: Sequence[str] | None = None) -> int:
    """Write results.json and results.md; 1 where a target is missed or something failed."""
    options = _options(arguments)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: this needs {', '.join(missing)}: pip install it", file=sys.stderr)
        return 2
    # PyTorch shares the card: JAX must not take three quarters of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from experiments.gpu_report import report, sections, study, subject, targets

    plan = subject.TINY if options.tiny else subject.FULL
    if options.weights is not None:
        try:  # here, and not in every step
            subject.weights_of(subject.config_of(plan, plan.arch), options.weights)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    results: dict[str, Any] = {
        "cuda": _on_gpu(),
        "machine": machine(),
        "subject": subject.describe(plan, options.weights),
        "plan": dataclasses.asdict(plan),
        "targets": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        results["targets"] = targets.judge(results)
        _write(options.out / "results.json", json.dumps(results, indent=1) + "\n")
        _write(options.out / "results.md", report.page(results))

    found = study.sections(plan, options.weights, options.seconds)
    sections.run(found, results, write, options.seconds)
    write()
    for target in results["targets"]:
        print(f"{target['verdict']:14} {target['target']} {target['bound']}")
    for name in ("cut", "failed"):
        for entry in results[name]:
            print(f"{name}: {entry}")
    print(f"look at {options.out / 'results.md'}")
    missed = any(target["verdict"] == targets.FAIL for target in results["targets"])
    return int(missed or bool(results["failed"]))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument(
        "--weights", type=Path, help="convolutions as .safetensors; random ones without"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="nothing is begun after so many"
    )
    return parser.parse_args(arguments)


def _on_gpu() -> bool:
    import jax
    import torch

    return torch.cuda.is_available() and jax.default_backend() in ("gpu", "cuda")


def machine() -> dict[str, Any]:
    """The device, its driver, and the versions of what runs."""
    import jax
    import torch

    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "driver": "none"}
    if torch.cuda.is_available():
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            found["driver"] = answer.stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            found["driver"] = f"unknown: {error}"
        found["CUDA of PyTorch"] = torch.version.cuda
        found["cuDNN of PyTorch"] = torch.backends.cudnn.version()
    found["python"] = platform.python_version()
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return found | {"versions": ", ".join(f"{k} {v}" for k, v in versions.items())}


def _write(path: Path, text: str) -> None:
    """The whole file or, when interrupted, the old one."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
