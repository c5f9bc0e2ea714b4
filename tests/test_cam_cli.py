"""flaxvgg cam as a user meets it: pictures, maps, broken photos, and Ctrl-C."""

import itertools
import json
import os
import shutil
import signal
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from rich.progress import Progress

import flaxvgg
from flaxvgg import Flag
from flaxvgg.cam.conventions import scale_together
from flaxvgg.cam.photos import (
    ExplainedPhoto,
    PhotoMap,
    _watched,
    explain_photos,
    methods_for,
    parse_classes,
    parse_methods,
    plan_maps,
)
from flaxvgg.commands.cam_files import write_cams
from flaxvgg.commands.console import Shown, interruptible
from flaxvgg.commands.tables import cam_table
from flaxvgg.files.foreign import shown
from flaxvgg.network.provenance import Provenance
from flaxvgg.plotting.cam import cam_figure
from flaxvgg.plotting.figures import overlay
from helpers import TINY_GAP, check_refused, run_flaxvgg, tiny_vgg

SIZE = (32, 64)
NAMES = ("cat", "space shuttle", "not finite", "zero", "American Staffordshire terrier")
# A name that would do harm in matplotlib's formulas, in rich's markup and in a terminal, that is no
# UTF-8, and as long as a name can be.
EVIL = "$\\bad$[red]\x1b[31m\n\udce9" + 233 * "n" + ".png"


@pytest.fixture(scope="module")
def model():
    """A tiny network with a GAP head, two of whose classes are broken."""
    model = tiny_vgg(TINY_GAP, provenance=Provenance("random", classes=NAMES))
    kernel = model.head.fc.kernel[...].at[:, 0].set(-0.1)
    model.head.fc.kernel[...] = kernel.at[:, 2].set(3e38).at[:, 3].set(0)
    return model


@pytest.fixture
def loaded(model, monkeypatch):
    monkeypatch.setattr("flaxvgg.commands.cam.load_model", lambda *_: model)


