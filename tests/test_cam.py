"""`flaxvgg.explain` as users call it: classes, layers, transformations, flags, and bad input."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg import Explanation, Flag
from flaxvgg.cam import masking, targets
from flaxvgg.cam.full_grad import bias_layers, biases
from flaxvgg.cam.maps import layer_maps
from flaxvgg.cam.network import Network
from flaxvgg.conversion.rule import ROUNDING
from flaxvgg.images.resizing import resize
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Provenance
from helpers import TINY_CLASSIFIER, TINY_GAP, quickly, random_images, tiny_vgg


@pytest.fixture(scope="module")
def model() -> VGG:
    return tiny_vgg()


@pytest.fixture(scope="module")
def gap_model() -> VGG:
    return tiny_vgg(TINY_GAP)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(2, 32, 32)


# The same sums in another order: at most 588 terms (fc6's) in each of the tiny network's five
# layers, there or back, and each term rounds by at most half an eps of what is summed.
REORDERED = 5 * 588 * float(np.finfo(np.float32).eps) / 2


def reordered(expected: Any) -> Any:
    """Equal to `expected` but for the order of sums: to 1.8e-4 of its largest value."""
    expected = np.asarray(expected)
    return pytest.approx(expected, rel=0, abs=REORDERED * float(np.abs(expected).max()))


def test_classes_in_every_form(model: VGG, images: np.ndarray):
    everything = flaxvgg.explain(model, images, "all")
    assert everything.maps.shape == (2, 7, 16, 16)
    assert everything.classes.tolist() == [list(range(7))] * 2
    assert everything.scores == pytest.approx(np.asarray(model(images)), rel=1e-4, abs=1e-5)
    top = np.asarray(everything.scores).argmax(axis=1)

    def maps(classes: np.ndarray) -> np.ndarray:
        return np.take_along_axis(np.asarray(everything.maps), classes[..., None, None], axis=1)

    forms = [
        (None, top[:, None]),
        (3, np.array([[3], [3]])),
        ([3, 1], np.array([[3, 1], [3, 1]])),
        (np.int64(3), np.array([[3], [3]])),
        (np.array([[3, 1, 0], [6, 0, 6]]), np.array([[3, 1, 0], [6, 0, 6]])),
        (jnp.array([[2], [4]]), np.array([[2], [4]])),
    ]
    for classes, expected in forms:
        found = flaxvgg.explain(model, images, classes)
        assert found.classes.tolist() == expected.tolist()
        assert found.maps == reordered(maps(expected))
        assert found.scores == pytest.approx(
            np.take_along_axis(np.asarray(everything.scores), expected, axis=1), rel=1e-5
        )


def test_an_image_is_explained_alike_in_any_batch(model: VGG, images: np.ndarray):
    both = flaxvgg.explain(model, images, 3, "hires_cam")
    second = flaxvgg.explain(model, images[1:], 3, "hires_cam")
    assert both.maps[1:] == reordered(second.maps)


@pytest.mark.parametrize("method", ["grad_cam++", "eigen_grad_cam"])
def test_classes_in_chunks(
    model: VGG, images: np.ndarray, method: str, monkeypatch: pytest.MonkeyPatch
):
    layers = ["relu1_1", "relu2_1"]
    at_once = flaxvgg.explain(model, images, "all", method, layers)
    sizes = 4 * 2 * (32 * 32 * 8 + 16 * 16 * 12)
    monkeypatch.setattr(targets, "_LARGEST", 3 * sizes)  # 3 of 7 classes at a time
    layer_maps.clear_cache()
    in_chunks = flaxvgg.explain(model, images, "all", method, layers)
    for whole, chunked in zip(at_once.layer_maps, in_chunks.layer_maps, strict=True):
        assert chunked == reordered(whole)


def test_grad_cam_of_a_pooled_layer_is_that_of_the_full_gradients(model: VGG, images: np.ndarray):
    # Of two layers the gradients are taken in full, of one pooled layer summed beforehand.
    for layer in ("relu2_1", "pool2"):
        (_, full) = flaxvgg.explain(model, images, "all", layer=["relu1_1", layer]).layer_maps
        short = flaxvgg.explain(model, images, "all", layer=layer).maps
        assert short == reordered(full)
        assert np.abs(full).max() > 1e-4


def check_cam_adds_up(model: VGG, images: np.ndarray, layer: str, places: int) -> None:
    """logit = mean(CAM) + bias, and relu(CAM) = HW relu(Grad-CAM), to 1e-6 of what is summed."""
    cam = flaxvgg.explain(model, images, "all", "cam")
    assert cam.layers == (layer,)
    maps, bias = np.asarray(cam.maps, np.float64), np.asarray(model.head.fc.bias[...])
    terms = np.abs(maps).mean(axis=(2, 3)) + np.abs(bias)
    logits = np.asarray(model(images))
    assert (np.abs(maps.mean(axis=(2, 3)) + bias - logits) <= 1e-6 * terms).all()
    assert cam.scores == pytest.approx(logits, rel=1e-5)
    grad_cam = flaxvgg.explain(model, images, "all", "grad_cam", layer)
    rectified = places * np.maximum(np.asarray(grad_cam.maps, np.float64), 0)
    activations = np.asarray(model.activations(images, [layer])[layer])
    terms = np.einsum("nhwc,ck->nkhw", activations, np.abs(model.head.fc.kernel[...]))
    assert (np.abs(np.maximum(maps, 0) - rectified) <= 1e-6 * terms).all()
    assert rectified.max() > 0.1 * terms.max() / len(activations[0, 0, 0])


def test_cam_adds_up_to_the_logit(gap_model: VGG, images: np.ndarray):
    check_cam_adds_up(gap_model, images, "pool2", 8 * 8)


def test_cam_adds_up_to_the_logit_in_zhous_network():
    config = VGGConfig.gap("vgg11", num_classes=5, channels=1024)
    zhou = VGG(config, precision="default", rngs=nnx.Rngs(1))
    zhou.head.fc.bias[...] = jnp.arange(5.0)
    check_cam_adds_up(zhou, random_images(1, 48, 48), "relu6", 3 * 3)  # no pool5
    assert flaxvgg.explain(zhou, random_images(1, 48, 48), 0).layers == ("relu6",)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_full_grads_terms_add_up_to_the_logit(batch_norm: bool):
    # Completeness: logit = input x gradient + every bias x its gradient, of linear layers too.
    if batch_norm:
        config = VGGConfig.gap("vgg11_bn", num_classes=3)
        model = VGG(config, precision="default", rngs=nnx.Rngs(2))
        for name in ("bias", "mean"):
            for path, value in nnx.to_flat_state(nnx.state(model)):
                if path[-1] == name:
                    value[...] = value[...] + 0.1
    else:
        model = tiny_vgg()
    network = Network((model.conv_stack, model.head), model.config)
    images = jnp.asarray(random_images(1, 32, 32))
    linear = [x.name for x in model.config.head if x.kind == "linear"]
    named = [*bias_layers(network), *linear]
    assert len(named) == (17 if batch_norm else 4)
    shapes = jax.eval_shape(lambda x: network.run(x, named), images)
    shifts = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}

    def logit(images: jax.Array, shifts: dict[str, jax.Array]) -> jax.Array:
        return network.run(images, [network.output], shifts=shifts)[network.output][0, 1]

    value, (of_images, gradients) = jax.jit(jax.value_and_grad(logit, (0, 1)))(images, shifts)
    terms = [(images * of_images).sum()]
    terms += [(biases(network, name) * gradients[name]).sum() for name in bias_layers(network)]
    terms += [(network.parameters(x).bias[...] * gradients[x][0]).sum() for x in linear]
    size = sum(abs(float(term)) for term in terms)
    assert sum(map(float, terms)) == pytest.approx(float(value), abs=1e-5 * size)
    assert abs(float(value)) > 1e-3 * size


def test_other_classes_images_and_weights_are_no_new_program(
    model: VGG, images: np.ndarray, compilations: list[str]
):
    other = tiny_vgg(seed=1, provenance=Provenance("elsewhere"))
    calls = [
        (model, images, [0, 1]),
        (model, images[::-1].copy(), [4, 5]),
        (other, images, [6, 2]),
    ]
    for method in ("grad_cam", "layer_cam", "ablation_cam"):
        layer_maps.clear_cache()
        compilations.clear()
        found = [np.asarray(flaxvgg.explain(*calls[0], method).maps)]
        assert compilations
        compilations.clear()
        found += [np.asarray(flaxvgg.explain(*call, method).maps) for call in calls[1:]]
        assert not compilations
        assert not np.array_equal(found[0], found[1])


OPTIONS = {"smooth_grad_cam++": {"key": jax.random.key(0), "samples": 2}}


@pytest.mark.parametrize("method", ["shapley_cam", "ablation_cam", "smooth_grad_cam++"])
def test_under_jit_vmap_and_a_sharded_batch(model: VGG, images: np.ndarray, method: str):
    options = OPTIONS.get(method, {})
    expected = flaxvgg.explain(model, images, [1, 2], method, **options)
    again = flaxvgg.explain(model, images, [1, 2], method, **options)
    assert np.array_equal(expected.maps, again.maps)  # no hidden state: the same bits

    def maps(model: VGG, images: jax.Array, classes: jax.Array) -> jax.Array:
        return flaxvgg.explain(model, images, classes, method, **options).maps

    close = reordered(expected.maps)
    classes = jnp.array([[1, 2], [1, 2]])
    assert jax.jit(maps)(model, jnp.asarray(images), classes) == close

    each = jax.vmap(maps, in_axes=(None, 0, 0))(
        model, jnp.asarray(images)[:, None], classes[:, None]
    )
    assert each[:, 0] == close

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    replicated = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    sharded = flaxvgg.explain(
        replicated, jax.device_put(images, sharding), [1, 2], method, **options
    )
    assert sharded.maps == close
    assert len(sharded.maps.sharding.device_set) == 2


def test_other_options_are_no_new_program(model: VGG, images: np.ndarray, compilations: list[str]):
    key = jax.random.split(jax.random.key(0))
    calls = {
        "finer_cam": [{"alpha": 0.5}, {"alpha": 0.7}],
        "fem": [{"sigmas": 1.0}, {"sigmas": 2.5}],
        "ss_cam": [{"key": key[0], "samples": 2}, {"key": key[1], "samples": 2, "noise": 1.0}],
    }
    for method, (one, other) in calls.items():
        layer_maps.clear_cache()
        first = np.asarray(flaxvgg.explain(model, images, [0, 1], method, **one).maps)
        compilations.clear()
        second = np.asarray(flaxvgg.explain(model, images, [2, 3], method, **other).maps)
        assert not compilations, method
        assert not np.array_equal(first, second)


@pytest.mark.parametrize("method", ["smooth_grad_cam++", "ss_cam"])
def test_noise_is_that_of_the_key_for_every_image_alike(
    model: VGG, images: np.ndarray, method: str
):
    def maps(images: np.ndarray, seed: int) -> np.ndarray:
        options = {"key": jax.random.key(seed), "samples": 2, "noise": 1.0}
        return np.asarray(flaxvgg.explain(model, images, 3, method, **options).maps)

    both = maps(images, 0)
    assert both[1:] == reordered(maps(images[1:], 0))
    assert np.abs(both - maps(images, 1)).max() > 1e-3 * np.abs(both).max()


@pytest.mark.parametrize(
    "method", quickly(["ss_cam", "is_cam", "smooth_grad_cam++"], "smooth_grad_cam++")
)
def test_memory_does_not_grow_with_samples(model: VGG, method: str):
    """What a compiled program holds at once."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def needs(samples: int) -> int:
        options = {"samples": samples}
        if method != "is_cam":
            options["key"] = jax.random.key(0)
        maps = jax.jit(lambda x: flaxvgg.explain(model, x, [1, 2], method, **options).maps)
        return maps.lower(image).compile().memory_analysis().temp_size_in_bytes

    few, many = needs(4), needs(40)
    of_one = 4 * 64 * 64 * 3  # an image
    assert of_one < many < few + of_one


