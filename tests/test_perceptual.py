"""Perceptual losses beside PyTorch, networks with other poolings, and images that are refused."""

import json
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxvgg
from experiments.lpips_parity import peers
from flaxvgg.conversion.onnx_export import run_conv_stack
from flaxvgg.conversion.pytorch import torch_networks
from flaxvgg.network.layers import l2_pool
from flaxvgg.network.model import VGG
from flaxvgg.perceptual import contextual
from flaxvgg.weights.parameters import as_numpy
from helpers import quickly, random_images, torch_features
from parity import Port, check

UNIT = (0, 1)
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return torch_features("vgg19")


@pytest.fixture(scope="module")
def model(state: dict[str, torch.Tensor]) -> VGG:
    return flaxvgg.from_torch("vgg19", state)


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    a, b = np.random.default_rng(0).random((2, 2, 32, 48, 3), np.float32)
    return a, b


def _tap(network: Any, x: torch.Tensor, name: str) -> torch.Tensor:
    """A layer's output, by its place among torchvision's."""
    config = flaxvgg.VGGConfig.features_only("vgg19", "")
    place = config.layer_names.index(config.resolve(name))
    return network.features[: place + 1](x)


def _theirs(state: dict[str, torch.Tensor], images: Any, name: str) -> list[torch.Tensor]:
    arrays = {key: as_numpy(value) for key, value in state.items()}
    network = peers.vgg("vgg19", arrays)
    return [_tap(network, (peers.tensor(x) - MEAN) / STD, name) for x in images]


def test_perceptual_losses_are_the_published(model: VGG, state: Any, images: Any):
    loss = partial(flaxvgg.perceptual_loss, model, *images, value_range=UNIT)
    x, y = _theirs(state, images, "conv5_4")
    esrgan = (x - y).abs().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(loss(), esrgan, rtol=1e-5)
    x, y = _theirs(state, images, "relu5_4")
    srgan = ((x - y) / 12.75).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(loss(preset="srgan"), srgan, rtol=1e-5)
    x, y = _theirs(state, images, "relu2_2")
    johnson = (x - y).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(loss(preset="johnson"), johnson, rtol=1e-5)
    found = loss(layers={"conv5_4": 0.5, "relu2_2": 2}, distance="l1")
    expected = 0.5 * esrgan + 2 * (x - y).abs().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(loss(layers=["relu5_4"]), esrgan, rtol=1e-2)  # after the ReLU


def test_styles_are_the_published(model: VGG, state: Any, images: Any):
    from piq.perceptual import StyleLoss

    maps = _theirs(state, images, "relu2_1")
    grams = [StyleLoss.gram_matrix(x)[:, 0] for x in maps]
    ours = flaxvgg.gram_matrix(peers.array(maps[0]), normalise=False)
    np.testing.assert_allclose(ours, grams[0], rtol=1e-4, atol=1e-5 * float(grams[0].max()))
    _, c, h, w = maps[0].shape
    ours = flaxvgg.gram_matrix(peers.array(maps[0]))
    scaled = grams[0] / (c * h * w)
    np.testing.assert_allclose(ours, scaled, rtol=1e-4, atol=1e-5 * float(scaled.max()))

    loss = partial(flaxvgg.style_loss, model, *images, value_range=UNIT)
    gatys = 0
    for name in ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"):
        maps = _theirs(state, images, name)
        _, c, h, w = maps[0].shape
        first, second = (StyleLoss.gram_matrix(x)[:, 0] for x in maps)
        gatys = gatys + (first - second).square().sum(dim=(1, 2)) / (4 * c**2 * (h * w) ** 2) / 5
    np.testing.assert_allclose(loss(), gatys, rtol=1e-4)
    maps = _theirs(state, images, "conv5_4")
    _, c, h, w = maps[0].shape
    first, second = (StyleLoss.gram_matrix(x)[:, 0] / (c * h * w) for x in maps)
    basicsr = (first - second).abs().mean(dim=(1, 2))
    np.testing.assert_allclose(loss(preset="basicsr"), basicsr, rtol=1e-4)


