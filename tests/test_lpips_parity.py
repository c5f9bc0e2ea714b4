"""The study of distances: from end to end in small, and the committed page."""

import json
from pathlib import Path

import jax
import pytest

from experiments.lpips_parity import figure, pairs, report, study
from experiments.lpips_parity.__main__ import missed
from experiments.running import page

FOLDER = Path(study.__file__).parent


def test_the_committed_report_is_that_of_the_committed_results(tmp_path: Path):
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    figure.draw(results).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert not [line for line in missed(results) if "times" not in line]
    assert results["gradients"]["errors"]["flaxvgg"][2] > results["gradients"]["pairs"] / 2


def test_stronger_distortions_are_further_away():
    _, first, second = pairs.distorted_pairs(48)
    off = abs(first.astype(int) - second).mean(axis=(1, 2, 3)).reshape(len(pairs.DISTORTIONS), -1)
    assert (off[:, 0] > 0).all()
    assert (off[:, -1] > off[:, 0]).all()


def test_a_course_says_where_it_broke():
    assert study._course([1.0, 0.5]) == {"steps": 2, "first": 1.0, "last": 0.5, "nan_at": None}
    assert study._course([1.0, float("nan"), float("nan")])["nan_at"] == 1


@pytest.mark.slow
def test_images_come_from_noise():
    import flaxvgg
    from helpers import REAL_WEIGHTS

    model = flaxvgg.vgg16(weights=REAL_WEIGHTS)

    def distance(a, b):
        return flaxvgg.lpips(model, a, b, value_range=(-1, 1))

    with jax.numpy_dtype_promotion("standard"):  # which optax builds upon
        found = study._from_noise(distance, 32, 100)
    assert found["nan_at"] is None
    assert found["last"] < 0.6 * found["first"]
