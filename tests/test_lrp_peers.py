"""LRP beside zennit, and gradients through other ReLUs beside captum, with real convolutions.

The classifier is random, since no package on PyPI carries ImageNet's. zennit runs in float64 for
what is right, and in float32 for what may be expected. Its relevance starts from 1 for the class,
ours from the score.
"""

import copy
from collections.abc import Callable

import captum.attr
import jax
import numpy as np
import pytest
import torch
import torchvision
import zennit.composites
import zennit.rules
from zennit.attribution import Gradient
from zennit.core import Composite
from zennit.types import Convolution

import flaxvgg
from flaxvgg.attribution.relevance import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.rule import keeps_rule, relative_error
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from helpers import REAL_WEIGHTS, quickly, torch_vgg

CLASSES = [3, 7]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
LOW, HIGH = (torch.from_numpy((bound - MEAN) / STD).reshape(1, 3, 1, 1) for bound in (0.0, 1.0))
Z = zennit.composites
COMPOSITES: dict[str, Callable[[], Composite]] = {
    "epsilon_plus_flat": Z.EpsilonPlusFlat,
    "epsilon_plus": Z.EpsilonPlus,
    "epsilon_gamma_box": lambda: Z.EpsilonGammaBox(LOW, HIGH),
    "epsilon_alpha2_beta1": Z.EpsilonAlpha2Beta1,
    "epsilon_alpha2_beta1_flat": Z.EpsilonAlpha2Beta1Flat,
    "excitation_backprop": Z.ExcitationBackprop,
}


def by_rules(first, convolutions, linear) -> Composite:
    """A composite of zennit's with these rules; activations and averages as in all of theirs."""
    base = Z.layer_map_base()
    layers = [*base, (Convolution, convolutions), (torch.nn.Linear, linear)]
    return Z.SpecialFirstLayerMapComposite(layers, [(Convolution, first)])


R = zennit.rules
RULES = {
    "epsilon, w^2 first": (
        {"conv1_1": WSquare(), "conv": Epsilon(0.1), "linear": Epsilon(0.1)},
        lambda: by_rules(R.WSquare(), R.Epsilon(0.1), R.Epsilon(0.1)),
    ),
    "no biases": (
        {
            "conv1_1": WSquare(bias=False),
            "conv": ZPlus(bias=False),
            "linear": Epsilon(1e-3, bias=False),
        },
        lambda: by_rules(
            R.WSquare(zero_params="bias"),
            R.ZPlus(zero_params="bias"),
            R.Epsilon(1e-3, zero_params="bias"),
        ),
    ),
    "gamma everywhere": (
        {"conv": Gamma(0.5), "linear": Gamma(0.1)},
        lambda: by_rules(R.Gamma(0.5), R.Gamma(0.5), R.Gamma(0.1)),
    ),
    "flat in the middle": (  # behind which closed ReLUs have relevance, and gamma's other side
        {"conv1_1": ZBox(-3.0, 3.0), "conv": Gamma(), "linear": AlphaBeta(), "conv5_3": Flat()},
        lambda: Z.MixedComposite(
            [
                Z.NameMapComposite([(["features.28"], R.Flat())]),
                by_rules(R.ZBox(-3.0, 3.0), R.Gamma(), R.AlphaBeta()),
            ]
        ),
    ),
}


def scored(network: torch.nn.Module) -> torch.nn.Module:
    """The network with torchvision's convolutions, and scores of the size that trained ones have.

    In-place ReLUs would overwrite what captum looks at.
    """
    real = read_source(REAL_WEIGHTS).state_dict
    network.load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in real.items()}, strict=False
    )
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
            torch.nn.init.normal_(module.bias, std=0.1, generator=generator)
    return network.eval()


Pair = tuple[torch.nn.Module, VGG]


def with_gap(network: torch.nn.Module) -> torch.nn.Module:
    network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    network.classifier = torch.nn.Linear(512, 10)
    return network


@pytest.fixture(scope="module")
def gap() -> Pair:
    """The same network there and here, with a GAP head: float64 takes no time."""
    network = scored(with_gap(torchvision.models.vgg16(num_classes=1, init_weights=False)))
    config = flaxvgg.VGGConfig.gap("vgg16", num_classes=10)
    return network, flaxvgg.from_torch("vgg16", network.state_dict(), config=config)


@pytest.fixture(scope="module")
def full() -> Pair:
    """The same with torchvision's classifier."""
    network = scored(torchvision.models.vgg16(num_classes=10, init_weights=False))
    return network, flaxvgg.from_torch("vgg16", network.state_dict())


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.array(load_images(sample_photos(1), (64, 64), "torchvision"))


