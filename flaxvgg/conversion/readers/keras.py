"""VGG weights in the files that Keras writes, read without Keras and without TensorFlow.

Where a file has the model's configuration (`.keras`, and `.h5` of `model.save`) that must describe
a VGG; where it has weights alone, their shapes must.
"""

import re
from collections import defaultdict
from pathlib import Path

from flaxvgg.conversion.readers.front import ChannelMap, Front
from flaxvgg.conversion.readers.keras_file import LayerWeights, read_layers
from flaxvgg.conversion.readers.keras_graph import read_graph
from flaxvgg.conversion.readers.keras_layers import read_model
from flaxvgg.conversion.readers.keras_weights import Weights
from flaxvgg.conversion.readers.recognition import recognise
from flaxvgg.conversion.readers.steps import Step, Window
from flaxvgg.conversion.source_weights import SourceError, SourceWeights, sha256
from flaxvgg.network.config import ARCHITECTURES, VGGConfig, classifier_layers
from flaxvgg.network.provenance import PREPROCESSING, Preprocessing, Provenance

_PLAIN = [arch for arch in ARCHITECTURES if not arch.endswith("_bn")]
_WIDTHS = (3, 64, 128, 256, 512)  # of what a layer between VGG's convolutions would have
_SAVE_WHOLE = "save the whole model, as model.save('vgg.keras')"


def read_keras(path: Path, preprocessing: Preprocessing | None = None) -> SourceWeights:
    """VGG weights from a `.h5`, `.weights.h5` or `.keras` file.

    Weights are views in PyTorch's layouts; a head that is not VGG's is left out with a note. What
    stands before the first convolution is part of the recipe: `preprocessing` is what the file's
    own input is fed. Raises SourceError for a file that is none of these, is damaged, or holds
    another network.
    """
    layers, config = read_layers(path)
    notes: list[str] = []
    if config is None:
        front = Front(path.name, (), ChannelMap.identity(3))
        steps = _steps_by_shape(path.name, layers)
    else:
        graph = read_graph(path.name, config)
        weights = Weights(path.name, layers, {call.layer for call in graph.calls})
        front, steps, notes = read_model(graph, weights)
    found = recognise(path.name, steps)
    guess = ""
    if preprocessing is None:
        preprocessing, guess = _guess(front, config is None)
    recipe = front.recipe(preprocessing)
    return SourceWeights(
        found.arch,
        found.state,
        Provenance(path.name, sha256(path), recipe, guess=guess),
        tuple(notes + front.notes + found.notes),
        front=front.recipe,
    )


def _guess(front: Front, weights_alone: bool) -> tuple[Preprocessing, str]:
    """The likeliest recipe for the file's own input, and why it is only that; "" if it is sure."""
    if weights_alone:
        return PREPROCESSING["keras"], "the file has weights alone, and no layers before them"
    if front.map.changes_nothing:
        return PREPROCESSING["keras"], "the file does not say it, and is Keras's"
    if front.wants_unit:
        why = "images from 0 to 255 go into its first layers, which look made for 0 to 1"
        return PREPROCESSING["pixels"], why
    return PREPROCESSING["pixels"], ""


