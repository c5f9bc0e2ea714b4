"""Layer by layer: our float32 outputs and zeros beside another framework's, against float64.

The rule: at every layer our error against the float64 truth is at most 1.5 times PyTorch's own
float32 error (twice ONNX Runtime's), or at most 2 eps, where both are so small that their ratio
only counts roundings; every output of a ReLU is >= 0; and where the truth and we disagree about
which activations are zero, the true pre-activation is within rounding of zero.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxvgg.conversion.onnx_export import run_conv_stack
from flaxvgg.conversion.source_weights import CannotRunError, SourceError, SourceWeights
from flaxvgg.images.loading import load_images, normalise
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.weights.mapping import as_numpy, build, model_arrays

MAX_RATIO = {"PyTorch": 1.5, "ONNX Runtime": 2.0}
FLOOR = 2 * float(np.finfo(np.float32).eps)  # 2.4e-7: an error that is right whatever the peer's
_LOCATED = 10_000  # flips of one layer that are looked at; a port with more is wrong
ROUNDING = 16  # a flip is explained where |z| <= 16 eps (sum |w||x| + |b|)


def keeps_rule(error: float, peer_error: float, peer: str = "PyTorch") -> bool:
    """Whether an error against float64 is as small as the rule asks; `peer` is in MAX_RATIO."""
    return error <= FLOOR or ratio_of(error, peer_error) <= MAX_RATIO[peer]


def ratio_of(error: float, peer_error: float) -> float:
    """An error in units of the peer's; 0 where it is 0."""
    if error == 0:
        return 0.0
    return error / peer_error if peer_error else float("inf")


def limit(peer: str = "PyTorch") -> str:
    """What `keeps_rule` allows, in words for a page."""
    return f"ratio at most {MAX_RATIO[peer]}, or error at most {FLOOR:.1e} (2 eps)"


class Reference(NamedTuple):
    """One layer as others compute it, in our layout: the float64 truth and a peer's float32."""

    layer: str
    truth: np.ndarray
    output: np.ndarray


class Flip(NamedTuple):
    """An activation that is zero on one side only: where, its true pre-activation, and how large
    that may be to be rounding."""

    place: tuple[int, ...]
    truth: float
    bound: float

    @property
    def explained(self) -> bool:
        """Whether rounding alone can have made the difference."""
        return bool(abs(self.truth) <= self.bound)


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """One layer's verdict. Errors are root mean squares relative to that of the truth.

    `flipped` locates the first ones of the `flips`; those beyond are counted as unexplained.
    """

    layer: str
    peer: str
    shape: tuple[int, ...]
    error: float
    peer_error: float
    negatives: int
    zeros: float
    flips: int
    unexplained: int
    flipped: tuple[Flip, ...] = ()

    @property
    def ratio(self) -> float:
        """Our error in units of the peer's; 0 where both are exact."""
        return ratio_of(self.error, self.peer_error)

    @property
    def holds(self) -> bool:
        """Whether the layer keeps the rule."""
        small = keeps_rule(self.error, self.peer_error, self.peer)
        return small and not self.negatives and not self.unexplained


def compare(
    config: VGGConfig,
    parameters: Mapping[tuple[str, ...], np.ndarray],
    images: np.ndarray,
    ours: dict[str, Any],
    peer: str,
    references: Iterable[Reference],
) -> Iterator[LayerCheck]:
    """Check every layer of `references`, in the order of the forward pass.

    `parameters` are the model's (Flax path -> array), `images` (N, H, W, 3) what all were fed,
    `ours` our float32 outputs by layer (emptied on the way); `peer` is a key of MAX_RATIO. Raises
    KeyError where we miss a layer.
    """
    layers = {layer.name: layer for layer in config.layers}
    rooms = {layer.name: "conv_stack" for layer in config.conv_stack}
    inputs = np.asarray(images, np.float64)  # of the last convolution or linear layer
    before = inputs  # the truth of the layer before this one
    weighted: Layer | None = None
    norm: Layer | None = None
    for name, truth, other in references:
        layer, output = layers[name], np.asarray(ours.pop(name))
        if layer.kind in ("conv", "linear"):
            inputs, weighted, norm = before, layer, None
        elif layer.kind == "batch_norm":
            norm = layer
        flipped: list[Flip] = []
        flips = negatives = 0
        if layer.kind == "relu":
            assert weighted is not None
            negatives = int((output < 0).sum())
            if output.shape == truth.shape:  # else the error says so already
                places = np.argwhere((output == 0) != (truth == 0))
                flips = len(places)
                scale = Rounding(parameters, rooms.get(weighted.name, "head"), weighted, norm)
                unit = ROUNDING * float(np.finfo(output.dtype).eps)
                for place in places[:_LOCATED]:
                    at = tuple(int(i) for i in place)
                    flipped.append(Flip(at, float(before[at]), unit * scale(inputs, at)))
        yield LayerCheck(
            layer=name,
            peer=peer,
            shape=output.shape,
            error=relative_error(output, truth),
            peer_error=relative_error(other, truth),
            negatives=negatives,
            zeros=float((output == 0).mean()),
            flips=flips,
            unexplained=flips - sum(flip.explained for flip in flipped),
            flipped=tuple(flipped),
        )
        before = truth


