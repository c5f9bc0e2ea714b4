"""What is timed, run in a process of its own by the path of this file: flaxvgg is a commit's.

It reads one line at a time: a case's name makes the case ready, an empty line runs it once. Every
line is answered by one that begins with MARK: nothing more, or why this commit has no such case.
Nothing of `experiments` is imported: that would be another commit's.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

MARK = "@ "
Call = Callable[[], object]


def _images(batch: int, size: int) -> Any:
    import jax
    import numpy as np

    shape = batch, size, size, 3
    return jax.device_put(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


@functools.cache
def _model(arch: str) -> Any:
    from flax import nnx

    import flaxvgg

    model = getattr(flaxvgg, arch)(num_classes=1, rngs=nnx.Rngs(0))
    return flaxvgg.with_gap(model, 20, rngs=nnx.Rngs(1))


@functools.cache
def _features() -> Any:
    import jax

    return jax.jit(lambda model, images: model.features(images))


def stack(arch: str, batch: int, size: int) -> Call:
    """The convolutions, jitted, with the model as an argument."""
    import jax

    model, images = _model(arch), _images(batch, size)
    return lambda: jax.block_until_ready(_features()(model, images))


def prepared(arch: str, batch: int, size: int) -> Call:
    """The same of a prepared model."""
    import jax

    import flaxvgg

    model, images = flaxvgg.prepare(_model(arch), (size, size)), _images(batch, size)
    return lambda: jax.block_until_ready(_features()(model, images))


def grad_cam(arch: str, batch: int, size: int) -> Call:
    """Grad-CAM of one class."""
    import jax

    import flaxvgg

    model, images = _model(arch), _images(batch, size)
    return lambda: jax.block_until_ready(
        flaxvgg.explain(model, images, classes=3, method="grad_cam").maps
    )


def training(arch: str, batch: int, size: int) -> Call:
    """A step of SGD on everything."""
    import jax
    import numpy as np

    import flaxvgg

    model, images = _model(arch), _images(batch, size)
    labels = jax.device_put(np.eye(20, dtype=np.float32)[np.arange(batch) % 20])
    trainer = flaxvgg.Trainer.of(model, flaxvgg.Optimisation(optimiser="sgd", learning_rate=1e-6))
    state = trainer.start(model)

    def call() -> None:
        nonlocal state
        state, report = trainer.step(state, images, labels)
        jax.block_until_ready(report)

    return call


CASES: dict[str, Callable[[], Call]] = {
    "stack, 1 x 64x64": functools.partial(stack, "vgg16", 1, 64),
    "stack, 1 x 112x112": functools.partial(stack, "vgg16", 1, 112),
    "stack, 1 x 224x224": functools.partial(stack, "vgg16", 1, 224),
    "stack, 8 x 224x224": functools.partial(stack, "vgg16", 8, 224),
    "prepared, 1 x 64x64": functools.partial(prepared, "vgg16", 1, 64),
    "prepared, 1 x 224x224": functools.partial(prepared, "vgg16", 1, 224),
    "Grad-CAM, 1 x 224x224": functools.partial(grad_cam, "vgg16", 1, 224),
    "training step, 4 x 112x112": functools.partial(training, "vgg16", 4, 112),
    "tiny": functools.partial(stack, "vgg11", 1, 32),
}


def _serve() -> None:
    call: Call = lambda: None  # noqa: E731
    for line in sys.stdin:
        reason = ""
        if name := line.strip():
            try:
                call = CASES[name]()
                call()
            except (AttributeError, ImportError) as error:  # this commit has not got it
                reason = f"{type(error).__name__}: {error}"
        else:
            call()
        print(MARK + reason.replace("\n", " "), flush=True)


if __name__ == "__main__":
    _serve()
