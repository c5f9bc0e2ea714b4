"""The architectures as data: every layer of a VGG, in order, by name."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import cached_property
from numbers import Integral
from typing import Any, Literal, get_args

from flaxvgg.files.choices import choose

Kind = Literal[
    "conv",
    "batch_norm",
    "relu",
    "leaky_relu",
    "shifted_relu",
    "max_pool",
    "average_pool",
    "l2_pool",
    "avg_pool",
    "global_avg_pool",
    "flatten",
    "windows",
    "linear",
    "dropout",
    "softmax",
]

# Convolutions in each of the five blocks (Simonyan & Zisserman 2015, table 1: columns A, B, D, E).
_BLOCKS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)

# What may stand between a score map's last convolution and its mean.
LastActivation = Literal["relu", "leaky_relu", "shifted_relu", "none"]
LAST_ACTIVATIONS = get_args(LastActivation)

# What halves the maps behind each block, and what lies beyond their edges, by the names that
# `flaxvgg.with_pooling` takes. torchvision's networks have the first of each.
Pooling = Literal["max", "average", "l2"]
POOLINGS: dict[Pooling, Kind] = {"max": "max_pool", "average": "average_pool", "l2": "l2_pool"}
Padding = Literal["zeros", "replicate"]
PADDINGS = get_args(Padding)

ARCHITECTURES = tuple(_BLOCKS) + tuple(f"{arch}_bn" for arch in _BLOCKS)
POOLED_SIZE = 7  # the classifier sees a 7x7 map, whatever the size of the image
SMALLEST_IMAGE = 32  # five halvings leave one pixel


@dataclasses.dataclass(frozen=True)
class Layer:
    """One named layer.

    `name` is the paper's name (`conv5_3`), `torch` the name of the same module in torchvision
    (`features.28`), or "" where torchvision has no module for it. `inputs` and `outputs` count
    channels. A linear layer with `kernel` 7 reads a flattened 7x7 map of `inputs` channels: behind
    "flatten" it is the classifier's fc6; behind "windows", which flattens every 7x7 window of a
    map, it is the 7x7 convolution without padding that has the same weights. `padding` is a
    convolution's: what lies beyond the edge, in PyTorch's word. `rate` is dropout's; `eps` and
    `momentum` are BatchNorm's as PyTorch means them: momentum is the part that a batch has in the
    running statistics.
    """

    name: str
    kind: Kind
    torch: str = ""
    inputs: int = 0
    outputs: int = 0
    kernel: int = 1
    padding: str = "zeros"
    rate: float = 0.0
    eps: float = 1e-5
    momentum: float = 0.1


def _conv_layers(arch: str, pooling: str = "max", padding: str = "zeros") -> tuple[Layer, ...]:
    batch_norm = arch.endswith("_bn")
    layers: list[Layer] = []

    def add(name: str, kind: Kind, **sizes: Any) -> None:
        layers.append(Layer(name, kind, f"features.{len(layers)}", **sizes))

    channels = 3
    for block, (repeats, width) in enumerate(
        zip(_BLOCKS[arch.removesuffix("_bn")], _WIDTHS, strict=True), start=1
    ):
        for i in range(1, repeats + 1):
            sizes = {"inputs": channels, "outputs": width, "kernel": 3}
            add(f"conv{block}_{i}", "conv", **sizes, padding=padding)
            if batch_norm:
                add(f"bn{block}_{i}", "batch_norm", inputs=width, outputs=width)
            add(f"relu{block}_{i}", "relu")
            channels = width
        add(f"pool{block}", POOLINGS[pooling])
    return tuple(layers)


def classifier_layers(num_classes: int = 1000, dropout: float = 0.5) -> tuple[Layer, ...]:
    """The layers of torchvision's classifier, from the adaptive pooling to the probabilities."""
    return (
        Layer("avgpool", "avg_pool", "avgpool"),
        Layer("flatten", "flatten"),
        Layer("fc6", "linear", "classifier.0", inputs=512, outputs=4096, kernel=POOLED_SIZE),
        Layer("relu6", "relu", "classifier.1"),
        Layer("drop6", "dropout", "classifier.2", rate=dropout),
        Layer("fc7", "linear", "classifier.3", inputs=4096, outputs=4096),
        Layer("relu7", "relu", "classifier.4"),
        Layer("drop7", "dropout", "classifier.5", rate=dropout),
        Layer("fc8", "linear", "classifier.6", inputs=4096, outputs=num_classes),
        Layer("prob", "softmax"),
    )


