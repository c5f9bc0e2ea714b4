"""What the rows of a run say: speeds in a peer's, by round, and whether the aims are met."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.bench.start import NOTHING
from experiments.bench.tools import EAGER, FAST, ORT, OURS

Row = Mapping[str, Any]
Results = Mapping[str, Any]
_FASTER = 4.0  # times PyTorch's error, that a mode which is not exact may have


class Spread(NamedTuple):
    """Median, least and most of the rounds."""

    median: float
    least: float
    most: float


def seconds(row: Row) -> Spread:
    """Seconds of one call."""
    return _spread(row["rounds_s"])


def speed(row: Row, peer: Row) -> Spread:
    """How many times as fast as the peer, in the rounds in which both were timed."""
    pairs = zip(row["rounds_s"], peer["rounds_s"], strict=True)
    return _spread([theirs / own for own, theirs in pairs])


def _spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def rows_of(results: Results, section: str) -> list[Row]:
    """The rows of a section; none where it was not run."""
    return results["sections"].get(section, {"rows": []})["rows"]


def by_case(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Rows by case and tool, in their order."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["tool"]] = row
    return found


class Aim(NamedTuple):
    """What must hold, what was measured, and whether it does."""

    what: str
    bound: str
    measured: str
    holds: bool


def aims(results: Results) -> Iterator[Aim]:
    """The aims of what was run."""
    yield from _speeds(results)
    for section in ("stack", "forward"):
        for case, tools in by_case(rows_of(results, section)).items():
            for tool, bound in ((OURS, 1.0), (FAST, _FASTER)):
                if "error" in tools.get(tool, {}):
                    ratio = tools[tool]["error"] / tools[EAGER]["error"]
                    what = f"{case}: error of {tool}, in {EAGER}'s"
                    yield Aim(what, f"<= {bound:g}", f"{ratio:.2f}", ratio <= bound)
    for case, tools in by_case(rows_of(results, "overhead")).items():
        if NOTHING in tools:
            found = 1e3 * seconds(tools[NOTHING]).median
            yield Aim(f"{case}, ms", "< 0.5", f"{found:.2f}", found < 0.5)
    for case, tools in by_case(rows_of(results, "memory")).items():
        if OURS in tools and EAGER in tools:
            ours, theirs = tools[OURS]["beyond_gb"], tools[EAGER]["beyond_gb"]
            what = f"{case}: GB at most beyond what was held"
            yield Aim(what, f"<= {theirs:.2f} ({EAGER})", f"{ours:.2f}", ours <= theirs)


def _speeds(results: Results) -> Iterator[Aim]:
    """On a CPU: the convolutions at 224 px, and the whole network."""
    if results["devices"]["backend"] != "cpu":
        return
    bounds = {"stack, 8 x 224x224": {ORT: 1.35, EAGER: 2.0}}
    bounds["stack, 1 x 224x224"] = {ORT: 1.0, EAGER: 1.45}
    for section in ("stack", "forward"):
        for case, tools in by_case(rows_of(results, section)).items():
            wanted = bounds.get(case, {ORT: 1.0, EAGER: 1.0} if section == "forward" else {})
            for peer, bound in wanted.items():
                if peer in tools:
                    found = speed(tools[OURS], tools[peer]).median
                    what = f"{case}: {OURS}, times as fast as {peer}"
                    yield Aim(what, f">= {bound:g}", f"{found:.2f}", found >= bound)
