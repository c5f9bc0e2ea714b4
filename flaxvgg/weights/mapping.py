"""torchvision's names and layouts <-> Flax paths: a bijection.

Every parameter has one torch name and one Flax path, derived from the layer it belongs to. Weights
of convolutions and linear layers go the same way: torch's (out, in, k, k) becomes (k, k, in, out),
flattened to (k*k*in, out) for a linear layer. For fc6 that permutes the weight from PyTorch's
channel-first flattening to the channels-last one, once, so that no activation is ever permuted.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flaxvgg.network.config import ARCHITECTURES, VGGConfig, check_arch
from flaxvgg.network.model import VGG, Packed
from flaxvgg.network.provenance import Provenance
from flaxvgg.weights.entries import Entry as Entry
from flaxvgg.weights.entries import MappingError as MappingError
from flaxvgg.weights.entries import Path
from flaxvgg.weights.entries import entries as entries
from flaxvgg.weights.parameters import as_numpy as as_numpy
from flaxvgg.weights.state_dicts import HasStateDict, fits_linear, torchvision_names


def empty_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialised array at a 64-byte boundary, which JAX adopts on a CPU without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


_BLOCK = 16  # output channels permuted at a time: both sides of the transposition stay in the cache
_WORKERS = min(4, os.cpu_count() or 1)  # threads that permute: NumPy lets go of the interpreter


def _to_flax(
    entry: Entry, value: np.ndarray, dtype: np.dtype, release: Callable[[np.ndarray], None]
) -> tuple[np.ndarray, int]:
    """The parameter in Flax's layout as a new array, and how many of its values are not finite."""
    target = empty_array(entry.shape, dtype)
    if entry.layout is None:
        target[...] = value
        release(value)
        return target, _not_finite(target)
    n, c, k, _ = entry.layout
    source, permuted = value.reshape(entry.layout), target.reshape(k, k, c, n)

    def permute(start: int) -> int:
        block = source[start : start + _BLOCK]
        cast = block.astype(dtype, copy=False)
        permuted[..., start : start + _BLOCK] = cast.transpose(2, 3, 1, 0)
        bad = _not_finite(cast)
        release(block)
        return bad

    with ThreadPoolExecutor(_WORKERS) as pool:
        return target, sum(pool.map(permute, range(0, n, _BLOCK)))


def _not_finite(array: np.ndarray) -> int:
    # The extremes are NaN or infinite where anything is, and need no array of booleans.
    if np.isfinite(array.min()) and np.isfinite(array.max()):
        return 0
    return array.size - int(np.isfinite(array).sum())


def _torch_blocks(entry: Entry, value: np.ndarray) -> Iterator[np.ndarray]:
    """The parameter in torch's layout, a contiguous block of rows after the other."""
    if entry.integer:
        yield np.asarray(value, np.int64)
        return
    if entry.layout is None:
        yield np.ascontiguousarray(value)
        return
    n, c, k, _ = entry.layout
    permuted = value.reshape(k, k, c, n)

    def permute(start: int) -> np.ndarray:
        block = permuted[..., start : start + _BLOCK].transpose(3, 2, 0, 1)
        return np.ascontiguousarray(block)

    wave = 4 * _WORKERS * _BLOCK  # no more is permuted ahead of who takes it
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, n, wave):
            yield from pool.map(permute, range(start, min(start + wave, n), _BLOCK))


def _entry_problem(entry: Entry, value: np.ndarray) -> str | None:
    # fc6, fc7 and fc8 may come as the convolutions they are equal to: (out, in, k, k).
    shapes = {entry.torch_shape, entry.layout or entry.torch_shape}
    if entry.torch == "features.0.weight" and value.ndim == 4 and value.shape[1] == 1:
        return (
            f"{entry.torch} is for images of 1 channel, and VGG's have 3: for grey photos "
            "weight.repeat(1, 3, 1, 1) / 3 is the same network"
        )
    if value.shape not in shapes:
        return f"{entry.torch}: shape {value.shape}, expected {entry.torch_shape}"
    if entry.integer:
        right = np.issubdtype(value.dtype, np.integer)
        return None if right else f"{entry.torch}: {value.dtype}, expected an integer"
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return f"{entry.torch}: {value.dtype}, expected floating point"
    return None


