"""The fine-tuning experiment on a small network, its data, and the head that comes with flaxvgg."""

import dataclasses
import functools
import importlib.resources
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

import flaxvgg
from experiments.composed import objects, scenes
from experiments.composed.fitting import features_of, fit_gap
from experiments.gap_finetune import embedding, report, scoring, study, tuning
from experiments.gap_finetune.__main__ import app
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.target import convert
from flaxvgg.evaluation.classification import mean_average_precision
from flaxvgg.heads.sample_head import convolutions_digest, packaged_heads, read_head, write_head
from helpers import REAL_WEIGHTS, TUMOUR_WEIGHTS, random_images, small_model

STANDARD = functools.partial(jax.numpy_dtype_promotion, "standard")  # optax's Adam promotes
STEMS = ("sample_head_v1", "sample_head")
TINY = study.Effort(size=64, training=22, tests=11, seeds=(0,), steps=3, batch=8)


@pytest.fixture(scope="module")
def model():
    return small_model()


def overlap(a: objects.Crop, b: objects.Crop) -> bool:
    across = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    down = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return a.photo == b.photo and across > 0 and down > 0


def test_no_pixel_is_for_training_and_for_testing():
    training = [x.training for x in objects.OBJECTS] + list(objects.TRAINING_BACKGROUNDS)
    test = [x.test for x in objects.OBJECTS] + list(objects.TEST_BACKGROUNDS)
    assert not [pair for pair in itertools.product(training, test) if overlap(*pair)]
    photos = {crop.photo for crop in objects.TRAINING_BACKGROUNDS}
    assert not photos & {crop.photo for crop in objects.TEST_BACKGROUNDS}
    for crop in training + test:
        width, height = objects.open_photo(crop.photo).size
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def painted(white: list[objects.Crop], black: list[objects.Crop], grey: int = 128):
    """Photos that are white in some crops, black in others, and grey elsewhere."""

    def open_photo(name: str) -> Image.Image:
        image = Image.new("RGB", (1500, 1500), (grey,) * 3)
        for crops, level in ((white, 255), (black, 0)):
            for crop in crops:
                if crop.photo == name:
                    image.paste((level,) * 3, crop.box)
        return image

    return open_photo


@pytest.mark.parametrize("part", ["training", "test"])
def test_scenes_are_made_of_their_own_crops(part, monkeypatch):
    compose = {"training": scenes.training_scenes, "test": scenes.held_out_scenes}[part]
    own = [getattr(x, part) for x in objects.OBJECTS]
    backgrounds = {"training": "TRAINING_BACKGROUNDS", "test": "TEST_BACKGROUNDS"}[part]
    # Own crops are black, everything else in every photo is grey: none of it may show.
    crops = [*own, *getattr(objects, backgrounds)]
    monkeypatch.setattr(objects, "open_photo", painted([], crops))
    assert not compose(12, 0, 64).pixels.any()


@pytest.mark.parametrize("compose", [scenes.training_scenes, scenes.held_out_scenes])
def test_an_object_is_where_its_box_is(compose, monkeypatch):
    own = "training" if compose is scenes.training_scenes else "test"
    crops = [getattr(x, own) for x in objects.OBJECTS]
    monkeypatch.setattr(objects, "open_photo", painted(crops, [], grey=0))
    found = compose(22, 3, 96)
    for pixels, boxes in zip(found.pixels, found.boxes, strict=True):
        inside = np.zeros(pixels.shape[:2], bool)
        for left, top, right, bottom in boxes.values():
            assert 0 <= left < right <= 96
            assert 0 <= top < bottom <= 96
            assert not inside[top:bottom, left:right].any()  # nothing covers anything
            inside[top:bottom, left:right] = True
            part = pixels[top:bottom, left:right].any(axis=-1)
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            assert rows[[0, -1]].tolist() == [0, bottom - top - 1]
            assert columns[[0, -1]].tolist() == [0, right - left - 1]
        assert not pixels[~inside].any()


def test_scenes_come_from_the_seed():
    for compose in (scenes.training_scenes, scenes.held_out_scenes):
        one, same, other = compose(6, 1, 64), compose(6, 1, 64), compose(6, 2, 64)
        np.testing.assert_array_equal(one.pixels, same.pixels)
        assert one.boxes == same.boxes
        assert one.boxes != other.boxes
    labels = scenes.held_out_scenes(110, 0, 32).labels
    assert labels.sum(axis=0).tolist() == [20] * 11
    assert (labels.sum(axis=1) == 2).all()
    both = scenes.training_scenes(220, 0, 32, ("training", "test")).labels
    assert (abs(both[::2].sum(axis=0) - both[1::2].sum(axis=0)) < 10).all()  # each part as often
    counts = scenes.training_scenes(110, 0, 32).labels.sum(axis=1)
    assert set(counts.tolist()) == {0, 1, 2}


