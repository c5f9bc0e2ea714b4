"""torchvision's names and layouts <-> Flax paths: a bijection.

Every parameter has one torch name and one Flax path, derived from the layer it belongs to. Weights
of convolutions and linear layers go the same way: torch's (out, in, k, k) becomes (k, k, in, out),
flattened to (k*k*in, out) for a linear layer. For fc6 that permutes the weight from PyTorch's
channel-first flattening to the channels-last one, once, so that no activation is ever permuted.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flaxvgg.config import Layer, VGGConfig, check_arch
from flaxvgg.model import VGG
from flaxvgg.provenance import Provenance

Path = tuple[str, str, str]


class MappingError(ValueError):
    """A state dict does not fit the architecture; `problems` names every entry that is wrong."""

    def __init__(self, arch: str, problems: list[str]):
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"this is no {arch}: {len(problems)} {noun}\n  " + "\n  ".join(problems))


class Entry(NamedTuple):
    """One parameter: its torch name and shape, and its Flax path, shape and layout."""

    torch: str
    torch_shape: tuple[int, ...]
    path: Path
    shape: tuple[int, ...]
    layout: tuple[int, int, int, int] | None  # (out, in, k, k) of a weight; None: taken as it is
    integer: bool = False


_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _layer_entries(room: str, layer: Layer) -> list[Entry]:
    out, k = layer.outputs, layer.kernel
    if layer.kind == "batch_norm":
        entries = [
            Entry(f"{layer.torch}.{torch}", (out,), (room, layer.name, ours), (out,), None)
            for torch, ours in _BATCH_NORM.items()
        ]
        count = "num_batches_tracked"
        return [*entries, Entry(f"{layer.torch}.{count}", (), (room, layer.name, count), (), None, True)]
    layout = (out, layer.inputs, k, k)
    if layer.kind == "conv":
        torch_shape, shape = layout, (k, k, layer.inputs, out)
    else:
        torch_shape, shape = (out, layer.inputs * k * k), (layer.inputs * k * k, out)
    return [
        Entry(f"{layer.torch}.weight", torch_shape, (room, layer.name, "kernel"), shape, layout),
        Entry(f"{layer.torch}.bias", (out,), (room, layer.name, "bias"), (out,), None),
    ]


def entries(config: VGGConfig) -> tuple[Entry, ...]:
    """Every parameter and statistic of the network, in PyTorch's order."""
    return tuple(
        entry
        for room, layers in (("conv_stack", config.conv_stack), ("head", config.head))
        for layer in layers
        if layer.kind in ("conv", "linear", "batch_norm")
        for entry in _layer_entries(room, layer)
    )


def empty_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialised array at a 64-byte boundary, which JAX adopts on a CPU without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _permute(source: np.ndarray, axes: tuple[int, ...], out: np.ndarray, blocked: int) -> None:
    """out[...] = source.transpose(axes), in blocks along axis `blocked` of the source.

    Small blocks keep both sides of the transposition in the cache: 0.4 s against 1 to 2 s for fc6.
    """
    for start in range(0, source.shape[blocked], 64):
        part = [slice(None)] * 4
        part[blocked] = slice(start, start + 64)
        target = [slice(None)] * 4
        target[axes.index(blocked)] = part[blocked]
        out[tuple(target)] = source[tuple(part)].transpose(axes)


