"""Results and models that show themselves: as a line, as a table, in a notebook."""

import base64
import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import flaxvgg
from flaxvgg.drawn import shape_of
from flaxvgg.network.summary import layer_rows, parameters_of
from networks import TINY_GAP, random_images, tiny_vgg

IMAGES = random_images(2, 48, 64)


@pytest.fixture(scope="module")
def model():
    return tiny_vgg(TINY_GAP)


@pytest.fixture(scope="module")
def explanation(model):
    return flaxvgg.explain(model, IMAGES, classes=[0, 3], method="grad_cam")


def _abstract(config):
    return nnx.eval_shape(lambda: flaxvgg.VGG(config, rngs=nnx.Rngs(0)))


CONFIGS = {
    **{arch: flaxvgg.VGGConfig.classifier(arch) for arch in flaxvgg.ARCHITECTURES},
    "gap": flaxvgg.VGGConfig.gap("vgg16", num_classes=20, channels=1024),
    "score map": flaxvgg.VGGConfig.score_map("vgg16_bn", num_classes=5, batch_norm=True, fc=True),
    "convolutional": flaxvgg.VGGConfig.classifier("vgg11").fully_convolutional(),
    "l2": flaxvgg.VGGConfig("vgg16", (), "an example", pooling="l2", padding="replicate"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in flaxvgg.ARCHITECTURES and name != "vgg16"
        else name
        for name in CONFIGS
    ],
)
def test_shapes_and_parameters_are_those_of_the_network(name):
    """Of every layer, at a size that no halving divides."""
    config = CONFIGS[name]
    model = _abstract(config)
    height, width = 375, 293
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    outputs = jax.eval_shape(lambda m, x: m.activations(x, config.layer_names), model, images)
    rows = layer_rows(config, (height, width))
    assert {row.name: (1, *row.shape) for row in rows} == {k: x.shape for k, x in outputs.items()}
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(row.parameters for row in rows) == sum(x.size for x in parameters)
    total = sum(map(parameters_of, config.layers))
    assert f"{total:,} in all" in model.summary((height, width))
    assert f"{total:,} parameters" in repr(model)
    assert max(map(len, repr(model).splitlines())) <= 100
    assert len(repr(model).splitlines()) <= 18


def test_the_summary_has_every_name_and_shows_itself():
    model = _abstract(flaxvgg.VGGConfig.classifier("vgg16"))
    text = model.summary()
    row = next(line for line in text.splitlines() if line.startswith("relu5_3"))
    assert row.split() == ["relu5_3", "features.29", "block5_conv3", "14x14x512"]
    assert "138,357,544" in text.splitlines()[-1]  # torchvision's own number
    assert repr(text) == str(text)
    assert model.layer_names == model.config.layer_names
    with pytest.raises(ValueError, match="at least 32x32"):
        model.summary((31, 224))


def test_nnx_still_shows_and_splits_the_model(model):
    graph, state = nnx.split(model)
    assert "GraphDef" in repr(graph)
    assert "kernel" in repr(state)
    assert repr(nnx.merge(graph, state)) == repr(model) == str(model)
    assert "VGG Summary" in nnx.tabulate(model, IMAGES)


def test_what_a_transformation_holds_has_a_line_too(model):
    lines = []

    @jax.jit
    def inside(model, images):
        found = flaxvgg.explain(model, images, classes=[0])
        lines.extend(map(repr, (model, found, flaxvgg.measure_sparsity(model, images))))
        assert found._repr_html_() is None
        return found

    inside(model, IMAGES)
    assert "VGG vgg11: " in lines[0]
    assert "grad_cam at relu2_1" in lines[1]
    assert lines[2].startswith("SparsityReport(")
    assert shape_of(object()) == "?"


def test_lines_of_results(model, explanation):
    assert repr(explanation) == (
        "Explanation(grad_cam at relu2_1, convention 'paper': 2x2 classes of images 48x64, "
        "maps 2x2x24x32)"
    )
    attribution = flaxvgg.attribute(model, IMAGES, classes=[1], method="saliency")
    assert repr(attribution) == "Attribution(saliency: 2x1 scores, values 2x1x48x64x3)"
    report = flaxvgg.measure_sparsity(model, IMAGES, ["relu2_1", "pool2"])
    share = (np.asarray(model.activations(IMAGES, ["pool2"])["pool2"]) == 0).mean()
    assert "2 images; zeros relu2_1 " in repr(report)
    assert f"pool2 {share:.1%})" in repr(report)


def _pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(x))).convert("RGB")) for x in found]


def test_an_explanation_in_a_notebook(explanation):
    html = explanation._repr_html_()
    pictures = _pictures(html)
    assert [x.shape for x in pictures] == [(72, 96, 3)] * 4
    heat = np.asarray(explanation.heatmaps((72, 96)))[1, 0]
    # inferno is brighter the hotter.
    assert np.corrcoef(pictures[2].sum(-1).ravel(), heat.ravel())[0, 1] > 0.95
    assert f"class 3, {float(explanation.scores[1, 1]):.3g}" in html
    assert len(html) < 40_000


def test_an_attribution_in_a_notebook(model):
    attribution = flaxvgg.attribute(model, IMAGES, classes=[1], method="saliency", signed=True)
    pictures = _pictures(attribution._repr_html_())
    assert [x.shape for x in pictures] == [(72, 96, 3)] * 2


def test_a_report_in_a_notebook(model):
    report = flaxvgg.measure_sparsity(model, IMAGES, ["relu2_1", "block2_pool"])
    html = report._repr_html_()
    for layer in report:
        assert f"<td>{layer.name}</td>" in html
        assert f"{layer.zero_fraction:.1%}" in html


def test_foreign_text_is_text(model):
    hostile = nnx.clone(model)
    hostile.provenance = dataclasses.replace(model.provenance, source="<script>\x1b[2J")
    html = flaxvgg.measure_sparsity(hostile, IMAGES, ["pool2"])._repr_html_()
    assert "<script>" not in html
    assert "\x1b" not in html + repr(hostile)


def test_many_images_and_classes_are_cut(model):
    many = flaxvgg.explain(model, random_images(8, 32, 32), classes=[0, 1, 2, 3, 4, 0, 1])
    html = many._repr_html_()
    assert len(_pictures(html)) == 36
    assert "and 2 more images, 1 more classes" in html


def test_overlay(explanation):
    pixels = np.full((2, 48, 64, 3), 128, np.uint8)
    drawn = explanation.overlay(pixels)
    assert drawn.shape == (2, 2, 48, 64, 3)
    heat = np.asarray(explanation.heatmaps((48, 64)))
    # Where a map is cold, the grey photo shows; black of the map's colours is not laid over it.
    cold = heat == 0
    assert cold.any()
    assert (abs(drawn[cold].astype(int) - 128) <= 1).all()
    assert (drawn[heat > 0.9].astype(int).std(-1) > 20).all()
    np.testing.assert_array_equal(explanation.overlay(IMAGES).shape, drawn.shape)
    with pytest.raises(ValueError, match=r"images 2x48x64x3, and these are 1x48x64x3"):
        explanation.overlay(IMAGES[:1])
