"""The study of style transfer: its loss, a small run from end to end, and the committed page."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import flaxvgg
from experiments.running import page
from experiments.style_transfer import __main__ as program
from experiments.style_transfer import ours, report, theirs
from helpers import REAL_WEIGHTS

FOLDER = Path(report.__file__).parent


def test_the_loss_is_the_librarys_and_pytorchs():
    plain = flaxvgg.vgg16(weights=REAL_WEIGHTS)
    model = flaxvgg.with_pooling(plain, "average")
    content, style, image = np.random.default_rng(0).random((3, 1, 32, 48, 3), np.float32)
    wanted = ours.targets(model, jnp.asarray(content), jnp.asarray(style), 30.0)
    value, slope = ours.value_and_gradient(jnp.asarray(image), model, wanted)
    parts = (
        flaxvgg.perceptual_loss(
            model, image, content, value_range=(0, 1), layers={"relu4_2": 1}, distance="l2"
        ),
        flaxvgg.style_loss(model, image, style, value_range=(0, 1)),
    )
    assert float(value) == pytest.approx(float(parts[0][0] + 30 * parts[1][0]), rel=1e-6)
    arrays = flaxvgg.to_torch(model)
    exact, single = (
        theirs.value_and_gradient(theirs.Loss(arrays, content, style, 30.0, dtype), image)
        for dtype in (torch.float64, torch.float32)
    )
    assert abs(float(value) - exact[0]) <= max(1.5 * abs(single[0] - exact[0]), 5e-7 * exact[0])
    off, their_off = (np.linalg.norm(x - exact[1]) for x in (slope, single[1]))
    assert off <= max(1.5 * their_off, 2e-6 * np.linalg.norm(exact[1]))
    # Max pooling is another loss.
    other, _ = ours.value_and_gradient(jnp.asarray(image), plain, wanted)
    assert abs(float(other) - exact[0]) > 0.05 * exact[0]


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path: Path):
    options = {"size": 32, "steps": 4, "adam-steps": 3, "rounds": 1, "out": tmp_path}
    given = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = CliRunner().invoke(program.app, given, catch_exceptions=False)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert result.exit_code == (1 if program.missed(results) else 0), result.output
    for tool in ("flaxvgg", "PyTorch"):
        course = results["lbfgs"][tool]
        assert len(course["losses"]) == len(course["evaluations"]) == 4
        assert course["losses"][-1] < course["losses"][0]
        assert results["last"][tool] < course["losses"][0]
        assert (np.diff(course["evaluations"]) > 0).all()
        assert flaxvgg.open_image(tmp_path / f"{tool.lower()}_4.png").size == (32, 32)
    assert results["adam_apart"] < 1e-2
    assert "| noise |" in (tmp_path / "README.md").read_text("utf-8")
    assert flaxvgg.open_image(tmp_path / "style_transfer.png").size[0] > 300


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    assert not program.missed(results)
    marks = range(program.EVERY, results["steps"] + 1, program.EVERY)
    pictures = ["style_transfer", *(f"flaxvgg_{step}" for step in marks)]
    for name in (*pictures, f"pytorch_{results['steps']}"):
        assert 1000 < (FOLDER / f"{name}.png").stat().st_size < 1_000_000
