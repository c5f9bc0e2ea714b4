"""What must hold on the GPU, judged on the rows that were measured."""

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from experiments.gpu_report import parity, speed, uses
from experiments.gpu_report.torch_side import NO_CUDA
from flaxvgg.conversion.rule import keeps_rule, limit

PASS, FAIL, MISSING = "pass", "fail", "not measured"
Target = dict[str, Any]


def judge(results: Mapping[str, Any]) -> list[Target]:
    """Every target with its bound, what was measured, and the verdict.

    Where there is no CUDA device only `highest` is judged: TF32 is float32 there, and times tell
    nothing.
    """
    rows = {name: section["rows"] for name, section in results["sections"].items()}
    found = [*_fidelity(rows), *_maps(rows)]
    plan = results["plan"]
    on_gpu = [*_coarse(rows), *_forward(rows, plan), *_grad_cam(rows, plan), *_lpips(rows, plan)]
    if not results["cuda"]:
        on_gpu = [target | {"verdict": NO_CUDA} for target in on_gpu]
    return found + on_gpu


def summaries(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """What parity comes to for each network and mode."""

    def key(row: dict[str, Any]) -> tuple[str, str]:
        return row["network"], row["mode"]

    found = {}
    for network in dict.fromkeys(row["network"] for row in rows):
        own = sorted((row for row in rows if row["network"] == network), key=key)
        found |= {k: parity.summary(list(group)) for k, group in groupby(own, key)}
    return found


def _target(what: str, bound: str, measured: float | None, holds: bool) -> Target:
    if measured is None:
        return {"target": what, "bound": bound, "measured": None, "verdict": MISSING}
    verdict = PASS if holds else FAIL
    return {"target": what, "bound": bound, "measured": measured, "verdict": verdict}


def _fidelity(rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[Target]:
    exact = [row for row in rows.get("parity", []) if row["mode"] == "highest"]
    worst = max((row["ratio"] for row in exact), default=None)
    ok = all(keeps_rule(row["error"], row["peer_error"]) for row in exact)
    yield _target("highest: worst layer's error, in PyTorch's own", limit(), worst, ok)
    for what, name in (
        ("flips that rounding does not explain", "unexplained"),
        ("negative values after a ReLU", "negatives"),
    ):
        count = sum(row[name] for row in exact) if exact else None
        yield _target(f"highest: {what}", "0", count, not count)


def _maps(rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[Target]:
    found = rows.get("maps", [])
    worst = max((row["ratio"] for row in found), default=None)
    ok = all(row["holds"] for row in found)
    yield _target("maps, LPIPS, exported: worst error, in PyTorch's own", limit(), worst, ok)


def _coarse(rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[Target]:
    by_mode = summaries(rows.get("parity", []))
    for mode in ("TF32", "bfloat16"):
        found = [summary for (_, name), summary in by_mode.items() if name == mode]
        worst = max((summary["mean_ratio"] for summary in found), default=None)
        bound = f"<= {parity.COARSE}"
        what = f"{mode}: error in PyTorch's own, mean over layers, worst network"
        yield _target(what, bound, worst, worst is not None and worst <= parity.COARSE)
        ours, theirs = (sum(s[name] for s in found) for name in ("flips", "peer_flips"))
        flips = None if not found else ours / theirs if theirs else math.inf if ours else 0.0
        ok = flips is not None and flips <= parity.COARSE
        yield _target(f"{mode}: flips, in PyTorch's own, all networks", bound, flips, ok)


def _forward(rows: Mapping[str, list[dict[str, Any]]], plan: Mapping[str, Any]) -> Iterator[Target]:
    batch = max(plan["forward_batches"])
    for mode, tool, bound in (
        ("bfloat16", speed.COMPILED_LAST, 1.15),
        ("highest", speed.COMPILED_LAST, 1.0),
    ):
        what = f"forward, batch {batch}, {mode}: times as fast as {tool}"
        yield _speedup(rows, what, ("forward", batch, mode), tool, bound)


def _grad_cam(
    rows: Mapping[str, list[dict[str, Any]]], plan: Mapping[str, Any]
) -> Iterator[Target]:
    for classes, bound in ((1, 3.0), (plan["several"], 8.0)):
        measured = f"grad_cam, {classes} cl."
        what = f"{measured}, highest: times as fast as {speed.HOOKS}"
        yield _speedup(rows, what, (measured, 1, "highest"), speed.HOOKS, bound)


def _lpips(rows: Mapping[str, list[dict[str, Any]]], plan: Mapping[str, Any]) -> Iterator[Target]:
    batch = plan["sparsity_batch"]
    for what in (uses.VALUE, uses.GRADIENT):
        said = f"{what}, {batch} pairs, highest: times as fast as {speed.COMPILED}"
        yield _speedup(rows, said, (what, batch, "highest"), speed.COMPILED, 1.2)


def _speedup(
    rows: Mapping[str, list[dict[str, Any]]],
    what: str,
    key: tuple[str, int, str],
    tool: str,
    bound: float,
) -> Target:
    timed = rows.get("speed", [])
    same = (row for row in timed if (row["what"], row["batch"], row["mode"]) == key)
    ours = next((row for row in same if row["tool"] == speed.OURS), None)
    times = None if ours is None else speed.ratio(timed, ours, tool)
    return _target(what, f">= {bound}", times, times is not None and times >= bound)
