"""Gradients and perturbations of `flaxvgg.attribute` as users call them: identities and options.

And every transformation of JAX, on a tiny network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg.attribution import methods as attribution_methods
from flaxvgg.attribution import passes
from flaxvgg.network.model import VGG
from helpers import quickly, random_images, tiny_vgg

IMAGES = random_images(2, 32, 32)
KEY = jax.random.key(1)
OPTIONS: dict[str, dict[str, Any]] = {
    "saliency": {"signed": True},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 5, "steps_at_once": 2},
    "smooth_grad": {"key": KEY, "samples": 3, "samples_at_once": 2},
    "var_grad": {"key": KEY, "samples": 3, "samples_at_once": 2},
    "deep_lift": {},
    "occlusion": {"window": (9, 20), "stride": (8, 12)},
    "rise": {"key": KEY, "samples": 20},
}
QUICK = ("integrated_gradients", "rise")


@pytest.fixture(scope="module")
def model() -> VGG:
    return tiny_vgg()


def values(model: VGG, images: Any, method: str, classes: Any = (1, 3)) -> jax.Array:
    classes = list(classes) if isinstance(classes, tuple) else classes
    return flaxvgg.attribute(model, images, classes, method, **OPTIONS[method]).values


# The same sums in another order: at most 588 terms (fc6's) in each of the tiny network's five
# layers, there or back, and each term rounds by at most half an eps of what is summed.
REORDERED = 5 * 588 * float(np.finfo(np.float32).eps) / 2


def assert_close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= REORDERED * np.abs(expected).max()


def test_integrated_gradients_are_complete_the_better_the_more_steps(model: VGG):
    start = random_images(32, 32, seed=4)
    sizes = []
    for steps in (4, 16, 64):
        found = flaxvgg.attribute(
            model, IMAGES, "all", "integrated_gradients", baseline=start, steps=steps
        )
        logits, before = np.asarray(model(IMAGES)), np.asarray(model(start[None]))
        delta = np.asarray(found.details["convergence_delta"])
        total = np.asarray(found.values, np.float64).sum(axis=(2, 3, 4))
        terms = np.abs(np.asarray(found.values)).sum(axis=(2, 3, 4))
        assert (np.abs(total - delta - (logits - before)) <= 1e-5 * terms).all()
        sizes.append(np.abs(delta).mean())
    assert sizes[0] > 3 * sizes[1] > 9 * sizes[2]
    assert sizes[0] > 1e-3


def test_deep_lift_is_complete(model: VGG):
    found = flaxvgg.attribute(model, IMAGES, "all", "deep_lift", baseline=-IMAGES)
    changes = np.asarray(model(IMAGES)) - np.asarray(model(-IMAGES))
    terms = np.abs(np.asarray(found.values)).sum(axis=(2, 3, 4))
    total = np.asarray(found.values, np.float64).sum(axis=(2, 3, 4))
    assert (np.abs(total - changes) <= 1e-5 * terms).all()
    assert (np.abs(found.details["convergence_delta"]) <= 1e-5 * terms).all()
    assert np.abs(changes).max() > 1


def test_occlusion_of_everything_is_the_change_of_the_scores(model: VGG):
    found = flaxvgg.attribute(model, IMAGES, "all", "occlusion", window=32, baseline=-IMAGES)
    changes = np.asarray(model(IMAGES)) - np.asarray(model(-IMAGES))
    maps = np.asarray(found.values).sum(axis=-1)
    assert_close(maps, np.broadcast_to(changes[..., None, None], maps.shape))


def test_without_biases_input_x_gradient_adds_up_to_the_score():
    model = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "bias" in jax.tree_util.keystr(path) else x,
        tiny_vgg(),
    )
    found = flaxvgg.attribute(model, IMAGES, "all", "input_x_gradient")
    terms = np.abs(np.asarray(found.values)).sum(axis=(2, 3, 4))
    total = np.asarray(found.values, np.float64).sum(axis=(2, 3, 4))
    assert (np.abs(total - np.asarray(model(IMAGES))) <= 1e-5 * terms).all()
    assert np.abs(total).max() > 1


@pytest.mark.parametrize("method", quickly(OPTIONS, *QUICK))
def test_an_image_is_explained_alike_in_any_batch_and_classes_alone(model: VGG, method: str):
    both = values(model, IMAGES, method)
    assert_close(values(model, IMAGES[1:], method, 3)[0, 0], both[1, 1])
    top = np.asarray(model(IMAGES)).argmax(axis=1)
    assert_close(values(model, IMAGES, method, None), values(model, IMAGES, method, top[:, None]))


@pytest.mark.parametrize("method", quickly(OPTIONS, *QUICK))
def test_functions_are_targets(model: VGG, method: str):
    expected = np.asarray(values(model, IMAGES, method, [1, 3, 5]))

    def difference(logits: jax.Array) -> jax.Array:
        # One row for each image: whatever runs at once, the function is given the batch.
        signs = jnp.array([[1.0], [-1.0]])
        return signs * (logits[:, 1:2] - logits[:, 5:6]) if method != "rise" else logits[:, :1]

    found = values(model, IMAGES, method, difference)
    assert found.shape == (2, 1, 32, 32, 3)
    if method in ("var_grad", "rise"):
        assert np.isfinite(found).all()
        assert np.abs(found).max() > 0
    else:
        signs = np.array([1, -1])[:, None, None, None]
        assert_close(found[:, 0], signs * (expected[:, 0] - expected[:, 2]))
    assert (
        flaxvgg.attribute(model, IMAGES, difference, method, **OPTIONS[method]).classes == -1
    ).all()


@pytest.mark.parametrize("method", quickly(OPTIONS, *QUICK))
def test_other_classes_images_weights_and_keys_are_no_new_program(
    model: VGG, method: str, compilations: list[str]
):
    other = tiny_vgg(seed=1)
    calls = [(model, IMAGES, [0, 1]), (model, IMAGES[::-1].copy(), [4, 5]), (other, IMAGES, [6, 2])]
    options = [dict(OPTIONS[method]) for _ in calls]
    if "key" in options[0]:
        options[2]["key"] = jax.random.key(9)
    attribution_methods._found.clear_cache()
    compilations.clear()
    found = [np.asarray(flaxvgg.attribute(*calls[0], method, **options[0]).values)]
    assert compilations
    compilations.clear()
    for call, more in zip(calls[1:], options[1:], strict=True):
        found.append(np.asarray(flaxvgg.attribute(*call, method, **more).values))
    assert not compilations
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("method", quickly(OPTIONS, *QUICK))
def test_jit_vmap_and_shard_map(model: VGG, method: str):
    expected = values(model, IMAGES, method)
    images = jnp.asarray(IMAGES)
    assert_close(jax.jit(lambda m, x: values(m, x, method))(model, images), expected)
    each = jax.jit(jax.vmap(lambda x: values(model, x[None], method)[0]))(images)
    assert_close(each, expected)
    spec = PartitionSpec("data")
    mapped = jax.shard_map(
        lambda x: values(model, x, method),
        mesh=flaxvgg.data_mesh(),
        in_specs=spec,
        out_specs=spec,
    )
    assert_close(jax.jit(mapped)(images), expected)


@pytest.mark.parametrize("method", quickly(OPTIONS))
def test_on_a_mesh_with_explicit_axes(model: VGG, method: str):
    mesh = jax.make_mesh((2,), ("data",))
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    found = values(flaxvgg.place(model, mesh), images, method)
    assert jax.typeof(found).sharding.spec[0] == "data"
    assert_close(found, values(model, IMAGES, method))


@pytest.mark.parametrize("method", quickly(OPTIONS, "integrated_gradients"))
def test_export_with_any_number_of_images(model: VGG, method: str):
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, 32, 32, 3), jnp.float32)
    made = export.export(jax.jit(lambda x: values(model, x, method)))(shape)
    assert_close(export.deserialize(made.serialize()).call(IMAGES), values(model, IMAGES, method))


SETTINGS: dict[str, Callable] = {
    "no jit": jax.disable_jit,
    "no NaN": lambda: jax.debug_nans(True),
    "64 bits": lambda: jax.enable_x64(True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", OPTIONS)
def test_settings(model: VGG, method: str, name: str):
    images = jnp.asarray(IMAGES[:1])
    expected = values(model, images, method)
    with SETTINGS[name]():
        found = values(model, images, method)
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_in_bfloat16(model: VGG, method: str):
    half = tiny_vgg(dtype=jnp.bfloat16)
    rough, close = values(half, IMAGES, method), values(model, IMAGES, method)
    assert rough.dtype == jnp.float32
    assert np.corrcoef(rough.ravel(), close.ravel())[0, 1] > 0.9


def test_fewer_targets_at_once_give_the_same(model: VGG, monkeypatch: pytest.MonkeyPatch):
    expected = values(model, IMAGES, "integrated_gradients", "all")
    monkeypatch.setattr(passes, "bytes_of_backward", lambda *_: 100 * 2**20)  # two at once
    attribution_methods._found.clear_cache()
    found = values(model, IMAGES, "integrated_gradients", "all")
    attribution_methods._found.clear_cache()
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "integrated_gradients",
            {"steps": 0},
            "^steps must be a whole number of at least 1, not 0",
        ),
        ("integrated_gradients", {"steps_at_once": -1}, "^steps_at_once must be a whole number"),
        ("integrated_gradients", {"quadrature": "simpson"}, "choose from gauss_legendre, riemann_"),
        (
            "integrated_gradients",
            {"steps": 1, "quadrature": "riemann_left"},
            "^a Riemann sum takes at least 2 steps",
        ),
        ("integrated_gradients", {"baseline": 0.5}, r"^a baseline of shape \(\) .* \(H, W, 3\)"),
        ("deep_lift", {"baseline": np.zeros((3, 32, 32))}, r"^a baseline of shape \(3, 32, 32\)"),
        ("deep_lift", {"baseline": np.zeros((5, 32, 32, 3))}, r"several, \(B, 1, H, W, 3\)"),
        ("occlusion", {"baseline": np.zeros((2, 1, 32, 32, 3))}, "one baseline, not 2"),
        ("occlusion", {"window": 33}, "^a window 33 pixels high is larger than the image, 32"),
        ("occlusion", {"window": (16, 40)}, "^a window 40 pixels wide is larger than the image"),
        ("occlusion", {"window": 8, "stride": 9}, "with a stride of 9, .* leave pixels out"),
        ("occlusion", {"window": (8, 0)}, "window's width must be a whole number of at least 1"),
        ("smooth_grad", {}, r"is random: pass key=jax.random.key\(0\)"),
        ("rise", {"key": 3}, r"pass key=jax.random.key\(0\)"),
        ("rise", {"key": jax.random.split(KEY)}, r"is random: pass key=jax.random.key\(0\)"),
        ("smooth_grad", {"key": KEY, "noise": -0.1}, "noise must be a fraction"),
        ("smooth_grad", {"key": KEY, "samples": 0}, "^samples must be a whole number"),
        ("var_grad", {"key": KEY, "samples": 1}, "^a variance takes at least 2 samples"),
        ("rise", {"key": KEY, "grid": 0}, "^grid must be a whole number"),
        ("rise", {"key": KEY, "grid": 40}, "finer than the image"),
        ("rise", {"key": KEY, "p": 0}, "^p must be a probability above 0, not 0"),
        ("rise", {"key": KEY, "seed": 0}, "no option 'seed': it takes key, samples, grid, p"),
    ],
    ids=str,
)
def test_options_that_cannot_be(model: VGG, method: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        flaxvgg.attribute(model, IMAGES, 0, method, **options)
