"""LPIPS and DISTS beside the packages they are from, on torchvision's own convolutions.

And the classic mistakes in them, each of which the same comparison finds.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxvgg
from experiments.lpips_parity import peers
from flaxvgg.conversion.rule import keeps_rule
from flaxvgg.images.loading import load_pixels
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from flaxvgg.perceptual import dists as dists_module
from flaxvgg.perceptual import features
from flaxvgg.perceptual import lpips as lpips_module
from helpers import REAL_WEIGHTS, quickly

SIZES = [(64, 64), (96, 128), (224, 224)]
SIGNED = (-1, 1)


class Network(NamedTuple):
    """Our model, and the same convolutions as PyTorch has them."""

    model: VGG
    arrays: dict[str, np.ndarray]


def _network(arrays: dict[str, np.ndarray]) -> Network:
    return Network(flaxvgg.from_torch("vgg16", arrays), arrays)


@pytest.fixture(scope="module")
def real() -> Network:
    model = flaxvgg.vgg16(weights=REAL_WEIGHTS)
    return Network(model, flaxvgg.to_torch(model))


@pytest.fixture(scope="module")
def faint(real: Network) -> Network:
    """Features of relu5_3 so small that LPIPS's epsilon is a good part of their length."""
    arrays = dict(real.arrays)
    for name in ("features.28.weight", "features.28.bias"):
        arrays[name] = arrays[name] * np.float32(1e-9)
    return _network(arrays)


@pytest.fixture(scope="module")
def silent(real: Network) -> Network:
    """Convolutions whose last ReLU is zero everywhere."""
    arrays = real.arrays | {"features.28.bias": np.full(512, -1e6, np.float32)}
    return _network(arrays)