@pytest.fixture(scope="module")
def headless():
    config = flaxvgg.VGGConfig.features_only("vgg11", "these weights come without a classifier")
    return flaxvgg.VGG(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photos in two folders, two of them with the same name."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in (EVIL, "same.png", "more/same.jpg"):
        colours = rng.integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(colours).resize((120, 90)).save(folder / name)
    return folder


run = partial(run_flaxvgg, "cam")


@pytest.fixture
def no_model(monkeypatch):
    """Nothing may be loaded: what is wrong is seen before."""

    def load(*_):
        pytest.fail("the model was loaded")

    monkeypatch.setattr("flaxvgg.commands.cam.load_model", load)


def test_files_are_what_explain_gives(tmp_path, model, loaded, photos):
    out = tmp_path / "made" / "here"
    methods = ("cam", "grad_cam++", "eigen_cam")
    result = run(photos, "--size", "32x64", "--out", out, "--method", ",".join(methods),
                 "--classes", "SPACE shuttle,4,1,zero")  # fmt: skip
    assert result.exit_code == 0, result.output
    seen = jax.jit(lambda explanation: (explanation.heatmaps(), explanation.flags))
    paths = flaxvgg.find_images(photos)
    found = json.loads((out / "cam.json").read_text())
    pictures = {row["photo"]: row["picture"] for row in found["maps"]}
    assert sorted(os.listdir(out)) == sorted(["cam.json", "maps.npz", *pictures.values()])
    assert pictures.pop(shown(photos / EVIL)).startswith("$\\bad$[red]_[31m__nnn")
    assert sorted(pictures.values()) == ["same-2.png", "same.png"]
    assert found["size"] == list(SIZE)
    assert not found["partial"]
    rows = iter(found["maps"])
    with np.load(out / "maps.npz") as arrays:
        assert set(arrays) == {*methods, "photos", "methods", "classes", "scores", "flags"}
        assert list(arrays["photos"]) == [str(path) for path in paths]
        assert tuple(arrays["methods"]) == methods
        assert arrays["classes"].tolist() == [[1, 4, 3]] * 3
        for (i, path), (j, method) in itertools.product(enumerate(paths), enumerate(methods)):
            images = flaxvgg.load_images([path], SIZE, model.preprocessing)
            expected = flaxvgg.explain(model, images, [1, 4, 3], method)
            heat, flags = jax.tree.map(lambda x: np.asarray(x)[0], seen(expected))
            np.testing.assert_array_equal(arrays[method][i], expected.maps[0])
            np.testing.assert_array_equal(arrays["scores"][i, j], expected.scores[0])
            np.testing.assert_array_equal(arrays["flags"][i, j], flags)
            for k, label in enumerate([1, 4, 3]):
                row = next(rows)
                flag = Flag(int(flags[k]))
                assert row["photo"] == shown(path)
                assert (row["method"], row["class"], row["name"]) == (method, label, NAMES[label])
                assert row["score"] == pytest.approx(float(expected.scores[0, k]))
                assert row["flag"] == flag.name.lower()
                if heat[k].max() > 0:
                    x, y = row["peak"]
                    assert heat[k, y, x] == heat[k].max()
                else:
                    assert row["peak"] is None
        assert arrays["flags"][:, 0, 2].tolist() == [Flag.ZERO] * 3
        assert np.nanmin(arrays["cam"]) < 0  # signed
    assert next(rows, None) is None
    assert "zero everywhere" in result.stdout
    assert r"$\bad$[red]\x1b" in result.stdout
    assert "\x1b" not in result.stdout
    for name in pictures.values():
        with Image.open(out / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[0] > 3 * 150  # three rows
        assert pixels.shape[1] > 4 * 200  # the photo and three classes
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2000


def test_the_best_classes_and_joined_layers(tmp_path, model, loaded, photos):
    photo, out = photos / "same.png", tmp_path / "out"
    result = run(photo, "--size", "32x64", "--out", out, "--classes", "top2",
                 "--layer", "features.1,relu2_1", "--convention", "torchcam")  # fmt: skip
    assert result.exit_code == 0, result.output
    images = flaxvgg.load_images([photo], SIZE, model.preprocessing)
    scores = np.asarray(model(images))[0]
    with np.load(out / "maps.npz") as arrays:
        best = arrays["classes"]
        layers = ["relu1_1", "relu2_1"]
        expected = flaxvgg.explain(model, images, best, "grad_cam", layers, "torchcam")
        for layer, maps in zip(layers, expected.layer_maps, strict=True):
            np.testing.assert_array_equal(arrays[f"grad_cam {layer}"], maps)
        found = arrays["scores"][0, 0]
    assert np.isinf(scores[2])  # a broken class that comes first is shown, not hidden
    assert best[0].tolist() == np.argsort(scores)[:-3:-1].tolist()
    np.testing.assert_allclose(found, scores[best[0]], rtol=1e-5)
    row = json.loads((out / "cam.json").read_text())["maps"][0]
    assert row["score"] is None
    assert row["flag"] == "not_finite"
    assert "not finite" in result.stdout
    assert str(out / "same.png") in result.stdout.replace("\n", "")


def test_a_checkpoint_without_a_classifier(tmp_path, headless, photos):
    weights, out, photo = tmp_path / "weights.safetensors", tmp_path / "out", photos / "same.png"
    flaxvgg.save(headless, weights)
    result = run(photo, "--weights", weights, "--size", "32x64", "--out", out)
    assert result.exit_code == 0, result.output
    assert "eigen_cam alone, without classes" in result.stdout
    row = json.loads((out / "cam.json").read_text())["maps"][0]
    assert (row["method"], row["class"], row["score"]) == ("eigen_cam", None, None)
    with np.load(out / "maps.npz") as arrays:
        images = flaxvgg.load_images([photo], SIZE, headless.preprocessing)
        expected = flaxvgg.explain(headless, images, method="eigen_cam").maps
        np.testing.assert_array_equal(arrays["eigen_cam"], expected)
        assert arrays["classes"].tolist() == [[-1]]
    for method in ("grad_cam", "eigen_cam,score_cam"):
        result = run(photo, "--weights", weights, "--out", tmp_path / "none", "--method", method)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {method.split(',')[-1]} explains a class")
        assert "without a classifier. Use --method eigen_cam, weights with a" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_with_a_gap_head(tmp_path, headless, photos):
    weights, out = tmp_path / "weights.safetensors", tmp_path / "out"
    flaxvgg.save(flaxvgg.with_gap(headless, 2, rngs=nnx.Rngs(0)), weights)
    result = run(photos / "same.png", "--weights", weights, "--size", "32x64", "--out", out,
                 "--method", "cam")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "cam.json").read_text())["maps"]
    assert sorted(row["name"] for row in rows) == ["class 0", "class 1"]  # top3 of two
    assert rows[0]["score"] > rows[1]["score"]


