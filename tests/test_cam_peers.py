"""Heat maps against the packages grad-cam and torchcam, with real convolutions, on photos.

At features.29, behind the ReLU: at features.28 their hooks pair activations that the in-place ReLU
has overwritten with gradients from before it. The classifier is random, since no package on PyPI
carries ImageNet's.
"""

import warnings
from functools import partial

import jax
import numpy as np
import pytest
import torch
import torchcam.methods
import torchvision
from pytorch_grad_cam import (
    FEM,
    KPCA_CAM,
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    XGradCAM,
)
from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget
from sklearn.exceptions import ConvergenceWarning

import flaxvgg
from flaxvgg import Flag
from flaxvgg.cam.conventions import CONVENTIONS
from flaxvgg.conversion.reading import read_source
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from helpers import REAL_WEIGHTS, quickly

LAYER = "features.29"
CLASSES = [3, 7]
GRAD_CAM = {
    "grad_cam": GradCAM,
    "grad_cam++": GradCAMPlusPlus,
    "xgrad_cam": XGradCAM,
    "hires_cam": HiResCAM,
    "layer_cam": LayerCAM,
    "elementwise_grad_cam": GradCAMElementWise,
    "eigen_cam": EigenCAM,
    "eigen_grad_cam": EigenGradCAM,
    "full_grad": FullGrad,
    "score_cam": ScoreCAM,
    "ablation_cam": AblationCAM,
    "shapley_cam": ShapleyCAM,
    "fem": FEM,
    "kpca_cam": KPCA_CAM,
}
TORCHCAM = {
    "grad_cam": torchcam.methods.GradCAM,
    "grad_cam++": torchcam.methods.GradCAMpp,
    "xgrad_cam": torchcam.methods.XGradCAM,
    "layer_cam": torchcam.methods.LayerCAM,
    "score_cam": torchcam.methods.ScoreCAM,
    "finer_cam": torchcam.methods.FinerCAM,
    "refine_cam": torchcam.methods.RefineCAM,
    "is_cam": partial(torchcam.methods.ISCAM, num_samples=2),
    "ss_cam": partial(torchcam.methods.SSCAM, num_samples=2),
    "smooth_grad_cam++": torchcam.methods.SmoothGradCAMpp,
}
MASKING = ("score_cam", "ss_cam", "is_cam")
KEY = jax.random.key(7)
OPTIONS = {
    "is_cam": {"samples": 2},
    "ss_cam": {"key": KEY, "samples": 2},
    "smooth_grad_cam++": {"key": KEY},
}
SEVERAL = ("features.22", LAYER)
SIGNLESS = ("eigen_cam", "eigen_grad_cam", "kpca_cam")  # grad-cam's sign is LAPACK's
SLOW = (*MASKING, "ablation_cam")  # 512 passes here or there, or more
# Of the map's range. Both sides are float32: 13 layers of sums of up to 9 x 512 terms, whose
# roundings of half an eps add up at random, are apart by 13 sqrt(4608) eps / 2. Measured: 2e-6.
ROUNDINGS = 13 * 4608**0.5 * float(np.finfo(np.float32).eps) / 2  # 5.3e-5
# Ablation-CAM divides differences of nearly equal scores by a score.
TOLERANCE = {"ablation_cam": 1e-3, "full_grad": 2e-3}
# In FullGrad, gradients take another way where a pooling window's two largest values are equal but
# for rounding, or a pre-activation is zero but for it; each such place shows in a few pixels.
ELSEWHERE = {"full_grad": 0.02}  # of the pixels


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.vgg16(num_classes=10).eval()
    real = read_source(REAL_WEIGHTS).state_dict
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in real.items()}
    network.load_state_dict(tensors, strict=False)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
        if isinstance(module, torch.nn.Linear):  # scores of the size that trained ones have
            torch.nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(0))
    return network


@pytest.fixture(scope="module")
def model(network: torch.nn.Module) -> VGG:
    provenance = read_source(REAL_WEIGHTS).provenance  # photos as these weights expect them
    return flaxvgg.from_torch(
        "vgg16", network.state_dict(), precision="default", provenance=provenance
    )


Pair = tuple[torch.nn.Module, VGG]


@pytest.fixture(scope="module")
def pair(network: torch.nn.Module, model: VGG) -> Pair:
    """The same network here and there, with its classifier."""
    return network, model


@pytest.fixture(scope="module")
def gap_pair(network: torch.nn.Module, model: VGG) -> Pair:
    """The same network here and there, with a GAP head, for what takes hundreds of passes."""
    gap = flaxvgg.with_gap(model, 10, rngs=flaxvgg.network.model.nnx.Rngs(0))
    theirs = torchvision.models.VGG(network.features, init_weights=False).eval()
    theirs.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    theirs.classifier = torch.nn.Linear(512, 10)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in flaxvgg.to_torch(gap).items()})
    return theirs, gap


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.array(load_images(sample_photos(2), (80, 64), "torchvision"))


