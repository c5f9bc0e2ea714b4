"""Layer by layer beside PyTorch and ONNX Runtime, by the numbers rule (`rule`)."""

import importlib.util
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxvgg.conversion.onnx_export import run_conv_stack
from flaxvgg.conversion.pytorch import torch_networks, torch_references
from flaxvgg.conversion.rule import LayerCheck, Reference, compare
from flaxvgg.conversion.source_weights import CannotRunError, SourceError, SourceWeights
from flaxvgg.images.loading import load_images, normalise
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.weights.mapping import as_numpy, build, model_arrays


@jax.jit
def all_outputs(model: VGG, images: jax.Array) -> dict[str, jax.Array]:
    """The output of every layer of the model, by its name."""
    return model.activations(images, model.config.layer_names)


def jax_truth(model: VGG, images: np.ndarray, layers: list[str]) -> dict[str, np.ndarray]:
    """The model's own layers computed in float64, the truth where PyTorch is not installed."""
    with jax.enable_x64(True):
        arrays = {
            path: np.asarray(value, np.float64) for path, value in model_arrays(model).items()
        }
        double = build(model.config, arrays, dtype=jnp.float64, param_dtype=jnp.float64)
        outputs = all_outputs(double, jnp.asarray(images, jnp.float64))
        return {name: np.asarray(outputs[name]) for name in layers}


def verification_images(preprocessing: Preprocessing) -> tuple[np.ndarray, str]:
    """Two images to verify on, (2, 224, 224, 3), and what they are.

    Real photos where scikit-image is installed, else noise with a photo's spectrum.
    """
    photos = sample_photos(2)
    if photos:
        images = np.asarray(load_images(photos, preprocessing=preprocessing))
        return images, " and ".join(photo.stem for photo in photos)
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(224), np.fft.fftfreq(224)))
    spectrum = np.fft.fft2(rng.standard_normal((2, 3, 224, 224))) / np.maximum(frequency, 1 / 224)
    noise = np.moveaxis(np.fft.ifft2(spectrum).real, 1, -1)
    noise = (noise - noise.min()) / np.ptp(noise) * 255
    return np.asarray(normalise(noise.astype(np.uint8), preprocessing)), "noise of 1/f spectrum"


def verify(model: VGG, source: SourceWeights, images: np.ndarray) -> dict[str, list[LayerCheck]]:
    """Check the model against every framework at hand that can run its source.

    `source` is read anew: what is compared is what the file says, not what became of it. Returns
    the checks by the name of the framework; PyTorch takes part where torch and torchvision are
    installed, ONNX Runtime where the source is an ONNX file, and, without PyTorch, on an export of
    weights that have no classifier. One that does not run the source is left out where another
    does, with a line in `source.notes`. Raises SourceError where none can.
    """
    config = model.config
    parameters = {path: np.asarray(value) for path, value in model_arrays(model).items()}
    names = list(config.layer_names)
    ours = all_outputs(model, jnp.asarray(images))
    checks: dict[str, list[LayerCheck]] = {}

    def check(peer: str, references: Iterable[Reference]) -> None:
        checks[peer] = list(compare(config, parameters, images, dict(ours), peer, references))

    truth: dict[str, np.ndarray] = {}
    if _has("torch", "torchvision"):
        rounded = _rounded(source.state_dict, parameters["conv_stack", "conv1_1", "kernel"].dtype)
        references = list(torch_references(config, torch_networks(config, rounded), images))
        truth = {reference.layer: reference.truth for reference in references}
        check("PyTorch", references)
    run = source.layer_outputs
    if run is None and not checks and not config.head and _has("onnx", "onnxruntime"):
        rounded = _rounded(source.state_dict, parameters["conv_stack", "conv1_1", "kernel"].dtype)
        run = partial(run_conv_stack, config, rounded)
    if run is not None:
        try:
            outputs = run(images)
        except CannotRunError as error:
            if not checks:
                raise SourceError(f"{error}, and torch and torchvision are missing too") from None
            source.notes += (f"{error}: verified against PyTorch alone",)
        else:
            layers = [name for name in names if name in outputs]
            truth = truth or jax_truth(model, images, layers)
            check("ONNX Runtime", [Reference(name, truth[name], outputs[name]) for name in layers])
    if not checks:
        raise SourceError(
            "nothing to verify against: install torch and torchvision, or onnx and onnxruntime for "
            "ONNX files and for weights without a classifier"
        )
    return checks


def _has(*packages: str) -> bool:
    return all(importlib.util.find_spec(name) for name in packages)


def _rounded(state_dict: Mapping[str, Any], dtype: np.dtype) -> dict[str, np.ndarray]:
    """The state dict as `--dtype` stores it: both sides then run the same weights."""
    arrays = {name: as_numpy(value) for name, value in state_dict.items()}
    return {
        name: array if "running_" in name or array.ndim == 0 else array.astype(dtype)
        for name, array in arrays.items()
    }