_NAN_CLASSIFIER = (
    "its classifier is NaN by design (torchvision publishes IMAGENET1K_FEATURES for its features)"
)


def nearest_arch(names: Iterable[str]) -> tuple[str, int]:
    """The architecture whose torchvision names are nearest, and by how many names they differ.

    Names outside `features.` are not looked at.
    """
    names = set(names)
    found = {name for name in names if name.startswith("features.")}
    difference = {}
    for arch in ARCHITECTURES:
        known = entries(VGGConfig.features_only(arch, ""))
        weights = {entry.torch for entry in known if not entry.integer}
        counts = {entry.torch for entry in known if entry.integer}
        conv6 = _conv6(arch)
        extra = {f"{conv6}.weight", f"{conv6}.bias"} if "classifier.weight" in names else set()
        difference[arch] = len(weights ^ (found - counts - extra))
    nearest = min(difference, key=lambda arch: difference[arch])
    return nearest, difference[nearest]


def config_for(
    arch: str, state_dict: Mapping[str, Any], *, dropout: float = 0.5
) -> tuple[VGGConfig, set[str]]:
    """The configuration a torchvision state dict is for, and the keys that are to be left out.

    A state dict without a head, with one that is NaN throughout, or with one that is not VGG's is
    for features only; one with `classifier.weight`, a single linear layer on as many numbers as
    there are channels, is for a GAP head. Raises MappingError for the weights of another
    architecture.
    """
    check_arch(arch)
    nearest, difference = nearest_arch(state_dict)
    if nearest != arch and not difference:
        raise MappingError(arch, [f"these are the weights of a {nearest}"])
    head = {name: x for name, x in state_dict.items() if not name.startswith("features.")}
    if not head:
        return VGGConfig.features_only(arch, "these weights come without a classifier"), set()
    if all(map(_is_nan, head.values())):
        return VGGConfig.features_only(arch, _NAN_CLASSIFIER), set(head)
    channels = _rows(state_dict, f"{_conv6(arch)}.weight")
    config = VGGConfig.gap(
        arch, num_classes=_rows(head, "classifier.weight") or 1, channels=channels
    )
    if _fits(config, head):
        return config, set()
    classes = _rows(head, "classifier.6.weight") or 1000
    config = VGGConfig.classifier(arch, num_classes=classes, dropout=dropout)
    if _fits(config, head):
        return config, set()
    return VGGConfig.features_only(arch, f"the head {_sizes(head)} is not VGG's"), set(head)


def _fits(config: VGGConfig, head: Mapping[str, Any]) -> bool:
    """Whether every parameter of a head is one of the configuration's; some may be missing."""
    linear = {layer.torch: layer for layer in config.head if layer.kind == "linear"}
    names = {f"{name}.{parameter}" for name in linear for parameter in ("weight", "bias")}
    return head.keys() <= names and all(
        fits_linear(layer, tuple(head[f"{name}.weight"].shape))
        for name, layer in linear.items()
        if f"{name}.weight" in head
    )


def _sizes(head: Mapping[str, Any]) -> str:
    """How many numbers go into each linear layer, and come out: "25088-64-10"."""
    shapes = [tuple(x.shape) for x in head.values() if len(x.shape) == 2]
    if not shapes:
        return f"({', '.join(repr(name) for name in list(head)[:4])})"
    return "-".join(str(n) for n in [shapes[0][1], *(outputs for outputs, _ in shapes)])


def _conv6(arch: str) -> str:
    """torch's name of the convolution that a GAP head may have in the place of pool5."""
    return VGGConfig.features_only(arch, "").conv_stack[-1].torch


def _rows(state_dict: Mapping[str, Any], name: str) -> int | None:
    """The number of outputs of a weight, at least 1; None where there is none."""
    if name not in state_dict or not len(state_dict[name].shape):
        return None
    return max(int(state_dict[name].shape[0]), 1)