def test_score_cam_under_jit_and_a_sharded_batch(model: VGG, images: np.ndarray):
    expected = flaxvgg.explain(model, images, [1], "score_cam")
    assert expected.ok.all()
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    replicated = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch")))
    jitted = jax.jit(lambda model, x: flaxvgg.explain(model, x, [1], "score_cam"))
    for found in (jitted(model, images), jitted(replicated, batch)):
        assert found.maps == reordered(expected.maps)


@pytest.mark.parametrize("silent", [0, 9, 12])
def test_score_cam_runs_one_pass_for_all_constant_channels(
    images: np.ndarray, silent: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(masking, "_CHUNK", 5)  # 12 channels: the last chunk does not fit
    layer_maps.clear_cache()
    model, image = tiny_vgg(), images[:1]
    kernel, bias = model.conv_stack.conv2_1.kernel, model.conv_stack.conv2_1.bias
    kernel[...] = kernel[...].at[..., :silent].set(0.0)
    bias[...] = bias[...].at[:silent].set(np.where(np.arange(silent) % 2, 0.5, -0.5))  # 0.5 or 0
    found = flaxvgg.explain(model, image, 2, "score_cam")
    layer_maps.clear_cache()
    a = np.asarray(model.activations(image, ["relu2_1"])["relu2_1"])[0]
    scores = []
    for k in range(12):
        mask = np.asarray(resize(jnp.asarray(a[..., k]), (32, 32)))
        mask = (mask - mask.min()) / max(np.ptp(mask), 1e-30)
        scores.append(float(model(image * mask[..., None])[0, 2]))
    weights = np.exp(np.array(scores) - max(scores))
    assert found.maps[0, 0] == reordered(a @ (weights / weights.sum()))
    assert len(set(scores)) == 12 - max(silent - 1, 0)


def test_in_bfloat16(model: VGG, images: np.ndarray):
    half = tiny_vgg(dtype=jnp.bfloat16)
    for method in ("grad_cam", "layer_cam", "ablation_cam", "full_grad"):
        rough = flaxvgg.explain(half, images, [1, 2], method)
        close = flaxvgg.explain(model, images, [1, 2], method)
        assert rough.maps.dtype == jnp.float32
        ours, theirs = rough.heatmaps().ravel(), close.heatmaps().ravel()
        assert np.corrcoef(ours, theirs)[0, 1] > 0.95, method


def eigenvector_rounding(activations: np.ndarray) -> np.ndarray:
    """How far rounding can move the first principal component of maps, relative to its norm.

    A matrix that is off by d turns its first eigenvector by d / (l1 - l2) (Davis and Kahan 1970).
    Here d is ROUNDING eps l1 for the Gram matrix, and for each of 14 squarings, whose eigenvalues
    are ever further apart: at most once as far again for each.
    """
    n, *_, channels = activations.shape
    rows = activations.astype(np.float64).reshape(n, -1, channels)
    singular = np.linalg.svd(rows - rows.mean(axis=1, keepdims=True), compute_uv=False)
    first, second = singular[:, 0] ** 2, singular[:, 1] ** 2
    return ROUNDING * np.finfo(np.float32).eps * (first / (first - second) + 14)


def test_eigen_cam_needs_no_head(images: np.ndarray, model: VGG):
    headless = tiny_vgg(())
    found = flaxvgg.explain(headless, images, method="eigen_cam")
    assert found.classes.tolist() == [[-1], [-1]]
    assert np.isnan(found.scores).all()
    with_head = flaxvgg.explain(model, images, method="eigen_cam")
    (layer,) = found.layers
    bound = 2 * eigenvector_rounding(np.asarray(model.activations(images, [layer])[layer]))
    assert (bound < 1e-3).all()
    one, other = (np.asarray(e.maps).reshape(len(images), -1) for e in (found, with_head))
    assert (np.linalg.norm(one - other, axis=1) <= bound * np.linalg.norm(other, axis=1)).all()
    for method in ("fem", "kpca_cam"):
        assert flaxvgg.explain(headless, images, method=method).classes.tolist() == [[-1], [-1]]
    with pytest.raises(ValueError, match="no logits"):
        flaxvgg.explain(headless, images)


def test_flags_tell_maps_not_to_trust():
    ramp = np.arange(4.0, dtype=np.float32).reshape(2, 2)
    maps = np.stack([ramp, ramp * np.nan, ramp * 0, ramp * 0 + 2, ramp - 5, ramp - 1])
    maps[1, 0, 0] = 0.0  # one NaN is enough, and infinity too
    infinite = ramp.copy()
    infinite[0, 1] = np.inf
    found = Explanation(
        layer_maps=(jnp.asarray(np.concatenate([maps, infinite[None]]))[None],),
        classes=jnp.zeros((1, 7), jnp.int32),
        scores=jnp.zeros((1, 7)),
        method="grad_cam",
        layers=("relu5_3",),
        convention="paper",
        image_size=(8, 8),
    )
    names = ["FINE", "NOT_FINITE", "ZERO", "CONSTANT", "NEGATIVE", "FINE", "NOT_FINITE"]
    assert [Flag(flag).name for flag in found.flags[0].tolist()] == names
    assert found.ok[0].tolist() == [name == "FINE" for name in names]
    heat = np.asarray(found.heatmaps())[0]
    assert np.isnan(heat[1]).any()
    assert (heat[2:5] == 0).all()  # nothing invented where there is nothing to see
    assert heat[0].max() == heat[5].max() == 1
    assert heat[0].min() == heat[5].min() == 0


def test_a_class_out_of_range_under_jit_is_flagged(model: VGG, images: np.ndarray):
    jitted = jax.jit(lambda x, c: flaxvgg.explain(model, x, c, "layer_cam"))
    found = jitted(images, jnp.array([[1, 7], [-1, 2]]))
    assert np.array_equal(found.flags == Flag.NOT_FINITE, [[False, True], [True, False]])
    assert np.array_equal(np.isnan(found.scores), [[False, True], [True, False]])


@pytest.mark.parametrize("method", ["layer_cam", "ablation_cam"])
def test_several_layers_are_joined(model: VGG, images: np.ndarray, method: str):
    found = flaxvgg.explain(model, images, [1, 2], method, ["features.1", "relu2_1", "pool2"])
    assert found.layers == ("relu1_1", "relu2_1", "pool2")
    assert [maps.shape[2:] for maps in found.layer_maps] == [(32, 32), (16, 16), (8, 8)]
    assert found.maps.shape == (2, 2, 32, 32)
    assert found.heatmaps((50, 70)).shape == (2, 2, 50, 70)
    for layer, maps in zip(found.layers, found.layer_maps, strict=True):
        alone = flaxvgg.explain(model, images, [1, 2], method, layer)
        assert maps == reordered(alone.maps)


def test_results_are_pytrees(model: VGG, images: np.ndarray):
    found = flaxvgg.explain(model, images, [1, 2])
    doubled = jax.tree.map(lambda x: x + x, found)
    assert isinstance(doubled, Explanation)
    assert np.array_equal(doubled.maps, 2 * found.maps)
    inside = jax.jit(lambda model, x: flaxvgg.explain(model, x, [1, 2]))(model, images)
    assert inside.layers == ("relu2_1",)
    assert inside.image_size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "saliency"}, "no method 'saliency': choose from cam, grad_cam"),
        ({"method": "gradcan"}, "no method 'gradcan': did you mean grad_cam"),
        ({"layer": "relu9_1"}, "no layer 'relu9_1'; did you mean"),
        ({"layer": "relu6"}, "no map at 'relu6': choose from conv1_1, .*, pool2"),
        ({"layer": "avgpool"}, "no map at 'avgpool'"),
        ({"layer": []}, "no layer was given"),
        ({"classes": 7}, "no class 7: the model has classes 0 to 6"),
        ({"classes": [0, -1]}, "no class -1"),
        (
            {"classes": "cat"},
            "no class 'cat': the weights have no class names: pass numbers from 0",
        ),
        ({"classes": []}, "classes"),
        ({"classes": np.zeros((3, 2), int)}, "for 2 images"),
        ({"method": "cam"}, "with_gap"),
        ({"alpha": 1.0}, "'grad_cam' has no option 'alpha': it takes none"),
        ({"method": "finer_cam", "gamma": 1.0}, "no option 'gamma': it takes alpha, references"),
        ({"method": "finer_cam", "references": 0}, "references must be at least 1, not 0"),
        ({"method": "is_cam", "samples": 0}, "samples must be at least 1, not 0"),
        ({"method": "dff", "classes": 1}, "finds concepts, of no class"),
        ({"method": "dff", "concepts": 0}, "concepts must be at least 1, not 0"),
        ({"method": "ss_cam"}, r"'ss_cam' is random: pass key=jax.random.key\(0\)"),
        ({"method": "ss_cam", "key": 0}, "'ss_cam' is random"),
        ({"method": "finer_cam", "classes": jnp.tanh}, "compares classes: pass them, or"),
        ({"method": "full_grad", "layer": "relu2_1"}, "takes no layer"),
    ],
    ids=lambda x: re.sub(" at 0x[0-9a-f]+", "", str(x)),  # every process its own
)
def test_bad_input_names_the_choices(model: VGG, images: np.ndarray, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        flaxvgg.explain(model, images, **arguments)


def test_conventions_are_named_exactly(model: VGG, images: np.ndarray):
    explain = inspect.unwrap(flaxvgg.explain)  # as users have it, without the tests' type checks
    with pytest.raises(ValueError, match="choose from paper, grad-cam, torchcam"):
        explain(model, images, convention="jacobgil")


def test_bad_images_and_models(model: VGG, gap_model: VGG, images: np.ndarray):
    with pytest.raises(ValueError, match="batch is empty"):
        flaxvgg.explain(model, images[:0])
    with pytest.raises(ValueError, match="choose from pool2"):
        flaxvgg.explain(gap_model, images, method="cam", layer="relu2_1")
    batch_norm = VGG(VGGConfig.gap("vgg11_bn", num_classes=2), rngs=nnx.Rngs(0))
    batch_norm.train()
    dropout = tiny_vgg(
        (*TINY_CLASSIFIER[:-1], Layer("drop6", "dropout", rate=0.5), TINY_CLASSIFIER[-1])
    )
    dropout.train()
    for training in (batch_norm, dropout):
        with pytest.raises(ValueError, match=r"model.eval\(\)"):
            flaxvgg.explain(training, images)
    dropout.eval()
    assert np.isfinite(flaxvgg.explain(dropout, images, 0).maps).all()
