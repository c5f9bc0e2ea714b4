"""How numbers are written in the tables and verdicts."""

Table = tuple[list[str], list[list[str]]]  # the header, and the rows


def percent(fraction: float) -> str:
    """93.1 %"""
    return f"{100 * fraction:.1f} %"


def spread_of(found: dict[str, float]) -> str:
    """87.5 % (79.9 to 94.0): mean and range."""
    low, high = 100 * found["min"], 100 * found["max"]
    return f"{percent(found['mean'])} ({low:.1f} to {high:.1f})"


def points(found: dict[str, float]) -> str:
    """+3.8 ± 2.1: mean and standard deviation of differences, in percentage points."""
    return f"{100 * found['mean']:+.1f} ± {100 * found['sd']:.1f}"


def millions(count: int) -> str:
    """54.3 million"""
    return f"{count / 1e6:.1f} million"


def markdown(table: Table) -> str:
    """A Markdown table; numbers to the right."""
    header, rows = table
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
