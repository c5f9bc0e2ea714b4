"""Two commits timed in turns: the verdicts, and HEAD beside itself from the build to the page."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.compare_commits.__main__ import readme
from experiments.compare_commits.commits import resolve
from experiments.compare_commits.ratios import Ratio, ratio
from experiments.running import page

ROOT = Path(__file__).parents[1]


def drawn(scale: float, noise: float, seed: int) -> list[float]:
    return (scale * np.random.default_rng(seed).lognormal(0, noise, 40)).tolist()


def test_what_is_slower_is_said_to_be():
    base, head = drawn(1, 0.02, 0), drawn(1.1, 0.02, 1)
    found = ratio(base, head)
    assert found.low < 1.1 < found.high
    assert found.verdict == "slower"
    assert ratio(head, base).verdict == "faster"
    assert ratio(base, drawn(1, 0.02, 2)).verdict == "within noise"
    assert ratio(base, drawn(1.1, 1.0, 1)).verdict == "within noise"


def test_small_differences_are_noise_however_sure():
    assert Ratio(1.005, 1.004, 1.006).verdict == "within noise"
    assert Ratio(0.995, 0.994, 0.996).verdict == "within noise"
    assert Ratio(1.02, 1.011, 1.03).verdict == "slower"


def test_what_both_share_is_no_noise():
    """A busy minute slows both: the rounds are resampled in pairs."""
    busy = np.repeat([1.0, 3.0], 20)
    base = busy * drawn(1, 0.01, 0)
    found = ratio(base.tolist(), (1.1 * base).tolist())
    assert found == pytest.approx((1.1, 1.1, 1.1))


def test_no_commit_is_named():
    with pytest.raises(ValueError, match="no commit nowhere in this repository"):
        resolve("nowhere")


@pytest.mark.slow
def test_head_beside_itself(tmp_path: Path):
    options = ["--cases", "tiny;prepared, 1 x 64x64", "--rounds", "6", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.compare_commits", "HEAD", "HEAD", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    slower = [row["case"] for row in results["cases"] if row["verdict"] == "slower"]
    assert done.returncode == bool(slower), done.stderr  # of a busy machine, anything may be said
    assert results["cases"][0]["case"] == "tiny"
    assert [len(results["cases"][0][key]) for key in ("base_s", "head_s")] == [6, 6]
    assert len(results["cases"]) + len(results["left_out"]) == 2
    assert (tmp_path / "README.md").read_text("utf-8") == page(readme, results)
    assert (tmp_path / "ratios.png").stat().st_size > 5_000
