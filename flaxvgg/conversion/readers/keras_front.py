"""The layers of a Keras model before its first convolution, as long as they only change colours.

Normalising layers, and what `preprocess_input` and arithmetic leave in a functional model; what
does nothing at inference, as augmentation, is passed over. The first layer that does anything else
is where VGG has to begin (`keras_layers`).
"""

from typing import Any

import numpy as np

from flaxvgg.conversion.readers.front import ChannelMap, numbers, stacked
from flaxvgg.conversion.readers.keras_graph import Argument, Call, Tensor, parsed
from flaxvgg.conversion.readers.keras_weights import Weights

# What gives its input back unless it is training. (RandomCrop crops and resizes at inference too.)
AUGMENTATION = (
    *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomShear"),
    *("RandomContrast", "RandomBrightness", "RandomHue", "RandomSaturation", "RandomSharpness"),
    *("RandomColorJitter", "RandomColorDegeneration", "RandomGrayscale", "RandomInvert"),
    *("RandomPosterization", "RandomErasing", "RandomElasticTransform", "RandomGaussianBlur"),
    *("RandomPerspective", "RandomHeight", "RandomWidth", "RandomApply", "RandomChoice"),
    *("RandAugment", "AugMix", "MixUp", "CutMix"),
)
IDLE = (
    *("Dropout", "SpatialDropout2D", "GaussianDropout", "AlphaDropout", "GaussianNoise"),
    *("ActivityRegularization", "Identity", "InputLayer"),
    *AUGMENTATION,
)
_RESIZERS = ("Resizing", "RandomCrop", "CenterCrop")
# Operations by the names of Keras 3's classes, its merging layers, and TensorFlow's functions.
_OPERATIONS = {
    "add": ("Add", "math.add", "__operators__.add", "nn.bias_add"),
    "subtract": ("Subtract", "math.subtract", "__operators__.sub"),
    "multiply": ("Multiply", "math.multiply", "__operators__.mul"),
    "divide": ("TrueDivide", "Divide", "math.truediv", "math.divide", "__operators__.truediv"),
    "negate": ("Negative", "math.negative"),
    "get item": ("GetItem", "__operators__.getitem"),
    "stack": ("Stack", "stack"),
    "concatenate": ("Concatenate", "concat"),
    "flip": ("Flip", "reverse"),
    "cast": ("Cast", "cast"),
}
_BY_NAME = {name: operation for operation, names in _OPERATIONS.items() for name in names}
_LAST = (-1, 3)
_EPSILON = 1e-7  # Keras's, below which Normalization takes no deviation


def is_training(call: Call) -> bool:
    """Whether a layer was built to behave at inference as in training, as Monte Carlo dropout.

    Keras writes that for every layer that changes images, where it is no more than a default.
    """
    return bool(call.options.get("training")) and call.kind not in (*AUGMENTATION, *_RESIZERS)


def is_idle(call: Call) -> bool:
    """Whether a layer gives its input back at inference."""
    if is_training(call):
        return False
    if call.kind == "Activation":
        return call.config.get("activation") in (None, "linear")
    return call.kind in IDLE


def colours_of(
    call: Call, maps: dict[Tensor, ChannelMap], weights: Weights, size: list[int], last: bool
) -> ChannelMap | None:
    """What a call makes of images; None where that is not computed pixel by pixel.

    `size` is the images' (height, width), 0 where they have any; `last` whether the channels are
    the last axis (else only what treats them alike is understood).
    """
    first = maps[call.inputs[0]]
    if is_idle(call) or (call.kind in _RESIZERS and _keeps_size(call, size)):
        return first
    config = {name: parsed(value) for name, value in call.config.items()}
    match call.kind:
        case "Rescaling":
            return _scaled(first, config.get("scale"), config.get("offset", 0.0), last)
        case "Normalization":
            return _normalised(call, config, first, weights, last)
        case "BatchNormalization" if last and not is_training(call):
            return _batch_norm(call, config, first, weights)
        case "Conv2D" if last:
            return _mixture(call, config, first, weights)
    return _operation(call, config, maps, last)


def _keeps_size(call: Call, size: list[int]) -> bool:
    wanted = [call.config.get("height"), call.config.get("width")]
    return all(size) and wanted == size


def _is_last(axis: Any) -> bool:
    """Whether an axis, or a list of one, is that of the channels."""
    return axis in _LAST or axis in [[last] for last in _LAST]


def _scaled(first: ChannelMap, scale: Any, offset: Any, last: bool) -> ChannelMap | None:
    found = [numbers(value) for value in (scale, offset)]
    if not last and any(value is None or value.size != 1 for value in found):
        return None
    return first.scaled(scale, offset)


