"""What `flaxvgg.explain` explains: classes by name, and functions of the logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import flaxvgg
from flaxvgg.cam.maps import layer_maps, maps_of_scores
from flaxvgg.cam.methods import ALIASES, METHODS
from flaxvgg.cam.names import find_class, find_name
from flaxvgg.cam.targets import Targets
from flaxvgg.network.config import Layer
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Provenance
from helpers import TINY_GAP, quickly, random_images, tiny_vgg

NAMES = ("cat", "space shuttle", "crane", "crane", "dog", "Dog", "tank")


@pytest.fixture(scope="module")
def model() -> VGG:
    return tiny_vgg(provenance=Provenance("random", classes=NAMES))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(2, 32, 32)


def near(expected: Any, tolerance: float) -> Any:
    """Equal to `expected` to so much of its largest value."""
    expected = np.asarray(expected)
    return pytest.approx(expected, rel=0, abs=tolerance * float(np.abs(expected).max()))


def difference(logits: jax.Array) -> jax.Array:
    return logits[:, [3]] - logits[:, [1]]


def probability(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits)[:, [3, 1]]


def log_odds(logits: jax.Array) -> jax.Array:
    p = jax.nn.softmax(logits)[:, [3]]
    return jnp.log(p) - jnp.log1p(-p)


def test_classes_by_name(model: VGG, images: np.ndarray):
    for classes, expected in [
        ("tank", [[6], [6]]),
        ("Space-Shuttle", [[1], [1]]),
        (["dog", "Dog", 0], [[4, 5, 0], [4, 5, 0]]),
    ]:
        assert flaxvgg.explain(model, images, classes).classes.tolist() == expected
    for classes, message in [
        ("DOG", "several classes are 'DOG': pass a number, 4, 5"),
        ("crane", "several classes are 'crane': pass a number, 2, 3"),
        (["cat", "tnak"], "no class 'tnak': did you mean tank"),
        ("zebra", "no class 'zebra': pass a name, or a number from 0 to 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            flaxvgg.explain(model, images, classes)


def by_chain_rule(function: Callable, model: VGG, images: np.ndarray, method: str) -> np.ndarray:
    """Maps that are linear in the gradient, of a function: the classes' maps times derivatives."""
    maps = flaxvgg.explain(model, images, "all", method).maps
    each = jax.vmap(jax.jacobian(lambda logits: function(logits[None])[0]))(model(images))
    return np.einsum("nkc,nchw->nkhw", each, maps)


@pytest.mark.parametrize("function", quickly([difference, probability, log_odds], probability))
def test_a_function_is_explained_by_its_derivative(
    model: VGG, images: np.ndarray, function: Callable
):
    expected = by_chain_rule(function, model, images, "hires_cam")
    found = flaxvgg.explain(model, images, function, "hires_cam")
    assert found.maps == near(expected, 1e-5)
    assert np.abs(expected).max() > 0
    assert found.scores == pytest.approx(np.asarray(function(model(images))), rel=1e-4, abs=1e-5)
    assert np.unique(found.classes).tolist() == [-1]
    assert found.ok.all()


@pytest.mark.parametrize("method", quickly(["grad_cam", "cam"], "grad_cam"))
def test_a_function_by_what_is_summed_for_all_classes(images: np.ndarray, method: str):
    model = tiny_vgg(TINY_GAP)
    expected = by_chain_rule(probability, model, images, method)
    found = flaxvgg.explain(model, images, probability, method).maps
    assert found == near(expected, 1e-5)


def test_a_function_of_score_maps():
    # The logits are the maps' means, and the maps count by the derivative by these.
    score_maps = jnp.asarray(random_images(2, 3, 4, channels=7))
    means = score_maps.mean(axis=(1, 2))
    maps, classes, scores = maps_of_scores(score_maps, Targets.of(probability, 2, 7))
    each = jax.vmap(jax.jacobian(lambda logits: probability(logits[None])[0]))(means)
    assert maps[0] == near(np.einsum("nkc,nhwc->nkhw", each, score_maps), 1e-5)
    assert scores == pytest.approx(np.asarray(probability(means)), rel=1e-5)
    assert np.unique(classes).tolist() == [-1]


def test_cam_of_a_function_where_channels_are_classes(images: np.ndarray):
    model = tiny_vgg((Layer("gap", "global_avg_pool"), Layer("flatten", "flatten", outputs=12)))
    expected = by_chain_rule(probability, model, images, "cam")
    assert flaxvgg.explain(model, images, probability, "cam").maps == near(expected, 1e-5)


@pytest.mark.parametrize(
    "method", quickly(["score_cam", "ablation_cam", "full_grad", "eigen_cam"], "ablation_cam")
)
def test_a_function_that_picks_classes_is_these_classes(
    model: VGG, images: np.ndarray, method: str
):
    expected = flaxvgg.explain(model, images, [3, 1], method)
    found = flaxvgg.explain(model, images, lambda logits: logits[:, [3, 1]], method)
    assert found.maps == near(np.asarray(expected.maps), 1e-4)
    assert found.scores == pytest.approx(np.asarray(expected.scores), rel=1e-5)


