"""The measures of attributions beside the packages that have them, with the same random numbers.

grad-cam's ROAD, captum's infidelity and max-sensitivity, Quantus's, scikit-image's SSIM, SciPy's
correlations. Both sides are float32 where the network is run: on the small network scores of size 1
differ by a few roundings, and so do changes of them.
"""

import functools
import itertools
import warnings
from collections.abc import Iterator

import captum.metrics
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import torchvision
from pytorch_grad_cam.metrics import road as grad_cam_road
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from skimage.metrics import structural_similarity

import flaxvgg
from flaxvgg.conversion.reading import read_source
from flaxvgg.evaluation.infidelity import removed_at_random
from flaxvgg.evaluation.randomisation import randomised_models
from flaxvgg.evaluation.road import removed_pixels
from flaxvgg.evaluation.robustness import uniform_noise
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from helpers import (
    REAL_WEIGHTS,
    TINY_GAP,
    TinyConfig,
    quickly,
    random_images,
    random_model,
    torch_twin,
)

with warnings.catch_warnings():  # its dependencies warn of themselves
    warnings.simplefilter("ignore")
    import quantus

KEY = jax.random.key(3)
CLASSES = np.array([4, 0, 2])
Pair = tuple[VGG, torch.nn.Module, np.ndarray]


@pytest.fixture(scope="module")
def tiny() -> Pair:
    """The same network here and in PyTorch, and images."""
    model = random_model(TinyConfig("vgg11", TINY_GAP))
    return model, torch_twin(model), random_images(3, 32, 40)


@pytest.fixture(scope="module")
def real() -> Pair:
    """torchvision's convolutions with a random GAP head, and photos."""
    source = read_source(REAL_WEIGHTS)
    stack = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    model = flaxvgg.with_gap(stack, 5, rngs=flaxvgg.network.model.nnx.Rngs(0))
    model.head.fc.kernel[...] = 10 * model.head.fc.kernel[...]
    network = torchvision.models.VGG(torchvision.models.vgg16().features, init_weights=False)
    network.avgpool, network.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, 5)
    tensors = {name: torch.from_numpy(x) for name, x in flaxvgg.to_torch(model).items()}
    network.load_state_dict(tensors)
    images = flaxvgg.load_images(sample_photos(3), (96, 96), source.provenance.preprocessing)
    return model, network.eval(), np.asarray(images)


@pytest.fixture(params=quickly(["tiny", "real"], "tiny"))
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def keys(image: int, sample: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(KEY, image), sample)


def gradient(network: torch.nn.Module, x: torch.Tensor, classes) -> torch.Tensor:
    """The magnitude of the gradient of each image's class."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        scores = network(x)[torch.arange(len(x)), torch.as_tensor(classes)]
        return torch.autograd.grad(scores.sum(), x)[0].abs()


def saliency(model: VGG, images) -> np.ndarray:
    return flaxvgg.attribute(model, images, CLASSES[:, None], "saliency").values[:, 0]


def near(expected: np.ndarray):
    """Differences of scores of size 1 lose digits, and squares of them twice as many."""
    return pytest.approx(np.asarray(expected), rel=2e-4, abs=2e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy: grad-cam hands it tensors
def test_road_equals_grad_cams(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    model, network, images = pair
    maps = np.random.default_rng(0).random(images.shape[:3], np.float32)
    percentiles = [10, 40, 90]
    found = flaxvgg.road(model, images, maps, CLASSES, key=KEY, percentiles=percentiles)
    targets = [ClassifierOutputSoftmaxTarget(c) for c in CLASSES]
    drawn = noise_of_road(maps, percentiles)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(drawn))
    combined = grad_cam_road.ROADCombined(percentiles)(nchw(images), maps, targets, network)
    assert next(drawn, None) is None
    assert found.combined == near(combined)
    monkeypatch.undo()
    # Each order alone, to tell it from the other: their noise is their own, and small.
    for of, theirs in (
        (found.morf, grad_cam_road.ROADMostRelevantFirst),
        (found.lerf, grad_cam_road.ROADLeastRelevantFirst),
    ):
        expected = [theirs(p)(nchw(images), maps, targets, network) for p in percentiles]
        assert np.array(expected) == pytest.approx(of.T, abs=0.02)
        assert np.abs(expected).max() > 0.05


def noise_of_road(maps: np.ndarray, percentiles: list[int]) -> Iterator[torch.Tensor]:
    """The noise (3, removed) in the order in which grad-cam's asks for it: LeRF first."""
    size = len(percentiles)
    for order, p, i in itertools.product((1, 0), range(size), range(len(maps))):
        of_ties, of_noise = jax.random.split(jax.random.fold_in(KEY, i))
        ties = np.asarray(jax.random.uniform(of_ties, maps.shape[1:]))
        mask = removed_pixels(maps[i], ties, percentiles)[order * size + p]
        noise = jax.random.normal(of_noise, (2 * size, *maps.shape[1:], 3))[order * size + p]
        yield torch.from_numpy(np.asarray(noise)[mask].T.copy())


