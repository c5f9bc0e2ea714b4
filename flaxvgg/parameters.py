"""Values of a state dict: plain numbers, or something that they have to be computed from."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np


class StateDictError(ValueError):
    """A state dict cannot be told to be one VGG's; the message is one line with what to do."""


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy view of a torch tensor (bfloat16 too) or of anything array-like; torch not needed.

    Raises ValueError for a tensor that is no array of numbers: sparse, quantised, without data.
    """
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":
                import torch

                return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return value.numpy()
        except (TypeError, RuntimeError) as error:  # what torch raises for them
            raise ValueError(str(error).splitlines()[0]) from None
    return np.asarray(value)


def check_plain(tensors: Mapping[str, Any], subject: str) -> None:
    """Raise StateDictError where weights are quantised, or stored as what they are computed from.

    Pruned ones, with a mask, are fine: `pruned` computes them.
    """
    for name, x in tensors.items():
        if _is_quantised(name, x):
            raise StateDictError(
                f"{subject} is quantised, at {name!r}: save the float weights, from before the "
                "quantisation"
            )
        base = name.removesuffix("_orig")
        how = ""
        if ".parametrizations." in name:
            how = "a parametrisation (torch.nn.utils.parametrize)"
        elif name.endswith((".weight_g", ".weight_v")):
            how = "weight normalisation (torch.nn.utils.weight_norm)"
        elif base != name and f"{base}_mask" not in tensors:
            how = "spectral normalisation (torch.nn.utils.spectral_norm)"
        if how:
            raise StateDictError(
                f"{subject} stores {name!r} of {how}, not the weight: remove that from the network "
                "and save model.state_dict() again"
            )


def _is_quantised(name: str, value: Any) -> bool:
    return (
        getattr(value, "is_quantized", False)
        or getattr(value, "what", "") == "quantised"  # of a NoArray
        or name.endswith((".zero_point", ".SCB"))
        or str(value.dtype).endswith("int8")
    )


def pruned(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Weights where there were weights and masks (torch.nn.utils.prune), and a line that says so.

    Raises StateDictError where one of them is no array of numbers.
    """
    found = dict(tensors)
    masked = [name.removesuffix("_mask") for name in tensors if name.endswith("_mask")]
    masked = [name for name in masked if f"{name}_orig" in tensors]
    for name in masked:
        try:
            weight, mask = (as_numpy(found.pop(f"{name}_{part}")) for part in ("orig", "mask"))
            found[name] = weight * mask.astype(weight.dtype)
        except (ValueError, TypeError) as error:
            raise StateDictError(
                f"{name!r} is pruned, by a mask that does not fit: {error}"
            ) from None
    note = f"pruned: {len(masked)} parameters were multiplied by their masks"
    return found, [note] if masked else []


def short_values(value: Any) -> str:
    """The numbers of a tensor of at most four, in brackets; nothing for others."""
    if not 0 < np.prod(value.shape, dtype=float) <= 4:
        return ""
    try:
        array = as_numpy(value).astype(float)
    except (ValueError, TypeError):
        return ""
    return f" ({', '.join(f'{x:g}' for x in array.ravel())})"
