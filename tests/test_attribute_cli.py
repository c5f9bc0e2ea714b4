"""flaxvgg attribute as a user meets it: pictures, maps, broken photos, one line for mistakes."""

import json
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import flaxvgg
from flaxvgg.attribution.photos import attribute_photos, plan_attributions
from flaxvgg.files.foreign import shown
from flaxvgg.network.provenance import Provenance
from flaxvgg.plotting.attribution import scale_of
from flaxvgg.plotting.maps_page import AttributionPage
from helpers import check_refused, run_flaxvgg
from networks import TINY_GAP, tiny_vgg

NAMES = ("cat", "space shuttle", "dog", "$\\bad$[red]\x1b[31m", "American Staffordshire terrier")
EVIL = "$\\bad$[red]\x1b[31m\n\udce9" + 233 * "n" + ".png"
run = partial(run_flaxvgg, "attribute")


@pytest.fixture(scope="module")
def model():
    return tiny_vgg(TINY_GAP, provenance=Provenance("random", classes=NAMES))


@pytest.fixture
def loaded(model, monkeypatch):
    monkeypatch.setattr("flaxvgg.commands.attribute.load_model", lambda *_: model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in (EVIL, "other.png"):
        colours = rng.integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(colours).resize((120, 90)).save(folder / name)
    return folder


def test_files_are_what_attribute_gives(tmp_path, model, loaded, photos):
    out = tmp_path / "made" / "here"
    result = run(photos, "--size", "32x64", "--out", out, "--method", "saliency",
                 "--classes", f"4,SPACE shuttle,{NAMES[3]}")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "attribute.json").read_text("utf-8"))
    pictures = [row["picture"] for row in found["photos"]]
    assert sorted(os.listdir(out)) == sorted(["attribute.json", "attributions.npz", *pictures])
    assert found["methods"] == ["saliency"]
    images = model.load_images(flaxvgg.find_images(photos), (32, 64))
    expected = flaxvgg.attribute(model, images, [4, 1, 3], "saliency")
    with np.load(out / "attributions.npz") as arrays:
        maps, scores, labels = arrays["saliency"], arrays["scores"], arrays["classes"]
    assert labels.tolist() == [[4, 1, 3]] * 2
    np.testing.assert_allclose(maps, expected.values.sum(axis=-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-5)
    for name in pictures:
        assert flaxvgg.open_image(out / name).size[0] > 500
    assert "space shuttle" in result.output
    assert "\x1b[31m" not in result.output


def test_a_broken_photo_is_named_and_the_others_are_done(tmp_path, loaded, photos):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    given = photos / "other.png", bad, "--size", "32x32", "--out", tmp_path / "out"
    result = run(*given, "--method", "saliency")
    assert result.exit_code == 1
    assert "bad.png" in result.stderr
    found = json.loads((tmp_path / "out" / "attribute.json").read_text("utf-8"))
    assert [row["photo"] for row in found["photos"]] == [shown(photos / "other.png")]
    assert len(found["problems"]) == 1


def test_a_page_of_all_maps(tmp_path, loaded, model, photos):
    out = tmp_path / "out"
    result = run(photos, "--size", "32x64", "--out", out, "--classes", "4,1", "--html",
                 "--method", "saliency,input_x_gradient", "--probability", "sigmoid")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert str(out / "attribute.html") in result.stdout.replace("\n", "")
    page = (out / "attribute.html").read_text("utf-8")
    assert "Probabilities are the sigmoid" in page
    assert "2 of 2 photos" in page
    told = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["viewer"]
    # Saliency has no sign, what gradients are multiplied by has.
    assert [(x["name"], x["kind"]) for x in told["methods"]] == [
        ("saliency", "zero"), ("input_x_gradient", "signed"),
    ]  # fmt: skip
    assert 0.01 <= told["top"] < 1
    rows = json.loads((out / "attribute.json").read_text("utf-8"))
    assert rows["probability"] == "sigmoid"
    with np.load(out / "attributions.npz") as arrays:
        for i, photo in enumerate(told["photos"]):
            assert photo["labels"] == [NAMES[4], NAMES[1]]
            for j, method in enumerate(("saliency", "input_x_gradient")):
                maps = arrays[method][i]
                expected = [[x.min(), x.max()] for x in maps]
                np.testing.assert_allclose(photo["maps"][j][0]["ranges"], expected, rtol=1e-6)
            chances = 1 / (1 + np.exp(-arrays["scores"][i].astype(np.float64)))
            assert photo["probabilities"] == pytest.approx(chances)
            found = [row["probability"] for row in rows["photos"][i]["classes"]]
            assert found == pytest.approx(chances)


def test_what_is_said_of_maps(model, photos):
    plan = plan_attributions(model, ["saliency"], "0,1,2", (32, 32))
    (found,) = attribute_photos(model, [photos / "other.png"], plan, [])
    found.maps["saliency"][1] = 0
    found.maps["saliency"][2, 0, 0] = np.nan
    page = AttributionPage("softmax", 1)
    page.add(found)
    html = page.html("title")
    told = json.loads(html.partition('id="data">')[2].partition("</script>")[0])["viewer"]
    (photo,) = told["photos"]
    assert photo["flags"] == [["", "zero everywhere", "not finite"]]
    assert photo["maps"][0][0]["ranges"][1:] == [[0, 0], None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "lpr"], "no method 'lpr'"),
        (
            ["--method", "saliency", "--composite", "epsilon-plus"],
            "--composite is of no use to saliency",
        ),
        (["--method", "saliency", "--samples", "3"], "--samples is of no use to saliency"),
        (["--method", "saliency", "--classes", "bird"], "no class 'bird'"),
        (["--size", "12"], "--size is HxW"),
        (["--probability", "no"], "--probability is softmax or sigmoid"),
    ],
)
def test_mistakes_get_a_line(tmp_path, loaded, photos, options, words):
    check_refused(run(photos, "--out", tmp_path / "out", *options), words)
    assert not (tmp_path / "out").exists()


def test_a_misspelt_composite_is_told_before_weights_are_read(photos):
    gone = ["--weights", "gone.pth"]
    result = run_flaxvgg("attribute", photos, *gone, "--composite", "epsilon_plus,epsilonplusflatt")
    check_refused(result, "no composite 'epsilonplusflatt': did you mean epsilon_plus_flat?")


def test_a_network_without_classes_is_refused():
    config = flaxvgg.VGGConfig.features_only("vgg11", "these weights come without a classifier")
    headless = jax.eval_shape(lambda: flaxvgg.VGG(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"come without a classifier\. Use weights with"):
        plan_attributions(headless, ["saliency"], "top3", (32, 32))


def test_one_scale_for_the_classes_of_a_photo(model, photos):
    """What a class has little of looks like little, and a few pixels do not rule the scale."""
    maps = np.ones((2, 50, 50))
    maps[1] *= -3
    maps[0, 0, 0] = 1e6
    assert scale_of(maps) == 3
    assert scale_of(np.zeros((1, 2, 2))) == 1
    assert scale_of(np.full((1, 2, 2), np.nan)) == 1
    images = model.load_images(flaxvgg.find_images(photos), (32, 64))
    attribution = flaxvgg.attribute(model, images, [0, 1], "saliency", signed=True)
    figure = attribution.plot(images, NAMES)
    assert len(figure.axes) == 2 * 3 + 1
    with pytest.raises(ValueError, match=r"the maps are of images 2x32x64x3"):
        attribution.plot(images[:1])