def test_contextual_loss_is_the_published(
    model: VGG, state: Any, images: Any, monkeypatch: pytest.MonkeyPatch
):
    """As its authors' formula has it, with all similarities at once; in blocks that do not fit."""
    monkeypatch.setattr(contextual, "_ROWS", 10)
    contextual._compiled.clear_cache()
    x, y = (z.flatten(2).double() for z in _theirs(state, images, "relu3_4"))
    centre = y.mean(dim=2, keepdim=True)
    x, y = (torch.nn.functional.normalize(z - centre, dim=1) for z in (x, y))
    apart = (1 - torch.einsum("nci,ncj->nij", x, y)).clamp(min=0)
    relative = apart / (apart.min(dim=2, keepdim=True).values + 1e-5)
    affinity = torch.exp((1 - relative) / 0.5)
    similarity = affinity / affinity.sum(dim=2, keepdim=True)
    expected = -similarity.max(dim=1).values.mean(dim=1).log()
    loss = partial(flaxvgg.contextual_loss, model, value_range=UNIT)
    np.testing.assert_allclose(loss(*images), expected, rtol=1e-4)
    a, b = images
    assert (abs(np.asarray(loss(a, a))) < 1e-3).all()
    gradient = jax.jit(jax.grad(lambda a: loss(a, b).sum()))(a)
    assert np.isfinite(gradient).all()
    assert gradient.any()


def test_total_variation_is_torchmetrics(images: Any):
    from torchmetrics.functional.image import total_variation

    expected = total_variation(peers.tensor(images[0]), reduction="none")
    np.testing.assert_allclose(flaxvgg.total_variation(images[0]), expected, rtol=1e-5)


