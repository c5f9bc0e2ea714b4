"""Times side by side: of calls in forward passes of the same model, and of tools among each other.

On a busy machine seconds mean little, and their ratio means something only where both were taken at
the same moment. So there are several rounds. One of `measure` goes through all cases, each right
behind its own forward pass; the processor time of all threads is kept too: it counts work, not
waiting. One of `compete` goes through the tools that do the same.
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

Call = Callable[[], object]
Report = Callable[[float], None]  # is told how much is done, up to 1
_LEAST = 3  # rounds of a competition, however long they take
_PAUSE = 0.05  # seconds: threads of the tool before spin on for a moment


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


def measure(cases: Sequence[Case], rounds: int, report: Report) -> list[Measured]:
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


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of a tool's first call, with compilation where there is any, and of every round."""

    first_call: float
    rounds: tuple[float, ...]


def compete(
    calls: Mapping[str, Call], rounds: int, seconds: float, report: Report
) -> dict[str, Timed]:
    """Warm every tool up, then time them all in turns; each round begins with another tool.

    There are up to `rounds` rounds, of which all behind the third begin before `seconds` are over.
    """
    tools = list(calls)
    first = {tool: _clocks(calls[tool])[0] for tool in tools}
    taken: dict[str, list[float]] = {tool: [] for tool in tools}
    start = time.perf_counter()
    for done in range(rounds):
        passed = time.perf_counter() - start
        if done >= _LEAST and passed > seconds:
            break
        report(max(done / rounds, min(passed / seconds, 1.0)))
        at = done % len(tools)
        for tool in tools[at:] + tools[:at]:
            time.sleep(_PAUSE)
            taken[tool].append(_clocks(calls[tool])[0])
    report(1.0)
    return {tool: Timed(first[tool], tuple(taken[tool])) for tool in tools}


def _clocks(call: Call) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """What the times were taken on."""
    return {
        "processor": _processor(),
        "cores": str(cores()),
        "devices": ", ".join(device.device_kind for device in jax.devices()),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """What Linux says of it, with the widest vectors that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    facts = dict(reversed([[part.strip() for part in x.split(":", 1)] for x in lines if ":" in x]))
    vectors = [name for name in ("avx512f", "avx2", "asimd") if name in facts.get("flags", "")]
    return " ".join([facts.get("model name", platform.machine()), *vectors[:1]])
