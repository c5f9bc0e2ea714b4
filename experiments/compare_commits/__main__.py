"""python -m experiments.compare_commits BASE [HEAD]: what became slower, beyond the noise."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.running import Program, write_results
from flaxvgg.commands.console import clear_errors, console, step

app = Program()


@app.command()
def main(
    base: Annotated[str, typer.Argument(help="The commit to compare with.")],
    head: Annotated[str, typer.Argument(help="The commit to be compared.")] = "HEAD",
    cases: Annotated[str, typer.Option(help="Names of cases, with ';'; by default all.")] = "",
    rounds: Annotated[int, typer.Option(help="How often a case is timed at most.", min=3)] = 30,
    seconds: Annotated[float, typer.Option(help="How long a case is timed, about.")] = 20,
    processes: Annotated[int, typer.Option(help="Pairs of processes, one after another.")] = 2,
    threads: Annotated[int | None, typer.Option(help="Cores to use; by default all.")] = None,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(
        "build/compare_commits"
    ),
) -> None:
    """Time two commits of this repository in turns, each as it would be installed.

    Writes results.json, ratios.png and README.md. Exit code 1 where something is slower.
    """
    with clear_errors(f"{out} is as it was"):
        from experiments.compare_commits import cases as known

        if threads is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        every = [name for name in known.CASES if name != "tiny"]
        chosen = cases.split(";") if cases else every
        if unknown := [name for name in chosen if name not in known.CASES]:
            raise ValueError(f"no case {unknown[0]!r}: choose from {'; '.join(every)}")
        results = _run([base, head], chosen, rounds, seconds, processes)
        _write(results, out)
    raise typer.Exit(any(row["verdict"] == "slower" for row in results["cases"]))


def _run(
    names: list[str], chosen: list[str], rounds: int, seconds: float, processes: int
) -> dict[str, Any]:
    from experiments.compare_commits.commits import Process, build, resolve
    from experiments.compare_commits.ratios import ratio
    from experiments.timing import compete

    commits = [resolve(name) for name in names]
    times: dict[str, tuple[list[float], list[float]]] = {case: ([], []) for case in chosen}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        built = []
        for place, (name, commit) in enumerate(zip(names, commits, strict=True)):
            with step("building") as found:
                built.append(build(commit, Path(folder, str(place))))
                found += [name, commit[:12]]
        for _ in range(processes):
            with Process(built[0]) as base, Process(built[1]) as head:
                for case in chosen:
                    reasons = [x.prepare(case) for x in (base, head) if case not in left_out]
                    if any(reasons):
                        left_out[case] = next(filter(None, reasons))
                    if case in left_out:
                        continue
                    with step("timing") as found:
                        calls = {"base": base.run, "head": head.run}
                        share = max(3, rounds // processes), seconds / processes
                        timed = compete(calls, *share, lambda done: None)
                        times[case][0].extend(timed["base"].rounds)
                        times[case][1].extend(timed["head"].rounds)
                        found.append(case)
    rows = []
    for case, (ours, theirs) in times.items():
        if case not in left_out:
            found = ratio(ours, theirs)
            row = {"case": case, "base_s": ours, "head_s": theirs, "ratio": found.value}
            rows.append(row | {"interval": [found.low, found.high], "verdict": found.verdict})
    sides = [{"name": n, "commit": c} for n, c in zip(names, commits, strict=True)]
    return {"base": sides[0], "head": sides[1], "cases": rows, "left_out": left_out}


def _write(results: dict[str, Any], out: Path) -> None:
    from experiments.compare_commits import figure
    from flaxvgg.plotting.figures import png

    pictures = {"ratios.png": png(figure.draw(results))} if results["cases"] else {}
    write_results(out, results, readme, pictures)
    console.print(readme(results), highlight=False, markup=False, soft_wrap=True)


def readme(results: dict[str, Any]) -> str:
    """What there is to say, in Markdown."""
    from statistics import median

    lines = []
    for row in results["cases"]:
        before, after = (1e3 * median(row[key]) for key in ("base_s", "head_s"))
        low, high = row["interval"]
        cells = [row["case"], f"{before:.1f}", f"{after:.1f}", f"{row['ratio']:.3f}"]
        cells += [f"{low:.3f} to {high:.3f}", str(len(row["base_s"])), row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    without = [f"- Left out: {case} ({why})" for case, why in results["left_out"].items()]
    base, head = results["base"], results["head"]
    return f"""# {head["name"]} beside {base["name"]}

{head["commit"][:12]} in the time of {base["commit"][:12]}: the ratio of the medians, and its 99 %
interval by a paired bootstrap over the rounds. In every round both are timed, each first in turn.
"slower" and "faster" is where the whole interval is, by more than 1 %.

| case | {base["name"]}, ms | {head["name"]}, ms | ratio | interval | rounds | |
|---|---:|---:|---:|---:|---:|---|
{chr(10).join(lines)}

{chr(10).join(without)}

![Intervals around 1](ratios.png)
"""


if __name__ == "__main__":
    sys.exit(app())
