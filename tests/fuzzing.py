"""Damaged and hostile files for every reader: python -m tests.fuzzing --count 10000 --seed 0

Each input is read in a process of its own kind: one that is watched, has little memory, and is
started again when it dies, so that an input that crashes it or makes it hang is named. A reader may
give what an independent one gives of the same bytes, or one of its own errors, and nothing else.

An input is its number and the seed: `--case 123 --seed 0` reads it again and shows what happens.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 20  # for one input, on a machine that has other things to do as well
_STARTING = 300
_LONGER = {"command": 180}  # which compiles, and draws pictures
_TARGETS = "tests.fuzz.targets"
MEMORY = 3 << 30  # bytes on top of what the libraries take
OUTCOMES = ("read", "read with a warning", "refused")


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one input; an `outcome` that is none of `OUTCOMES` must not be."""

    number: int
    kind: str
    outcome: str
    detail: str = ""


def fuzz(
    count: int, seed: int, seconds: float = SECONDS, targets: str = _TARGETS
) -> Iterator[Result]:
    """The results of inputs 0 to `count`, in order; the hand-made ones come first."""
    number = 0
    while number < count:
        for result in _watched(number, count, seed, seconds, targets):
            yield result
            number = result.number + 1


def _watched(first: int, count: int, seed: int, seconds: float, targets: str) -> Iterator[Result]:
    """The results of one process, up to the end or to the input that it did not survive."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "tests.fuzzing", "--worker", scratch]
        command += [f"--case={first}", f"--count={count}", f"--seed={seed}", f"--targets={targets}"]
        root = Path(__file__).parent.parent
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=root)
        assert worker.stdout is not None
        number, kind, lines = first, "?", b""
        try:
            while number < count:
                allowed = _STARTING if kind == "?" else max(seconds, _LONGER.get(kind, 0))
                if not select.select([worker.stdout], [], [], allowed)[0]:
                    worker.kill()
                    worker.wait()
                    yield Result(number, kind, "hang", f"more than {allowed} s")
                    return
                text = os.read(worker.stdout.fileno(), 1 << 16)
                if not text:
                    log.seek(max(log.seek(0, os.SEEK_END) - 2000, 0))
                    told = log.read().decode(errors="replace")
                    if kind == "?":
                        raise RuntimeError(f"the fuzzer itself cannot start:\n{told}")
                    yield Result(number, kind, "crash", f"exit code {worker.wait()}\n{told}")
                    return
                *whole, lines = (lines + text).split(b"\n")
                for told in map(json.loads, whole):
                    if isinstance(told, str):  # the kind of the input that comes next
                        kind = told
                    else:
                        yield Result(*told)
                        number = told[0] + 1
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def _work(scratch: Path, first: int, count: int, seed: int, targets: str) -> None:
    """The worker: reads inputs, and writes a line before and after each."""
    # Results have the real standard output for themselves, whatever libraries print.
    results = os.dup(1)
    os.dup2(2, 1)
    from tests.fuzz.cases import judge

    inputs = importlib.import_module(targets).inputs(seed)
    used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, count):
        case = inputs.case(number)
        os.write(results, json.dumps(case.target.kind).encode() + b"\n")
        outcome, detail = judge(case, scratch)
        told = [number, case.target.kind, outcome, detail[:2000]]
        os.write(results, json.dumps(told).encode() + b"\n")


def table(results: list[Result]) -> str:
    """How many inputs of each kind there were, and what became of them."""
    counts = collections.Counter((result.kind, result.outcome) for result in results)
    kinds = list(dict.fromkeys(result.kind for result in results))
    columns = ("inputs", *OUTCOMES, "wrong")
    rows = []
    for kind in sorted(kinds):
        inputs = sum(n for (k, _), n in counts.items() if k == kind)
        found = [counts[kind, outcome] for outcome in OUTCOMES]
        rows.append([inputs, *found, inputs - sum(found)])
    rows.append([sum(column) for column in zip(*rows, strict=True)])
    lines = [f"{'':20}" + "".join(f"{name:>21}" for name in columns)]
    for kind, row in zip([*sorted(kinds), "all"], rows, strict=True):
        lines.append(f"{kind:20}" + "".join(f"{n:21}" for n in row))
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 where something must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="one input again, with a traceback")
    parser.add_argument("--targets", default=_TARGETS, help="a module of some kinds")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker, options.case, options.count, options.seed, options.targets)
        return 0
    if options.case is not None:
        from tests.fuzz.cases import judge

        case = importlib.import_module(options.targets).inputs(options.seed).case(options.case)
        with tempfile.TemporaryDirectory() as scratch:
            print(case.target.kind, case.name, *judge(case, Path(scratch), True))
        return 0
    results, bad, started = [], 0, time.monotonic()
    for result in fuzz(options.count, options.seed, targets=options.targets):
        results.append(result)
        if result.outcome not in OUTCOMES:
            bad += 1
            print(f"\n{result.number} {result.kind}: {result.outcome}: {result.detail}")
        if len(results) % 100 == 0 or len(results) == options.count:
            passed = time.monotonic() - started
            line = f"{len(results)} of {options.count} inputs, {bad} wrong, {passed:.0f} s"
            print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
    print(f"\n{table(results)}")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = children.ru_utime + children.ru_stime
    print(f"{cpu:.0f} s of processor time, at most {children.ru_maxrss / 2**20:.2f} GiB of memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
