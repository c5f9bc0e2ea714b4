"""TF32-like arithmetic, by hand and layer by layer; flips of a network; the committed report."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.precision_modes import modes
from experiments.precision_modes.__main__ import readme
from experiments.running import page
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, run_layers
from flaxvgg.weights.mapping import build, model_arrays
from helpers import random_images, random_model

FOLDER = Path(modes.__file__).parent


@pytest.fixture(scope="module")
def model() -> VGG:
    config = VGGConfig.features_only("vgg11", "no head here")
    return random_model(config, precision="default")


def test_ten_bits_by_hand():
    ulp = 2.0**-10
    x = jnp.array([1 + ulp, 1 + 0.5 * ulp, 1 + 1.5 * ulp, -1 - 0.6 * ulp, 0.0, 3e38], jnp.float32)
    expected = [1 + ulp, 1, 1 + 2 * ulp, -1 - ulp, 0]
    found = modes.to_tf32(x)
    assert found[:5].tolist() == expected
    assert found[5] == pytest.approx(3e38, rel=ulp)  # the exponent keeps its 8 bits


def test_tf32_like_rounds_what_goes_into_products(model):
    images = jnp.asarray(random_images(1, 32, 32))
    found = modes.in_mode(model, "tf32-like").activations(images, ["relu1_1", "relu2_1"])
    rounded = {
        path: modes.to_tf32(x) if path[-1] == "kernel" else x
        for path, x in model_arrays(model).items()
    }
    stack = build(model.config, rounded, precision="default").conv_stack
    x, after = images, None
    for layer in ("relu1_1", "pool1", "relu2_1"):
        x = modes.to_tf32(x) if layer != "pool1" else x
        x = run_layers([stack], x, {layer}, after=after)[layer]
        after = layer
        if layer in found:
            np.testing.assert_allclose(found[layer], x, rtol=1e-5, atol=1e-6)
    plain = model.activations(images, ["relu2_1"])["relu2_1"]
    assert abs(plain - x).max() > 10 * abs(found["relu2_1"] - x).max()


def test_flips_are_counted_against_highest(model, monkeypatch):
    monkeypatch.setattr(modes, "MODES", {"highest": "", "bfloat16": ""})
    images = random_images(2, 32, 32)
    rows = modes.compare(model, images, ["relu1_1", "pool1"])
    assert [row["layer"] for row in rows] == ["relu1_1", "pool1"]
    assert all(row["flips"]["highest"] == [0, 0] for row in rows)
    exact, rounded = (
        jax.jit(lambda m, x: m.activations(x, ["relu1_1"])["relu1_1"] == 0)(
            modes.in_mode(model, mode), images
        )
        for mode in ("highest", "bfloat16")
    )
    assert rows[0]["flips"]["bfloat16"] == (exact != rounded).mean(axis=(1, 2, 3)).tolist()
    assert rows[0]["zeros"]["bfloat16"] == pytest.approx(float(rounded.mean()))
    assert rows[0]["new_zeros"]["bfloat16"] == pytest.approx(float((rounded & ~exact).mean()))
    assert 0 < max(rows[-1]["flips"]["bfloat16"]) < 0.1


def test_the_committed_report_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(readme, results)
