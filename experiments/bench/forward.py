"""Sections `stack` and `forward`: convolutions, and logits, by every tool, with their errors."""

from collections.abc import Iterator
from functools import partial

from experiments.bench.plan import Shape
from experiments.bench.steps import Row, Step, Study, of_shape
from experiments.bench.tools import EAGER, FORWARD, Kind
from experiments.gpu_report.speed import tuned
from experiments.gpu_report.subject import HIGHEST
from experiments.timing import Report
from flaxvgg.conversion.rule import relative_error


def stack(study: Study) -> Iterator[Step]:
    """The convolution stack, to pool5."""
    yield from _steps(study, "stack", study.plan.stack)


def forward(study: Study) -> Iterator[Step]:
    """The whole network, to the logits."""
    yield from _steps(study, "forward", study.plan.forward)


def _steps(study: Study, kind: Kind, shapes: tuple[Shape, ...]) -> Iterator[Step]:
    for shape in shapes:
        batch, (height, width) = shape
        images = batch * height * width / 224**2
        yield Step(of_shape(shape), partial(_contest, study, kind, shape), 2 + images)


def _contest(study: Study, kind: Kind, shape: Shape, report: Report) -> list[Row]:
    case = f"{kind}, {of_shape(shape)}"
    runners = {
        tool: study.tools.runner(tool, kind, shape)
        for tool in FORWARD
        if study.can(tool, case, study.tools.reason(tool, kind, shape[1]))
    }
    with tuned(HIGHEST):
        calls = {tool: runner.call for tool, runner in runners.items()}
        rows = study.contest(case, calls, EAGER, report)
        if shape[0] == min(batch for batch, _ in getattr(study.plan, kind)):
            truth = study.tools.truth(kind, shape)
            for row in rows:
                row["error"] = relative_error(runners[row["tool"]].result(), truth)
    return rows