def channels_first(images: np.ndarray, network: torch.nn.Module) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(next(network.parameters()).dtype)


def of_zennit(network: torch.nn.Module, composite: Composite, images: np.ndarray) -> np.ndarray:
    """Relevance (N, K, H, W, 3) that starts from the scores."""
    found = []
    x = channels_first(images, network)
    for wanted in CLASSES:
        with Gradient(network, composite) as attributor:
            logits, relevance = attributor(x, torch.eye(10, dtype=x.dtype)[[wanted] * len(x)])
        score = logits[:, wanted].detach().reshape(-1, 1, 1, 1)
        found.append((relevance * score).detach().permute(0, 2, 3, 1).numpy())
    return np.stack(found, axis=1)


def check(pair: Pair, composite, theirs: Callable[[], Composite], images: np.ndarray) -> None:
    """Our error against float64 beside zennit's."""
    network, model = pair
    right = of_zennit(copy.deepcopy(network).double(), theirs(), images)
    peer = relative_error(of_zennit(network, theirs(), images), right)
    found = flaxvgg.attribute(model, images, CLASSES, composite=composite)
    error = relative_error(np.asarray(found.values, np.float64), right)
    print(f"\nerror {error:.2e}, zennit's {peer:.2e}")
    assert error < 1e-3
    assert keeps_rule(error, peer)


@pytest.mark.parametrize("name", quickly(COMPOSITES, "epsilon_plus_flat"))
def test_composite(name: str, gap: Pair, photos: np.ndarray):
    check(gap, name, COMPOSITES[name], photos)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_with_the_classifier(name: str, full: Pair, photos: np.ndarray):
    check(full, name, COMPOSITES[name], photos)


@pytest.mark.parametrize("name", quickly(RULES, "flat in the middle"))
def test_rules_of_ones_own(name: str, gap: Pair, photos: np.ndarray):
    ours, theirs = RULES[name]
    check(gap, ours, theirs, photos)


@pytest.mark.slow
def test_batch_norm_is_merged(photos: np.ndarray):
    """As zennit's canonizer does; which in 0.5.1 leaves its eps behind, so PyTorch fuses here."""
    network = with_gap(torch_vgg("vgg11_bn"))
    config = flaxvgg.VGGConfig.gap("vgg11_bn", num_classes=10)
    model = flaxvgg.from_torch("vgg11_bn", network.state_dict(), config=config)
    layers = list(network.features)
    fused = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(following, torch.nn.BatchNorm2d):
            fused.append(torch.nn.utils.fusion.fuse_conv_bn_eval(layer, following))
        elif isinstance(layer, torch.nn.ReLU):
            fused.append(torch.nn.ReLU())
        elif not isinstance(layer, torch.nn.BatchNorm2d):
            fused.append(layer)
    network.features = torch.nn.Sequential(*fused)
    check((network, model), "epsilon_plus_flat", Z.EpsilonPlusFlat, photos)


def of_captum(method: captum.attr.Attribution, images: np.ndarray, network, **more) -> np.ndarray:
    x = channels_first(images, network).requires_grad_()
    found = [method.attribute(x, target=c, **more).detach() for c in CLASSES]
    return torch.stack(found, dim=1).permute(0, 1, 3, 4, 2).numpy()


def check_gradients(found: jax.Array, right: np.ndarray) -> None:
    """Float32 against float64. A unit that is zero but for rounding may be open in one alone.

    Photos are many units, so that it comes to pass in some of them, on any processor.
    """
    pairs = zip(np.asarray(found), right, strict=True)
    errors = [relative_error(one[None], truth[None]) for one, truth in pairs]
    print(errors)
    assert np.median(errors) < 1e-5
    assert max(errors) < 0.05


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(
    "name", quickly(["guided_backprop", "deconvolution", "guided_grad_cam"], "guided_grad_cam")
)
def test_equals_captum(name: str, gap: Pair):
    network, model = gap
    photos = np.array(load_images(sample_photos(5), (64, 64), "torchvision"))
    exact = copy.deepcopy(network).double()
    method = {
        "guided_backprop": captum.attr.GuidedBackprop,
        "deconvolution": captum.attr.Deconvolution,
        "guided_grad_cam": lambda net: captum.attr.GuidedGradCam(net, net.features[29]),
    }[name](exact)
    found = flaxvgg.attribute(model, photos, CLASSES, method=name)
    check_gradients(found.values, of_captum(method, photos, exact))
    if name == "guided_grad_cam":
        smooth = of_captum(method, photos, exact, interpolate_mode="bilinear")
        found = flaxvgg.attribute(model, photos, CLASSES, method=name, interpolation="linear")
        check_gradients(found.values, smooth)
