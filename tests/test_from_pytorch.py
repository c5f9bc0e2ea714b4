"""PyTorch before and behind flaxvgg: one address on both sides, the same bits, what goes wrong."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import flaxvgg
from experiments.from_pytorch import classifiers, exchange, networks, report, study
from experiments.from_pytorch.__main__ import app
from experiments.running import page
from flaxvgg.network.provenance import PREPROCESSING, Provenance
from helpers import random_model

FOLDER = Path(study.__file__).parent
TINY = study.Effort(size=32, training=12, tests=6, batch=6, timed=6, rounds=1, workers=2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> study.Study:
    config = flaxvgg.VGGConfig.features_only("vgg11", "random")
    recipe = Provenance("random", preprocessing=PREPROCESSING["keras"])
    model = random_model(config, provenance=recipe)
    return study.Study(model, TINY, tmp_path_factory.mktemp("scenes"))


@pytest.mark.slow
def test_batches_of_other_processes_and_features_are_shared(found: study.Study):
    ours, shared = networks.our_features(found.model, found.pixels("training"))
    assert shared == networks.Shared(batches=2, pixels=2, features=2)
    theirs = networks.their_features(found.network, found.normalised("training"))
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    for one, other in ((ours.pool5, theirs.pool5), (ours.gap, theirs.gap)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * abs(other).max())
    # scikit-learn reads the same memory, too.
    assert np.asarray(ours.gap).ctypes.data == ours.gap.unsafe_buffer_pointer()


@pytest.mark.slow
def test_float_batches_give_the_same_features_in_any_layout(found: study.Study):
    run, _ = networks.passes(found.model, found.network)
    ((pixels, _), *_) = found.pixels("test")
    last, plain = (next(iter(found.normalised("test", last=last)))[0] for last in (True, False))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    views = [exchange.to_jax(x.permute(0, 2, 3, 1)) for x in (last, plain)]
    assert [exchange.is_shared(*pair) for pair in zip((last, plain), views, strict=True)] == [
        True
    ] * 2
    assert [exchange.is_row_major(view) for view in views] == [True, False]
    expected = np.asarray(run(pixels))
    for images in (last, plain):
        np.testing.assert_array_equal(run(images), expected)


def test_normalised_as_by_torchvision_and_keras_to_the_bit(found: study.Study):
    assert found.normalisations() == {"torchvision": 0, "keras": 0}


def test_layouts_and_hazards_are_as_the_page_says():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    layouts = exchange.layouts(torch.zeros(2, 3, 32, 32))
    assert [case._asdict() for case in layouts] == results["layouts"]
    assert [case._asdict() for case in exchange.hazards()] == results["hazards"]


def test_both_classifiers_learn_what_is_plain():
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 3)) < 0.5).astype(np.float32)
    features = labels @ rng.standard_normal((3, 8), np.float32)
    features += 0.01 * rng.standard_normal((40, 8), np.float32)
    parts = features[:30], labels[:30], features[30:]
    by_torch = classifiers.by_autograd(*map(torch.from_numpy, parts))
    for found in (classifiers.by_scikit_learn(*parts), by_torch):
        assert found.figures(labels[30:])["accuracy"] > 0.9
        assert found.figures(1 - labels[30:])["accuracy"] < 0.1


def test_ratios_by_hand():
    results = {"effort": {"timed": 8}, "speed": {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}}
    assert report.rates(results)["a"] == (4.0, 2.0, 8.0)
    assert report.ratios(results, "a", "b") == (1.0, 0.5, 2.0)


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    shared = results["answers"]["shared"]
    assert shared["pixels"] == shared["features"] == shared["batches"] > 0
    assert results["rounded_differently"] == {"torchvision": 0, "keras": 0}


@pytest.mark.slow
def test_the_command_from_end_to_end(found: study.Study, tmp_path: Path, monkeypatch):
    flaxvgg.save(found.model, tmp_path / "vgg11.safetensors")
    effort = dataclasses.replace(TINY, training=66)  # every class is among them
    monkeypatch.setattr(study, "Effort", lambda: effort)
    arguments = ["--weights", tmp_path / "vgg11.safetensors", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert (tmp_path / "out" / "README.md").read_text("utf-8") == page(report.readme, results)
    assert results["answers"]["shared"] == {"batches": 12, "pixels": 12, "features": 12}
    assert all(len(rounds) == 1 for rounds in results["speed"].values())
    with Image.open(tmp_path / "out" / "from_pytorch.png") as picture:
        assert picture.width > 700
