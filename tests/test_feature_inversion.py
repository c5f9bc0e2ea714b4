"""The study of what layers keep: images that get nearer, a small run, and the committed page."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import flaxvgg
from experiments.feature_inversion import __main__ as program
from experiments.feature_inversion import report, study
from experiments.running import page
from helpers import tiny_vgg

FOLDER = Path(report.__file__).parent


def test_what_is_found_has_the_features_of_the_photo():
    model = tiny_vgg()
    image = np.random.default_rng(1).random((1, 32, 32, 3), np.float32)
    with jax.numpy_dtype_promotion("standard"):
        found = study.invert(model, image, "relu1_1", 60, 0.0)
        smooth = study.invert(model, image, "relu1_1", 60, 10.0)
    assert found.image.shape == (32, 32, 3)
    assert 0 <= found.image.min() < found.image.max() <= 1
    assert len(found.course) == 61
    assert found.course[-1] < 0.2 * found.course[0]
    target, own = (
        study.features(model, x, "relu1_1") for x in (image, np.asarray(found.image)[None])
    )
    error = np.linalg.norm(own - target) / np.linalg.norm(target)
    assert found.course[-1] == pytest.approx(error, rel=1e-4)
    variation = [float(flaxvgg.total_variation(x.image)) for x in (found, smooth)]
    assert variation[1] < 0.5 * variation[0]


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path: Path):
    given = ["--size", "32", "--steps", "3", "--out", str(tmp_path)]
    with jax.numpy_dtype_promotion("standard"):
        result = CliRunner().invoke(program.app, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert list(results["layers"]) == list(study.LAYERS)
    assert all(row["error"] < row["start"] for row in results["layers"].values())
    assert "| pool5 |" in (tmp_path / "README.md").read_text("utf-8")
    assert flaxvgg.open_image(tmp_path / "feature_inversion.png").size[0] > 500


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    assert list(results["layers"]) == list(study.LAYERS)
    assert 1000 < (FOLDER / "feature_inversion.png").stat().st_size < 1_000_000