LOSSES: dict[str, Any] = {
    "perceptual": flaxvgg.perceptual_loss,
    "style": flaxvgg.style_loss,
    "contextual": flaxvgg.contextual_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_equal_images_are_nothing(name: str, model: VGG, images: Any):
    a, b = (x[:1] for x in images)
    layers = {"relu2_2": 1.0}

    def loss(a: Any) -> jax.Array:
        return LOSSES[name](model, a, jnp.asarray(b), value_range=UNIT, layers=layers).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(b)
    assert abs(value) < 1e-3
    assert np.isfinite(gradient).all()
    if name != "contextual":
        assert value == 0
        assert not gradient.any()
    assert np.isfinite(jax.jit(jax.grad(loss))(a)).all()


# Networks with other poolings.

KINDS = ["average zeros", "l2 zeros", "max replicate", "average replicate"]


@pytest.mark.parametrize("kind", quickly(KINDS, "l2 zeros", "average replicate"))
def test_other_poolings_keep_the_rule(kind: str, tmp_path: Any):
    pooling, padding = kind.split()
    state = torch_features("vgg11")
    model = flaxvgg.with_pooling(flaxvgg.from_torch("vgg11", state), pooling, padding=padding)
    networks = torch_networks(model.config, state)
    images = random_images(2, 33, 47)
    check(Port(model, networks), images)
    flaxvgg.save(model, tmp_path / "model.safetensors")
    again = flaxvgg.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    np.testing.assert_array_equal(again.features(images), model.features(images))
    arrays = {name: as_numpy(value) for name, value in state.items()}
    theirs = run_conv_stack(model.config, arrays, images)
    ours = model.activations(images, list(theirs))
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_poolings_by_hand():
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, 2, 2] = 4
    expected = np.sqrt(16 * np.outer([0, 0.5], [0, 0.5]) + 1e-12)
    np.testing.assert_allclose(l2_pool(jnp.asarray(x))[0, ..., 0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no pooling 'mean': choose from max, average, l2"):
        flaxvgg.VGGConfig("vgg16", (), pooling="mean")
    with pytest.raises(ValueError, match="no padding 'reflect': choose from zeros, replicate"):
        flaxvgg.VGGConfig("vgg16", (), padding="reflect")


def test_other_heads_keep_the_pooling(model: VGG):
    average = flaxvgg.with_pooling(model, "average", padding="replicate")
    config = flaxvgg.with_gap(average, 3).config
    assert (config.pooling, config.padding) == ("average", "replicate")


# What is refused: as users meet it, without the checks of types that the tests have elsewhere.

_PROGRAM = """
import json, sys, warnings
import jax, jax.numpy as jnp, numpy as np
import flaxvgg

warnings.simplefilter("error")
model = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
halved = {name: array / 2 for name, array in flaxvgg.to_torch(model).items()}
other = flaxvgg.from_torch("vgg16", halved)
small = flaxvgg.vgg11(num_classes=1)
x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
x[0, 0, 0] = 0, 1, 0.5
nan = x.copy(); nan[0, 3, 4, 1] = np.nan
said = {}
for name, call in CASES.items():
    try:
        call()
        said[name] = ""
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
_REFUSED = {
    "other shapes": ("d(x, x[:, :16], R)", "shapes (1, 32, 32, 3) and (1, 16, 32, 3)"),
    "outside": ("d(x * 2 - 1, x, R)", "first images, from -1 to 1, lie outside value_range=(0, 1)"),
    "likely range": ("d(x * 2 - 1, x, R)", "they look like value_range=(-1, 1)"),
    "pixels": ("d(x * 255, x * 255, (-1, 1))", "they look like value_range=(0, 255)"),
    "normalised": ("d((x - 0.45) / 0.22, x, (-1, 1))", "they look normalised"),
    "narrower": ("d(x, x, (-1, 1))", "is it (0, 1)?"),
    "narrower pixels": ("d(x, x, (0, 255))", "is it (0, 1)?"),
    "NaN": ("d(x, nan, R)", "a value of the second images is NaN"),
    "small": ("d(x[:, :15], x[:, :15], R)", "15x32 are too small: relu5_3 needs 16x16"),
    "grey": ("d(x[..., :1], x[..., :1], R)", "grayscale"),
    "channels first": ("d(x.transpose(0, 3, 1, 2), x, R)", "transpose (0, 2, 3, 1)"),
    "integers": ("d(x.astype(int), x, R)", "images are int64"),
    "uint8": ("d((x * 255).astype('uint8'), x, R)", "uint8 images have value_range=(0, 255)"),
    "no range": ("flaxvgg.lpips(model, x, x)", "value_range"),
    "no numbers": ("d(x, x, 'unit')", "value_range is the lowest and the highest"),
    "turned range": ("d(x, x, (1, 0))", "value_range is the lowest and the highest"),
    "version": ("d(x, x, R, version='0.2')", "no LPIPS version '0.2'"),
    "convention": ("d(x, x, R, convention='piq')", "no convention 'piq'"),
    "architecture": ("flaxvgg.lpips(small, x, x, value_range=R)", "vgg16, not of vgg11"),
    "weights": ("flaxvgg.lpips(other, x, x, value_range=R)", "other weights than torchvision's"),
    "pooling": (
        "flaxvgg.dists(flaxvgg.with_pooling(model, 'average'), x, x, value_range=R)",
        "average pooling",
    ),
    "preset": ("flaxvgg.perceptual_loss(model, x, x, value_range=R, preset='vgg')", "no preset"),
    "layer": ("flaxvgg.perceptual_loss(model, x, x, value_range=R)", "no layer 'conv5_4'"),
    "no convolution": (
        "flaxvgg.style_loss(small, x, x, value_range=R, layers=['fc6'])",
        "conv1_1 to pool5: fc6 is none",
    ),
    "bandwidth": (
        "flaxvgg.contextual_loss(model, x, x, value_range=R, layers=['relu1_1'], bandwidth=0)",
        "bandwidth must be a positive number",
    ),
    "a path": ("d('a.jpg', x, R)", "images are a path"),
}
_TAKEN = {
    "fine": "d(x, x, R)",
    "uint8 pixels": "d((x * 255).astype('uint8'), (x * 255).astype('uint8'), (0, 255))",
    "small enough": "d(x[:, :16, :16], x[:, :16, :16], R)",
    "any size of dists": "flaxvgg.dists(model, x[:, :5, :7], x[:, :5, :7], value_range=R)",
    "one image": "d(x[0], x[0], R)",
    "no images": "d(x[:0], x[:0], R)",
    "more axes": "d(x[None], x[None], R)",
    "half": "d(jnp.asarray(x, jnp.bfloat16), x, R)",
    "black": "d(x * 0, x * 0, (-1, 1))",
    "traced": "jax.jit(lambda x: d(x, x, R))(x * 9)",
    "vmapped": "jax.vmap(lambda x: d(x, x, R))(x)",
    "64 bits": "twice()",
}


def test_bad_images_are_refused_in_a_line():
    cases = {name: call for name, (call, _) in _REFUSED.items()} | _TAKEN
    lines = [f"    {name!r}: lambda: {call}," for name, call in cases.items()]
    helpers = (
        "R = (0, 1)\n"
        "def d(a, b, value_range, **options):\n"
        "    return flaxvgg.lpips(model, a, b, value_range=value_range, **options)\n"
        "def twice():\n"
        "    with jax.enable_x64(True):\n"
        "        return d(x.astype(float), x.astype(float), R)\n"
    )
    table = "CASES = {\n" + "\n".join(lines) + "\n}\n"
    program = _PROGRAM.replace("said = {}", helpers + table + "said = {}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for name, (_, words) in _REFUSED.items():
        assert words in said[name], (name, said[name])
        assert "\n" not in said[name], name
        assert said[name].startswith(("ValueError", "UserWarning", "TypeError: lpips() missing"))
    assert {name: said[name] for name in _TAKEN} == dict.fromkeys(_TAKEN, "")