def test_what_is_negative_everywhere_is_shown_where_it_is_not_cut_off(model, photos):
    """Zhou's CAM has no ReLU, so a map without evidence still has a highest place."""
    plan = plan_maps(model, ("cam", "grad_cam"), "cat", None, "paper", SIZE)
    (explained,) = explain_photos(model, [photos / "same.png"], plan, [])
    (cam,), (grad_cam,) = explained.maps["cam"], explained.maps["grad_cam"]
    assert cam.flag == grad_cam.flag == Flag.NEGATIVE
    x, y = cam.peak
    assert explained.heatmaps["cam"][0, y, x] == pytest.approx(1, rel=1e-6)
    assert grad_cam.peak is None
    texts = [[text.get_text() for text in ax.texts] for ax in cam_figure(explained, "").axes]
    assert texts == [[], ["positive nowhere"], ["positive nowhere"], []]
    lines = [len(ax.lines) for ax in cam_figure(explained, "").axes]
    assert lines == [0, 2, 0, 0]  # the ring, twice for its edge
    cells = [list(column.cells) for column in cam_table(plan=plan, maps=[cam, grad_cam]).columns]
    assert cells[0] == ["same.png", ""]
    assert cells[1] == ["cat", ""]
    assert [text.plain for text in cells[4]] == [f"{x}, {y} positive nowhere", "positive nowhere"]
    assert [span.style for text in cells[4] for span in text.spans] == ["red", "red"]


def test_a_broken_photo_among_good_ones(tmp_path, loaded, photos):
    broken, out = tmp_path / "b\udce9.jpg", tmp_path / "out"
    broken.write_bytes(b"no photo")
    odd = Path(shutil.copy(photos / "same.png", tmp_path / "caf\udce9.png"))
    arguments = "--size", "32x64", "--method", "cam", "--out"
    result = run(broken, odd, photos, *arguments, out)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"left out: {shown(broken)}: no image")
    text = (out / "cam.json").read_text()
    assert "\\ud" not in text  # half of a character, which others' readers of JSON refuse
    found = json.loads(text)
    assert shown(odd) in {row["photo"] for row in found["maps"]}
    assert found["problems"] == [result.stderr.strip().removeprefix("left out: ")]
    assert (found["partial"], found["photos_not_looked_at"]) == (False, 0)
    assert len({row["photo"] for row in found["maps"]}) == 4
    result = run(broken, *arguments, tmp_path / "none")
    assert result.exit_code == 2
    assert shown(broken) in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("done", [0, 2])
def test_ctrl_c_keeps_the_photos_that_are_done(tmp_path, loaded, photos, monkeypatch, done):
    load_pixels, count = flaxvgg.cam.photos.load_pixels, itertools.count()

    def load(*arguments):
        if next(count) == done:
            signal.raise_signal(signal.SIGINT)
        return load_pixels(*arguments)

    monkeypatch.setattr("flaxvgg.cam.photos.load_pixels", load)
    out = tmp_path / "out"
    result = run(photos, "--size", "32x64", "--method", "cam", "--out", out)
    assert result.exit_code == 130, result.output
    if not done:
        assert "interrupted: nothing was written" in result.stderr
        assert not out.exists()
        return
    assert "1 of 3 photos were not looked at" in result.stderr
    assert len(os.listdir(out)) == 4
    found = json.loads((out / "cam.json").read_text())
    assert (found["partial"], found["photos_not_looked_at"]) == (True, 1)
    with np.load(out / "maps.npz") as arrays:
        assert len(arrays["photos"]) == len(arrays["cam"]) == 2


