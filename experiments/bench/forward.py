"""Sections `stack` and `forward`: convolutions, and logits, by every tool, with their errors."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.bench.plan import Shape
from experiments.bench.steps import ALONE, Row, Step, Study, of_shape
from experiments.bench.tools import EAGER, FORWARD, STACK, WIDTH, Kind
from experiments.gpu_report.speed import tuned
from experiments.gpu_report.subject import HIGHEST
from experiments.timing import Report
from flaxvgg.conversion.rule import relative_error


def stack(study: Study) -> Iterator[Step]:
    """The convolution stack, to pool5: on all cores, and once more on one."""
    yield from _steps(study, "stack", study.plan.stack)
    if study.plan.threads > 1:
        weight = 2 * sum(step.weight for step in _steps(study, "stack", study.plan.stack))
        yield Step("on one core", partial(_on_one_core, study), weight)


def _on_one_core(study: Study, report: Report) -> list[Row]:
    """The same in a process that may use one core, since JAX fixes its threads when it starts."""
    plan = study.plan
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.bench", "--sections", "stack"]
        command += ["--threads", "1", "--out", folder, "--arch", plan.network.arch]
        command += ["--rounds", str(plan.rounds)] + ["--tiny"] * (plan.network.width != WIDTH)
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"the stack on one core: {(done.stderr or done.stdout)[-500:]}")
        results = json.loads((Path(folder) / "results.json").read_text("utf-8"))
    return results["sections"]["stack"]["rows"]


def forward(study: Study) -> Iterator[Step]:
    """The whole network, to the logits."""
    yield from _steps(study, "forward", study.plan.forward)


def _steps(study: Study, kind: Kind, shapes: tuple[Shape, ...]) -> Iterator[Step]:
    for shape in shapes:
        batch, (height, width) = shape
        images = batch * height * width / 224**2
        yield Step(of_shape(shape), partial(_contest, study, kind, shape), 2 + images)


def _contest(study: Study, kind: Kind, shape: Shape, report: Report) -> list[Row]:
    case = f"{kind}, {of_shape(shape)}" + (ALONE if study.plan.threads == 1 else "")
    runners = {
        tool: study.tools.runner(tool, kind, shape)
        for tool in (STACK if kind == "stack" else FORWARD)
        if study.can(tool, case, study.tools.reason(tool, kind, shape))
    }
    with tuned(HIGHEST):
        calls = {tool: runner.call for tool, runner in runners.items()}
        rows = study.contest(case, calls, EAGER, report)
        if shape[0] == min(batch for batch, _ in getattr(study.plan, kind)):
            truth = study.tools.truth(kind, shape)
            for row in rows:
                row["error"] = relative_error(runners[row["tool"]].result(), truth)
    return rows