@pytest.mark.slow
def test_score_cam_and_ablation_cam_weigh_by_the_functions_scores(model: VGG, images: np.ndarray):
    kernel, bias = model.head.fc8.kernel[...], model.head.fc8.bias[...]
    other = flaxvgg.network.model.nnx.clone(model)
    other.head.fc8.kernel[...] = kernel.at[:, 0].set(kernel[:, 3] - kernel[:, 1])
    other.head.fc8.bias[...] = bias.at[0].set(bias[3] - bias[1])
    for method in ("score_cam", "ablation_cam"):
        expected = np.asarray(flaxvgg.explain(other, images, 0, method).maps)
        found = flaxvgg.explain(model, images, difference, method).maps
        assert found == near(expected, 1e-3), method


def test_a_function_sees_each_image_at_its_place(model: VGG, images: np.ndarray):
    classes = jnp.array([[3], [5]])
    expected = flaxvgg.explain(model, images, classes, "score_cam").maps
    function = Partial(lambda classes, logits: jnp.take_along_axis(logits, classes, 1), classes)
    found = flaxvgg.explain(model, images, function, "score_cam").maps
    assert found == near(np.asarray(expected), 1e-5)


def test_functions_are_no_new_program_for_other_images_weights_and_arguments(
    model: VGG, images: np.ndarray, compilations: list[str]
):
    other = tiny_vgg(seed=1, provenance=Provenance("elsewhere"))

    def mixed(weights: jax.Array, logits: jax.Array) -> jax.Array:
        return logits @ weights

    weights = np.eye(7, 2, dtype=np.float32)
    for first, then in [
        (difference, difference),
        (Partial(mixed, weights), Partial(mixed, weights[::-1].copy())),
    ]:
        layer_maps.clear_cache()
        compilations.clear()
        found = [np.asarray(flaxvgg.explain(model, images, first).maps)]
        assert compilations
        compilations.clear()
        found.append(np.asarray(flaxvgg.explain(model, images[::-1].copy(), then).maps))
        found.append(np.asarray(flaxvgg.explain(other, images, then).maps))
        assert not compilations
        assert not np.array_equal(found[0], found[1])


def test_functions_under_jit_and_vmap(model: VGG, images: np.ndarray):
    expected = np.asarray(flaxvgg.explain(model, images, probability).maps)

    def maps(image: jax.Array) -> jax.Array:
        return flaxvgg.explain(model, image[None], probability).maps[0]

    found = jax.jit(jax.vmap(maps))(jnp.asarray(images))
    assert found == near(expected, 1e-4)


def test_scores_of_another_shape_are_refused(model: VGG, images: np.ndarray):
    with pytest.raises(
        ValueError, match=r"gave \(2,\) for logits \(2, 7\): scores must have shape"
    ):
        flaxvgg.explain(model, images, lambda logits: logits[:, 3])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gradcam", "grad_cam"),
        ("Grad-CAM", "grad_cam"),
        ("GradCAM++", "grad_cam++"),
        ("grad_cam_plus_plus", "grad_cam++"),
        ("GradCAMpp", "grad_cam++"),
        ("xgradcam", "xgrad_cam"),
        ("scorecam", "score_cam"),
        (" LayerCAM", "layer_cam"),
        ("FullGrad", "full_grad"),
        ("GradCAM elementwise", "elementwise_grad_cam"),
        ("CAM", "cam"),
    ],
)
def test_methods_by_other_spellings(text: str, name: str):
    assert find_name(text, METHODS, ALIASES) == name


def test_every_name_finds_itself_and_no_alias_hides_a_method():
    for name in METHODS:
        assert find_name(name, METHODS, ALIASES) == name
        assert find_name(name.upper().replace("_", "-"), METHODS, ALIASES) == name
    assert set(ALIASES.values()) <= set(METHODS)


def test_names_of_several_or_none():
    with pytest.raises(ValueError, match="no method 'A B': did you mean a-b, a_b"):
        find_name("A B", ["a_b", "a-b", "c"])
    assert find_name("a-b", ["a_b", "a-b", "c"]) == "a-b"
    with pytest.raises(ValueError, match="no method 'gradcan': did you mean grad_cam"):
        find_name("gradcan", METHODS, ALIASES)
    with pytest.raises(ValueError, match="no method 'x': choose from a_b, c"):
        find_name("x", ["a_b", "c"])
    assert find_class("cat", ["cat", "Cat"], 2) == 0


def test_explain_and_attribute_take_other_spellings(model: VGG, images: np.ndarray):
    assert flaxvgg.explain(model, images, 1, "LayerCAM").method == "layer_cam"
    assert flaxvgg.attribute(model, images, 1, "Saliency").method == "saliency"