def ours(model: VGG, images: np.ndarray, method: str, convention: str, layers=(LAYER,), sign=1):
    classes = np.array(CLASSES)[: len(images), None]
    layer = None if method == "full_grad" else layers
    options = OPTIONS.get(method, {})
    found = flaxvgg.explain(model, images, classes, method, layer, convention, **options)
    assert np.isin(found.flags, (Flag.FINE, Flag.NEGATIVE)).all(), method
    return np.asarray(jax.tree.map(lambda x: sign * x, found).heatmaps())[:, 0]


def of_grad_cam(network, images: np.ndarray, method: str, layers=(LAYER,)) -> np.ndarray:
    modules = [] if method == "full_grad" else [network.get_submodule(name) for name in layers]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    with GRAD_CAM[method](model=network, target_layers=modules) as cam:
        return cam(tensor, [ClassifierOutputTarget(c) for c in CLASSES[: len(images)]])


class Replayed:
    """What `sample` of torchcam's distribution gives in turn: the noise that we draw from `KEY`."""

    def __init__(self, method: str, shape: tuple[int, ...], deviation: float):
        self.method, self.shape, self.deviation, self.calls = method, shape, deviation, 0

    def sample(self, size: torch.Size) -> torch.Tensor:
        key = jax.random.fold_in(KEY, self.calls)
        self.calls += 1
        if self.method == "ss_cam":  # a map for each channel
            keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(np.arange(size[1]))
            noise = jax.vmap(lambda key: jax.random.normal(key, self.shape[1:3]))(keys)[None]
        else:  # an image
            noise = jax.random.normal(key, (1, *self.shape[1:])).transpose(0, 3, 1, 2)
        return torch.from_numpy(self.deviation * np.array(noise)).expand(size)


def of_torchcam(network, images: np.ndarray, method: str, layers=(LAYER,)) -> np.ndarray:
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().requires_grad_()
    with TORCHCAM[method](network, list(layers)) as cam:
        if method in ("ss_cam", "smooth_grad_cam++"):
            cam._distrib = Replayed(method, images.shape, cam.std)
        maps = cam(CLASSES[: len(images)], network(tensor))
        return cam.fuse_cams(maps).detach().numpy()


@pytest.mark.parametrize(
    "method", quickly(GRAD_CAM, *set(GRAD_CAM) - {"score_cam", "ablation_cam"})
)
def test_equals_grad_cam(pair: Pair, gap_pair: Pair, photos: np.ndarray, method: str):
    network, model = gap_pair if method in MASKING else pair
    images = photos[:1, :32, :32] if method in SLOW else photos
    expected = of_grad_cam(network, images, method)
    found = ours(model, images, method, "grad-cam")
    if method in SIGNLESS:
        turned = ours(model, images, method, "grad-cam", sign=-1)
        distance = [np.abs(x - expected).max(axis=(1, 2)) for x in (found, turned)]
        nearer = (distance[0] < distance[1])[:, None, None]
        found = np.where(nearer, found, turned)
    print(f"\n{method}: {np.abs(found - expected).max():.1e} from grad-cam's")
    assert found.shape == expected.shape == images.shape[:3]
    apart = np.abs(found - expected) > TOLERANCE.get(method, ROUNDINGS)
    assert apart.mean() <= ELSEWHERE.get(method, 0)
    assert expected.std() > 0.02


