"""python -m experiments.many_hosts: does the input of 256 hosts keep up?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.many_hosts.report import readme, table
from experiments.many_hosts.study import Hosts, decoding, order, speed
from experiments.running import Program, write_results
from flaxvgg.commands.console import clear_errors, console, step

app = Program()
_SPARE = (0.8, 1.0, 1.1, 1.25, 1.5, 2.0)
_CORES = 20  # of the simulated hosts: small enough that a fifth is a whole number of them


@app.command()
def main(
    hosts: Annotated[int, typer.Option(help="How many hosts there are.")] = 256,
    own: Annotated[int, typer.Option(help="Images of a batch that each has.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps that are simulated.")] = 400,
    photos: Annotated[int, typer.Option(help="Photos whose decoding is measured.")] = 400,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("build/many_hosts"),
) -> None:
    """See that hosts read every image once, and simulate whether they read fast enough.

    Writes results.json and README.md.
    """
    with clear_errors(f"{out} is as it was"):
        found: dict[str, Any] = {"own": own}
        with step("order"):
            found["order"] = order(hosts, min(own, 4))
        with step("decoding"):
            seconds = decoding(photos)
        mean = sum(seconds) / len(seconds)
        found["decoding"] = {
            "mean_ms": round(1000 * mean, 3),
            "longest_ms": round(1000 * max(seconds), 3),
        }
        found["spare"] = list(_SPARE)
        with step("simulation"):
            kinds = {"one host": (1, 0), f"{hosts} hosts": (hosts, 0), "one is slow": (hosts, 1)}
            least = own * mean / _CORES  # what a step takes whose images that many cores decode

            def busy(count: int, slow: int, spare: float) -> float:
                of = Hosts(count, own, least * spare, _CORES, slow)
                return round(speed(of, seconds, steps), 4)

            found["busy"] = {
                name: [busy(*kind, spare) for spare in _SPARE] for name, kind in kinds.items()
            }
        found["step_ms"] = round(1000 * own * mean / _CORES, 2)
        found["rate"] = round(_CORES / mean, 1)
        found["needed"] = _CORES
        write_results(out, found, readme, packages=("grain",))
    console.print(table(found), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
