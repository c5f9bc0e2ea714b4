"""The experiment that compares attributions: a small run."""

import jax
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from experiments.attribution_on_vgg16 import figure, methods, peers, report, study
from experiments.composed.picture import to_png


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