@pytest.mark.parametrize("perturb", [flaxvgg.GaussianNoise(), flaxvgg.SquareRemoval(9)])
@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_equals_captums(pair: Pair, perturb, normalize: bool):
    model, network, images = pair
    values = np.asarray(saliency(model, images))
    found = flaxvgg.infidelity(
        model,
        images,
        values,
        CLASSES,
        key=KEY,
        perturb=perturb,
        samples=5,
        normalize=normalize,
    )
    taken = np.stack(
        [perturb(keys(i, s), jnp.asarray(images[i])) for i in range(3) for s in range(5)]
    )
    expected = captum.metrics.infidelity(
        network,
        lambda x: (nchw(taken), x - nchw(taken)),
        nchw(images),
        nchw(values),
        target=torch.from_numpy(CLASSES),
        n_perturb_samples=5,
        normalize=normalize,
    )
    assert found == near(expected.numpy())


def test_max_sensitivity_equals_captums(pair: Pair):
    """Of the same explanations: gradients of two packages differ where ReLUs hang on roundings."""
    model, _, images = pair
    again = functools.partial(saliency, model)
    found = flaxvgg.max_sensitivity(again, images, key=KEY, radius=0.1, samples=4)
    noise = np.stack([uniform_noise(KEY, s, images.shape, 0.1) for s in range(4)], axis=1)
    noise = noise.reshape(-1, *images.shape[1:])

    def explained(inputs: tuple[torch.Tensor] | torch.Tensor):
        if isinstance(inputs, tuple):
            return tuple(map(explained, inputs))
        # A sample of each image at a time, as here.
        batches = np.moveaxis(inputs.numpy(), 1, -1).reshape(3, -1, *images.shape[1:])
        maps = [again(batches[:, s].copy()) for s in range(batches.shape[1])]
        return nchw(np.stack(maps, axis=1).reshape(-1, *images.shape[1:]))

    expected = captum.metrics.sensitivity_max(
        explained, nchw(images), lambda x: x + nchw(noise), n_perturb_samples=4
    )
    assert found == pytest.approx(expected.numpy(), rel=1e-5)
    assert found.min() > 0.01


def test_sensitivity_n_is_that_of_the_paper(pair: Pair):
    model, network, images = pair
    values = random_images(*images.shape[:3], seed=5)
    found = flaxvgg.sensitivity_n(
        model, images, values, CLASSES, key=KEY, fractions=[0.1, 0.5], samples=6
    )
    pixels = images.shape[1] * images.shape[2]
    for i, k in itertools.product(range(3), range(2)):
        count = round((0.1, 0.5)[k] * pixels)
        sets = [
            np.asarray(
                removed_at_random(
                    jax.random.fold_in(keys(i, k), s), images.shape[1:3], jnp.array(count)
                )
            )
            for s in range(6)
        ]
        assert len({x.tobytes() for x in sets}) == 6
        changed = np.stack([images[i], *(np.where(x[..., None], 0, images[i]) for x in sets)])
        with torch.no_grad():
            scores = network(nchw(changed))[:, CLASSES[i]].double().numpy()
        sums = [values[i][x].sum(dtype=np.float64) for x in sets]
        expected = scipy.stats.pearsonr(sums, scores[0] - scores[1:]).statistic
        assert found[i, k] == pytest.approx(expected, abs=1e-3)


# Quantus


