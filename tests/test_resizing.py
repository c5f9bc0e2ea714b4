"""Resizing against PyTorch and OpenCV."""

import inspect

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxvgg.images.resizing import resize

MAPS = np.random.default_rng(0).standard_normal((2, 14, 11)).astype(np.float32)
MODES = {"linear": ("bilinear", cv2.INTER_LINEAR), "cubic": ("bicubic", cv2.INTER_CUBIC)}


@pytest.mark.parametrize("size", [(224, 320), (7, 30), (14, 11), (5, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("interpolation", MODES)
def test_equals_pytorch_and_opencv(size: tuple[int, int], interpolation: str):
    mode, flag = MODES[interpolation]
    ours = resize(jnp.asarray(MAPS), size, interpolation)
    theirs = [cv2.resize(x, size[::-1], interpolation=flag) for x in MAPS]
    assert ours == pytest.approx(np.stack(theirs), abs=3e-6)
    for align_corners in (False, True):
        tensor = torch.from_numpy(MAPS)[None]
        kwargs = {"mode": mode, "align_corners": align_corners}
        expected = torch.nn.functional.interpolate(tensor, size, **kwargs)[0].numpy()
        found = resize(jnp.asarray(MAPS), size, interpolation, align_corners=align_corners)
        assert found == pytest.approx(expected, abs=1e-5)  # PyTorch's positions are in float32


def test_unknown_interpolation():
    with pytest.raises(ValueError, match="choose from linear, cubic"):
        inspect.unwrap(resize)(jnp.asarray(MAPS), (3, 3), "lanczos")
