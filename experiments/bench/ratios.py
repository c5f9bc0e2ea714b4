"""What the rows of a run say: speeds in a peer's, by round, and whether the aims are met."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.bench.start import NOTHING
from experiments.bench.steps import ALONE
from experiments.bench.tools import EAGER, FAST, MNN, NCNN, OPENVINO, ORT, OURS, PREPARED

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


_SMALL = "64x64", "112x112"
# How many times as fast as a peer the prepared model is to be, on one thread.
_FASTEST = "the fastest peer"
_STACK: Mapping[str, Mapping[str, float]] = {
    f"stack, 1 x 224x224{ALONE}": {NCNN: 1.5, ORT: 2.0, EAGER: 2.6},
    f"stack, 8 x 224x224{ALONE}": {ORT: 2.0, MNN: 1.8, EAGER: 3.0},
    f"stack, 1 x 112x112{ALONE}": {NCNN: 1.4, OPENVINO: 1.4, ORT: 1.4},
    f"stack, 1 x 64x64{ALONE}": {_FASTEST: 1.2},
}


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
            if any(size in case for size in _SMALL):
                continue  # where all errors are a few roundings; the tables give them too
            bounds = {OURS: 1.0, FAST: _FASTER}
            if case.startswith("stack, 1 x 224x224"):
                bounds[PREPARED] = 1.0
            for tool, bound in bounds.items():
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
    """On a CPU: the prepared model's convolutions on one thread, and the whole network."""
    if results["devices"]["backend"] != "cpu":
        return
    for case, tools in by_case(rows_of(results, "stack")).items():
        for peer, bound in _STACK.get(case, {}).items():
            rows = [tools[x] for x in (tools if peer == _FASTEST else (peer,)) if x in tools]
            rows = [row for row in rows if row["tool"] not in (OURS, FAST, PREPARED)]
            if PREPARED in tools and rows:
                yield _speed_aim(case, tools[PREPARED], rows, peer, bound)
    for case, tools in by_case(rows_of(results, "forward")).items():
        for peer in (ORT, EAGER):
            if peer in tools:
                yield _speed_aim(case, tools[OURS], [tools[peer]], peer, 1.0)


def _speed_aim(case: str, ours: Row, peers: Iterable[Row], name: str, bound: float) -> Aim:
    found = min(speed(ours, peer).median for peer in peers)
    what = f"{case}: {ours['tool']}, times as fast as {name}"
    return Aim(what, f">= {bound:g}", f"{found:.2f}", found >= bound)
