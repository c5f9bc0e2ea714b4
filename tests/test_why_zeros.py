"""The study of zeros: its arithmetic by hand, the whole of it in small, and what is committed."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

import flaxvgg
from experiments.running import page
from experiments.why_zeros import (
    figure,
    information,
    initialisation,
    negatives,
    pictures,
    pooling,
    preprocessing,
    report,
    silence,
    size,
    study,
    subject,
)
from experiments.why_zeros.__main__ import app
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.provenance import PREPROCESSING

ROOM = Path(study.__file__).parent
TINY = subject.Effort(
    size=(64, 64), sizes=((64, 64), (80, 96), (64, 128)), seeds=2, digits=100, rows=1, crops=1
)


@pytest.fixture(scope="module")
def model():
    """A vgg11 without a head, with biases."""
    config = VGGConfig.features_only("vgg11", "it is a test's")
    network = flaxvgg.VGG(config, precision="default", rngs=nnx.Rngs(0))
    return initialisation.pytorch_default(network, seed=5)


@pytest.fixture(scope="module")
def small(model):
    return subject.Subject(model, pictures.photos()[:2], TINY)


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """What the command writes about that network."""
    folder = tmp_path_factory.mktemp("why_zeros")
    flaxvgg.save(model, folder / "vgg11.safetensors")
    arguments = ["--weights", str(folder / "vgg11.safetensors"), "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "Effort", lambda: TINY)
        result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture(scope="module")
def results(out):
    return json.loads((out / "results.json").read_text("utf-8"))


@pytest.mark.slow
def test_the_command_writes_numbers_words_and_a_picture(out, results):
    assert {path.name for path in out.iterdir()} == {"results.json", "README.md", "why_zeros.png"}
    text = (out / "README.md").read_text("utf-8")
    for letter, explanation in study.EXPLANATIONS.items():
        assert f"({letter}) “{explanation.CLAIM}”" in text
        assert explanation.verdict(results[letter]) in text
    assert "nan" not in text
    assert results["arch"] == "vgg11"
    assert len(results["photos"]) == 8


@pytest.mark.slow
def test_zeros_are_negatives_and_exact_zeros(results):
    layers = results["a"]["layers"]
    assert [row["layer"] for row in layers] == [
        "conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"
    ]  # fmt: skip
    for row in layers:
        assert row["zero_after"] == row["negative_before"] + row["zero_before"]
        assert sum(row["histogram"]) == row["values"]
        # Counted twice, by different code.
        below = np.array(row["histogram"])[negatives.EDGES[1:] <= 0].sum()
        assert below == row["negative_before"] > 0


@pytest.mark.slow
def test_counts_are_those_of_the_activations(small):
    found = negatives.measure(small)["layers"]
    images = flaxvgg.normalise(small.pixels, small.recipe)
    taps = small.model.activations(images, ["conv3_2", "relu3_2", "pool3"])
    conv, relu, pool = (np.asarray(tap, np.float64) for tap in taps.values())
    row = next(row for row in found if row["layer"] == "conv3_2")
    assert row["negative_before"] == (conv < 0).sum()
    assert row["zero_after"] == (relu == 0).sum()
    assert row["zero_after_pooling"] == pytest.approx((pool == 0).mean())
    assert row["mean"] == pytest.approx(conv.mean(), rel=1e-4)
    assert row["sd"] == pytest.approx(conv.std(), rel=1e-4)


@pytest.mark.slow
def test_a_pooled_value_is_zero_where_all_four_are(results):
    maps = np.zeros((1, 5, 3, 2), np.float32)  # an odd last row and column are dropped
    maps[0, 1, 0, 0] = maps[0, 4, 2, 1] = 1
    expected = np.array([[[[False, True]], [[True, True]]]])
    np.testing.assert_array_equal(pooling.all_four_zero(maps), expected)
    rows = results["f"]["pools"]
    assert [row["pool"] for row in rows] == ["pool1", "pool2", "pool3", "pool4", "pool5"]
    assert [row["differing"] for row in rows] == [0] * 5
    assert all(0 < row["after"] < row["before"] for row in rows)
    # Taking the rates apart by channel can only raise the mean of fourth powers.
    assert all(row["independent"] <= row["independent_in_a_channel"] for row in rows)


def test_another_pooling_would_be_noticed(small, monkeypatch):
    activations = small.activations

    def strided(layers, photos):
        taps = activations(layers, photos)
        return taps | {"pool1": taps["relu1_1"][:, ::2, ::2]}

    monkeypatch.setattr(small, "activations", strided)
    rows = pooling.measure(small)["pools"]
    assert [row["differing"] > 0 for row in rows] == [True, False, False, False, False]


def test_expected_silence_is_the_mean_over_all_draws():
    silent = np.random.default_rng(0).random((5, 7)) < 0.6
    expected = [
        np.mean(
            [silent[list(drawn)].all(axis=0).sum() for drawn in itertools.combinations(range(5), n)]
        )
        for n in range(1, 6)
    ]
    np.testing.assert_allclose(silence.silent_in_all(silent), expected, atol=1e-9)


@pytest.mark.slow
def test_random_weights_are_what_they_are_called(model):
    arrays = flaxvgg.to_torch(model)
    weight, bias = arrays["features.3.weight"], arrays["features.3.bias"]  # 64 to 128 channels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = torch.nn.Conv2d(64, 128, 3)
    for ours, theirs in ((weight, peer.weight), (bias, peer.bias)):
        theirs = theirs.detach().numpy()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.15)
        assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.05)
    he = flaxvgg.to_torch(initialisation.he(model, 0))
    assert he["features.3.weight"].std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert not he["features.3.bias"].any()
    shuffled = flaxvgg.to_torch(initialisation.shuffled(model, 0))["features.3.weight"]
    assert (shuffled != weight).any()
    np.testing.assert_array_equal(
        np.sort(shuffled.reshape(128, -1)), np.sort(weight.reshape(128, -1))
    )
    assert not flaxvgg.to_torch(initialisation.without_biases(model))["features.3.bias"].any()


def test_wrong_recipes_are_wrong_in_the_way_they_say():
    pixel = np.array([[[[255, 51, 0]]]], np.uint8)
    fed = {
        name: flaxvgg.normalise(pixel, recipe).ravel().tolist()
        for name, recipe in preprocessing.recipes(PREPROCESSING["keras"]).items()
    }
    b, g, r = 103.939, 116.779, 123.68
    expected = {
        "right": [0 - b, 51 - g, 255 - r],
        "RGB for BGR": [255 - b, 51 - g, 0 - r],
        "no means subtracted": [0, 51, 255],
        "0 to 1, no means": [0, 0.2, 1],
        "0 to 1, then means": [0 - b, 0.2 - g, 1 - r],
        "torchvision's": [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225],
    }
    assert fed == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_mirrored_images_continue():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    larger = size.mirrored(image, (4, 4))[0, ..., 0]
    np.testing.assert_array_equal(larger, [[0, 1, 2, 2], [0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]])


def test_the_probe_learns_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    task = information.Task("test", np.empty(0), labels, np.arange(150) * information.FOLDS // 150)
    noise = rng.standard_normal((150, 90))
    told = noise.copy()
    told[:, :9] += 4 * np.repeat(np.eye(3), 3, axis=1)[labels]
    found = information.accuracy(task, told)
    assert found.mean() > 0.9
    # Turned to the axes of the training images, or not: the same classifier.
    order = np.random.default_rng(0).permutation(np.flatnonzero(task.folds != 0))
    training = np.concatenate([order[labels[order] == k][: information.TRAINING] for k in range(3)])
    scaler = StandardScaler().fit(told[training])
    x, x_test = scaler.transform(told[training]), scaler.transform(told[task.folds == 0])
    scale = np.sqrt(np.square(x).sum() / len(x))
    direct = LogisticRegression(C=10, max_iter=1000).fit(x / scale, labels[training])
    assert direct.score(x_test / scale, labels[task.folds == 0]) == found[0]
    assert abs(information.accuracy(task, noise).mean() - 1 / 3) < 0.15


def test_crops_are_tested_on_parts_never_trained_on():
    task = information.crops_task(rows=5)
    sources = len(pictures.sources())
    assert task.pixels.shape == (sources * 25, information.SIZE, information.SIZE, 3)
    np.testing.assert_array_equal(np.bincount(task.labels), [25] * sources)
    np.testing.assert_array_equal(np.bincount(task.folds), [5 * sources] * 5)
    # The strips of every picture are at least as wide as a crop.
    for path in pictures.sources():
        width, height = flaxvgg.open_image(path).size
        assert round(width * information.SIZE * 5 / min(width, height)) // 5 >= information.SIZE


def test_the_largest_features_stay():
    features = np.array([[3.0, 1, 0, 2], [0, 0, 5, 4]])
    np.testing.assert_array_equal(information.largest(features, 0.5), [[3, 0, 0, 2], [0, 0, 5, 4]])


def test_the_committed_page_says_what_the_committed_numbers_say(tmp_path):
    results = json.loads((ROOM / "results.json").read_text("utf-8"))
    assert page(report.readme, results) == (ROOM / "README.md").read_text("utf-8")
    assert results["arch"] == "vgg16"
    figure.draw(results).savefig(tmp_path / "again.png")
    assert (ROOM / "why_zeros.png").stat().st_size < 400_000


def test_bad_input_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, words in (
        (["--out", str(file)], "is a file: choose a folder"),
        (["--weights", "nowhere.pth"], "does not exist"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert words in result.output