def _to_flax(entry: Entry, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    out = empty_array(entry.shape, dtype)
    if entry.layout is None:
        out[...] = value
    else:
        n, c, k, _ = entry.layout
        _permute(value.reshape(entry.layout), (2, 3, 1, 0), out.reshape(k, k, c, n), blocked=0)
    return out


def _to_torch(entry: Entry, value: np.ndarray) -> np.ndarray:
    if entry.integer:
        return np.asarray(value, np.int64)
    if entry.layout is None:
        return np.array(value)
    n, c, k, _ = entry.layout
    out = np.empty(entry.torch_shape, value.dtype)
    _permute(value.reshape(k, k, c, n), (3, 2, 0, 1), out.reshape(entry.layout), blocked=3)
    return out


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy view of a torch tensor (bfloat16 too) or of anything array-like; torch not needed."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return value.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        return value.numpy()
    return np.asarray(value)


def _entry_problem(entry: Entry, value: np.ndarray, keep_dtype: bool) -> str | None:
    # fc6, fc7 and fc8 may come as the convolutions they are equal to: (out, in, k, k).
    shapes = {entry.torch_shape, entry.layout or entry.torch_shape}
    if value.shape not in shapes:
        return f"{entry.torch}: shape {value.shape}, expected {entry.torch_shape}"
    if entry.integer:
        right = np.issubdtype(value.dtype, np.integer)
        return None if right else f"{entry.torch}: {value.dtype}, expected an integer"
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return f"{entry.torch}: {value.dtype}, expected floating point"
    if keep_dtype and value.dtype == np.float64 and not jax.config.jax_enable_x64:
        return f"{entry.torch}: float64 would lose digits; pass param_dtype, or enable jax_enable_x64"
    # The extremes are NaN or infinite where anything is, and need no array of booleans.
    if not (np.isfinite(value.min()) and np.isfinite(value.max())):
        bad = int(value.size - np.isfinite(value).sum())
        return f"{entry.torch}: {bad} of {value.size} values are NaN or infinite"
    return None


_NAN_CLASSIFIER = (
    "its classifier is NaN by design (torchvision publishes IMAGENET1K_FEATURES for its features)"
)


def config_for(
    arch: str, state_dict: Mapping[str, Any], *, dropout: float = 0.5
) -> tuple[VGGConfig, set[str]]:
    """The configuration a torchvision state dict is for, and the keys that are to be left out.

    A state dict without a classifier, or with one that is NaN throughout, is for features only.
    """
    check_arch(arch)
    classifier = {name for name in state_dict if name.startswith("classifier.")}
    if not classifier:
        return VGGConfig.features_only(arch, "these weights come without a classifier"), set()
    if all(_is_nan(state_dict[name]) for name in classifier):
        return VGGConfig.features_only(arch, _NAN_CLASSIFIER), classifier
    last = state_dict.get("classifier.6.weight")
    classes = max(int(last.shape[0]), 1) if last is not None and len(last.shape) else 1000
    return VGGConfig.classifier(arch, num_classes=classes, dropout=dropout), set()


def _is_nan(value: Any) -> bool:
    array = as_numpy(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return False
    return bool(np.isnan(array.flat[:1]).all()) and bool(np.isnan(array).all())


def arrays_from_torch(
    config: VGGConfig, state_dict: dict[str, Any], param_dtype: DTypeLike | None = None
) -> dict[Path, np.ndarray]:
    """Flax path -> array for every parameter; the state dict is emptied on the way.

    Nothing is converted before everything was checked. Emptying lets each source array go as soon
    as its copy exists, so that a conversion never holds the weights twice. Raises MappingError with
    every entry that is unexpected, missing, mis-shaped, wrongly typed or not finite.
    """
    known = {entry.torch: entry for entry in entries(config)}
    problems = [f"{name}: unexpected" for name in state_dict if name not in known]
    for name, entry in known.items():
        if name not in state_dict:
            # PyTorch before 0.4.1 kept no batch count, and nothing at inference reads it.
            if entry.integer:
                state_dict[name] = np.zeros((), np.int64)
            else:
                problems.append(f"{name}: missing, expected {entry.torch_shape}")
            continue
        value = state_dict[name] = as_numpy(state_dict[name])
        if problem := _entry_problem(entry, value, keep_dtype=param_dtype is None):
            problems.append(problem)
    if problems:
        raise MappingError(config.arch, problems)
    found = {}
    for name, entry in known.items():
        value = state_dict.pop(name)
        dtype = np.dtype(np.int32) if entry.integer else np.dtype(param_dtype or value.dtype)
        found[entry.path] = _to_flax(entry, value, dtype)
    return found


def build(config: VGGConfig, arrays: Mapping[Path, Any], **kwargs: Any) -> VGG:
    """A model whose parameters are `arrays`, without initialising it first.

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
        (path, variable.replace(jnp.asarray(arrays[path]))) for path, variable in skeleton
    )
    nnx.update(model, state)
    return model


def from_torch(
    arch: str,
    state_dict: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = "highest",
    dropout: float = 0.5,
    provenance: Provenance = Provenance(source="a PyTorch state dict"),
) -> VGG:
    """A model with the weights of a torchvision state dict.

    `state_dict` maps torchvision's names to tensors or arrays; the number of classes is read from
    it. Parameters keep their dtype, bit for bit, unless `param_dtype` says otherwise. A state dict
    without a classifier, or with the all-NaN classifier of IMAGENET1K_FEATURES, gives a model whose
    features work and whose logits are refused with the reason. Raises MappingError (a ValueError)
    naming every entry that is unexpected, missing, mis-shaped, wrongly typed or not finite.
    """
    config, left_out = config_for(arch, state_dict, dropout=dropout)
    kept = {name: value for name, value in state_dict.items() if name not in left_out}
    arrays = arrays_from_torch(config, kept, param_dtype)
    return build(
        config,
        arrays,
        dtype=dtype,
        param_dtype=_parameter_dtype(arrays),
        precision=precision,
        provenance=provenance,
    )


def _parameter_dtype(arrays: Mapping[Path, np.ndarray]) -> np.dtype:
    return arrays["conv_stack", "conv1_1", "kernel"].dtype


def to_torch(model: VGG) -> dict[str, np.ndarray]:
    """A torchvision state dict of the model: name -> new array, in PyTorch's order and layouts.

    `from_torch(arch, to_torch(model))` is the same model, bit for bit. A model without a classifier
    gives its convolutions only.
    """
    return torch_state_dict(model.config, lambda path: np.asarray(arrays[path])) if (
        arrays := model_arrays(model)
    ) else {}


def model_arrays(model: VGG) -> dict[Path, jax.Array]:
    """Flax path -> array for every parameter and statistic of the model."""
    return {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}


def torch_state_dict(
    config: VGGConfig, array: Callable[[Path], np.ndarray]
) -> dict[str, np.ndarray]:
    """The state dict whose parameters `array` gives by their Flax paths."""
    return {entry.torch: _to_torch(entry, array(entry.path)) for entry in entries(config)}