def _pairs(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two pairs in (-1, 1): two photos, and noise beside other noise."""
    photos = [load_pixels(path, size) for path in sample_photos(2)]
    noise = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    a, b = (np.stack(pair) / np.float32(127.5) - 1 for pair in zip(photos, noise, strict=True))
    return a.astype(np.float32), b.astype(np.float32)


def _theirs(network: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dtype = next((p.dtype for p in getattr(network, "parameters", list)()), torch.float32)
    with torch.no_grad():
        return network(peers.tensor(a, dtype), peers.tensor(b, dtype)).flatten().numpy()


def _off(found: Any, expected: np.ndarray) -> float:
    """The largest relative difference."""
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected) / np.abs(expected)))


DISTANCES = {
    "lpips 0.1": ({}, partial(peers.lpips)),
    "lpips 0.0": ({"version": "0.0"}, partial(peers.lpips, version="0.0")),
    "without linear layers": ({"linear": False}, partial(peers.lpips, lpips=False)),
    "torchmetrics": ({"convention": "torchmetrics"}, peers.torchmetrics_lpips),
}


@pytest.mark.parametrize("size", quickly(SIZES, SIZES[0]), ids=str)
@pytest.mark.parametrize("name", quickly(DISTANCES, "lpips 0.1", "torchmetrics"))
def test_values_are_the_originals(real: Network, name: str, size: tuple[int, int]):
    options, peer = DISTANCES[name]
    a, b = _pairs(size)
    ours = flaxvgg.lpips(real.model, a, b, value_range=SIGNED, **options)
    theirs = _theirs(peer(real.arrays), a, b)
    truth = _theirs(peer(real.arrays, torch.float64), a, b)
    assert _off(ours, theirs) <= 2e-6
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert keeps_rule(_off(mine, true), _off(other, true)), (mine, other, true)


@pytest.mark.parametrize("size", quickly(SIZES, SIZES[0]), ids=str)
def test_dists_is_the_original(real: Network, size: tuple[int, int]):
    a, b = ((x + 1) / 2 for x in _pairs(size))
    ours = flaxvgg.dists(real.model, a, b, value_range=(0, 1))
    peer, exact = (peers.torchmetrics_dists(real.arrays, t) for t in (torch.float32, torch.float64))
    theirs, truth = (
        _theirs(peer, a, b),
        exact(peers.tensor(a, torch.float64), peers.tensor(b, torch.float64)),
    )
    assert _off(ours, theirs) <= 1e-5
    for mine, other, true in zip(ours, theirs, truth.detach().numpy(), strict=True):
        assert keeps_rule(_off(mine, true), _off(other, true)), (mine, other, true)


@pytest.mark.slow
def test_epsilons_are_the_originals(faint: Network):
    """Where they make a difference: each convention is its own package's, and not the other's."""
    a, b = _pairs((64, 64))
    found, expected = {}, {}
    for name in ("lpips 0.1", "torchmetrics"):
        options, peer = DISTANCES[name]
        with pytest.warns(UserWarning, match="other weights"):
            found[name] = flaxvgg.lpips(faint.model, a, b, value_range=SIGNED, **options)
        expected[name] = _theirs(peer(faint.arrays), a, b)
        assert _off(found[name], expected[name]) <= 2e-6
    assert _off(found["lpips 0.1"], expected["torchmetrics"]) > 1e-3


@pytest.mark.slow
def test_maps_and_layers_are_the_originals(real: Network):
    a, b = _pairs((48, 64))
    peer = peers.lpips(real.arrays, spatial=True)
    whole, parts = peer(peers.tensor(a), peers.tensor(b), retPerLayer=True)
    distance = partial(flaxvgg.lpips, real.model, a, b, value_range=SIGNED)
    maps = distance(spatial=True)
    assert maps.shape == (2, 48, 64)
    np.testing.assert_allclose(maps, whole[:, 0], rtol=2e-5, atol=2e-7)
    layers = distance(per_layer=True)
    assert list(layers) == ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    np.testing.assert_allclose(sum(layers.values()), distance(), rtol=3e-7)
    by_layer = distance(spatial=True, per_layer=True)
    for ours, theirs in zip(by_layer.values(), parts, strict=True):
        np.testing.assert_allclose(ours, theirs[:, 0], rtol=2e-5, atol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("low", [0, 0.0])
def test_the_same_pixels_in_every_range(real: Network, low: float):
    pixels = np.stack([load_pixels(path, (32, 32)) for path in sample_photos(2)])
    other = pixels[::-1]
    expected = flaxvgg.lpips(real.model, pixels, other, value_range=(low, 255))
    for value_range in ((0, 1), (-1, 1), (0, 255)):
        first, last = value_range
        a, b = (first + x.astype(np.float32) / 255 * (last - first) for x in (pixels, other))
        found = flaxvgg.lpips(real.model, a, b, value_range=value_range)
        np.testing.assert_allclose(found, expected, rtol=2e-6)


# Derivatives.


def _gradient(real: Network, a: np.ndarray, b: np.ndarray, **options: Any) -> np.ndarray:
    def loss(a: jax.Array) -> jax.Array:
        return flaxvgg.lpips(real.model, a, b, value_range=SIGNED, **options).sum()

    return np.asarray(jax.jit(jax.grad(loss))(a))


def _their_gradient(network: Any, a: np.ndarray, b: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    x = peers.tensor(a, dtype).requires_grad_(True)
    network(x, peers.tensor(b, dtype)).sum().backward()
    return peers.array(x.grad)


def _flips(real: Network, images: np.ndarray) -> int:
    """ReLUs and poolings that another value decides than in PyTorch's float64.

    Each moves the gradient; rounding decides them, in PyTorch as well.
    """
    names = [layer.name for layer in real.model.config.conv_stack]
    how = lpips_module._How("float32", SIGNED, True, True, False, False)
    scaled = jax.jit(lambda x: _scaled(x, how))
    ours, _ = jax.jit(lambda stack, x: features.of_pair(stack, x, x, names))(
        real.model.conv_stack, scaled(images)
    )
    x = peers.lpips(real.arrays, torch.float64).scaling_layer(peers.tensor(images, torch.float64))
    count, network, before = 0, peers.vgg("vgg16", real.arrays, torch.float64), None
    for layer in real.model.config.conv_stack[:-1]:
        x = network.get_submodule(layer.torch)(x)
        mine = np.asarray(ours[layer.name])
        if layer.kind == "relu":
            count += int(((mine > 0) != (peers.array(x) > 0)).sum())
            before = mine, peers.array(x)
        elif layer.kind == "max_pool":
            assert before is not None
            first, second = (_windows(z).argmax(axis=-1) for z in before)
            count += int((first != second).sum())
    return count


def _windows(x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    cut = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.1", "0.0"])
def test_gradients_are_the_originals(real: Network, version: str):
    """Of those images in which no ReLU is decided by rounding, which are most."""
    a, b = (np.concatenate([x, x[::-1, ::-1], x[:, :, ::-1]]) for x in _pairs((40, 56)))
    peer = peers.lpips(real.arrays, torch.float64, version=version)
    ours = _gradient(real, a, b, version=version)
    theirs = _their_gradient(peer, a, b, torch.float64)
    off = [
        np.linalg.norm(mine - other) / np.linalg.norm(other)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    if version == "0.1":
        undecided = [_flips(real, x[None]) == 0 for x in a]
        assert sum(undecided) >= 3
        assert max(np.array(off)[undecided]) <= 2e-5, off
    assert sorted(off)[len(off) // 2] <= 2e-5, off
    assert np.isfinite(ours).all()


@pytest.mark.slow
def test_gradients_by_either_image_are_the_same_function(real: Network):
    a, b = _pairs((32, 48))

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return flaxvgg.lpips(real.model, a, b, value_range=SIGNED).sum()

    by_first = jax.jit(jax.grad(loss))(a, b)
    by_second = jax.jit(jax.grad(loss, 1))(b, a)
    by_both = jax.jit(jax.grad(loss, (0, 1)))(a, b)
    forwards = jax.jit(lambda a, b: jax.jvp(loss, (a, b), (a, b))[1])(a, b)
    np.testing.assert_array_equal(by_first, by_second)
    np.testing.assert_allclose(by_both[0], by_first, rtol=1e-4, atol=1e-6 * abs(by_first).max())
    together = (by_both[0] * a).sum() + (by_both[1] * b).sum()
    np.testing.assert_allclose(forwards, together, rtol=1e-4)


@pytest.mark.slow
def test_equal_images_are_nothing_apart_and_distances_symmetric(real: Network):
    a, b = _pairs((64, 48))
    u, v = ((x + 1) / 2 for x in (a, b))
    for options in ({}, {"convention": "torchmetrics"}, {"version": "0.0"}, {"spatial": True}):
        distance = partial(flaxvgg.lpips, real.model, value_range=SIGNED, **options)
        assert not np.asarray(distance(a, a)).any()
        np.testing.assert_array_equal(distance(a, b), distance(b, a))
    distance = partial(flaxvgg.dists, real.model, value_range=(0, 1))
    assert not np.asarray(distance(u, u)).any()
    np.testing.assert_array_equal(distance(u, v), distance(v, u))
    for image in (a, np.full_like(a, -1.0), np.zeros_like(a)):  # a photo and noise; black; grey
        assert not _gradient(real, image, image).any()
        assert not _gradient(real, image, image, convention="torchmetrics").any()


@pytest.mark.parametrize("adds_to_length", [True, False])
def test_derivatives_by_features_are_the_originals(adds_to_length: bool):
    """And finite where those are NaN: at feature vectors that are zero."""
    x, y = np.maximum(np.random.default_rng(0).standard_normal((2, 1, 4, 5, 64)), 0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    x[0, 0], y[0, :, 0] = 0, 0
    x[0, 1] *= 1e-15
    weight = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 1, 64)

    @jax.jit
    def gradients(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(
            lambda x, y: lpips_module._apart(x, y, weight, adds_to_length).sum(), (0, 1)
        )(x, y)

    def normal(z: torch.Tensor) -> torch.Tensor:
        size = (z**2).sum(dim=-1, keepdim=True)
        return z / (size.sqrt() + 1e-10) if adds_to_length else z / (size + 1e-8).sqrt()

    tensors = [torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in (x, y)]
    ((normal(tensors[0]) - normal(tensors[1])) ** 2 * torch.tensor(weight)).sum().backward()
    for z, ours, theirs in zip((x, y), gradients(x, y), tensors, strict=True):
        found, expected = np.asarray(ours), theirs.grad.numpy()
        assert np.isfinite(found).all()
        there = np.isfinite(expected) & (z > 0)  # a ReLU lets nothing else through
        size = abs(np.where(there, expected, 0)).max(axis=-1, keepdims=True)
        assert (abs(found - expected)[there] <= (2e-6 * size + 0 * z)[there]).all()
        assert np.isnan(expected).any() == adds_to_length

    def twice(x: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: gradients(x, y)[0], (x,), (jnp.ones_like(x),))[1]

    assert np.isfinite(jax.jit(twice)(x)).all()


@pytest.mark.filterwarnings("ignore:this network has")
@pytest.mark.slow
def test_a_silent_layer_has_no_part_in_the_gradient(silent: Network):
    a, b = _pairs((32, 32))
    four = jax.jit(jax.grad(lambda a: sum(_layers(silent, a, b)[:4]).sum()))
    ours = _gradient(silent, a, b)
    assert abs(ours).max() > 0
    np.testing.assert_allclose(ours, four(a), rtol=1e-5, atol=1e-7)


def _layers(network: Network, a: Any, b: Any) -> list[jax.Array]:
    found = flaxvgg.lpips(network.model, a, b, value_range=SIGNED, per_layer=True)
    return list(found.values())


@pytest.mark.filterwarnings("ignore:this network has")
@pytest.mark.parametrize("which", quickly(["real", "silent", "faint"]))
def test_second_derivatives_are_finite(which: str, request: pytest.FixtureRequest):
    network = request.getfixturevalue(which)
    a, b = (x[:1, :16, :16] for x in _pairs((32, 32)))

    @jax.jit
    def product(x: jax.Array, along: jax.Array) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            return flaxvgg.lpips(network.model, x, b, value_range=SIGNED).sum()

        return jax.jvp(jax.grad(loss), (x,), (along,))[1]

    along = np.random.default_rng(1).standard_normal(a.shape).astype(np.float32)
    found = [np.asarray(product(x, along)) for x in (a, b, np.full_like(a, -1.0))]
    assert np.isfinite(found).all()
    if which == "real":
        peer = peers.lpips(network.arrays, torch.float64)
        target, x = peers.tensor(b, torch.float64), peers.tensor(a, torch.float64)
        _, theirs = torch.autograd.functional.hvp(
            lambda x: peer(x, target).sum(), x, peers.tensor(along, torch.float64)
        )
        expected = peers.array(theirs)
        assert np.linalg.norm(found[0] - expected) <= 1e-3 * np.linalg.norm(expected)
        assert found[1].any()  # at equal images the gradient is zero, and the curvature is not


@pytest.mark.filterwarnings("ignore:this network has")
@pytest.mark.slow
@pytest.mark.parametrize("which", ["real", "silent"])
def test_second_derivatives_of_dists_are_finite(which: str, request: pytest.FixtureRequest):
    """And those of the original in float64, as near as it has them itself in float32."""
    network = request.getfixturevalue(which)
    a, b = ((x[:1, :16, :16] + 1) / 2 for x in _pairs((32, 32)))

    @jax.jit
    def product(x: jax.Array, along: jax.Array) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            return flaxvgg.dists(network.model, x, b, value_range=(0, 1)).sum()

        return jax.jvp(jax.grad(loss), (x,), (along,))[1]

    def theirs(dtype: torch.dtype) -> np.ndarray:
        peer, target = (
            peers.torchmetrics_dists(network.arrays, dtype),
            peers.tensor(b, dtype),
        )
        given = peers.tensor(a, dtype), peers.tensor(along, dtype)
        _, found = torch.autograd.functional.hvp(lambda x: peer(x, target).sum(), *given)
        return peers.array(found)

    along = np.random.default_rng(1).standard_normal(a.shape).astype(np.float32)
    found = [np.asarray(product(x, along)) for x in (a, b, np.zeros_like(a))]
    assert np.isfinite(found).all()
    assert found[1].any()  # at equal images the gradient is zero, and the curvature is not
    exact = theirs(torch.float64)
    assert np.isfinite(exact).all()
    ours, peers_own = (np.linalg.norm(x - exact) for x in (found[0], theirs(torch.float32)))
    assert ours <= max(1.5 * peers_own, 1e-3 * np.linalg.norm(exact))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_second_derivatives_are_the_differences_of_first_ones(name: str, real: Network):
    """By PyTorch's gradients in float64, along a line on which no ReLU changes its side."""
    a, b = (x[:1, :16, :16] for x in _pairs((32, 32)))
    if name == "dists":
        a, b = ((x + 1) / 2 for x in (a, b))
        peer: Any = peers.torchmetrics_dists(real.arrays, torch.float64)
    else:
        peer = peers.lpips(real.arrays, torch.float64)
    value_range = (0, 1) if name == "dists" else SIGNED
    along = np.random.default_rng(1).standard_normal(a.shape)

    def loss(x: jax.Array) -> jax.Array:
        return getattr(flaxvgg, name)(real.model, x, b, value_range=value_range).sum()

    product = jax.jit(lambda x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1])
    found = np.asarray(product(a, along.astype(np.float32)))
    step = 1e-7
    before, behind = (
        _their_gradient(peer, a.astype(np.float64) + sign * step * along, b, torch.float64)
        for sign in (-1, 1)
    )
    expected = (behind - before) / (2 * step)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_bfloat16_is_as_near_as_the_guide_says(real: Network, name: str):
    a, b = _pairs((64, 64))
    rounded = flaxvgg.from_torch("vgg16", real.arrays, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    distance = getattr(flaxvgg, name)
    found, expected = (distance(m, a, b, value_range=SIGNED) for m in (rounded, real.model))
    assert found.dtype == jnp.float32
    assert 1e-5 < _off(found, np.asarray(expected)) < 2e-2


# Mistakes.


@pytest.fixture
def mistaken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replaces a part of the distances; their compiled programs are forgotten, then and after."""

    def forget() -> None:
        lpips_module._lpips.clear_cache()
        dists_module._dists.clear_cache()

    def replace(module: Any, name: str, value: Any) -> None:
        monkeypatch.setattr(module, name, value)
        forget()

    yield replace
    monkeypatch.undo()
    forget()


def _first_tap(stack: Any, a: Any, b: Any, taps: Any) -> Any:
    """relu5_2 for relu5_3."""
    return _renamed(stack, a, b, taps, {"relu5_3": "relu5_2"})


def _before(stack: Any, a: Any, b: Any, taps: Any) -> Any:
    """The convolutions' outputs before the ReLU."""
    return _renamed(stack, a, b, taps, {tap: tap.replace("relu", "conv") for tap in taps})


def _renamed(stack: Any, a: Any, b: Any, taps: Any, names: dict[str, str]) -> Any:
    found = features.of_pair(stack, a, b, [names.get(tap, tap) for tap in taps])
    return tuple({tap: one[names.get(tap, tap)] for tap in taps} for one in found)


def _squared_length(x: Any, adds: bool) -> Any:
    return jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10


def _inside(x: Any, adds: bool) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)


