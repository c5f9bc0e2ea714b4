"""The memory of this process, as Linux tells a process about itself."""

import ctypes
import gc
from pathlib import Path

from experiments.timing import Call


def peak(call: Call) -> dict[str, float] | None:
    """Gigabytes that this process holds before a call, and at most during it.

    None where the kernel does not tell. Memory that was freed goes back to it first.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        call()
        return {"before": before, "peak": _resident("VmHWM")}
    except (OSError, AttributeError):  # no Linux, no glibc
        return None


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(name))
    return round(int(kilobytes) * 1024 / 1e9, 3)