def _steps_by_shape(name: str, layers: list[LayerWeights]) -> list[Step]:
    """The steps that weights without a configuration are likely to belong to.

    Raises SourceError where they are no VGG's, or where others may stand between.
    """
    convs = [layer for layer in layers if layer.arrays[0].ndim == 4]
    stack = [layer for layer in convs if layer.arrays[0].shape[:2] == (3, 3)]
    _refuse_between(name, layers, stack)
    counts = {arch: _convolutions(arch) for arch in _PLAIN}
    arch = next((arch for arch, count in counts.items() if count == len(stack)), None)
    if arch is None or convs[: len(stack)] != stack:
        raise SourceError(
            f"{name} is no VGG, or not all of it: it has {len(stack)} convolutions, and VGG11, "
            "VGG13, VGG16 and VGG19 have 8, 10, 13 and 16"
        )
    _refuse_unnumbered(name, convs, stack)
    left = iter(stack)
    steps = []
    for layer in VGGConfig.features_only(arch, "").conv_stack:
        weighted = layer.kind == "conv"
        step = _weighted(name, next(left), "conv") if weighted else Step(layer.kind, "", "", "")
        steps.append(step)
    last = max(i for i, layer in enumerate(layers) if layer in stack)
    dense = [x for x in layers if x.arrays[0].ndim == 2]
    head = [_weighted(name, x, "conv") for x in convs[len(stack) :]]
    head += [_weighted(name, layer, "linear") for layer in dense]
    between = any(layer.arrays[0].ndim not in (2, 4) for layer in layers[last:])
    if not head:
        return steps
    # As in VGG's own classifier; what is between is not in the file.
    steps.append(Step("flatten", "", "", "NHWC"))
    kinds = [layer.kind for layer in classifier_layers() if layer.kind in ("linear", "relu")]
    if len(head) != kinds.count("linear") or between:
        return [*steps, *head]
    return steps + [head.pop(0) if kind == "linear" else Step(kind, "", "", "NU") for kind in kinds]


def _convolutions(arch: str) -> int:
    stack = VGGConfig.features_only(arch, "").conv_stack
    return sum(layer.kind == "conv" for layer in stack)


def _refuse_between(name: str, layers: list[LayerWeights], stack: list[LayerWeights]) -> None:
    """Raise SourceError for other weights that may stand before or between the convolutions."""
    places = [i for i, layer in enumerate(layers) if any(layer is conv for conv in stack)]
    folders = {conv.path.rpartition("/")[0] for conv in stack}
    for i, layer in enumerate(layers):
        shape = layer.arrays[0].shape
        beside = i < max(places, default=0) or layer.path.rpartition("/")[0] in folders
        if len(shape) in (2, 4) or shape[-1:] not in [(width,) for width in _WIDTHS] or not beside:
            continue
        raise SourceError(
            f"{name} has weights of {layer.name}, and nothing says where among the convolutions "
            f"it stands: {_SAVE_WHOLE}"
        )


def _refuse_unnumbered(name: str, convs: list[LayerWeights], stack: list[LayerWeights]) -> None:
    """Raise SourceError for lists of layers not numbered as Keras does: the order is unknown then.

    Keras names what is in a list by its class: conv2d, conv2d_1, conv2d_2, ...
    """
    kinds = {_kind(layer.path) for layer in stack}
    lists: dict[str, list[str]] = defaultdict(list)
    for layer in convs:
        folder, _, own = layer.path.rpartition("/")
        if folder.rpartition("/")[2] == "layers" and _kind(own) in kinds:
            lists[folder].append(own)
    for names in lists.values():
        expected = {f"{kind}_{i}".removesuffix("_0") for kind in kinds for i in range(len(names))}
        if len(kinds) > 1 or not expected.issuperset(names):
            raise SourceError(
                f"{name} does not number its convolutions as Keras does, so that nothing says "
                f"how they follow each other ({', '.join(names)[:200]}): {_SAVE_WHOLE}"
            )


def _kind(path: str) -> str:
    """conv2d of layers/conv2d_3."""
    return re.sub(r"_\d+$", "", path.rpartition("/")[2])


def _weighted(name: str, layer: LayerWeights, kind: str) -> Step:
    kernel, *biases = layer.arrays
    if [bias.shape for bias in biases] != [kernel.shape[-1:]]:
        raise SourceError(f"{name}: {layer.name} must have a kernel and a bias, and has not")
    step = Step(kind, layer.name, "", "NU")
    if kind == "conv":
        kernel = kernel.transpose(3, 2, 0, 1)
        pads = (1, 1, 1, 1) if kernel.shape[2:] == (3, 3) else (0, 0, 0, 0)
        step.window = Window(kernel.shape[2:], pads=pads)
    step.weights = {"weight": kernel, "bias": biases[0]}
    return step
