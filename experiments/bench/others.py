"""Sections `cam` and `training`: cases of bench_cam and bench_training, in this run."""

from collections.abc import Iterator

import experiments.bench_cam.__main__ as bench_cam
import experiments.bench_training.__main__ as bench_training
from experiments.bench.steps import Row, Step, Study
from experiments.bench_cam import ours, peers
from experiments.gpu_report.speed import tuned
from experiments.gpu_report.subject import HIGHEST
from experiments.timing import Report


def cam(study: Study) -> Iterator[Step]:
    """Every class activation map for one class and for eight; rows are bench_cam's."""
    plan, tools = study.plan, study.tools

    def run(report: Report) -> list[Row]:
        images = ours.random_images(plan.network.size)
        packages = [
            name for name in peers.TOOLS if study.can(name, "cam", tools.left_out.get(name, ""))
        ]
        with tuned(HIGHEST):
            return bench_cam.timings(
                *(tools.config, tools.weights, images, plan.cam_rounds, plan.cam_methods, packages),
                all_classes=False,
                report=report,
            )

    yield Step("every method", run, 60)


def training(study: Study) -> Iterator[Step]:
    """One step of SGD; rows are bench_training's."""
    batch, rounds = study.plan.training

    def run(report: Report) -> list[Row]:
        network = study.plan.network
        with tuned(HIGHEST):
            rows = bench_training.timings(network.arch, batch, [network.size], rounds, report)
        return [row | {"batch": batch} for row in rows]

    yield Step("SGD", run, 10)
