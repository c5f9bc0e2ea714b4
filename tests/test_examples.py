"""The examples in the docstrings of public functions and classes, as a reader would run them."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import flaxvgg
from networks import random_images, random_model

_SHOWN = [
    name
    for name in flaxvgg.__all__
    if callable(public := getattr(flaxvgg, name))
    and not (inspect.isclass(public) and issubclass(public, Exception))
]


@pytest.fixture(scope="module")
def names():
    """What the examples take as given: a small model, images, and a network with a classifier."""
    convolutions = random_model(flaxvgg.VGGConfig.features_only("vgg11", "an example"))
    return {
        "flaxvgg": flaxvgg,
        "jax": jax,
        "jnp": jnp,
        "nnx": nnx,
        "np": np,
        "model": flaxvgg.with_gap(convolutions, 3, rngs=nnx.Rngs(0)),
        "classifier": flaxvgg.vgg11(num_classes=3, rngs=nnx.Rngs(0)),
        "images": jnp.asarray(random_images(2, 64, 64)),
    }


@pytest.mark.parametrize("name", _SHOWN)
def test_the_example_runs(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("vgg"):  # to draw 120 million numbers takes seconds, and shows nothing
        monkeypatch.setattr("flaxvgg.network.model._LINEAR_INIT", nnx.initializers.zeros)
    (tmp_path / "photos").mkdir()
    photo = Image.new("RGB", (80, 60), "teal")
    photo.save("cat.jpg")
    photo.save("photos/dog.png")
    (test,) = doctest.DocTestFinder(recurse=False).find(
        getattr(flaxvgg, name), name, globs=dict(names)
    )
    assert test.examples, f"flaxvgg.{name} has no example"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)
