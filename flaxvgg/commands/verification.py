"""What the conversion says of its verification: a table, and where zeros differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from flaxvgg.commands.tables import compact, fitted
from flaxvgg.conversion.rule import LayerCheck, limit

_LISTED = 10


def print_verification(console: Console, checks: Mapping[str, Sequence[LayerCheck]]) -> None:
    """One row a layer: our error beside each framework's, and the zeros."""
    truth = "PyTorch" if "PyTorch" in checks else "flaxvgg"
    table = compact(f"float32 error, relative to the layer's output; reference: {truth} in float64")
    for column in ("layer", "output", "zeros", "ours"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for peer in checks:
        table.add_column(peer.replace("Runtime", "RT"), justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("flips", justify="right", no_wrap=True)
    for row in _by_layer(checks):
        first = next(check for check in row if check is not None)
        shape = "x".join(map(str, first.shape[1:]))
        cells = [first.layer, shape, f"{first.zeros:.1%}", f"{first.error:.1e}"]
        for check in row:
            cells += (
                ["", ""] if check is None else [f"{check.peer_error:.1e}", f"{check.ratio:.2f}"]
            )
        holds = all(check is None or check.holds for check in row)
        flips = str(first.flips) if first.layer.startswith("relu") else ""
        table.add_row(*cells, flips, style=None if holds else "bold red")
    console.print(fitted(table, "output", "zeros"))
    for flip in _flips(next(iter(checks.values()))):
        console.print(flip, highlight=False)
    for peer, layers in checks.items():
        failed = [check.layer for check in layers if not check.holds]
        worst = max(layers, key=lambda check: check.ratio)
        verdict = f"FAILED at {', '.join(failed)}" if failed else "holds"
        console.print(
            f"against {peer}: {verdict}; the largest ratio is {worst.ratio:.2f} at {worst.layer}, "
            f"where our error is {worst.error:.1e} (rule: {limit(peer)}); zeros flipped: "
            f"{sum(check.flips for check in layers)}, beyond rounding: "
            f"{sum(check.unexplained for check in layers)}",
            style="bold red" if failed else "green",
            highlight=False,
        )


def _by_layer(checks: Mapping[str, Sequence[LayerCheck]]) -> list[list[LayerCheck | None]]:
    rows: dict[str, list[LayerCheck | None]] = {}
    for i, peer in enumerate(checks.values()):
        for check in peer:
            rows.setdefault(check.layer, [None] * len(checks))[i] = check
    return list(rows.values())


def _flips(checks: Sequence[LayerCheck]) -> list[str]:
    """A line for each of the first flipped zeros: where it is, and how near to zero the truth."""
    flips = [(check.layer, flip) for check in checks for flip in check.flipped]
    lines = [
        f"zero flipped at {layer} {flip.place}: the truth before the ReLU is {flip.truth:.1e}, "
        f"{'within' if flip.explained else 'BEYOND'} rounding ({flip.bound:.1e})"
        for layer, flip in flips[:_LISTED]
    ]
    return lines + [f"and {len(flips) - _LISTED} more"] * (len(flips) > _LISTED)


def verification_json(checks: Mapping[str, Sequence[LayerCheck]]) -> dict[str, Any]:
    """The same as a JSON value: by peer, a record for each layer."""
    return {
        peer: [
            {
                "layer": check.layer,
                "shape": list(check.shape),
                "zeros": float(check.zeros),
                "error": float(check.error),
                "peer_error": float(check.peer_error),
                "flips": int(check.flips),
                "beyond_rounding": int(check.unexplained),
                "holds": bool(check.holds),
            }
            for check in of_peer
        ]
        for peer, of_peer in checks.items()
    }
