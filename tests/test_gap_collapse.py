"""The study of the collapse: the collapse itself in small, and what is committed."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

import flaxvgg
from experiments.gap_collapse import figure, report, six_steps, study
from experiments.gap_collapse.cures import CURES, DISEASE, Cure, initialised, random_batch
from experiments.gap_collapse.peer import Network
from experiments.running import page

ROOM = Path(study.__file__).parent
RESULTS = json.loads((ROOM / "results.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def batch():
    return random_batch(4, 32, six_steps.CLASSES, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("cure", [DISEASE, Cure("no ReLU")], ids=["relu", "none"])
def test_a_small_network_does_the_same_in_both_frameworks(cure, batch):
    config = cure.config("vgg11", six_steps.CLASSES, 32)
    weights = initialised(cure, "vgg11", 32, batch.labels, seed=0)
    network = Network(config)
    network.load_state_dict(weights)
    theirs = six_steps.in_pytorch(network, batch, 1.0)
    model = flaxvgg.from_torch("vgg11", weights, config=config, precision="default")
    ours, diagnosis = six_steps.here(model, batch, 1.0)
    for a, b in zip(ours, theirs, strict=True):
        assert a["zeros"] == b["zeros"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
    if cure is DISEASE:
        case = {"head": cure.name, "rate": 1.0, "ours": ours, "pytorch": theirs}
        assert study.unmet({"six_steps": [case]}) == []
        assert diagnosis.state == "collapsed"
    else:  # so small a network is slower than the one of the study
        assert ours[-1]["loss"] < 0.65 < 0.69 < ours[0]["loss"]
        assert diagnosis.state == "healthy"


def test_what_must_hold_is_checked():
    assert study.unmet(RESULTS) == []
    for framework in ("ours", "pytorch"):
        for case, key, value in ((0, "gradient_norm", 1e-9), (0, "loss", 0.7), (2, "loss", 0.62)):
            changed = copy.deepcopy(RESULTS)
            changed["six_steps"][case][framework][-1][key] = value
            (missed,) = study.unmet(changed)
            assert missed.startswith(framework)


def test_the_committed_steps_are_the_same_in_both_frameworks():
    for case in RESULTS["six_steps"]:
        for ours, theirs in zip(case["ours"], case["pytorch"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["zeros"] == theirs["zeros"]


def test_the_committed_report_is_that_of_the_committed_results(tmp_path):
    assert (ROOM / "README.md").read_text("utf-8") == page(report.readme, RESULTS)
    figure.draw(RESULTS).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (ROOM / "gap_collapse.png").stat().st_size < 400_000


def test_every_head_is_in_both_tables():
    for rows in (RESULTS["scratch"], RESULTS["pretrained"]["rows"]):
        assert {row["head"] for row in rows} == {cure.name for cure in CURES}
        for row in rows:
            assert len(row["states"]) == len(row["losses"]) == RESULTS["effort"]["seeds"] >= 3


def test_a_bias_at_the_prior_gives_the_labels_mean(batch):
    cure = Cure("no ReLU, bias at the prior", prior=True)
    bias = initialised(cure, "vgg11", 8, batch.labels, seed=0)["features.22.bias"].numpy()
    assert 1 / (1 + np.exp(-bias)) == pytest.approx(batch.labels.mean(), rel=1e-6)
    assert math.isclose(bias.min(), bias.max())