def listed(layers: Iterable[str]) -> list[str]:
    """Layers' names as a list. Raises ValueError for a name alone, and for what is no list."""
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names: [{layers!r}]")
    if not isinstance(layers, Iterable):
        raise ValueError(f"layers must be a list of names such as 'pool5', not {layers!r}")
    return list(layers)


def _whole(name: str, value: Any) -> int:
    """The value as an int, which NumPy's are none of; ValueError for what is no whole number."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """A whole network: one of the eight convolution stacks, and a head.

    `head` is empty for weights that have convolutions only; `no_head_because` then says why, and
    is what somebody who asks for logits is told. Without `last_pool` the stack ends before pool5.
    `pooling` (of `POOLINGS`) and `padding` (of `PADDINGS`) are those of all five blocks.
    Raises ValueError for an unknown architecture, pooling or padding, and a dropout that is not in
    [0, 1).

    >>> config = flaxvgg.VGGConfig.classifier("vgg16", num_classes=20)
    >>> config.num_classes, config.resolve("features.29")
    (20, 'relu5_3')
    """

    arch: str
    head: tuple[Layer, ...]
    no_head_because: str = ""
    last_pool: bool = True
    pooling: Pooling | str = "max"
    padding: Padding | str = "zeros"

    def __post_init__(self) -> None:
        check_arch(self.arch)
        for name, value, choices in (
            ("pooling", self.pooling, POOLINGS),
            ("padding", self.padding, PADDINGS),
        ):
            if value not in choices:
                raise ValueError(f"no {name} {value!r}: choose from {', '.join(choices)}")
        for layer in self.head:
            if not 0 <= layer.rate < 1:
                raise ValueError(f"dropout must be in [0, 1), not {layer.rate}")

    @classmethod
    def classifier(cls, arch: str, *, num_classes: int = 1000, dropout: float = 0.5) -> "VGGConfig":
        """torchvision's network of that name, e.g. `vgg16_bn`."""
        num_classes = _whole("num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        return cls(arch, classifier_layers(num_classes, dropout))

    @classmethod
    def features_only(cls, arch: str, because: str) -> "VGGConfig":
        """The convolution stack of that architecture, without a head."""
        return cls(arch, (), because)

    @classmethod
    def gap(cls, arch: str, *, num_classes: int, channels: int | None = None) -> "VGGConfig":
        """Global average pooling and one linear layer, on pool5 or on a convolution in its place.

        With `channels`, pool5 gives way to a 3x3 convolution to so many channels and a ReLU, as in
        Zhou et al. 2016 (arXiv:1512.04150), who published VGG16 with 1024. In PyTorch the same
        network has `avgpool = AdaptiveAvgPool2d(1)` and `classifier = Linear(channels, classes)`.
        """
        check_arch(arch)
        num_classes = _whole("num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        width = _WIDTHS[-1] if channels is None else _whole("channels", channels)
        if width < 1:
            raise ValueError(f"channels must be at least 1, not {channels}")
        head = (
            Layer("gap", "global_avg_pool", "avgpool"),
            Layer("flatten", "flatten"),
            Layer("fc", "linear", "classifier", inputs=width, outputs=num_classes),
            Layer("prob", "softmax"),
        )
        if channels is None:
            return cls(arch, head)
        at = len(_conv_layers(arch)) - 1  # the place of pool5 in torchvision's `features`
        conv = Layer("conv6", "conv", f"features.{at}", inputs=_WIDTHS[-1], outputs=width, kernel=3)
        return cls(
            arch, (conv, Layer("relu6", "relu", f"features.{at + 1}"), *head), last_pool=False
        )

    @classmethod
    def score_map(
        cls,
        arch: str,
        *,
        num_classes: int,
        channels: int = 1024,
        last: LastActivation = "relu",
        batch_norm: bool = False,
        fc: bool = False,
    ) -> "VGGConfig":
        """Two convolutions in the place of pool5, one channel for each class, and its mean: no FC.

        3x3 to `channels`, ReLU, 3x3 to `num_classes`, the activation `last` (one of
        `LAST_ACTIVATIONS`), the mean over space. `batch_norm` puts a BatchNorm with eps 1e-3 and
        momentum 0, whose running statistics never move, behind both convolutions; `fc` a linear
        layer from the means to as many scores. In PyTorch the convolutions and activations follow
        in `features`, then `avgpool = AdaptiveAvgPool2d(1)`, and with `fc` `classifier =
        Linear(classes, classes)`. With `last="relu"` and no `fc` no score can be negative, and
        training tends to die: see `flaxvgg.diagnose`.
        """
        check_arch(arch)
        num_classes = _whole("num_classes", num_classes)
        channels = _whole("channels", channels)
        if min(num_classes, channels) < 1:
            raise ValueError(
                f"num_classes and channels must be at least 1, not {num_classes} and {channels}"
            )
        if last not in LAST_ACTIVATIONS:
            raise ValueError(f"no activation {last!r}: choose from {', '.join(LAST_ACTIVATIONS)}")
        head: list[Layer] = []
        at = len(_conv_layers(arch)) - 1  # the place of pool5 in torchvision's `features`

        def add(name: str, kind: Kind, **options: float | int) -> None:
            head.append(Layer(name, kind, f"features.{at + len(head)}", **options))

        inputs = _WIDTHS[-1]
        for block, outputs, activation in ((6, channels, "relu"), (7, num_classes, last)):
            add(f"conv{block}", "conv", inputs=inputs, outputs=outputs, kernel=3)
            if batch_norm:
                sizes = {"inputs": outputs, "outputs": outputs}
                add(f"bn{block}", "batch_norm", **sizes, eps=1e-3, momentum=0.0)
            if activation != "none":
                add(f"relu{block}", activation)
            inputs = outputs
        head.append(Layer("gap", "global_avg_pool", "avgpool"))
        head.append(Layer("means", "flatten", outputs=num_classes))
        if fc:
            sizes = {"inputs": num_classes, "outputs": num_classes}
            head.append(Layer("fc", "linear", "classifier", **sizes))
        return cls(arch, (*head, Layer("prob", "softmax")), last_pool=False)

    def fully_convolutional(self) -> "VGGConfig":
        """The same parameters, with the classifier applied to every 7x7 window of pool5.

        Raises ValueError where the head is no classifier with fc6.
        """
        at = {layer.name: i for i, layer in enumerate(self.head)}
        if "fc6" not in at:
            raise ValueError(
                "only a classifier with fc6, fc7 and fc8 becomes fully convolutional; this head is "
                f"{' '.join(at) or 'empty: ' + self.no_head_because}"
            )
        windows = Layer("windows", "windows", inputs=_WIDTHS[-1], kernel=POOLED_SIZE)
        return dataclasses.replace(self, head=(windows, *self.head[at["fc6"] :]))

    def with_dropout(self, rate: float) -> "VGGConfig":
        """The same network with another dropout rate."""
        head = tuple(
            dataclasses.replace(layer, rate=rate) if layer.kind == "dropout" else layer
            for layer in self.head
        )
        return dataclasses.replace(self, head=head)

    @cached_property
    def conv_stack(self) -> tuple[Layer, ...]:
        """The layers from conv1_1 to pool5, or to the ReLU before it."""
        layers = _conv_layers(self.arch, self.pooling, self.padding)
        return layers if self.last_pool else layers[:-1]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer, in the order of the forward pass."""
        return self.conv_stack + self.head

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """The paper's name of every layer, in the order of the forward pass."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """PyTorch's and Keras's layer names, each with the name of the layer it stands for.

        A Keras convolution or dense layer includes its ReLU, so `block5_conv3` is `relu5_3`,
        `fc1` is `relu6`, and `predictions`, which includes the softmax, is `prob`.
        """
        named = [layer for layer in self.layers if layer.torch]
        found = {layer.torch: layer.name for layer in named if layer.torch != layer.name}
        found["features"] = [x.name for x in named if x.torch.startswith("features.")][-1]
        for layer in self.layers:
            if layer.kind == "relu" and "_" in layer.name:
                block, i = layer.name.removeprefix("relu").split("_")
                found[f"block{block}_conv{i}"] = layer.name
            elif layer.kind in POOLINGS.values():
                found[f"block{layer.name.removeprefix('pool')}_pool"] = layer.name
        if "fc6" in self.layer_names:
            found |= {"fc1": "relu6", "fc2": "relu7", "predictions": "prob", "classifier": "fc8"}
        return found

    def resolve(self, name: str) -> str:
        """The paper's name of the layer that `name` (a name or an alias) stands for.

        Raises ValueError for a name that no layer has, with the nearest names.
        """
        if not isinstance(name, str):
            raise ValueError(
                f"a layer is given by its name, a text such as 'relu5_3', not {name!r}"
            )
        if name in self.layer_names:
            return name
        if name in self.aliases:
            return self.aliases[name]
        if not self.head and name in VGGConfig.classifier(self.arch).all_names:
            raise ValueError(f"this model has no layer {name!r}: {self.no_head_because}")
        near = difflib.get_close_matches(name, self.all_names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see model.config.layer_names"
        raise ValueError(f"{self.arch} has no layer {name!r}; {hint}")

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name and alias that `resolve` takes."""
        return self.layer_names + tuple(self.aliases)

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 without a head."""
        return self.head_output.outputs if self.head else 0

    @property
    def head_output(self) -> Layer:
        """The layer whose output is the logits. Raises ValueError where there is no head."""
        if not self.head:
            raise ValueError(
                f"this model has no logits: {self.no_head_because}. "
                "Use model.features(images) or model.gap(images)."
            )
        scoring = ("linear", "flatten")  # a score map's means are its logits
        return [layer for layer in self.head if layer.kind in scoring and layer.outputs][-1]

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `from_json` makes an equal configuration."""
        head = [
            {
                field.name: getattr(layer, field.name)
                for field in dataclasses.fields(layer)
                if getattr(layer, field.name) != field.default
            }
            for layer in self.head
        ]
        return dataclasses.asdict(self) | {"head": head}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "VGGConfig":
        """The configuration that `to_json` wrote.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        head = tuple(_typed(Layer(**layer)) for layer in value["head"])
        if wrong := [layer.kind for layer in head if layer.kind not in get_args(Kind)]:
            raise ValueError(f"there are no layers {wrong}")
        return _typed(cls(**dict(value) | {"head": head}))


def _typed(record: Any) -> Any:
    """A record of strings and numbers as it is. Raises TypeError where a value is neither."""
    for field in dataclasses.fields(record):
        value, default = getattr(record, field.name), field.default
        expected = type(default) if default is not dataclasses.MISSING else (str, tuple)
        right = isinstance(value, (int, float) if expected is float else expected)
        if not right or (not isinstance(value, str | tuple) and value < 0):
            raise TypeError(f"{field.name} cannot be {value!r}")
    return record


def check_arch(arch: str) -> None:
    """Raise ValueError unless `arch` names one of the eight architectures."""
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: {choose(arch, ARCHITECTURES)}")
