"""State dicts as people have them -> torchvision's names.

Wrappers put something before the names (DataParallel's `module.`, torch.compile's `_orig_mod.`,
whatever an attribute was called), checkpoints put dictionaries around them. No list of those is
kept: VGG's convolutions have numbers and shapes that nothing else has, so the beginning of the
names that they share is found by them.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flaxvgg.network.config import ARCHITECTURES, VGGConfig, classifier_layers
from flaxvgg.weights.parameters import StateDictError, as_numpy, check_plain, pruned, short_values
from flaxvgg.weights.pickles import Unread


@runtime_checkable
class HasStateDict(Protocol):
    """A module of PyTorch."""

    def state_dict(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Named:
    """Tensors under torchvision's names, and a line for each thing that was done or left out."""

    tensors: dict[str, Any]
    notes: tuple[str, ...] = ()


def torchvision_names(
    value: object, *, subject: str = "what was given", arch: str | None = None, prefix: str = ""
) -> Named:
    """The VGG in a state dict, a module, or dictionaries of them at any depth.

    What all its names begin with is taken off, `features.` put on where it is missing; timm's
    names, and a classifier like VGG's under any names, become torchvision's. A pruned weight is
    multiplied by its mask, and convolutions without bias before a BatchNorm get one of zeros. A
    head of another kind keeps its names. Where nothing is VGG's, nothing is changed.

    Of several VGGs the one of `arch` is taken, or the one whose names begin with `prefix`. Raises
    StateDictError, whose message begins with `subject`, where that leaves several, or none, and
    for what is quantised or parametrised.
    """
    flat = _flatten(value, subject)
    convs = _numbered(flat.tensors)
    chosen, dropped = _choose(convs, flat.tensors, subject, arch, prefix)
    if chosen is None:
        names = {_with_timms_names(name): x for name, x in flat.tensors.items()}
        return Named(names)
    _check_unread(flat.unread, chosen, subject)
    root = _root(chosen, flat.owners[_first(convs[chosen])])
    features, rest, left_out = _parted(flat.tensors, chosen, root, dropped)
    check_plain(features, subject)
    features, notes = pruned(features)
    nearest, matched = _nearest(convs[chosen], arch)
    if matched == len(_convs(nearest)):
        notes += _fill_biases(features, nearest)
    head, buffers, more = _head(pruned(rest)[0])
    left_out |= buffers
    if left_out:
        notes.append(f"no part of the VGG, and left out: {_listed(left_out)}")
    return Named(features | head, (*notes, *more))


# Finding the tensors.


@dataclasses.dataclass
class _Flat:
    """Tensors and unread objects by the keys that lead to them, and whose dictionary each is."""

    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)
    unread: dict[str, str] = dataclasses.field(default_factory=dict)
    owners: dict[str, str] = dataclasses.field(default_factory=dict)


_DEEPEST = 16


def _flatten(value: object, subject: str) -> _Flat:
    flat, seen = _Flat(), set()

    def walk(value: Any, path: str, depth: int) -> None:
        if isinstance(value, HasStateDict) and not isinstance(value, type):
            value = value.state_dict()
        if isinstance(value, Unread):
            flat.unread[path.removesuffix(".")] = value.name
            value = value.items
        if not isinstance(value, Mapping) or id(value) in seen or depth > _DEEPEST:
            return
        seen.add(id(value))
        for key, x in value.items():
            if not isinstance(key, str):
                continue
            name = path + key
            if not _is_tensor(x):
                walk(x, f"{name}.", depth + 1)
            elif name in flat.tensors:
                raise StateDictError(f"{subject} has {name!r} twice: keep one")
            else:
                flat.tensors[name], flat.owners[name] = x, path

    walk(value, "", 0)
    if not flat.tensors:
        what = next(iter(flat.unread.values()), None)
        if what is not None:
            raise StateDictError(
                f"{subject} holds an object ({what}), perhaps a whole network, and no state dict; "
                "it was not executed: save model.state_dict() instead"
            )
        raise StateDictError(f"{subject} holds no state dict: save model.state_dict() instead")
    return flat


