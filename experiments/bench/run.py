"""The whole run: sections one after the other, and what is written after each of them."""

import dataclasses
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.bench import figures, files, forward, layers, others, report, start, uses
from experiments.bench.plan import FULL, TINY, Plan
from experiments.bench.steps import Row, Section, Step, Study
from experiments.bench.tools import PICTURES, Tools
from experiments.running import write_results
from experiments.timing import cores
from flaxvgg.commands.console import console
from flaxvgg.network.config import check_arch
from flaxvgg.plotting.figures import png

# `start` and `memory` come first: they need little, or a process that holds little.
SECTIONS: Mapping[str, Section] = {
    "start": start.start,
    "memory": uses.memory,
    "stack": forward.stack,
    "forward": forward.forward,
    "activations": uses.activations,
    "sparsity": uses.sparsity,
    "cam": others.cam,
    "training": others.training,
    "checkpoint": files.checkpoint,
    "overhead": start.overhead,
    "layers": layers.layers,
}
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "onnxruntime", "keras")
_PACKAGES += ("grad-cam", "torchcam", "orbax-checkpoint", "openvino", "ncnn", "pnnx", "mnn")


def plan_of(
    arch: str | None, rounds: int | None, *, tiny: bool, threads: int | None = None
) -> Plan:
    """The plan with this network and so many rounds, at most, of every case.

    `threads` are those of every tool; by default as many as this process may use cores.
    """
    plan = TINY if tiny else FULL
    plan = dataclasses.replace(plan, threads=threads or cores())
    if arch is not None:
        check_arch(arch)
        plan = dataclasses.replace(plan, network=dataclasses.replace(plan.network, arch=arch))
    if rounds is not None:
        fewer = {"cam_rounds": min(rounds, plan.cam_rounds)}
        fewer["training"] = plan.training[0], min(rounds, plan.training[1])
        plan = dataclasses.replace(plan, rounds=rounds, **fewer)
    return plan


def run(plan: Plan, sections: Sequence[str] | None, out: Path, command: str) -> dict[str, Any]:
    """Measure the sections (all, for None), and write what was found after each of them.

    Raises ValueError for names that are none.
    """
    chosen = list(sections or SECTIONS)
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        raise ValueError(f"no section {', '.join(unknown)}: choose from {', '.join(SECTIONS)}")
    results: dict[str, Any] = {
        "command": command,
        "plan": dataclasses.asdict(plan),
        "devices": _devices(),
        "weights": "",
        "load": [round(os.getloadavg()[0], 2)],
        "left_out": [],
        "sections": {},
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        study = Study(plan, Tools(plan, Path(folder)))
        results["weights"] = study.tools.described
        steps = {name: list(SECTIONS[name](study)) for name in chosen}
        for name, seconds, rows in _measured(steps):
            results["sections"][name] = {"seconds": round(seconds, 1), "rows": rows}
            results["left_out"] = _left_out(study)
            results["load"][1:] = [round(os.getloadavg()[0], 2)]
            _write(results, out)
    return results


def _measured(steps: Mapping[str, Sequence[Step]]) -> Iterator[tuple[str, float, list[Row]]]:
    """The sections as they are finished: name, seconds and rows; with a bar for who waits."""
    shown = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*shown, console=console, transient=True) as progress:
        total = sum(step.weight for section in steps.values() for step in section)
        task, before = progress.add_task("", total=total), 0.0
        for name, section in steps.items():
            begun, rows = time.monotonic(), []
            for step in section:
                progress.update(task, description=f"{name}: {step.name}")

                def show(done: float, at: float = before, weight: float = step.weight) -> None:
                    progress.update(task, completed=at + done * weight)

                rows += step.run(show)
                before += step.weight
                progress.update(task, completed=before)
            yield name, time.monotonic() - begun, rows


def _left_out(study: Study) -> list[dict[str, str]]:
    """Every tool that could not run, once, and cases that a tool could not."""
    everywhere = study.tools.left_out
    found = [{"tool": tool, "case": "all", "reason": why} for tool, why in everywhere.items()]
    return found + [entry for entry in study.left_out if entry["tool"] not in everywhere]


def _write(results: Mapping[str, Any], out: Path) -> None:
    drawn = all(entry["tool"] != PICTURES for entry in results["left_out"])
    pictures = figures.all_of(results) if drawn else {}
    write_results(
        out,
        dict(results),
        partial(report.readme, pictures=list(pictures)),
        {name: png(figure) for name, figure in pictures.items()},
        packages=_installed(),
    )


def _devices() -> dict[str, str]:
    theirs = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"backend": jax.default_backend(), "torch on": theirs}


def _installed() -> list[str]:
    names = {x.metadata["Name"].lower() for x in importlib.metadata.distributions()}
    return [name for name in _PACKAGES if name in names]
