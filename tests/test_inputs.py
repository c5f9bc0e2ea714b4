"""What people give to a model as images: taken where that is natural, else one line that helps."""

import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import xarray
from flax import nnx
from PIL import Image

import flaxvgg
from flaxvgg.images.loading import normalise
from flaxvgg.network.config import VGGConfig, listed
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING
from helpers import small_model
from networks import random_images, tiny_vgg

IMAGES = random_images(2, 32, 33)


TAKEN = {
    "NumPy": IMAGES,
    "JAX": jnp.asarray(IMAGES),
    "big-endian": IMAGES.astype(">f4"),
    "a list": list(IMAGES),
    "a tuple": tuple(IMAGES),
    "a list of JAX arrays": [jnp.asarray(x) for x in IMAGES],
    "a list of both": [IMAGES[0], jnp.asarray(IMAGES[1])],
    "torch": torch.from_numpy(IMAGES),
    "torch, in another order": torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous()
    .permute(0, 2, 3, 1),
    "torch with a gradient": torch.from_numpy(IMAGES).requires_grad_(),
    "a list of tensors": list(torch.from_numpy(IMAGES)),
    "not contiguous": np.repeat(IMAGES, 2, axis=2)[:, :, ::2],
    "a variable of flax": nnx.Variable(jnp.asarray(IMAGES)),
    "xarray": xarray.DataArray(IMAGES),
    "read-only": np.broadcast_to(IMAGES, IMAGES.shape),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(name: str):
    found = check_images(TAKEN[name], PREPROCESSING["torchvision"])
    np.testing.assert_array_equal(np.asarray(found), IMAGES)
    assert found.dtype == np.float32
    jnp.asarray(found)  # JAX has no other byte order


def test_a_model_takes_them_too():
    model = tiny_vgg()
    run = inspect.unwrap(VGG.activations)  # jaxtyping would speak first
    expected = run(model, IMAGES, ["fc8"])["fc8"]
    for name in ("big-endian", "a list", "torch"):
        np.testing.assert_array_equal(run(model, TAKEN[name], ["fc8"])["fc8"], expected)


def test_shapes_alone_are_enough_for_tracing():
    given = jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)
    assert check_images(given, PREPROCESSING["torchvision"]) is given


