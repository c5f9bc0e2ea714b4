"""The experiment that compares attributions: a small run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from experiments.attribution_on_vgg16 import figure, methods, peers, report, study
from experiments.composed.picture import to_png
from experiments.running import page

FOLDER = Path(study.__file__).parent


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    rows = {row["method"]: row for row in results["methods"]}
    assert list(rows) == [method.name for method in methods.methods_of(4, 32)]
    # A method that knows where the object is has more of its relevance there than chance.
    assert (
        min(rows[name]["mass"] for name in rows if name.startswith("LRP")) > 2 * results["chance"]
    )
    assert max(rows[name]["apart"] for name in rows if name.startswith("LRP")) < 1e-3


@pytest.mark.slow
def test_it_runs_from_weights_to_the_pictures():
    weights = flaxvgg.to_torch(flaxvgg.vgg11(num_classes=1, rngs=nnx.Rngs(0)))
    convolutions = {name: x for name, x in weights.items() if name.startswith("features.")}
    model = flaxvgg.from_torch("vgg11", convolutions)
    small = {"size": 64, "training": 16, "steps": 1, "tests": 2, "randomised": 1, "rounds": 1}
    effort = study.Effort(**small, samples=4)
    done = {}
    with jax.numpy_dtype_promotion("standard"):  # which optax builds upon
        results, shown, (tested, pixels) = study.run(
            model, effort, lambda what, share: done.update({what: share})
        )
    assert done == {
        name: pytest.approx(1) for name in ("features", "classifier", "maps", "random", "costs")
    }
    names = [method.name for method in methods.methods_of(4, 32)]
    assert [row["method"] for row in results["methods"]] == names
    assert results["pairs"] == 4
    for row in results["methods"]:
        assert 0 <= row["on_object"] <= 1
        assert len(row["similar"]) == len(results["randomised"])
        assert np.isfinite(row["apart"])
    assert sum(row["peer"] == "zennit" for row in results["methods"]) == 5
    assert to_png(figure.draw(shown)).startswith(b"\x89PNG")
    assert to_png(tested.plot(pixels)).startswith(b"\x89PNG")
    assert "| LRP epsilon-plus-flat |" in report.readme(results)


def test_peers_are_of_methods_that_are_there():
    model = flaxvgg.vgg11(num_classes=3, rngs=nnx.Rngs(0))
    known = peers.peers_of(peers.torch_network(model), (np.full(3, -2.0), np.full(3, 2.0)))
    assert set(known) < {method.name for method in methods.methods_of(4, 32)}