def _none(x: Any, adds: bool) -> Any:
    return jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)), 1e-30)


def _outside(x: Any, adds: bool) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + 1e-8


_scaled, _apart, _mean = lpips_module._scaled, lpips_module._apart, lpips_module.mean_over_space


def _dropped(x: Any, y: Any, weight: Any, adds: bool) -> Any:
    kept = np.random.default_rng(0).integers(0, 2, weight.shape)
    return _apart(x, y, weight * (2 * kept).astype(weight.dtype), adds)


MISTAKES = {
    "no square root": ("_size", _squared_length, "real", {}),
    "epsilon inside": ("_size", _inside, "faint", {}),
    "no epsilon": ("_size", _none, "faint", {}),
    "epsilon outside": ("_size", _outside, "faint", {"convention": "torchmetrics"}),
    "wrong tap": ("of_pair", _first_tap, "real", {}),
    "before the ReLU": ("of_pair", _before, "real", {}),
    "unscaled": ("_scaled", lambda x, how: x, "real", {}),
    "scaled in 0.0": (
        "_scaled",
        lambda x, how: _scaled(x, how._replace(scales=True)),
        "real",
        {"version": "0.0"},
    ),
    "BGR": ("_scaled", lambda x, how: _scaled(x[..., ::-1], how), "real", {}),
    "sum for mean": (
        "mean_over_space",
        lambda x: _mean(x) * (x.shape[1] * x.shape[2]),
        "real",
        {},
    ),
    "dropout on": ("_apart", _dropped, "real", {}),
    "linear layers left out": ("_apart", lambda x, y, w, e: _apart(x, y, w * 0 + 1, e), "real", {}),
    "other version": (
        "lpips_weights",
        lambda version: _other_weights(version),
        "real",
        {},
    ),
}


