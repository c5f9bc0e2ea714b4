"""What a section is made of: steps that give rows, most of them a competition of tools."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.bench.plan import Plan, Shape
from experiments.bench.tools import Tools
from experiments.timing import Call, Report, compete

Row = dict[str, Any]
ALONE = ", one thread"  # at the end of the name of such a case


class Step(NamedTuple):
    """Something that gives rows and reports how much of it is done; `weight` is its part of all."""

    name: str
    run: Callable[[Report], list[Row]]
    weight: float = 1.0


@dataclasses.dataclass
class Study:
    """The plan, the tools, and what a tool could not do, with the reason, case by case."""

    plan: Plan
    tools: Tools
    left_out: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def can(self, tool: str, case: str, reason: str) -> bool:
        """Whether there is no reason against it; otherwise it is written down."""
        if reason:
            self.left_out.append({"tool": tool, "case": case, "reason": reason})
        return not reason

    def contest(
        self,
        case: str,
        calls: Mapping[str, Call],
        reference: str,
        report: Report,
        repeats: int = 1,
        rounds: int | None = None,
    ) -> list[Row]:
        """One row for each tool: seconds of one call by round, and of the first.

        Speeds are to be given in the reference's. Very short calls are repeated in every round.
        """
        repeated = {tool: _repeated(call, repeats) for tool, call in calls.items()}
        timed = compete(repeated, rounds or self.plan.rounds, self.plan.seconds, report)
        return [
            {
                "case": case,
                "tool": tool,
                "reference": reference,
                "first_call_s": round(found.first_call, 3) if repeats == 1 else None,
                "rounds_s": [float(f"{wall / repeats:.4g}") for wall in found.rounds],
            }
            for tool, found in timed.items()
        ]


Section = Callable[[Study], Iterator[Step]]


def of_shape(shape: Shape) -> str:
    """A shape in words: 8 x 224x224."""
    batch, (height, width) = shape
    return f"{batch} x {height}x{width}"


def _repeated(call: Call, repeats: int) -> Call:
    if repeats == 1:
        return call

    def calls() -> None:
        for _ in range(repeats):
            call()

    return calls
