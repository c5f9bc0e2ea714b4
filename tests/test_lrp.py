"""What holds of relevance whatever the network: sums, heads, transformations, and clear errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg.attribution.composites import COMPOSITES, epsilon_gamma_box, rules_of
from flaxvgg.attribution.merging import without_batch_norm
from flaxvgg.attribution.methods import _found
from flaxvgg.attribution.relevance import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from flaxvgg.attribution.routing import Norm, Pass
from flaxvgg.cam.network import Network
from helpers import TINY_GAP, quickly, random_images, random_model, tiny_vgg

IMAGES = random_images(2, 32, 32)
PROPAGATED = ("lrp", "guided_backprop", "deconvolution", "guided_grad_cam")


@pytest.fixture(scope="module")
def model() -> flaxvgg.VGG:
    return tiny_vgg()


@pytest.fixture(scope="module")
def gap() -> flaxvgg.VGG:
    return random_model(flaxvgg.VGGConfig.gap("vgg11", num_classes=3))


def values(model: flaxvgg.VGG, images, method: str = "lrp", **options) -> jax.Array:
    return flaxvgg.attribute(model, images, [1, 3], method, **options).values


def assert_close(found, expected) -> None:
    bound = 2e-5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=bound)


def without_biases(model: flaxvgg.VGG) -> flaxvgg.VGG:
    changed = nnx.clone(model)
    for path, value in nnx.to_flat_state(nnx.state(changed)):
        if path[-1] == "bias":
            value[...] = jnp.zeros_like(value[...])
    return changed


def test_lrp_0_without_biases_is_gradient_times_input(model: flaxvgg.VGG):
    plain = without_biases(model)
    everywhere = {"conv": Epsilon(0.0), "linear": Epsilon(0.0), "avg_pool": Norm(0.0)}
    gradient = flaxvgg.attribute(plain, IMAGES, [1, 3], "saliency", signed=True).values
    assert_close(values(plain, IMAGES, composite=everywhere), gradient * IMAGES[:, None])


CONSERVING = {
    "epsilon": {"conv": Epsilon(0.0, bias=False), "linear": Epsilon(0.0, bias=False)},
    "z_plus": {"conv": ZPlus(0.0, bias=False), "linear": Epsilon(0.0, bias=False)},
    "gamma": {"conv": Gamma(0.2, 0.0, bias=False), "linear": Epsilon(0.0, bias=False)},
    "alpha_beta": {"conv": AlphaBeta(1.5, 0.5, 0.0, False), "linear": Epsilon(0.0, bias=False)},
    "flat": {"conv": ZPlus(0.0, bias=False), "linear": Epsilon(0.0, False), "conv1_1": Flat(0.0)},
    "w_square": {
        "conv": ZPlus(0.0, False),
        "linear": Epsilon(0.0, False),
        "conv1_1": WSquare(0.0, False),
    },
    "z_box": {
        "conv": ZPlus(0.0, False),
        "linear": Epsilon(0.0, False),
        "conv1_1": ZBox(-9.0, 9.0, 0.0),
    },
}


@pytest.mark.parametrize("name", quickly(CONSERVING, "gamma", "z_box"))
def test_relevance_is_conserved_layer_by_layer(name: str, model: flaxvgg.VGG):
    composite = CONSERVING[name] | {"avg_pool": Norm(0.0)}
    found = flaxvgg.attribute(model, IMAGES, [1, 3], composite=composite, sums=True)
    sums = {key: x for key, x in found.details.items() if key.startswith("sum_")}
    assert set(sums) >= {"sum_fc8", "sum_fc6", "sum_pool1", "sum_conv1_1"}
    for found_sum in (*sums.values(), found.values.sum(axis=(2, 3, 4))):
        np.testing.assert_allclose(found_sum, found.scores, rtol=1e-3)


def test_relevance_at_layers_has_the_names_that_were_asked_for(model: flaxvgg.VGG):
    layers = ["relu2_1", "features.2", "fc8"]
    assert set(flaxvgg.attribute(model, IMAGES, [1, 3], layers=layers).details) == set(layers)
    found = flaxvgg.attribute(model, IMAGES, [1, 3], layers=layers, sums=True)
    assert found.details["relu2_1"].shape == (2, 2, 16, 16, 12)
    assert found.details["features.2"].shape == (2, 2, 16, 16, 8)
    expected = np.eye(7)[[1, 3]] * np.asarray(found.scores)[:, :, None]
    np.testing.assert_allclose(found.details["fc8"], expected, rtol=1e-6)
    total = found.details["features.2"].sum(axis=(2, 3, 4))
    np.testing.assert_allclose(found.details["sum_pool1"], total, rtol=1e-4)


def test_a_difference_of_scores_is_explained_by_the_difference(model: flaxvgg.VGG):
    found = flaxvgg.attribute(model, IMAGES, lambda logits: logits[:, 1:2] - logits[:, 3:4])
    each = values(model, IMAGES)
    assert_close(found.values[:, 0], each[:, 0] - each[:, 1])


HEADS = {
    "gap": lambda model: flaxvgg.with_gap(model, 5, rngs=nnx.Rngs(0)),
    "gap on a convolution": lambda model: flaxvgg.with_gap(model, 5, channels=16, rngs=nnx.Rngs(0)),
    "score map": lambda model: flaxvgg.with_score_map(
        model, 5, channels=16, last="leaky_relu", batch_norm=True, rngs=nnx.Rngs(0)
    ),
    "score map with fc": lambda model: flaxvgg.with_score_map(
        model, 5, channels=16, last="none", fc=True, rngs=nnx.Rngs(0)
    ),
    "average": lambda model: HEADS["gap"](flaxvgg.with_pooling(model, "average")),
    "l2": lambda model: HEADS["gap"](flaxvgg.with_pooling(model, "l2", padding="replicate")),
}
POSITIVE = {"conv": ZPlus(0.0, bias=False), "linear": Epsilon(0.0, bias=False)}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_head_and_pooling_conserves(name: str):
    config = flaxvgg.VGGConfig.features_only("vgg11", "a test")
    model = HEADS[name](random_model(config))
    averages = ("average_pool", "l2_pool", "avg_pool", "global_avg_pool")
    norms = dict.fromkeys(averages, Norm(0.0))
    found = flaxvgg.attribute(model, random_images(1, 64, 64), [0, 2], composite=POSITIVE | norms)
    np.testing.assert_allclose(found.values.sum(axis=(2, 3, 4)), found.scores, rtol=2e-3)


@pytest.mark.slow
def test_a_fully_convolutional_head_explains_the_mean_of_its_scores():
    classifier = flaxvgg.vgg11(num_classes=3, rngs=nnx.Rngs(0))
    images = random_images(1, 224, 224)
    expected = flaxvgg.attribute(
        classifier, images, 1, composite=POSITIVE | {"avg_pool": "gradient"}
    )
    wide = flaxvgg.fully_convolutional(classifier)
    assert_close(flaxvgg.attribute(wide, images, 1, composite=POSITIVE).values, expected.values)
    larger = flaxvgg.attribute(wide, random_images(1, 256, 256), 1, composite=POSITIVE)
    np.testing.assert_allclose(larger.values.sum(axis=(2, 3, 4)), larger.scores, rtol=2e-3)


def test_merging_batch_norms_changes_no_score():
    model = random_model(flaxvgg.VGGConfig.gap("vgg11_bn", num_classes=3))
    network = Network((model.conv_stack, model.head), model.config)
    merged = without_batch_norm(network)
    images = jnp.asarray(random_images(1, 32, 32))
    assert not any("bn" in layer.name for layer in merged.stacks[0].layers)
    expected, found = jax.jit(lambda x: (network.scores(x), merged.scores(x)))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_prepared_and_bfloat16_models():
    model = tiny_vgg(TINY_GAP)
    expected = values(model, IMAGES)
    assert_close(values(flaxvgg.prepare(model, (32, 32)), IMAGES), expected)
    half = values(tiny_vgg(TINY_GAP, dtype=jnp.bfloat16), IMAGES)
    assert half.dtype == jnp.float32
    off = np.linalg.norm(half - expected) / np.linalg.norm(expected)
    assert off < 32 * float(jnp.finfo(jnp.bfloat16).eps)  # maxima and signs that differ weigh most


def test_other_classes_images_weights_and_numbers_are_no_new_program(model: flaxvgg.VGG):
    composite = epsilon_gamma_box
    flaxvgg.attribute(model, IMAGES, [1, 3], composite=composite())
    before = _found._cache_size()
    other = tiny_vgg(seed=1)
    flaxvgg.attribute(other, IMAGES[::-1], [0, 2], composite=composite(gamma=0.1, epsilon=0.01))
    assert _found._cache_size() == before
    flaxvgg.attribute(model, IMAGES, [1], composite=composite())
    assert _found._cache_size() == before + 1


@pytest.mark.parametrize("method", quickly(PROPAGATED, "lrp"))
def test_vmap_export_and_no_jit(method: str, model: flaxvgg.VGG):
    images = jnp.asarray(IMAGES)
    expected = values(model, images, method)
    one_by_one = jax.vmap(lambda image: values(model, image[None], method)[0])(images)
    assert_close(one_by_one, expected)
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, 32, 32, 3), jnp.float32)
    made = export.export(jax.jit(lambda x: values(model, x, method)))(shape)
    assert_close(export.deserialize(made.serialize()).call(images), expected)
    with jax.disable_jit():
        assert_close(values(model, images, method), expected)


@pytest.mark.parametrize("method", quickly(PROPAGATED, "lrp"))
def test_shard_map_and_explicit_axes(method: str, model: flaxvgg.VGG):
    spec = PartitionSpec("data")
    expected = values(model, IMAGES, method)
    mesh = flaxvgg.data_mesh()
    mapped = jax.shard_map(
        partial(values, model, method=method), mesh=mesh, in_specs=spec, out_specs=spec
    )
    assert_close(jax.jit(mapped)(IMAGES), expected)
    explicit = jax.make_mesh((2,), ("data",))
    placed = flaxvgg.place(model, explicit)
    images = jax.device_put(IMAGES, NamedSharding(explicit, spec))
    found = values(placed, images, method)
    assert jax.typeof(found).sharding.spec[0] == "data"
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSITES)
def test_every_composite_in_64_bits(name: str, model: flaxvgg.VGG):
    expected = values(model, IMAGES, composite=name)
    with jax.enable_x64(True), jax.debug_nans(True):
        assert_close(values(model, IMAGES, composite=name), expected)


def test_names_are_forgiving():
    config = flaxvgg.VGGConfig.classifier("vgg16", num_classes=3)
    for name in ("EpsilonPlusFlat", "epsilon-plus-flat", "Epsilon+Flat"):
        assert rules_of(config, name)["conv1_1"] == Flat()
    rules = rules_of(
        config,
        {
            "conv": "z+",
            "linear": "EPSILON",
            "block1_conv1": "z^B",
            "features.2": "w^2",
            "fc1": "z+",
        },
    )
    assert rules["conv1_1"] == ZBox()
    assert rules["conv1_2"] == WSquare()
    assert rules["fc6"] == ZPlus()
    assert rules["relu1_1"] == Pass()


ERRORS = {
    "no composite 'epsilon_minus': did you mean epsilon_plus": {"composite": "epsilon_minus"},
    "no rule 'zz': choose from epsilon": {"composite": {"conv": "zz", "linear": "epsilon"}},
    "no rule for fc: name it, or 'linear'": {"composite": {"conv": "z+"}},
    "has no layer 'conv9_1'": {"composite": {"conv9_1": "z+", "conv": "z+", "linear": "z+"}},
    "Norm is no rule for conv1_1": {"composite": {"conv": "norm", "linear": "z+"}},
    "there is no relevance at 'prob'": {"layers": ["prob"]},
    "layers must be a list of names": {"layers": "conv1_1"},
    "gamma must not be negative": {"composite": epsilon_gamma_box(gamma=-1.0)},
}


@pytest.mark.parametrize("message", ERRORS)
def test_mistakes_get_one_clear_line(message: str, gap: flaxvgg.VGG):
    with pytest.raises(ValueError, match=message) as caught:
        flaxvgg.attribute(gap, IMAGES, 1, **ERRORS[message])
    assert "\n" not in str(caught.value)