def _other_weights(version: str) -> Any:
    from flaxvgg.perceptual.published import lpips_weights

    return lpips_weights({"0.1": "0.0", "0.0": "0.1"}[version])


@pytest.mark.filterwarnings("ignore:this network has")
@pytest.mark.parametrize("name", quickly(MISTAKES, "wrong tap"))
def test_a_mistake_is_found(name: str, mistaken: Any, request: pytest.FixtureRequest):
    part, wrong, which, options = MISTAKES[name]
    network = request.getfixturevalue(which)
    peer = (
        peers.torchmetrics_lpips(network.arrays)
        if "convention" in options
        else peers.lpips(network.arrays, **options)
    )
    a, b = _pairs((32, 32))
    expected = _theirs(peer, a, b)
    distance = partial(flaxvgg.lpips, network.model, a, b, value_range=SIGNED, **options)
    assert _off(distance(), expected) <= 2e-6
    mistaken(lpips_module, part, wrong)
    assert _off(distance(), expected) > 2e-5


DISTS_MISTAKES: dict[str, tuple[str, Any]] = {
    "max pooling": ("with_layers", lambda stack, layers: stack),
    "no normalisation": ("prepared", lambda x, value_range, recipe: x),
    "BGR": ("prepared", lambda x, *how: dists_module_prepared(x[..., ::-1], *how)),
    "epsilon": ("_EPS", 1e-5),
    "before the ReLU": ("of_pair", _before),
}
dists_module_prepared = dists_module.prepared


@pytest.mark.parametrize("name", quickly(DISTS_MISTAKES, "max pooling"))
def test_a_mistake_in_dists_is_found(name: str, mistaken: Any, real: Network):
    a, b = ((x + 1) / 2 for x in _pairs((32, 32)))
    expected = _theirs(peers.torchmetrics_dists(real.arrays), a, b)
    distance = partial(flaxvgg.dists, real.model, a, b, value_range=(0, 1))
    assert _off(distance(), expected) <= 1e-5
    mistaken(dists_module, *DISTS_MISTAKES[name])
    assert _off(distance(), expected) > 2e-5