def of_quantus(metric, network, images, attributions, **kwargs) -> np.ndarray:
    """What a metric of Quantus gives, without its talk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(
            metric(
                model=network,
                x_batch=nchw(images).numpy(),
                y_batch=CLASSES,
                a_batch=np.moveaxis(attributions, -1, 1).copy(),
                channel_first=True,
                **kwargs,
            )
        )


QUIET = {"disable_warnings": True, "display_progressbar": False}


def test_sparseness_and_complexity_equal_quantus(tiny: Pair):
    _, network, images = tiny
    values = np.asarray(random_images(3, 32, 40, seed=2), np.float64)
    options = QUIET | {"abs": True, "normalise": True}
    expected = of_quantus(quantus.Sparseness(**options), network, images, values)
    assert flaxvgg.sparseness(values) == pytest.approx(expected, rel=1e-5)  # it adds 1e-7
    expected = of_quantus(quantus.Complexity(**options), network, images, values)
    assert flaxvgg.complexity(values) == pytest.approx(expected, rel=1e-6)  # it adds 1e-12


def test_relevance_accuracies_equal_quantus(tiny: Pair):
    _, network, images = tiny
    rng = np.random.default_rng(0)
    maps, masks = rng.random((3, 32, 40)), rng.random((3, 32, 40)) < 0.3
    given = {"s_batch": masks[:, None].astype(int)}
    for metric, ours in (
        (quantus.RelevanceMassAccuracy, flaxvgg.relevance_mass_accuracy),
        (quantus.RelevanceRankAccuracy, flaxvgg.relevance_rank_accuracy),
    ):
        expected = of_quantus(metric(**QUIET), network, images, maps[..., None], **given)
        assert ours(maps, masks) == pytest.approx(expected, rel=1e-9)
        assert 0.2 < expected.mean() < 0.4


def test_infidelity_and_max_sensitivity_equal_quantus(tiny: Pair):
    model, network, images = tiny
    values = np.asarray(saliency(model, images))
    perturb = flaxvgg.GaussianNoise(0.3)
    steps = iter(range(4))

    def without_noise(arr: np.ndarray, indices, **kwargs) -> np.ndarray:
        step = next(steps)
        taken = np.stack([perturb(keys(i, step), jnp.asarray(images[i])) for i in range(3)])
        return arr - nchw(taken).numpy().reshape(3, -1)

    # One patch of 40 pixels is the image: its perturbation is ours.
    square = np.pad(images, [(0, 0), (0, 8), (0, 0), (0, 0)])
    images, values = square, np.pad(values, [(0, 0), (0, 8), (0, 0), (0, 0)])
    metric = quantus.Infidelity(
        perturb_patch_sizes=[40], n_perturb_samples=4, perturb_func=without_noise, **QUIET
    )
    expected = of_quantus(metric, network, images, values)
    found = flaxvgg.infidelity(model, images, values, CLASSES, key=KEY, perturb=perturb, samples=4)
    assert found == near(expected)

    steps = iter(range(4))

    def with_noise(arr: np.ndarray, indices, **kwargs) -> np.ndarray:
        noise = np.asarray(uniform_noise(KEY, next(steps), images.shape, 0.1))
        return arr + nchw(noise).numpy().reshape(3, -1)

    def explained(model, inputs, targets, **kwargs) -> np.ndarray:
        return gradient(model, torch.as_tensor(inputs), targets).numpy()

    metric = quantus.MaxSensitivity(nr_samples=4, perturb_func=with_noise, **QUIET)
    values = np.asarray(saliency(model, images))
    expected = of_quantus(metric, network, images, values, explain_func=explained)
    again = functools.partial(saliency, model)
    found = flaxvgg.max_sensitivity(again, images, key=KEY, radius=0.1, samples=4)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("order", "theirs"), [("cascading", "top_down"), ("independent",) * 2])
def test_randomisation_equals_quantus(
    tiny: Pair, order: str, theirs: str, monkeypatch: pytest.MonkeyPatch
):
    """Quantus draws a layer anew by `reset_parameters`, which gives it ours here."""
    model, network, images = tiny
    found = flaxvgg.parameter_randomisation(
        model, {"it": lambda given: signed(given, images)}, key=KEY, order=order
    )
    tensors = {}
    names = {layer.name: layer.torch for layer in model.config.layers}
    drawn = randomised_models(model, found.layers, "independent", KEY)
    for name, given in zip(found.layers, drawn, strict=True):
        state = flaxvgg.to_torch(given)
        parts = {x: torch.from_numpy(state[f"{names[name]}.{x}"]) for x in ("weight", "bias")}
        tensors[tuple(parts["weight"].shape)] = parts

    def reset(module: torch.nn.Module) -> None:
        module.load_state_dict(tensors[tuple(module.weight.shape)])

    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", reset)
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", reset)

    def explained(model, inputs, targets, **kwargs) -> np.ndarray:
        x = torch.as_tensor(inputs).requires_grad_()
        scores = model(x)[torch.arange(len(x)), torch.as_tensor(targets)]
        return torch.autograd.grad(scores.sum(), x)[0].sum(1, keepdim=True).numpy()

    for ours, absolute in ((found.spearman, False), (found.absolute_spearman, True)):
        metric = quantus.MPRT(layer_order=theirs, abs=absolute, normalise=True, **QUIET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = metric(
                model=network,
                x_batch=nchw(images).numpy(),
                y_batch=CLASSES,
                a_batch=found.original["it"][:, None].copy(),
                channel_first=True,
                explain_func=explained,
            )
        expected = [scores[name] for name in ("classifier", "features.3", "features.0")]
        # Pixels that are equal but for rounding change places.
        assert ours["it"] == pytest.approx(np.array(expected), abs=1e-4)


def signed(model: VGG, images: np.ndarray) -> np.ndarray:
    found = flaxvgg.attribute(model, images, CLASSES[:, None], "saliency", signed=True)
    return found.values[:, 0]


def test_similarities_equal_scipys_and_scikit_images(tiny: Pair):
    model, _, images = tiny
    found = flaxvgg.parameter_randomisation(
        model, {"it": lambda given: signed(given, images)}, key=KEY
    )
    original = found.original["it"]
    for layer, i in itertools.product(range(3), range(3)):
        a, b = original[i].astype(np.float64), found.maps["it"][layer, i].astype(np.float64)
        expected = scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic
        assert found.spearman["it"][layer, i] == pytest.approx(expected, abs=1e-12)
        a, b = abs(a) / abs(a).max(), abs(b) / abs(b).max()
        expected = structural_similarity(a, b, data_range=1)
        assert found.ssim["it"][layer, i] == pytest.approx(expected, abs=1e-12)
