"""The benchmark of a training step: the same step on both sides, and the page of its results."""

import json
from pathlib import Path

import pytest
from flax import nnx

import experiments.bench_training.__main__ as bench
import flaxvgg
from experiments.running import page

FOLDER = Path(bench.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("rate", bench.TRAINED.values())
def test_both_sides_do_the_same(rate):
    model = flaxvgg.vgg11(num_classes=1, precision="default", rngs=nnx.Rngs(0))
    gap = flaxvgg.with_gap(model, bench.CLASSES, rngs=nnx.Rngs(1))
    data = bench.examples(2, 32)
    ours, theirs = bench.ours(gap, *data, rate), bench.theirs(gap, "vgg11", *data, rate)
    losses = [[step() for _ in range(3)] for step in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] > losses[0][2]


def test_the_page_is_that_of_the_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(bench.readme, results)
    assert {row["size"] for row in results["results"]} == {112, 224}
    assert {row["trained"] for row in results["results"]} == set(bench.TRAINED)
