"""The results as one page of tables."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.gpu_report import speed, targets

Results = Mapping[str, Any]


def page(results: Results) -> str:
    """Everything that results.json holds, but for layers that hold and the times of each round."""
    rows = {name: section["rows"] for name, section in results["sections"].items()}
    parts = [
        "# flaxvgg and PyTorch on one GPU",
        _machine(results),
        "## Must hold on the GPU",
        _table(
            ("target", "bound", "measured", ""),
            ([t["target"], t["bound"], _number(t["measured"]), t["verdict"]] for t in _of(results)),
        ),
        "## Parity, against float64 PyTorch",
        _PARITY,
        _parity(rows.get("parity", [])),
        _failing(rows.get("parity", [])),
        "## Maps, LPIPS and an exported program at highest, against float64 PyTorch",
        _table(
            ("head", "method", "error", "PyTorch's", "ratio", "holds"),
            (
                [
                    row["head"],
                    row["method"],
                    f"{row['error']:.1e}",
                    f"{row['peer_error']:.1e}",
                    _number(row["ratio"]),
                    _yes(row["holds"]),
                ]
                for row in rows.get("maps", [])
            ),
        ),
        "## Computed again, equal to the bit?",
        _determinism(rows.get("determinism", [])),
        "## Speed",
        _SPEED,
        _speed(rows.get("speed", [])),
        "## Where the time of a forward pass goes",
        _table(
            ("", "mode", "operation", "ms", "share"),
            (
                [
                    row["what"],
                    row["mode"],
                    row["operation"],
                    f"{row['ms']:.3f}",
                    f"{100 * row['share']:.1f} %",
                ]
                for row in rows.get("profile", [])
            ),
        ),
        "## Memory beyond weights and inputs",
        _memory(rows.get("memory", [])),
        "## Not measured",
        _missing(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of(results: Results) -> list[dict[str, Any]]:
    return results["targets"]


def _machine(results: Results) -> str:
    facts = results["machine"] | results["subject"]
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    spent = ", ".join(
        f"{name} {section['seconds']:.0f} s of {section['limit']:.0f}"
        for name, section in results["sections"].items()
    )
    return "\n".join([*lines, f"- time: {spent}"])


_PARITY = """\
Errors are root mean squares relative to float64's, in units of PyTorch's own error in the same
arithmetic: geometric mean over all layers, and the worst layer. A flip is an activation that is
zero on one side only; it is explained where the true pre-activation is within 16 spacings of the
mode's numbers times sum |w||x| + |b|. Coarse arithmetic carries errors on from layer to layer, so
that PyTorch's unexplained flips stand beside ours."""


def _parity(rows: list[dict[str, Any]]) -> str:
    lines = []
    for (network, mode), found in targets.summaries(rows).items():
        lines.append(
            [
                network,
                mode,
                f"{found['largest_error']:.1e}",
                _number(found["mean_ratio"]),
                f"{_number(found['worst_ratio'])} {found['worst_layer']}",
                f"{found['flips']} ({found['unexplained']})",
                f"{found['peer_flips']} ({found['peer_unexplained']})",
                f"{found['relus']:,}",
            ]
        )
    head = ("network", "mode", "largest error", "mean ratio", "worst ratio")
    flips = ("flips (unexplained)", "PyTorch's", "of")
    return _table((*head, *flips), lines)


def _failing(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"- {row['network']}, {row['mode']}, {row['layer']}: error {row['error']:.1e}, "
        f"{_number(row['ratio'])} times PyTorch's; {row['negatives']} negative, "
        f"{row['unexplained']} flips unexplained"
        for row in rows
        if not row["holds"]
    ]
    return "\n".join(["Layers that break the rule:", "", *lines]) if lines else ""


def _determinism(rows: list[dict[str, Any]]) -> str:
    table = _table(
        ("", "algorithms", "what", "in one process", "in another process"),
        (
            [
                row["tool"],
                "deterministic" if row["deterministic"] else "default",
                row["what"],
                _yes(row["repeats_equal"]),
                _yes(row["processes_equal"]),
            ]
            for row in rows
        ),
    )
    said = sorted({message for row in rows for message in row["warnings"]})
    return "\n".join([table, *(f"\n- {message}" for message in said)])


_SPEED = """\
Milliseconds of one call that is waited for: the median of rounds in which all tools take turns.
"forwards" is in eager forward passes of PyTorch on the same images, "ours is" how many times as
fast flaxvgg is. The rate of a forward pass is to be read beside that of the matrix product in the
same arithmetic."""


def _speed(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        ours = next(r for r in rows if r["tool"] == speed.OURS and _same(r, row))
        if row["ms"] is None:
            numbers = [row["note"], "", "", ""]
        else:
            times = "" if row is ours else _number(speed.ratio(rows, ours, row["tool"]))
            rate = row.get("tflops")
            numbers = [f"{row['ms']:.3f}", _number(row["forwards"]), times, _number(rate)]
        lines.append([row["what"], f"{row['batch']}", row["mode"], row["tool"], *numbers])
    return _table(("", "batch", "mode", "tool", "ms", "forwards", "ours is", "TFLOP/s"), lines)


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("what", "batch", "mode"))


def _memory(rows: list[dict[str, Any]]) -> str:
    return _table(
        ("", "mode", "tool", "GB"),
        (
            [row["what"], row.get("mode", ""), row["tool"], row.get("note") or _number(row["gb"])]
            for row in rows
        ),
    )


def _missing(results: Results) -> str:
    lines = [f"- cut for time: {name}" for name in results["cut"]]
    lines += [f"- failed: {name}" for name in results["failed"]]
    return "\n".join(lines) or "Nothing was cut, and nothing failed."


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "**no**"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value}"
    return f"{value:.2f}" if abs(value) < 99.95 else f"{value:.0f}"


def _table(head: tuple[str, ...], lines: Iterable[Iterable[str]]) -> str:
    ruler = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *lines))