def _normalised(
    call: Call, config: dict[str, Any], first: ChannelMap, weights: Weights, last: bool
) -> ChannelMap | None:
    mean, variance = config.get("mean"), config.get("variance")
    axes = config.get("axis", -1)
    if axes not in (None, []) and not (last and _is_last(axes)):
        return None
    if mean is None or variance is None:
        stored = weights.of(call)
        if len(stored) < 2:
            return None
        mean, variance = stored[:2]
    mean, variance = numbers(mean), numbers(variance)
    if mean is None or variance is None or not (variance >= 0).all():
        return None
    deviation = np.maximum(np.sqrt(variance), _EPSILON)
    if config.get("invert"):
        return first.scaled(deviation, mean)
    shifted = first.scaled(1.0, -mean)
    return shifted and shifted.scaled(1 / deviation)


def _batch_norm(
    call: Call, config: dict[str, Any], first: ChannelMap, weights: Weights
) -> ChannelMap | None:
    if not _is_last(config.get("axis", -1)):
        return None
    found = weights.batch_norm(call)
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (found[name].astype(np.float64) for name in names)
    spread = variance + weights.epsilon(call)
    if weight.shape != first.offset.shape or not (spread > 0).all():
        return None
    scale = weight / np.sqrt(spread)
    return first.scaled(scale, bias - mean * scale)


def _mixture(
    call: Call, config: dict[str, Any], first: ChannelMap, weights: Weights
) -> ChannelMap | None:
    """What a 1x1 convolution makes of the channels; None for any other convolution."""
    plain = {"kernel_size": [1, 1], "strides": [1, 1], "dilation_rate": [1, 1], "groups": 1}
    if any(config.get(name, value) != value for name, value in plain.items()):
        return None
    if config.get("activation") not in (None, "linear"):
        return None
    found = weights.kernel_and_bias(call)
    kernel = found["weight"]
    if kernel.shape[:3] != (1, 1, len(first.offset)):
        return None
    bias = found.get("bias", np.zeros(kernel.shape[3]))
    return first.mixed(kernel[0, 0].T.astype(np.float64), bias.astype(np.float64))


def _operation(
    call: Call, config: dict[str, Any], maps: dict[Tensor, ChannelMap], last: bool
) -> ChannelMap | None:
    name = config.get("function") if call.kind.endswith("OpLambda") else call.kind
    operands = _operands(call)
    found = [maps[x.tensor] if isinstance(x, Argument) else x for x in operands]
    images = [x for x in found if isinstance(x, ChannelMap)]
    if not images:
        return None
    axis = call.options.get("axis", config.get("axis", -1))
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    match _BY_NAME.get(str(name)):
        case "cast":
            to = str(call.options.get("dtype", config.get("dtype")))
            return images[0] if "float" in to else None
        case "negate":
            return images[0].scaled(-1.0)
        case "flip" if last and axis in _LAST and not images[0].apart:
            return images[0].picked(slice(None, None, -1))
        case "get item" if last and not images[0].apart:
            return _item(images[0], call.options.get("slice_spec", found[-1]))
        case "stack" if last and axis in _LAST and len(images) == len(found):
            return stacked(images) if all(x.apart for x in images) else None
        case "concatenate" if last and axis in _LAST and len(images) == len(found):
            return None if any(x.apart for x in images) else stacked(images)
        case "add" | "subtract" | "multiply" | "divide" as operation if len(found) == 2:
            return _arithmetic(operation, *found, last)
    return None


def _operands(call: Call) -> list[Any]:
    given = call.arguments
    if len(given) == 1 and isinstance(given[0], list):
        given = given[0]
    named = ("x1", "x2", "x", "y", "bias", "value")
    return [*given, *(call.options[n] for n in named if call.options.get(n) is not None)]


def _item(images: ChannelMap, key: Any) -> ChannelMap | None:
    """images[key], where the key takes channels only."""
    key = list(key) if isinstance(key, list | tuple) else [key]
    if key.count(...) == 1:
        at = key.index(...)
        key[at : at + 1] = [slice(None)] * (5 - len(key))
    whole = (slice(None), slice(None, None, 1), slice(0, None), slice(0, None, 1))
    if len(key) != 4 or any(part not in whole for part in key[:3]):
        return None
    part = key[3]
    if isinstance(part, bool) or not isinstance(part, int | slice):
        return None
    if isinstance(part, int) and not -len(images.offset) <= part < len(images.offset):
        return None
    return images.picked(part)


def _arithmetic(operation: str, a: Any, b: Any, last: bool) -> ChannelMap | None:
    if isinstance(a, ChannelMap) and isinstance(b, ChannelMap):
        sign = {"add": 1.0, "subtract": -1.0}.get(operation)
        return None if sign is None else a.plus(b, sign)
    images, constant = (a, b) if isinstance(a, ChannelMap) else (b, a)
    value = numbers(constant)
    if value is None:
        return None
    match operation:
        case "add":
            return _scaled(images, 1.0, value, last)
        case "multiply":
            return _scaled(images, value, 0.0, last)
        case "subtract" if images is a:
            return _scaled(images, 1.0, -value, last)
        case "subtract":
            return _scaled(images, -1.0, value, last)
        case "divide" if images is a and value.all():
            return _scaled(images, 1 / value, 0.0, last)
    return None