@pytest.mark.slow
def test_maps_of_cached_features_are_those_of_explain(model):
    test = scenes.held_out_scenes(5, 0, 64)
    gap = flaxvgg.with_gap(model, 11, rngs=nnx.Rngs(1))
    cached = features_of(model, test.pixels, lambda done: None, tuning.CACHED)
    outputs, asked = scoring.outputs_of(gap, cached), scoring.questions_of(test)
    images = flaxvgg.normalise(test.pixels, model.preprocessing)
    np.testing.assert_allclose(outputs.logits, gap(images), rtol=1e-4, atol=1e-4)
    classes = asked.classes.reshape(5, 2)
    cam = flaxvgg.explain(gap, images, classes, "cam").heatmaps()
    heat = scoring.cam_heat(gap, outputs, asked, 64)
    np.testing.assert_allclose(heat, np.reshape(cam, heat.shape), atol=1e-3)
    eigen = flaxvgg.explain(gap, images, classes, "eigen_cam").heatmaps()
    heat = scoring.eigen_heat(outputs, asked, 64)
    np.testing.assert_allclose(heat, np.reshape(eigen, heat.shape), atol=1e-3)


@pytest.mark.slow
def test_a_step_trains_the_last_block_and_the_head(model):
    training = scenes.training_scenes(16, 0, 64)
    cached = features_of(model, training.pixels, lambda done: None, tuning.CACHED)
    gap = flaxvgg.with_gap(model, 11, rngs=nnx.Rngs(0))
    before = flaxvgg.to_torch(gap)
    with STANDARD():
        after, losses = tuning.fine_tune(
            gap,
            cached,
            training.labels,
            steps=12,
            batch=16,
            learning_rate=1e-3,
            seed=0,
            report=lambda done: None,
        )
    assert losses[-1] < losses[0]
    assert losses[0] == pytest.approx(np.log(2), rel=0.2)
    arrays = flaxvgg.to_torch(after)
    moved = {name for name in arrays if (arrays[name] != before[name]).any()}
    # vgg11's conv5_1 and conv5_2
    assert {name.partition(".")[0] for name in moved} == {"features", "classifier"}
    assert {name.split(".")[1] for name in moved if name.startswith("features")} == {"16", "18"}
    assert all((flaxvgg.to_torch(gap)[name] == before[name]).all() for name in before)


def test_every_image_comes_before_any_comes_again():
    batches = list(tuning._batches(20, 8, 5, 0))
    assert [len(batch) for batch in batches] == [8] * 5
    assert len(set(np.concatenate(batches[:2]).tolist())) == 16


@pytest.fixture(scope="module")
def out(tmp_path_factory, model):
    """What the command writes about a small network."""
    folder = tmp_path_factory.mktemp("gap_finetune")
    flaxvgg.save(model, folder / "vgg11.safetensors")
    arguments = ["--weights", str(folder / "vgg11.safetensors"), "--out", str(folder / "out")]
    with STANDARD(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Effort", lambda: TINY)
        result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 1, result.output  # random convolutions at 64 px: no aim is met
    assert "missed: seed 0" in result.output
    return folder / "out"


@pytest.mark.slow
def test_the_command_writes_numbers_words_a_picture_and_a_head(out, model):
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "gap_finetune.png", "results.json", "sample_head.md", "sample_head.safetensors"
    ]  # fmt: skip
    results = json.loads((out / "results.json").read_text("utf-8"))
    methods = results["methods"]
    assert list(methods) == [
        study.FITTED, study.TUNED, study.RANDOM, study.EIGEN, study.GAUSSIAN
    ]  # fmt: skip
    assert len(methods[study.FITTED]["pointing_game"]["seeds"]) == 1
    assert results["questions"] == 22
    assert "mean_average_precision" not in methods[study.EIGEN]
    page = (out / "README.md").read_text("utf-8")
    assert report.table(results) in page
    assert "Missed: seed 0" in page
    assert "nan" not in page
    with Image.open(out / "gap_finetune.png") as picture:
        assert picture.width > 700
    head = read_head(out / "sample_head.safetensors")
    assert head.arch == "vgg11"
    assert not head.misfit(model)
    assert (out / "sample_head.md").read_text("utf-8") == embedding.card(head)


def test_aims_that_do_not_hold_are_named():
    def results(precision, pointing, boxes):
        figures = {"mean_average_precision": precision, "pointing_game": pointing}
        figures |= {"max_box_acc_v2": boxes}
        methods = {study.FITTED: figures, study.GAUSSIAN: {"max_box_acc_v2": 0.2}}
        return {
            "effort": {"seeds": [4]},
            "methods": {
                method: {name: {"seeds": [value]} for name, value in found.items()}
                for method, found in methods.items()
            },
        }

    assert study.unmet(results(0.95, 0.9, 0.36)) == []
    assert study.unmet(results(0.94, 0.9, 0.36)) == [
        "seed 4: mean_average_precision is 0.94, not 0.95"
    ]
    assert "pointing_game" in study.unmet(results(0.95, 0.89, 0.36))[0]
    assert "the Gaussian's 0.2" in study.unmet(results(0.95, 0.9, 0.34))[0]