@pytest.mark.parametrize("method", quickly(TORCHCAM, *set(TORCHCAM) - set(MASKING)))
def test_equals_torchcam(pair: Pair, gap_pair: Pair, photos: np.ndarray, method: str):
    network, model = gap_pair if method in MASKING else pair
    images = photos[:1, :32, :32] if method in SLOW else photos
    layers = SEVERAL if method == "refine_cam" else (LAYER,)
    expected = of_torchcam(network, images, method, layers)
    found = ours(model, images, method, "torchcam", layers)
    print(f"\n{method}: {np.abs(found - expected).max():.1e} from torchcam's")
    stride = 8 if method == "refine_cam" else 16
    assert found.shape == expected.shape == (len(images), *(s // stride for s in images.shape[1:3]))
    assert found == pytest.approx(expected, abs=ROUNDINGS)
    assert expected.std() > 0.02


@pytest.mark.parametrize("method", ["layer_cam"])
def test_several_layers_are_joined_as_theirs(pair: Pair, photos: np.ndarray, method: str):
    network, model = pair
    layers = ("features.22", LAYER)
    joined = ours(model, photos, method, "grad-cam", layers)
    assert joined == pytest.approx(of_grad_cam(network, photos, method, layers), abs=ROUNDINGS)
    joined = ours(model, photos, method, "torchcam", layers)
    assert joined == pytest.approx(of_torchcam(network, photos, method, layers), abs=ROUNDINGS)


def test_finer_cam_equals_grad_cams(pair: Pair, photos: np.ndarray):
    # grad-cam finds the closest classes itself where it is given the index of one class.
    network, model = pair
    tensor = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    with FinerCAM(network, [network.get_submodule(LAYER)]) as cam:
        maps = [cam(tensor[i : i + 1], target_idx=c)[0] for i, c in enumerate(CLASSES)]
    found = ours(model, photos, "finer_cam", "grad-cam")
    print(f"\nfiner_cam: {np.abs(found - maps).max():.1e} from grad-cam's")
    assert found == pytest.approx(np.stack(maps), abs=ROUNDINGS)
    assert np.stack(maps).std() > 0.02
    plain = ours(model, photos, "grad_cam", "grad-cam")
    assert np.abs(plain - found).max() > 0.05


@pytest.mark.slow  # torchcam's is in the quick suite
def test_refine_cam_equals_grad_cams(pair: Pair, photos: np.ndarray):
    network, model = pair
    tensor = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    cam = RefineCAM(network, [network.get_submodule(name) for name in SEVERAL])
    expected = cam(tensor, [ClassifierOutputTarget(c) for c in CLASSES])
    for base in cam.base_cam_per_layer:
        base.activations_and_grads.release()
    found = ours(model, photos, "refine_cam", "grad-cam", SEVERAL)
    print(f"\nrefine_cam: {np.abs(found - expected).max():.1e} from grad-cam's")
    assert found == pytest.approx(expected, abs=ROUNDINGS)
    assert expected.std() > 0.02


def test_factors_are_those_of_scikit_learn(pair: Pair, photos: np.ndarray):
    # What grad-cam's `DeepFeatureFactorization` computes of one image at a time.
    _, model = pair
    activations = np.asarray(model.activations(photos, [LAYER])[LAYER])
    found = flaxvgg.explain(model, photos, method="dff", layer=LAYER, concepts=4)
    assert found.classes.tolist() == [[-1] * 4] * 2
    for maps, a in zip(np.asarray(found.maps), activations, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs = dff(a.transpose(2, 0, 1)[None].copy(), n_components=4)[1]
        scale = float(np.abs(theirs).max())
        print(f"\nfactors: {np.abs(maps - theirs[0]).max() / scale:.1e} from grad-cam's")
        # Rounding may end one a sweep earlier, where another changes less than this.
        assert maps == pytest.approx(theirs[0], abs=1e-3 * scale)
        assert theirs[0].std() > 0.02 * scale


@pytest.mark.slow
def test_shapley_cam_of_the_papers_score_equals_grad_cams(pair: Pair, photos: np.ndarray):
    # grad-cam takes logits unless it is told otherwise; the paper's score has a Hessian.
    network, model = pair
    tensor = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    with ShapleyCAM(network, [network.get_submodule(LAYER)]) as cam:
        expected = cam(tensor, [ClassifierOutputReST(c) for c in CLASSES])
    classes = np.array(CLASSES)[:, None]
    raw = flaxvgg.explain(model, photos, classes, "shapley_cam", LAYER)
    found = np.asarray(CONVENTIONS["grad-cam"].heatmaps(raw.layer_maps, "shapley_cam", (80, 64)))
    print(f"\nshapley_cam: {np.abs(found[:, 0] - expected).max():.1e} from grad-cam's")
    assert found[:, 0] == pytest.approx(expected, abs=ROUNDINGS)
    logit = ours(model, photos, "shapley_cam", "grad-cam")
    assert np.abs(logit - expected).max() > 0.01


def test_cam_equals_torchcams(gap_pair: Pair, photos: np.ndarray):
    theirs, gap = gap_pair
    with torchcam.methods.CAM(theirs, "features.30", "classifier") as cam:
        theirs(torch.from_numpy(photos).permute(0, 3, 1, 2))
        expected = cam(CLASSES)[0].numpy()
    assert ours(gap, photos, "cam", "torchcam", None) == pytest.approx(expected, abs=ROUNDINGS)


def test_torchcams_grad_cam_plus_plus_is_not_the_papers(model: VGG, photos: np.ndarray):
    # Documented: its division by 2 g^2 + sum(A) g^3 works on a copy.
    def maps(convention: str) -> jax.Array:
        return flaxvgg.explain(model, photos, 3, "grad_cam++", LAYER, convention).maps

    paper, grad_cam, torchcams = (np.asarray(maps(c)).ravel() for c in flaxvgg.CONVENTIONS)
    assert np.corrcoef(paper, grad_cam)[0, 1] > 0.999
    assert np.corrcoef(paper, torchcams)[0, 1] < 0.999