def _is_nan(value: Any) -> bool:
    try:
        array = as_numpy(value)
    except ValueError:
        return False
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return False
    return bool(np.isnan(array.flat[:1]).all()) and bool(np.isnan(array).all())


def arrays_from_torch(
    config: VGGConfig,
    state_dict: dict[str, Any],
    param_dtype: DTypeLike | None = None,
    release: Callable[[np.ndarray], None] = lambda array: None,
) -> dict[Path, np.ndarray]:
    """Flax path -> new array for every parameter; the state dict is emptied on the way.

    Each part of a source array is handed to `release` as soon as its copy exists, so that a
    conversion does not hold the weights twice. Raises MappingError with every entry that is
    unexpected, missing, mis-shaped, wrongly typed or not finite.
    """
    found: dict[Path, np.ndarray] = {}
    problems = []
    too_wide = set()
    # The largest first: its source and its copy are in memory together before anything else is.
    for entry in sorted(entries(config), key=lambda entry: -math.prod(entry.shape)):
        if entry.torch not in state_dict:
            # PyTorch before 0.4.1 kept no batch count, and nothing at inference reads it.
            if entry.integer:
                found[entry.path] = np.zeros((), np.float32)
            else:
                problems.append(f"{entry.torch}: missing, expected {entry.torch_shape}")
            continue
        try:
            value = as_numpy(state_dict.pop(entry.torch))
        except ValueError as error:
            problems.append(f"{entry.torch}: {error}")
            continue
        problem = _entry_problem(entry, value)
        if problem is None and _would_lose_digits(value, param_dtype):
            too_wide.add(entry.torch)
        elif problem is None:
            dtype = _dtype(entry.path, value, param_dtype)
            found[entry.path], bad = _to_flax(entry, value, dtype, release)
            if bad:
                of = f"{bad} of {value.size} values"
                problem = f"{entry.torch}: {of} are NaN or infinite in {dtype}"
        if problem is not None:
            problems.append(problem)
    problems += [f"{name}: unexpected" for name in state_dict]
    if too_wide:
        problems.append(
            f"{len(too_wide)} tensors are float64, and would lose digits: --dtype float32 "
            "(param_dtype in Python) rounds them, and jax_enable_x64 keeps them"
        )
    if problems:
        raise MappingError(config.arch, problems)
    return found


def _would_lose_digits(value: np.ndarray, param_dtype: DTypeLike | None) -> bool:
    return param_dtype is None and value.dtype == np.float64 and not jax.config.jax_enable_x64


def _dtype(path: Path, value: Any, param_dtype: DTypeLike | None) -> np.dtype:
    """What a parameter is stored in; running statistics are not rounded to `param_dtype`."""
    if path[2] == "num_batches_tracked":
        return np.dtype(np.float32)
    return np.dtype(
        value.dtype if param_dtype is None or path[2] in ("mean", "var") else param_dtype
    )


def build(config: VGGConfig, arrays: Mapping[Path, Any], **kwargs: Any) -> VGG:
    """A model whose parameters are `arrays`, adopted without a copy, and not initialised first.

    `kwargs` are VGG's own. Raises MappingError where paths or shapes are not the skeleton's.
    """
    model = nnx.eval_shape(lambda: VGG(config, rngs=nnx.Rngs(0), **kwargs))
    skeleton = nnx.to_flat_state(nnx.state(model))
    expected = {path: variable.shape for path, variable in skeleton}
    problems = [f"{'.'.join(path)}: unexpected" for path in arrays if path not in expected]
    for path, shape in expected.items():
        if path not in arrays:
            problems.append(f"{'.'.join(path)}: missing, expected {shape}")
        elif tuple(arrays[path].shape) != tuple(shape):
            problems.append(f"{'.'.join(path)}: shape {arrays[path].shape}, expected {shape}")
    if problems:
        raise MappingError(config.arch, problems)
    state = nnx.from_flat_state(
        (path, variable.replace(jax.device_put(arrays[path]))) for path, variable in skeleton
    )
    nnx.update(model, state)
    return model


