"""Several processes of one run: what each of them has to say, in all of them.

`jax.distributed` has joined them. Alone, a process hears itself, and nothing is sent.
"""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Wait for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def total(count: int) -> int:
    """The sum over all processes, which wait for each other."""
    if jax.process_count() == 1:
        return int(count)
    return int(np.sum(multihost_utils.process_allgather(np.array(count, np.int32))))


def gathered(data: bytes) -> list[bytes]:
    """What each process gives, in their order; they wait for each other."""
    if jax.process_count() == 1:
        return [data]
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32)).tolist()
    if not max(lengths):
        return [b""] * len(lengths)
    padded = np.frombuffer(data.ljust(max(lengths), b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def told_by_first(text: str) -> str:
    """What the first process says, in all of them; they wait for it."""
    return os.fsdecode(gathered(os.fsencode(text) if is_first() else b"")[0])


def own_part(count: int) -> range:
    """Which of so many items are this process's: a run of them, as long as another's or by one."""
    part, parts = jax.process_index(), jax.process_count()
    return range(count * part // parts, count * (part + 1) // parts)
