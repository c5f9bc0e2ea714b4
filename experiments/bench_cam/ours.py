"""flaxvgg's side: the calls to be timed, what they compile, and the memory they take."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flaxvgg
from experiments.memory import peak
from experiments.timing import Call, Case
from flaxvgg.cam.formulas import GRADIENT_METHODS
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG

StateDict = Mapping[str, np.ndarray]
SEVERAL = 8  # classes of one image in one call
ONLY_ONE = ("eigen_cam", "full_grad", "score_cam", "ablation_cam", "fully_convolutional", "cam")
# What the others cost follows from these: Finer-CAM, Shapley-CAM and RefineCAM are gradients, FEM
# and KPCA-CAM as Eigen-CAM, and each sample of the rest is one of Grad-CAM++ or Score-CAM.
METHODS = (*GRADIENT_METHODS, *ONLY_ONE)
_FIXED_PASSES = 2  # of Score-CAM: the image itself, and the image that is masked altogether


def model_of(config: VGGConfig, state_dict: StateDict, precision: str) -> VGG:
    """The network with torchvision's weights."""
    return flaxvgg.from_torch(config.arch, state_dict, config=config, precision=precision)


def random_images(size: int, seed: int = 0) -> np.ndarray:
    """One image (1, size, size, 3) of standard normal values."""
    return np.random.default_rng(seed).standard_normal((1, size, size, 3)).astype(np.float32)


def with_few_channels(config: VGGConfig, state_dict: StateDict, kept: int, precision: str) -> VGG:
    """The same network with all but the first channels of its last convolution at zero.

    Score-CAM then has only so many masks that differ: the same program with less to do.
    """
    last = [layer for layer in config.conv_stack if layer.kind == "conv"][-1].torch
    cut = {name: array.copy() for name, array in state_dict.items() if name.startswith(last + ".")}
    for array in cut.values():
        array[kept:] = 0
    return model_of(config, {**state_dict, **cut}, precision)


def width(model: VGG) -> int:
    """Channels of the last convolution."""
    return [layer.outputs for layer in model.config.conv_stack if layer.kind == "conv"][-1]


def cases(
    model: VGG,
    few: VGG,
    kept: int,
    images: np.ndarray,
    methods: Sequence[str],
    tool: str,
    *,
    all_classes: bool = True,
) -> Iterator[Case]:
    """Every method for one class, and those whose cost depends on the classes for 8 and for all.

    `few` is the model with `kept` channels, on which Score-CAM is timed.
    """
    x = jnp.asarray(images)
    forward = _forward(model, x)
    every = model.config.num_classes
    for method in methods:
        if method == "cam":
            gap = flaxvgg.with_gap(model, every, rngs=nnx.Rngs(0))
            yield Case(method, 1, tool, _explain(gap, x, 1, method), _forward(gap, x))
        elif method == "score_cam":
            call = _explain(few, x, 1, method)
            yield Case(method, 1, tool, call, forward, kept, width(model), _FIXED_PASSES)
        else:
            classes = [1] if method in ONLY_ONE else [1, SEVERAL, every]
            if every in classes and (not all_classes or method == "eigen_grad_cam"):
                classes.remove(every)  # Eigen-Grad-CAM takes one decomposition for each
            for k in classes:
                yield Case(method, k, tool, _explain(model, x, k, method), forward)


def compilations(model: VGG, images: np.ndarray, method: str) -> dict[str, int]:
    """Programs compiled by the first call, and by one with other classes, images and weights."""
    if method == "cam":
        model = flaxvgg.with_gap(model, model.config.num_classes, rngs=nnx.Rngs(0))
    x = jnp.asarray(images)
    other = jax.tree.map(lambda array: array * 0.5, model)
    other_images = jax.block_until_ready(x[:, ::-1] * 2)
    found = {}
    for call, (network, batch, classes) in {
        "first": (model, x, [1, 2]),
        "other classes": (model, x, [3, 0]),
        "other images": (model, other_images, [1, 2]),
        "other weights": (other, x, [1, 2]),
    }.items():
        with _counting() as compiled:
            jax.block_until_ready(flaxvgg.explain(network, batch, classes, method=method))
        found[call] = len(compiled)
    return found


@contextlib.contextmanager
def _counting() -> Iterator[list[str]]:
    compiled = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_memory(model: VGG, images: np.ndarray, method: str) -> dict[str, float] | None:
    """Gigabytes that this process holds before a call for all classes, and at most during it.

    Of the second call: the first also holds what the compiler needs. None where the kernel does not
    tell (Linux does, of a process about itself).
    """
    call = _explain(model, jnp.asarray(images), model.config.num_classes, method)
    call()
    return peak(call)


def _explain(model: VGG, images: jax.Array, classes: int, method: str) -> Call:
    wanted = "all" if classes == model.config.num_classes else list(range(classes))
    return lambda: jax.block_until_ready(flaxvgg.explain(model, images, wanted, method=method))


def _forward(model: VGG, images: jax.Array) -> Call:
    return lambda: jax.block_until_ready(_logits(model, images))


_logits: Callable[[VGG, jax.Array], jax.Array] = jax.jit(lambda model, images: model(images))
