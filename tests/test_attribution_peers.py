"""Attributions beside captum's and RISE's, with torchvision's convolutions, on photos.

The head is random, since no package on PyPI carries ImageNet's. Both sides get weights and
images alike; ReLUs are not in place here, where captum's hooks would find them overwritten.
"""

from collections.abc import Callable
from typing import Any

import captum.attr
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from skimage.transform import resize

import flaxvgg
from flaxvgg.attribution import rise as rise_module
from flaxvgg.attribution import smoothing
from flaxvgg.attribution.integrated import Quadrature, nodes
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.rule import keeps_rule, relative_error
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from helpers import REAL_WEIGHTS, quickly

CLASSES = [3, 7]
KEY = jax.random.key(5)
SAMPLES = 3
# Of the largest value. Two float32 gradients take another way where a pooling window's two largest
# values are equal but for rounding, or a pre-activation is zero but for it.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with torch.device("meta"):
        features = torchvision.models.vgg16().features
    features.to_empty(device="cpu")
    network = torchvision.models.VGG(features, init_weights=False).eval()
    network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    network.classifier = torch.nn.Linear(512, 10)
    real = read_source(REAL_WEIGHTS).state_dict
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in real.items()}
    network.load_state_dict(tensors, strict=False)
    # Scores of the size that trained ones have.
    torch.nn.init.normal_(network.classifier.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(network.classifier.bias)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return network


@pytest.fixture(scope="module")
def model(network: torch.nn.Module) -> VGG:
    source = read_source(REAL_WEIGHTS)  # photos as these weights expect them
    tensors = network.state_dict()
    return flaxvgg.from_torch("vgg16", tensors, provenance=source.provenance)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.array(load_images(sample_photos(2), (48, 64), "torchvision"))


def to_torch(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(images)).movedim(-1, 1).to(dtype).contiguous()


def to_numpy(maps: torch.Tensor) -> np.ndarray:
    return maps.detach().movedim(1, -1).numpy()


def noisy(images: np.ndarray, noise: float) -> np.ndarray:
    """Our samples once more: (samples, N, H, W, 3)."""
    drawn = np.asarray(smoothing.draw(KEY, jnp.arange(SAMPLES, dtype=jnp.int32), images.shape[1:]))
    spans = images.max(axis=(1, 2, 3)) - images.min(axis=(1, 2, 3))
    return images[None] + (noise * spans)[None, :, None, None, None] * drawn[:, None]


def of_noise_tunnel(network: torch.nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
    """captum's NoiseTunnel with our noise in the place of its own."""
    images = to_numpy(x.detach()).astype(np.float32)
    noise = torch.cat([to_torch(one, x.dtype) for one in np.swapaxes(noisy(images, 0.1), 0, 1)])
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(network))
    tunnel._add_noise_to_inputs = lambda *_: (noise.requires_grad_(),)
    return tunnel.attribute(
        x, nt_type=kind, nt_samples=SAMPLES, target=torch.tensor(CLASSES), abs=False
    )


def of_captum(name: str, **options: Any) -> Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]:
    def attribute(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        method = getattr(captum.attr, name)(network)
        if name != "Occlusion":
            x.requires_grad_()
        return method.attribute(x, target=torch.tensor(CLASSES[: len(x)]), **options)

    return attribute


def integrated(quadrature: str, steps: int) -> tuple[str, dict[str, Any], Callable]:
    def theirs(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        options = {"n_steps": steps, "method": quadrature.replace("gauss_l", "gaussl")}
        return of_captum("IntegratedGradients", **options)(network, x)

    return "integrated_gradients", {"steps": steps, "quadrature": quadrature}, theirs


def pooling_apart(network: torch.nn.Module) -> torch.nn.Module:
    """The same network with a copy between each ReLU and max pooling.

    captum notes the gradient by a ReLU's output, and replaces the one by a pooling's input. Where
    the two are one tensor, it notes before it replaces: without the copy the rule has no effect.
    """
    layers = []
    for layer in network.features:
        copy = [torch.nn.AvgPool2d(1)] if isinstance(layer, torch.nn.MaxPool2d) else []
        layers += [*copy, layer]
    head = [network.avgpool, torch.nn.Flatten(), network.classifier]
    return torch.nn.Sequential(*layers, *head)


WINDOW = {"window": (20, 30), "stride": (12, 20)}
CASES: dict[str, tuple[str, dict[str, Any], Callable]] = {
    "saliency": ("saliency", {}, of_captum("Saliency")),
    "signed": ("saliency", {"signed": True}, of_captum("Saliency", abs=False)),
    "input_x_gradient": ("input_x_gradient", {}, of_captum("InputXGradient")),
    **{
        f"integrated_gradients, {quadrature}": integrated(quadrature, 5)
        for quadrature in Quadrature.__args__
    },
    "smooth_grad": (
        "smooth_grad",
        {"key": KEY, "samples": SAMPLES, "noise": 0.1},
        lambda network, x: of_noise_tunnel(network, x, "smoothgrad"),
    ),
    "var_grad": (
        "var_grad",
        {"key": KEY, "samples": SAMPLES, "noise": 0.1},
        lambda network, x: of_noise_tunnel(network, x, "vargrad"),
    ),
    "deep_lift, captum": ("deep_lift", {"convention": "captum"}, of_captum("DeepLift")),
    "occlusion": (
        "occlusion",
        WINDOW,
        # A value of captum's is the fall of the score; of ours, a third of it for each colour.
        lambda network, x: (
            of_captum("Occlusion", sliding_window_shapes=(3, 20, 30), strides=(3, 12, 20))(
                network, x
            )
            / 3
        ),
    ),
}
QUICK = ("saliency", "integrated_gradients, gauss_legendre", "deep_lift, captum", "occlusion")


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("case", quickly(CASES, *QUICK))
def test_equals_captum(network: torch.nn.Module, model: VGG, photos: np.ndarray, case: str):
    method, options, theirs = CASES[case]
    classes = np.array(CLASSES)[:, None]
    found = np.asarray(flaxvgg.attribute(model, photos, classes, method, **options).values)[:, 0]
    peer = to_numpy(theirs(network, to_torch(photos, torch.float32)))
    try:
        exact = to_numpy(theirs(network.double(), to_torch(photos, torch.float64)))
    finally:
        network.float()
    largest = np.abs(exact).max()
    off, peers_off = (np.abs(x - exact) / largest for x in (found, peer))
    print(f"\n{case}: errors {relative_error(found, exact):.1e}, {relative_error(peer, exact):.1e}")
    assert found.shape == peer.shape == photos.shape
    # Where rounding decides, now here and now there, some values of an image go another way.
    assert (np.median(off, axis=(1, 2, 3)) <= CLOSE / 100).all()
    assert (off > CLOSE).mean() < 1 / 2
    assert keeps_rule(float(np.median(off)), float(np.median(peers_off)))
    assert exact.std() > 0.005 * largest


def test_captums_definitions_are_those_of_the_nodes():
    for quadrature in Quadrature.__args__:
        name = quadrature.replace("gauss_l", "gaussl")
        sizes, alphas = captum.attr._utils.approximation_methods.approximation_parameters(name)
        for steps in (2, 5, 8):
            places, weights = nodes(quadrature, steps)
            assert places == pytest.approx(np.array(alphas(steps)), abs=1e-7)
            assert weights == pytest.approx(np.array(sizes(steps)), abs=1e-12)


def test_deltas_are_captums(network: torch.nn.Module, model: VGG, photos: np.ndarray):
    x, target = to_torch(photos, torch.float32).requires_grad_(), torch.tensor(CLASSES)
    method = captum.attr.IntegratedGradients(network)
    _, expected = method.attribute(x, target=target, n_steps=3, return_convergence_delta=True)
    classes = np.array(CLASSES)[:, None]
    found = flaxvgg.attribute(model, photos, classes, "integrated_gradients", steps=3)
    delta = np.asarray(found.details["convergence_delta"])[:, 0]
    size = np.abs(np.asarray(found.values)).sum(axis=(1, 2, 3, 4))
    assert (np.abs(delta - expected.numpy()) <= 1e-5 * size).all()
    assert (np.abs(expected.numpy()) > 1e-3 * size).all()


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_deep_lift_from_another_baseline(network: torch.nn.Module, model: VGG, photos: np.ndarray):
    """captum's values add up to the change of the score only where its pooling rule works."""
    baseline, classes = photos[::-1] / 2, np.array(CLASSES)[:, None]
    deltas = {}
    for convention, theirs in (("captum", network), ("paper", pooling_apart(network))):
        x, start = (to_torch(a, torch.float64).requires_grad_() for a in (photos, baseline))
        method = captum.attr.DeepLift(theirs.double())
        try:
            expected, delta = method.attribute(
                x, start, target=torch.tensor(CLASSES), return_convergence_delta=True
            )
        finally:
            network.float()
        options = {"baseline": baseline, "convention": convention}
        found = flaxvgg.attribute(model, photos, classes, "deep_lift", **options)
        expected = to_numpy(expected)
        assert np.abs(found.values[:, 0] - expected).max() <= CLOSE * np.abs(expected).max()
        size = np.abs(expected).sum(axis=(1, 2, 3))
        deltas[convention] = np.abs(delta.detach().numpy()) / size
        print(
            convention, deltas[convention], np.abs(found.details["convergence_delta"])[:, 0] / size
        )
    assert (deltas["captum"] > 1e-3).all()
    assert (deltas["paper"] < 1e-12).all()


def authors_masks(size: tuple[int, int], grid: int, p: float, samples: int) -> np.ndarray:
    """RISE's masks as its authors make them, from the grids and shifts that we draw."""
    cells = np.ceil(np.array(size) / grid).astype(int)
    made = []
    for number in range(samples):
        for_cells, for_shift = jax.random.split(jax.random.fold_in(KEY, number))
        is_open = np.asarray(jax.random.bernoulli(for_cells, p, (grid, grid)), np.float64)
        x, y = np.asarray(jax.random.randint(for_shift, (2,), 0, jnp.asarray(cells, jnp.int32)))
        large = resize(is_open, (grid + 1) * cells, order=1, mode="reflect", anti_aliasing=False)
        made.append(large[x : x + size[0], y : y + size[1]])
    return np.stack(made)


@pytest.mark.parametrize(("size", "grid"), [((48, 64), 7), ((33, 32), 5), ((32, 32), 1)])
def test_masks_are_the_authors(size: tuple[int, int], grid: int):
    numbers = jnp.arange(6, dtype=jnp.int32)
    found = np.asarray(rise_module.masks(KEY, numbers, size, grid, 0.4))
    assert found == pytest.approx(authors_masks(size, grid, 0.4, 6), abs=1e-5)
    assert grid == 1 or found.std() > 0.2


def test_rise_is_the_authors_formula(network: torch.nn.Module, model: VGG, photos: np.ndarray):
    masks = authors_masks((48, 64), 7, 0.4, 10)
    x, totals = to_torch(photos, torch.float32), 0
    with torch.no_grad():
        for mask in masks:
            shown = torch.softmax(network(x * torch.from_numpy(mask).float()), dim=1)[:, CLASSES]
            totals = totals + shown.double().numpy()[:, :, None, None] * mask
    expected = totals / 10 / 0.4
    found = flaxvgg.attribute(model, photos, CLASSES, "rise", key=KEY, samples=10, p=0.4)
    maps = np.asarray(found.values).sum(axis=-1)
    assert np.abs(maps - expected).max() <= CLOSE * expected.max()
    assert expected.std() > 0.01 * expected.max()
    probabilities = jax.nn.softmax(model(photos))[:, jnp.array(CLASSES)]
    assert found.scores == pytest.approx(np.asarray(probabilities), rel=1e-4)