def test_a_fitted_head_ranks_what_it_was_fitted_on(model):
    training = scenes.training_scenes(33, 0, 64)
    features = features_of(model, training.pixels, lambda done: None)
    with STANDARD():
        gap = fit_gap(model, features, training.labels)
    logits = features.mean(axis=(1, 2)) @ np.asarray(gap.head.fc.kernel[...])
    logits += np.asarray(gap.head.fc.bias[...])
    assert mean_average_precision(logits, training.labels) > 0.95


@pytest.mark.parametrize(
    ("stem", "head"), list(zip(STEMS, packaged_heads(), strict=True)), ids=STEMS
)
def test_the_card_says_what_the_head_records(stem, head):
    text = importlib.resources.files("flaxvgg.heads").joinpath(f"{stem}.md").read_text("utf-8")
    assert text == embedding.card(head, f"{stem}.safetensors")
    assert head.arch == "vgg16"
    assert head.weight.shape == (11, 512)
    assert head.weight.dtype == head.bias.dtype == np.float32
    assert head.provenance.classes == tuple(item.name for item in objects.OBJECTS)
    assert head.facts["figures"]["mean_average_precision"] >= 0.95
    assert head.facts["figures"]["pointing_game"] >= 0.9


@pytest.fixture(scope="module")
def tumour():
    return convert(read_source(TUMOUR_WEIGHTS))


@pytest.mark.parametrize("head", packaged_heads(), ids=STEMS)
def test_the_sample_head_gives_the_recorded_classes(head, tumour):
    # The convolutions decide which head it is.
    real = tumour if head is packaged_heads()[1] else convert(read_source(REAL_WEIGHTS))
    gap = flaxvgg.with_sample_head(real)
    assert gap.classes == head.provenance.classes
    assert gap.config == flaxvgg.VGGConfig.gap("vgg16", num_classes=11)
    kernel = real.conv_stack.conv5_3.kernel[...]
    assert (
        gap.conv_stack.conv5_3.kernel[...].unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer()
    )
    photos = ["chelsea.png", "coffee.png", "ihc.png"]
    pixels = [
        flaxvgg.fit_image(objects.open_photo(photo), (224, 224), gap.preprocessing)
        for photo in photos
    ]
    images = flaxvgg.normalise(np.stack(pixels), gap.preprocessing)
    logits = np.asarray(jax.jit(lambda gap, x: gap(x))(gap, images))
    for photo, row in zip(photos, logits, strict=True):
        said = head.facts["photos"][photo]
        assert gap.classes[row.argmax()] == said["class"]
        assert 1 / (1 + np.exp(-row.max())) == pytest.approx(said["probability"], abs=2e-3)


def test_the_sample_head_takes_the_same_convolutions_only(tumour, model):
    real = tumour
    with pytest.raises(ValueError, match="for vgg16, not vgg11"):
        flaxvgg.with_sample_head(model)
    arrays = flaxvgg.to_torch(real)
    with pytest.raises(ValueError, match=r"'keras', but .* says 'torchvision'"):
        flaxvgg.with_sample_head(flaxvgg.from_torch("vgg16", arrays))
    half = flaxvgg.from_torch(
        "vgg16", arrays, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, provenance=real.provenance
    )
    assert flaxvgg.with_sample_head(half).head.fc.kernel.dtype == jnp.bfloat16
    arrays["features.28.bias"] = arrays["features.28.bias"] + np.float32(0.1)
    other = flaxvgg.from_torch("vgg16", arrays, provenance=real.provenance)
    with pytest.raises(
        ValueError, match=r"convolutions of .* or of Tumor.*these are others: fit one"
    ):
        flaxvgg.with_sample_head(other)


def test_a_head_survives_its_file(tmp_path, model):
    gap = flaxvgg.with_gap(model, 3, rngs=nnx.Rngs(0))
    assert convolutions_digest(gap) == convolutions_digest(model)
    weight = random_images(1, 170)[0, :, :].reshape(-1)[:30].reshape(3, 10)
    provenance = dataclasses.replace(model.provenance, classes=("a", "b", "c"))
    head = dataclasses.replace(
        packaged_heads()[0], weight=weight, bias=weight[:, 0].copy(), provenance=provenance
    )
    write_head(tmp_path / "head.safetensors", head)
    again = read_head(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(again.weight, weight)
    assert again.provenance == provenance
    assert (again.arch, again.convolutions, again.facts) == (
        head.arch, head.convolutions, head.facts
    )  # fmt: skip
