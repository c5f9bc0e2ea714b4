"""Times in forward passes: each call is timed right behind a forward pass of the same model.

On a busy machine seconds mean little, and their ratio means something only where both were taken at
the same moment. So a round goes through all cases, each beside its own forward pass, and there are
several rounds. The processor time of all threads is kept too: it counts work, not waiting.
"""

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call to be timed: it returns when its result is there.

    Where `timed` of `of` channels are run, the rest is reckoned: `fixed` forward passes do not
    depend on the channels, what is left is proportional to them.
    """

    method: str
    classes: int
    tool: str
    call: Call
    forward: Call
    timed: int = 0
    of: int = 0
    fixed: float = 0.0

    def whole(self, passes: float) -> float:
        """Forward passes for all channels, where `passes` were measured for some."""
        return self.fixed + (passes - self.fixed) * self.of / self.timed if self.timed else passes


@dataclasses.dataclass
class Measured:
    """What was measured of a case: seconds of the call and of its forward pass, by round."""

    case: Case
    first_call: float  # with compilation, where there is any
    calls: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # wall, processor
    forwards: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def passes(self) -> list[float]:
        """Forward passes: median, least and most of the rounds."""
        found = self._passes(0)
        return [round(x, 3) for x in (statistics.median(found), min(found), max(found))]

    def _passes(self, clock: int) -> list[float]:
        return [
            self.case.whole(call[clock] / forward[clock])
            for call, forward in zip(self.calls, self.forwards, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """The case, what it took in forward passes (`passes`), and in seconds."""
        return {
            "method": self.case.method,
            "classes": self.case.classes,
            "tool": self.case.tool,
            "passes": self.passes(),
            "processor_passes": round(statistics.median(self._passes(1)), 3),
            "seconds": round(statistics.median(wall for wall, _ in self.calls), 4),
            "forward_seconds": round(statistics.median(wall for wall, _ in self.forwards), 4),
            "first_call_seconds": round(self.first_call, 2),
            "channels": [self.case.timed, self.case.of] if self.case.timed else None,
        }


def measure(cases: Sequence[Case], rounds: int, report: Callable[[float], None]) -> list[Measured]:
    """Warm everything up, then time `rounds` rounds; `report` is told how much is done, up to 1."""
    found, done = [], 0.0
    step = 1 / (len(cases) * (rounds + 1))
    for case in cases:
        case.forward()
        found.append(Measured(case, _clocks(case.call)[0]))
        report(done := done + step)
    for _ in range(rounds):
        for measured in found:
            measured.forwards.append(_clocks(measured.case.forward))
            measured.calls.append(_clocks(measured.case.call))
            report(done := done + step)
    return found


def _clocks(call: Call) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def machine(*packages: str) -> dict[str, str]:
    """What the times were taken on, with the versions of the packages."""
    return {
        "cores": str(os.cpu_count()),
        "devices": ", ".join(device.device_kind for device in jax.devices()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
