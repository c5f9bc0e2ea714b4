"""Tensors as JAX arrays and back, in the same memory, and what can go wrong with that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

Facts = dict[str, str]


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """The tensor's memory as a JAX array. Raises ValueError where that would take a copy."""
    return jnp.from_dlpack(tensor, copy=False)


def to_torch(array: jax.Array) -> torch.Tensor:
    """The array's memory as a tensor, once it has been computed."""
    return torch.from_dlpack(array)


def is_shared(tensor: torch.Tensor, array: jax.Array) -> bool:
    """Whether both begin at the same address."""
    return tensor.data_ptr() == array.unsafe_buffer_pointer()


def is_row_major(array: jax.Array) -> bool:
    """Whether the array lies in memory in the order of its axes, as compiled programs take it."""
    order = array.format.layout.major_to_minor
    return order == tuple(range(array.ndim))


class Case(NamedTuple):
    """One way of handing something over, and what was found when it was tried."""

    what: str
    found: str


def layouts(images: torch.Tensor) -> list[Case]:
    """What becomes of a float batch (N, 3, H, W) in each layout, and of memory that is no batch."""
    plain = images.contiguous()
    last = images.contiguous(memory_format=torch.channels_last)
    odd = torch.zeros(plain.numel() + 1)[1:].view(plain.permute(0, 2, 3, 1).shape)
    tried = {
        "uint8 (N, H, W, 3)": (plain.permute(0, 2, 3, 1) * 0).to(torch.uint8).contiguous(),
        "float (N, 3, H, W), channels last, `.permute(0, 2, 3, 1)`": last.permute(0, 2, 3, 1),
        "float (N, 3, H, W), contiguous, `.permute(0, 2, 3, 1)`": plain.permute(0, 2, 3, 1),
        "a crop, `batch[:, 8:-8, 8:-8]`": last.permute(0, 2, 3, 1)[:, 8:-8, 8:-8],
        "memory that begins off a 64-byte boundary": odd,
        "a tensor that requires gradients": last.permute(0, 2, 3, 1).clone().requires_grad_(),
    }
    return [Case(what, _handed_over(tensor)) for what, tensor in tried.items()]


def _handed_over(tensor: torch.Tensor) -> str:
    try:
        array = to_jax(tensor)
    except (BufferError, ValueError, jax.errors.JaxRuntimeError) as error:
        return f"refused: {type(error).__name__}"
    if not is_shared(tensor, array):
        return "copied"
    return "same address" if is_row_major(array) else "same address, other order of axes"


def hazards() -> list[Case]:
    """What one side sees of what the other does with memory that they share."""
    tried: dict[str, Callable[[], str]] = {
        "PyTorch writes into a batch that JAX holds": _written_batch,
        "PyTorch drops a batch that JAX holds": _dropped_batch,
        "a program is given such a batch to overwrite (`donate_argnums`)": _donated_batch,
        "PyTorch writes into features that it got from JAX": _written_features,
        "JAX drops features that PyTorch holds": _dropped_features,
        "a program is given such features to overwrite": _donated_features,
    }
    return [Case(what, found()) for what, found in tried.items()]


_SAME, _CHANGED = "nothing changes for the other side", "the other side's values change"


def _seen(changed: Any) -> str:
    return _CHANGED if bool(changed) else _SAME


def _batch() -> torch.Tensor:
    return torch.arange(4096.0).reshape(64, 64)


def _features() -> jax.Array:
    return jnp.arange(4096.0).reshape(64, 64) + 1.0


def _overwrite(array: jax.Array) -> jax.Array:
    result = jax.jit(lambda x: x * 2.0, donate_argnums=0)(array)
    return jax.block_until_ready(result)


def _written_batch() -> str:
    batch = _batch()
    array = to_jax(batch)
    before = float(array[0, 1])
    batch.mul_(3.0)
    return _seen(float(array[0, 1]) != before)


def _dropped_batch() -> str:
    batch = _batch()
    array, expected = to_jax(batch), batch.numpy().copy()
    del batch
    _batch()  # would get the memory, were it free
    return _seen((np.asarray(array) != expected).any())


def _donated_batch() -> str:
    batch = _batch()
    _overwrite(to_jax(batch))
    return _seen((batch != _batch()).any())


def _written_features() -> str:
    array = _features()
    before = float(array[0, 1])
    to_torch(array).mul_(3.0)
    return _seen(float(array[0, 1]) != before)


def _dropped_features() -> str:
    array = _features()
    tensor, expected = to_torch(array), np.array(array)
    del array
    _features()
    return _seen((tensor.numpy() != expected).any())


def _donated_features() -> str:
    array = _features()
    tensor, expected = to_torch(array), np.array(array)
    _overwrite(array)
    return _seen((tensor.numpy() != expected).any())