def _is_tensor(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def _check_unread(unread: Mapping[str, str], prefix: str, subject: str) -> None:
    for name, what in unread.items():
        if _is_features(name, prefix):
            raise StateDictError(
                f"{subject} has {name!r}, an object ({what}) and no tensor; it was not executed: "
                "save model.state_dict() instead"
            )


# Finding the convolutions.

_PARAMETER = r"((?:.*[._])?)(\d+)\.(?:weight|weight_orig|weight_v|parametrizations\.weight\.\w+)"

_Numbered = dict[str, dict[int, tuple[str, tuple[int, ...]]]]


@functools.cache
def _convs(arch: str) -> dict[int, tuple[int, ...]]:
    """The shapes of the convolutions by their number in torchvision's `features`."""
    return {
        int(layer.torch.rpartition(".")[2]): (layer.outputs, layer.inputs, 3, 3)
        for layer in VGGConfig.features_only(arch, "").conv_stack
        if layer.kind == "conv"
    }


def _numbered(tensors: Mapping[str, Any]) -> _Numbered:
    """For each beginning of names that a number follows: names and shapes of kernels by number."""
    found: _Numbered = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(_PARAMETER, name)
        if match and len(tensor.shape) == 4 and len(match[2]) < 4:
            found.setdefault(match[1], {})[int(match[2])] = name, tuple(tensor.shape)
    return found


def _first(kernels: Mapping[int, tuple[str, tuple[int, ...]]]) -> str:
    return next(iter(kernels.values()))[0]


def _nearest(
    kernels: Mapping[int, tuple[str, tuple[int, ...]]], arch: str | None = None
) -> tuple[str, int]:
    """The architecture with most of these convolutions, and how many; `arch` before its equals.

    How many channels the images have makes no difference.
    """

    def matched(arch: str) -> int:
        shapes = {
            number: shape[:1] + shape[2:] if number == 0 else shape
            for number, (_, shape) in kernels.items()
        }
        expected = _convs(arch)
        return sum(
            shapes.get(number) == (shape[:1] + shape[2:] if number == 0 else shape)
            for number, shape in expected.items()
        )

    nearest = max(ARCHITECTURES, key=lambda one: (matched(one), one == arch))
    return nearest, matched(nearest)


def _choose(
    convs: _Numbered,
    tensors: Mapping[str, Any],
    subject: str,
    arch: str | None,
    prefix: str,
) -> tuple[str | None, set[str]]:
    """What the names of the VGG's convolutions begin with, and those of others beside it."""
    found = {name: _nearest(kernels, arch) for name, kernels in convs.items()}
    found = {name: x for name, x in found.items() if x[1]}
    whole = [name for name, (nearest, n) in found.items() if n == len(_convs(nearest))]
    if prefix:
        wanted = [x for x in whole if x == prefix] or [x for x in whole if x.startswith(prefix)]
        if not wanted:
            raise StateDictError(
                f"{subject} has no VGG whose names begin with {prefix!r}: there is "
                f"{' and '.join(map(repr, whole)) or 'none at all'}"
            )
    else:
        wanted = [x for x in whole if found[x][0] == arch] or whole
    first, *others = wanted or [max(found, key=lambda name: found[name][1], default=None)]
    for other in others:
        if not _same(first, other, tensors):
            raise StateDictError(
                f"{subject} holds {len(wanted)} VGGs, whose names begin with "
                f"{' and '.join(map(repr, wanted))}: choose with --prefix of flaxvgg convert, or "
                "give flaxvgg.from_torch one alone"
            )
    if first is None:
        return None, set()
    for other in set(found) - set(whole):
        if first != other and (first.endswith(other) or other.endswith(first)):
            twice = min(convs[first].keys() & convs[other].keys(), default=None)
            if twice is not None:
                raise StateDictError(
                    f"{subject} has features.{twice}.weight twice, under different names: keep one"
                )
    return first, set(whole) - {first}


def _same(one: str, other: str, tensors: Mapping[str, Any]) -> bool:
    """Whether two VGGs, by what the names of their convolutions begin with, are the same numbers.

    Their heads are compared where both have one by the same name.
    """
    mine, its = ({n[len(p) :] for n in tensors if _is_features(n, p)} for p in (one, other))
    pairs = [(one + name, other + name) for name in mine | its]
    root, its_root = _root(one, ""), _root(other, "")
    for name in tensors:
        if name.startswith(root) and not name.startswith(one):
            twin = its_root + name.removeprefix(root)
            pairs += [(name, twin)] if twin in tensors else []
    return mine == its and all(_equal(tensors[a], tensors[b]) for a, b in pairs)


def _equal(one: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and values, NaN where the other has NaN."""
    try:
        return np.array_equal(as_numpy(one), as_numpy(other), equal_nan=True)
    except ValueError:
        return False  # no plain arrays of numbers, and refused as such where they are needed


# Names.

# timm keeps fc6 and fc7 as convolutions, which the mapping takes as they are.
_TIMM = {
    "pre_logits.fc1.": "classifier.0.",
    "pre_logits.fc2.": "classifier.3.",
    "head.fc.": "classifier.6.",
}
_FEATURES = r"((?:.*\.)?)features[._](?:(?:module|_orig_mod)\.)*"


def _with_timms_names(name: str) -> str:
    for timm, torchvision in _TIMM.items():
        if name.startswith(timm):
            return torchvision + name.removeprefix(timm)
    return name


def _root(prefix: str, owner: str) -> str:
    """What the names of the whole network begin with, of which `prefix` is the convolutions'."""
    match = re.fullmatch(_FEATURES, prefix) or re.fullmatch(r"((?:.*\.)?)[^.]+\.", prefix)
    root = match[1] if match else ""
    return root if root.startswith(owner) else owner


def _is_features(name: str, prefix: str) -> bool:
    if not name.startswith(prefix):
        return False
    # Without a name of their own, the convolutions are told from the rest by their numbers.
    own = re.fullmatch(_FEATURES, prefix) is not None
    return own or re.match(r"\d+(\.|$)", name.removeprefix(prefix)) is not None


def _parted(
    tensors: Mapping[str, Any], prefix: str, root: str, dropped: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The convolutions as `features.*`, what else the network has, and what it has not."""
    features, rest, left_out = {}, {}, {}
    others = [_root(other, "") for other in dropped]
    others = [other for other in (*others, *dropped) if not root.startswith(other)]
    for name, tensor in tensors.items():
        if _is_features(name, prefix):
            features[f"features.{name.removeprefix(prefix)}"] = tensor
        elif name.startswith(root) and not any(name.startswith(other) for other in others):
            rest[_with_timms_names(name.removeprefix(root))] = tensor
        else:
            left_out[name] = tensor
    return features, rest, left_out


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that puts fc2 before fc10."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _head(rest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The head's parameters, what else there is, and what is to be said of the head's names."""
    owners = {name.rpartition(".")[0] for name in rest if name.endswith((".weight", ".bias"))}
    head = {name: x for name, x in rest.items() if name.rpartition(".")[0] in owners}
    buffers = {name: x for name, x in rest.items() if name not in head}
    modules = sorted(owners, key=_natural)
    layers = [layer for layer in classifier_layers() if layer.kind == "linear"]
    theirs = [layer.torch for layer in layers]
    if len(modules) != 3 or modules == theirs or any(f"{m}.weight" not in head for m in modules):
        return head, buffers, []
    shapes = [tuple(head[f"{module}.weight"].shape) for module in modules]
    if not all(map(fits_linear, layers, shapes)):
        return head, buffers, []
    new = dict(zip(modules, theirs, strict=True))
    renamed = {}
    for name, x in head.items():
        module, _, parameter = name.rpartition(".")
        renamed[f"{new[module]}.{parameter}"] = x
    return renamed, buffers, [f"{', '.join(map(repr, modules))} are taken for fc6, fc7 and fc8"]


def fits_linear(layer: Any, shape: tuple[int, ...]) -> bool:
    """Whether a weight, as of a linear layer or the equal convolution, is that of fc6, fc7, fc8."""
    k = layer.kernel
    inputs = {(layer.inputs * k * k,), (layer.inputs, k, k)}
    return shape[1:] in inputs and (layer.name == "fc8" or shape[:1] == (layer.outputs,))


def _fill_biases(features: dict[str, Any], arch: str) -> list[str]:
    """Zeros for biases that no convolution has: the BatchNorm behind it has one."""
    convs = _convs(arch)
    if not arch.endswith("_bn") or any(f"features.{n}.bias" in features for n in convs):
        return []
    for number, (outputs, *_) in convs.items():
        dtype = as_numpy(features[f"features.{number}.weight"]).dtype
        features[f"features.{number}.bias"] = np.zeros(outputs, dtype)
    return ["the convolutions have no bias, and get zeros: BatchNorm has its own"]


_LISTED = 3


def _listed(tensors: Mapping[str, Any]) -> str:
    """The first names, with the values of what is short."""
    some = [f"{name!r}{short_values(x)}" for name, x in list(tensors.items())[:_LISTED]]
    more = f" and {len(tensors) - _LISTED} more" if len(tensors) > _LISTED else ""
    return ", ".join(some) + more
