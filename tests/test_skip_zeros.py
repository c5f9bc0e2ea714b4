"""What the study of fc6 without its zeros reckons; the product itself is in test_linear.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.running import page
from experiments.skip_zeros import figure, report, study

FOLDER = Path(study.__file__).parent


def test_rows_of_a_batch_by_hand():
    nonzero = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]], bool)
    expected = {"1": (1 + 1 + 3) / 12, "2": (2 + 3 + 3) / 12}
    assert study.rows_of_a_batch(nonzero) == pytest.approx(expected)


def test_summary_by_hand():
    found = study.summary({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]})
    assert found["a"] == {"ms": 2000.0, "ratio": [1.0, 1.0, 1.0]}
    assert found["b"] == {"ms": 2000.0, "ratio": [0.75, 1.0, 1.5]}


def test_the_committed_report_is_that_of_the_committed_results(tmp_path):
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    figure.draw(results).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