def relative_error(output: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square of output - truth, relative to that of truth; infinite for another shape."""
    if output.shape != truth.shape:
        return float("inf")
    size = float(np.linalg.norm(truth.ravel())) or 1.0
    differences = [  # of one image after the other, to need less memory
        np.linalg.norm(np.subtract(a, b, dtype=np.float64).ravel())
        for a, b in zip(output, truth, strict=True)
    ]
    return float(np.linalg.norm(differences)) / size


class Rounding:
    """The magnitude that rounding errors of one pre-activation are relative to.

    That is sum |w||x| + |b| over its window, carried through the BatchNorm where one follows.
    """

    def __init__(self, parameters, room: str, layer: Layer, norm: Layer | None):
        self.layer = layer
        kernel = np.asarray(parameters[room, layer.name, "kernel"])
        self.kernel = kernel.reshape(layer.kernel, layer.kernel, layer.inputs, layer.outputs)
        self.bias = np.asarray(parameters[room, layer.name, "bias"], np.float64)
        self.norm = None
        if norm is not None:
            self.norm = {
                name: np.asarray(parameters[room, norm.name, name], np.float64)
                for name in ("scale", "bias", "mean", "var")
            }

    def __call__(self, inputs: np.ndarray, place: tuple[int, ...]) -> float:
        channel = place[-1]
        weights = np.abs(self.kernel[..., channel].astype(np.float64))
        if self.layer.kind == "conv":
            n, row, column, _ = place
            pad = self.layer.kernel // 2
            top, left = max(row - pad, 0), max(column - pad, 0)
            window = np.abs(inputs[n, top : row + pad + 1, left : column + pad + 1])
            k = weights[top - row + pad :, left - column + pad :]
            weights = k[: window.shape[0], : window.shape[1]]
        else:
            window = np.abs(inputs[place[0]]).reshape(weights.shape)
        size = float((weights * window).sum() + abs(self.bias[channel]))
        if self.norm is not None:
            scale, bias, mean, var = (
                self.norm[name][channel] for name in ("scale", "bias", "mean", "var")
            )
            size = abs(scale) / np.sqrt(var + 1e-5) * (size + abs(mean)) + abs(bias)
        return size


def torch_networks(config: VGGConfig, state_dict: Mapping[str, Any]) -> tuple[Any, Any]:
    """torchvision's own network with these weights, in float64 and in float32.

    The float32 one shares its memory with `state_dict` where that is float32. What `config` has no
    head for stops at pool5.
    """
    import torch

    def network(dtype: type[np.floating]):
        with torch.device("meta"):
            empty = _torchvision_network(config)
        tensors = {}
        for name, tensor in empty.state_dict().items():
            if not tensor.is_floating_point():
                # A batch count, which nothing reads and not every source has.
                tensors[name] = torch.zeros((), dtype=torch.int64)
                continue
            array = as_numpy(state_dict[name]).reshape(tensor.shape)
            # PyTorch takes no read-only memory, which a weights file may be mapped as.
            tensors[name] = torch.from_numpy(np.require(array, dtype, "W"))
        empty.load_state_dict(tensors, strict=True, assign=True)
        for module in empty.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # or it would overwrite pre-activations already given away
        return empty.eval()

    return network(np.float64), network(np.float32)


def _torchvision_network(config: VGGConfig):
    """torchvision's network, with the head that `config` has."""
    import torch
    import torchvision

    network = getattr(torchvision.models, config.arch)(num_classes=max(config.num_classes, 1))
    kinds = {layer.kind: layer for layer in config.head}
    if not config.head:
        network.classifier = torch.nn.Sequential()
    if "conv" in kinds:
        conv = torch.nn.Conv2d(kinds["conv"].inputs, kinds["conv"].outputs, 3, padding=1)
        network.features = torch.nn.Sequential(*network.features[:-1], conv, torch.nn.ReLU())
    if "global_avg_pool" in kinds:
        network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        network.classifier = torch.nn.Linear(kinds["linear"].inputs, config.num_classes)
    elif "linear" in kinds:
        for layer in config.head:  # a classifier may be narrower than the published one
            if layer.kind == "linear":
                linear = torch.nn.Linear(layer.inputs * layer.kernel**2, layer.outputs)
                network.set_submodule(layer.torch, linear)
    return network


class TorchLayer(NamedTuple):
    """One layer as a PyTorch network computes it: its input and output, channels first."""

    layer: Layer
    inputs: Any
    output: Any

    @property
    def in_our_layout(self):
        """The output, channels last; flattened, too: the same numbers in another order."""
        if self.layer.kind == "flatten":
            return _channels_last(self.inputs).flatten(1)
        return _channels_last(self.output)


def torch_layers(config: VGGConfig, network: Any, images: Any) -> Iterator[TorchLayer]:
    """Every layer of a PyTorch network, one at a time, on images (N, 3, H, W) where these are."""
    import torch

    kinds = {"flatten": torch.nn.Flatten(), "softmax": torch.nn.Softmax(dim=1)}
    outputs = images
    for layer in config.layers:
        module = network.get_submodule(layer.torch) if layer.torch else kinds[layer.kind]
        inputs = outputs
        with torch.inference_mode():
            if layer.kind == "conv" and inputs.dtype == torch.float64:
                # In float64 PyTorch unrolls its input ninefold, the whole batch at once.
                outputs = torch.cat([module(image) for image in inputs.split(1)])
            else:
                outputs = module(inputs)
        yield TorchLayer(layer, inputs, outputs)


def torch_references(
    config: VGGConfig, networks: tuple[Any, Any], images: np.ndarray
) -> Iterator[Reference]:
    """Every layer of `torch_networks`, one at a time, on images (N, H, W, 3)."""
    import torch

    tensor = torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2)
    # The float32 peer gets its images channels-first in memory too: its kernels for channels-last
    # are others, and round up to five times as much. For the truth our layout saves a copy.
    inputs = tensor.double(), tensor.contiguous()
    walks = (torch_layers(config, *pair) for pair in zip(networks, inputs, strict=True))
    for layers in zip(*walks, strict=True):
        yield Reference(layers[0].layer.name, *(x.in_our_layout.numpy() for x in layers))


def _channels_last(x):
    return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x


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