def from_torch(
    arch: str,
    state_dict: Mapping[str, Any] | HasStateDict,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = "highest",
    dropout: float = 0.5,
    config: VGGConfig | None = None,
    provenance: Provenance = Provenance(
        source="a PyTorch state dict", guess="a state dict does not say it"
    ),
) -> VGG:
    """A model with the weights of a PyTorch module, or of a state dict.

    `state_dict` maps torchvision's names to tensors or arrays, wrapped as `torchvision_names` says:
    with something before every name, or in a checkpoint's dictionaries; the number of classes is
    read from it. Parameters keep their dtype, bit for bit, unless `param_dtype` says otherwise. A
    state dict without a classifier, with the all-NaN classifier of IMAGENET1K_FEATURES, or with a
    head that is not VGG's, gives a model whose features work and whose logits are refused with the
    reason. A head that names alone do not tell, as a score map's, is given as `config`. What was
    left out or assumed is in `provenance.notes`. Raises MappingError naming every entry that is
    unexpected, missing, mis-shaped, wrongly typed or not finite, and StateDictError where no VGG
    is found, or several (each a ValueError).

    >>> state_dict = flaxvgg.to_torch(model)
    >>> flaxvgg.from_torch("vgg11", state_dict).config.arch
    'vgg11'
    """
    named = torchvision_names(state_dict, arch=arch)
    left_out: set[str] = set()
    if config is None:
        config, left_out = config_for(arch, named.tensors, dropout=dropout)
    elif config.arch != arch:
        raise ValueError(f"config is of {config.arch}, not of {arch}")
    kept = {name: value for name, value in named.tensors.items() if name not in left_out}
    arrays = arrays_from_torch(config, kept, param_dtype)
    return build(
        config,
        arrays,
        dtype=dtype,
        param_dtype=arrays["conv_stack", "conv1_1", "kernel"].dtype,
        precision=precision,
        provenance=provenance.noting(*named.notes),
    )


def rebuild(model: VGG, *, dropout: float | None = None, **options: Any) -> VGG:
    """The same network with another dropout rate, or other `options` of `build` that are given."""
    param_dtype = options.get("param_dtype")
    conv = model.conv_stack.conv1_1
    return build(
        model.config if dropout is None else model.config.with_dropout(dropout),
        {
            path: value.astype(_dtype(path, value, param_dtype))
            for path, value in model_arrays(model).items()
        },
        dtype=options.get("dtype") or conv.dtype,
        param_dtype=param_dtype or conv.param_dtype,
        precision=options.get("precision") or conv.precision,
        provenance=model.provenance,
    )


def model_arrays(model: VGG) -> dict[Path, jax.Array]:
    """Flax path -> array for every parameter and statistic of the model."""
    state = nnx.state(model, nnx.Not(Packed))
    return {path: variable[...] for path, variable in nnx.to_flat_state(state)}


def to_torch(model: VGG) -> dict[str, np.ndarray]:
    """A torchvision state dict of the model: name -> new array, in PyTorch's order and layouts.

    `from_torch(arch, to_torch(model))` is the same model, bit for bit. A model without a classifier
    gives its convolutions only.

    >>> state_dict = flaxvgg.to_torch(model)
    >>> state_dict["features.0.weight"].shape
    (64, 3, 3, 3)
    """
    return {
        entry.torch: np.concatenate([np.atleast_1d(block) for block in blocks]).reshape(
            entry.torch_shape
        )
        for entry, _, blocks in torch_stream(model)
    }


def torch_stream(model: VGG) -> Iterator[tuple[Entry, np.dtype, Iterator[np.ndarray]]]:
    """Every parameter in PyTorch's order, with its dtype and its bytes as blocks of rows.

    For a writer that need not hold the weights a second time.
    """
    arrays = model_arrays(model)
    for entry in entries(model.config):
        value = np.asarray(arrays[entry.path])
        dtype = np.dtype(np.int64) if entry.integer else value.dtype
        yield entry, dtype, _torch_blocks(entry, value)