def test_ctrl_c_is_heard_while_a_computation_runs():
    done = threading.Event()

    def compute():
        os.kill(os.getpid(), signal.SIGINT)
        assert done.wait(60)

    with pytest.raises(KeyboardInterrupt):
        interruptible(compute)
    done.set()
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_bad_input_is_one_line_before_the_model_is_loaded(tmp_path, photos, no_model, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for arguments, words in [
        ((tmp_path / "nothing",), "no such file or folder"),
        ((photos, "--method", "mine"), "no method 'mine': choose from all, cam, grad_cam"),
        ((photos, "--convention", "mine"), "no convention 'mine': choose from paper, grad-cam"),
        ((photos, "--size", "large"), "--size is HxW"),
        ((photos, "--scale", "mine"), "--scale is photo or map, not 'mine'"),
        ((photos, "--probability", "tanh"), "--probability is softmax or sigmoid"),
        ((photos, "--html", "--out", photos / "a.zarr"), "--html needs a folder"),
        ((photos, "--size", "16x64"), "at least 32x32"),
        ((photos, "--out", file), "is a file: choose a folder"),
        ((photos, "--out", file / "below"), "is a file: choose a folder"),
        ((photos, "--out", photos / "more"), "choose another folder"),
    ]:
        check_refused(run(*arguments), words)
    assert run().exit_code == 2  # no photo


def test_bad_input_is_one_line_before_a_photo_is_looked_at(tmp_path, loaded, photos, monkeypatch):
    monkeypatch.setattr(
        "flaxvgg.commands.cam_files.explain_photos", lambda *_: pytest.fail("looked at")
    )
    out = tmp_path / "out"
    for arguments, words in [
        (("--classes", "5"), "no class 5: the weights have classes 0 to 4"),
        (("--classes", "space shuttel"), "no class 'space shuttel': did you mean space shuttle?"),
        (("--layer", "relu5_3"), "no layer 'relu5_3'"),
        (("--layer", "fc"), "has no map at 'fc'"),
        (("--method", "cam", "--layer", "relu1_1"), "'cam' has no map at 'relu1_1'"),
        (("--method", "full_grad", "--layer", "relu1_1"), "takes no layer"),
        (("--method", "fully_convolutional"), "only a classifier with fc6"),
        (("--method", "dff"), "deep_feature_factorisation finds concepts"),
        (("--method", "cam,ss_cam"), "'ss_cam' is random: pass key="),
    ]:
        check_refused(run(photos, "--out", out, "--size", "32x64", *arguments), words)
        assert not out.exists()


def test_pictures_need_matplotlib(tmp_path, photos, no_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = run(photos, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.stderr


def test_methods_of_a_network():
    classifier = flaxvgg.VGGConfig.classifier("vgg11")
    gap = flaxvgg.VGGConfig.gap("vgg11", num_classes=2)
    bare = flaxvgg.VGGConfig.features_only("vgg11", "no reason")
    whole = {"full_grad", "fully_convolutional"}
    by_name = {"smooth_grad_cam++", "ss_cam", "is_cam", "deep_feature_factorisation"}
    # Random, or thousands of passes, or no classes.
    everything = set(flaxvgg.METHODS) - by_name
    assert everything - set(methods_for(classifier)) == {"cam"}
    assert everything - set(methods_for(gap)) == {"fully_convolutional"}
    assert everything - set(methods_for(gap, with_layer=True)) == {"cam", *whole}
    for config in (classifier, gap):
        assert not by_name & set(methods_for(config))
    dense = classifier.fully_convolutional()
    assert methods_for(dense) == methods_for(classifier)
    assert methods_for(bare) == methods_for(bare, with_layer=True)
    assert methods_for(bare) == ("eigen_cam", "fem", "kpca_cam")
    assert parse_methods("all") is None
    assert parse_methods(None) == ()
    assert parse_methods("Grad-CAM, cam,grad_cam") == ("grad_cam", "cam")


def test_classes_of_a_text():
    assert parse_classes("top3", 5, NAMES) == 3
    assert parse_classes("top3", 2, NAMES[:2]) == 2
    assert parse_classes("4, 0,4", 5, ()) == (4, 0)
    assert parse_classes("Cat,3", 5, NAMES) == (0, 3)
    for text, words in [
        ("top0", "pass a name, or a number from 0 to 4"),
        ("", "pass a name"),
        ("-1", "pass a name"),
        ("top30", "30 classes in one picture: choose 20 at most"),
    ]:
        names = NAMES if text != "top30" else ()
        with pytest.raises(ValueError, match=words):
            parse_classes(text, 5 if names else 1000, names)
    with pytest.raises(ValueError, match="no class names: pass numbers from 0 to 9"):
        parse_classes("cat", 10, ())


def test_one_program_serves_all_photos(model, photos, caplog):
    plan = plan_maps(model, ("grad_cam", "layer_cam"), "top1", None, "paper", (48, 48))
    paths = flaxvgg.find_images(photos)
    explained = explain_photos(model, paths, plan, [])
    jax.config.update("jax_log_compiles", True)  # jax.log_compiles() holds in this thread only
    try:
        next(explained)
        assert "Compiling" in caplog.text
        caplog.clear()
        assert len(list(explained)) == 2
        assert "Compiling" not in caplog.text
    finally:
        jax.config.update("jax_log_compiles", False)


def test_the_bar_moves_with_every_pass_of_score_cam(model, photos, monkeypatch):
    advanced = []
    monkeypatch.setattr(Progress, "advance", lambda _, __, images: advanced.append(images))
    monkeypatch.setattr("flaxvgg.cam.masking._CHUNK", 4)
    plan = plan_maps(model, ("score_cam", "cam"), "0,1", None, "paper", (40, 40))
    (explained,) = explain_photos(model, [photos / "same.png"], plan, [], Shown())
    assert explained.raw["score_cam"].shape == (2, 20, 20)
    # The image, an empty one, and the 12 channels' masks.
    assert sorted(advanced) == [1, 1, 4, 4, 4]


def test_telling_of_passes_changes_nothing(model):
    images = np.random.default_rng(0).standard_normal((1, *SIZE, 3)).astype(np.float32)
    told = []
    found = flaxvgg.explain(_watched(model, told.append), images, [0, 1, 4], "cam")
    jax.effects_barrier()
    expected = flaxvgg.explain(model, images, [0, 1, 4], "cam")
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-5, atol=1e-6)
    assert told == [1]


def synthetic(photo, size, methods, columns):
    """An explained photo without a network, every name of which is too long."""
    rng = np.random.default_rng(0)
    heat = rng.random((columns, *size), np.float32)
    name = 9 * "long name " + "x" * 60

    def described(method, k):
        flag, peak = (Flag.FINE, (1, 2)) if k else (Flag.NOT_FINITE, None)
        return PhotoMap(photo, method, k, name, -123456.7, flag, peak)

    return ExplainedPhoto(
        photo,
        rng.integers(0, 255, (*size, 3), np.uint8),
        layers=dict.fromkeys(methods, ("relu3_1", "relu4_2", "relu5_2")),
        raw={},
        heatmaps=dict.fromkeys(methods, heat),
        shared=dict.fromkeys(methods, heat),
        maps={method: [described(method, k) for k in range(columns)] for method in methods},
        logits=np.zeros(columns, np.float32),
    )


@pytest.mark.parametrize(
    ("size", "methods", "columns"),
    [((64, 64), ("cam",), 1), ((32, 128), ("cam", "elementwise_grad_cam"), 10),
     ((128, 32), ("fully_convolutional", "cam"), 3), ((64, 64), flaxvgg.METHODS, 3)],
)  # fmt: skip
def test_no_text_in_a_picture_meets_another(tmp_path, size, methods, columns):
    photo = tmp_path / ("a long file name " * 9 + ".png")
    figure = cam_figure(synthetic(photo, size, methods, columns), "a very long title " * 20)
    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = [text.get_window_extent(renderer) for text in figure.texts]
    panels = [ax.get_window_extent(renderer) for ax in figure.axes]
    blocks = 3 if len(methods) == len(flaxvgg.METHODS) else 1
    assert len(inside) == 4 + len(methods) + blocks * columns
    assert len(panels) == 2 + len(methods) * columns
    whole = figure.bbox
    assert whole.height < 1700  # of a page's size: in one column it would be 3,900
    for a, b in itertools.combinations([*inside, *panels], 2):
        assert not a.overlaps(b), (a, b)
    for box in [*inside, *panels]:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert sum("not finite" in text.get_text() for ax in figure.axes for text in ax.texts) == len(
        methods
    )


def test_a_page_of_all_maps(tmp_path, loaded, model, photos):
    out = tmp_path / "out"
    result = run(photos, "--size", "32x64", "--out", out, "--method", "cam,grad_cam",
                 "--classes", "4,1", "--html", "--probability", "sigmoid")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert str(out / "cam.html") in result.stdout.replace("\n", "")
    page = (out / "cam.html").read_text("utf-8")
    told = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["viewer"]
    assert [method["name"] for method in told["methods"]] == ["cam", "grad_cam"]
    assert [method["kind"] for method in told["methods"]] == ["lowest", "zero"]
    rows = json.loads((out / "cam.json").read_text())["maps"]
    assert len(told["photos"]) == 3
    with np.load(out / "maps.npz") as arrays:
        for i, photo in enumerate(told["photos"]):
            assert photo["labels"] == [NAMES[4], NAMES[1]]
            low, high = arrays["grad_cam"][i, 0].min(), arrays["grad_cam"][i, 0].max()
            assert photo["maps"][1][0]["ranges"][0] == pytest.approx([low, high])
            scores = arrays["scores"][i, 0].astype(np.float64)
            assert photo["probabilities"] == pytest.approx(1 / (1 + np.exp(-scores)))
            assert rows[4 * i]["probability"] == pytest.approx(photo["probabilities"][0])
    assert "Probabilities are the sigmoid" in page


def test_classes_share_a_scale(model, photos):
    plan = plan_maps(model, ("grad_cam",), "space shuttle,4,cat", None, "paper", SIZE)
    (found,) = explain_photos(model, [photos / "same.png"], plan, [])
    assert len(found.logits) == len(NAMES)
    own, shared = found.heatmaps["grad_cam"], found.shared["grad_cam"]
    tops = [np.maximum(raw, 0).max() for raw in found.raw["grad_cam"][:3]]
    best = int(np.argmax(tops))
    np.testing.assert_allclose(shared[best], own[best], atol=1e-6)
    for k in range(3):
        assert shared[k].max() <= 1.001 * tops[k] / tops[best] + 1e-6
        assert (shared[k].max() > 0) == (tops[k] > 0)
    maps = np.stack([np.eye(4), np.full((4, 4), np.nan), 3 * np.eye(4)])[None].astype(np.float32)
    heat = np.asarray(scale_together(jnp.asarray(maps), 0.0))[0]
    np.testing.assert_allclose(heat[0], np.eye(4) / 3, rtol=1e-6)
    assert np.isnan(heat[1]).all()  # and it spoils no other
    assert heat[2].max() == 1


def test_an_overlay_is_the_grey_photo_where_it_is_cold():
    picture = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    cold, hot = overlay(picture, np.array([[0.0, 1.0]]))[0]
    np.testing.assert_allclose(cold, (0.299 * 200 + 0.587 * 100) / 255)
    blue, red = overlay(picture, np.array([[-1.0, 1.0]]), signed=True)[0]
    assert blue[2] > blue[0] + 0.3
    assert red[0] > red[2] + 0.3
    yellow = np.array([0.988362, 0.998364, 0.644924])  # the end of inferno
    np.testing.assert_allclose(hot, 0.25 * cold + 0.75 * yellow, atol=1e-6)


def test_a_failing_write_leaves_nothing_half_written(tmp_path, model, photos, monkeypatch):
    plan = plan_maps(model, ("cam",), "0", None, "paper", SIZE)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("flaxvgg.commands.cam_files.cam_figure", fail)
    with pytest.raises(OSError, match="no space left"):
        write_cams(model, flaxvgg.find_images(photos), plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