PHOTO = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
WHAT_TO_CALL = (
    "the network takes a normalised float array (N, H, W, 3), which model.load_images(paths) "
    "makes of files"
)
REFUSED = {
    "a path": ("cat.jpg", f"images are a path, 'cat.jpg': {WHAT_TO_CALL}"),
    "a Path": (Path("cat.jpg"), f"images are a path, 'cat.jpg': {WHAT_TO_CALL}"),
    "paths": (["cat.jpg"], f"images are a path, 'cat.jpg': {WHAT_TO_CALL}"),
    "a PIL image": (PHOTO, f"images are of type PIL.Image.Image: {WHAT_TO_CALL}"),
    "PIL images": ([PHOTO], f"images are of type PIL.Image.Image: {WHAT_TO_CALL}"),
    "nothing": ([], f"images are an empty list: {WHAT_TO_CALL}"),
    "None": (None, f"images are of type builtins.NoneType: {WHAT_TO_CALL}"),
    "a dictionary": ({"image": IMAGES}, f"images are of type builtins.dict: {WHAT_TO_CALL}"),
    "a number": (3.0, f"images are of type builtins.float: {WHAT_TO_CALL}"),
    "pixels": (
        np.zeros((1, 32, 32, 3), np.uint8),
        "images are uint8: the network takes normalised floats (model.load_images)",
    ),
    "pixels of torch": (
        torch.zeros((1, 32, 32, 3), dtype=torch.uint8),
        "images are uint8: the network takes normalised floats (model.load_images)",
    ),
    "PyTorch's layout": (
        IMAGES.transpose(0, 3, 1, 2),
        "images must have shape (N, H, W, 3), not (2, 3, 32, 33); channels come last in JAX: "
        "transpose (0, 2, 3, 1)",
    ),
    "PyTorch's tensors": (
        torch.zeros((3, 32, 32)),
        "images must have shape (N, H, W, 3), not (3, 32, 32); channels come last in JAX: "
        "transpose (0, 2, 3, 1)",
    ),
    "images of several sizes": (
        [IMAGES[0], IMAGES[1, :, :32]],
        "images of a list must have one shape, not (32, 32, 3), (32, 33, 3): "
        "model.load_images(paths, size) brings them to one",
    ),
    "small images": (
        np.zeros((1, 31, 32, 3), np.float32),
        "images of 31x32 are too small: at least 32x32 survive five poolings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_call(name: str):
    given, line = REFUSED[name]
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the whole line is compared
        check_images(given, PREPROCESSING["torchvision"])
    assert str(refusal.value) == line


@pytest.mark.parametrize("recipe", PREPROCESSING)
def test_no_normalised_image_is_warned_of(recipe: str):
    random = np.random.default_rng(0)
    # For every value an image of one colour, and noise of it and the next; and of all values.
    value = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    flat = np.broadcast_to(value, (256, 32, 32, 3))
    noise = np.minimum(flat, 254) + random.integers(0, 2, flat.shape, np.uint8)
    coloured = np.broadcast_to(random.integers(0, 256, (256, 1, 1, 3), np.uint8), flat.shape)
    every = random.integers(0, 256, (1, *flat.shape[1:]), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pixels in (flat, noise, coloured, every):
            for image in np.asarray(normalise(pixels, recipe)):
                check_images(image, PREPROCESSING[recipe])


@pytest.mark.parametrize(
    ("recipe", "low", "high", "told"),
    [
        ("torchvision", 0, 255, "larger"),
        ("unit", 0, 255, "larger"),
        ("features", -3e5, 3e5, "larger"),
        ("keras", 0, 1, "smaller"),
        ("features", 0, 1, "smaller"),
        ("pixels", 0, 1, "smaller"),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, torch.from_numpy])
def test_another_recipes_range_is_told(recipe: str, low: float, high: float, told: str, kind):
    images = np.random.default_rng(0).uniform(low, high, (2, 64, 64, 3)).astype(np.float32)
    match = rf"are {told} than .* the recipe '{recipe}': model.load_images\(paths\), or"
    with pytest.warns(UserWarning, match=match):
        check_images(kind(images), PREPROCESSING[recipe])


def test_the_range_is_told_where_the_model_is_called():
    with pytest.warns(UserWarning, match=r"^images from .* are larger than"):
        tiny_vgg().activations(255 * abs(IMAGES), ["pool2"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_values_that_are_no_images_do_not_hide_the_range(value: float):
    images = np.full((1, 32, 32, 3), value, np.float32)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_images(images, PREPROCESSING["torchvision"])
    assert len(told) == np.isfinite(value)


def test_a_layer_that_is_no_name():
    with pytest.raises(
        ValueError, match=r"^layers must be a list of names such as 'pool5', not 3$"
    ):
        inspect.unwrap(listed)(3)


def test_a_number_of_classes_that_is_none():
    of_gap = inspect.unwrap(VGGConfig.gap.__func__)
    for wrong in ("3", 3.0, None):
        with pytest.raises(ValueError, match=f"^num_classes must be a whole number, not {wrong!r}"):
            of_gap(VGGConfig, "vgg11", num_classes=wrong)
    with pytest.raises(ValueError, match=r"^channels must be a whole number, not '64'"):
        of_gap(VGGConfig, "vgg11", num_classes=2, channels="64")
    config = of_gap(VGGConfig, "vgg11", num_classes=np.int64(3), channels=np.int32(64))
    assert VGGConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_platform_that_is_not_there_is_one_line(tmp_path: Path):
    flaxvgg.save(small_model(), tmp_path / "w.safetensors")
    PHOTO.save(tmp_path / "photo.png")
    command = [str(Path(sys.executable).with_name("flaxvgg")), "features", "photo.png"]
    done = subprocess.run(
        [*command, "--weights", "w.safetensors"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "rocm"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert " ".join(done.stderr.split()) == (
        "error: JAX finds no device here that is meant by JAX_PLATFORMS=rocm: unset it, or set "
        "JAX_PLATFORMS=cpu"
    )
