"""Kill a run at any moment, go on, and compare: `python -m tests.kill_trials --count 50`.

The first process forks a child for each run, which is ready at once: what takes long to import is
there. JAX's devices and TensorStore, which do not survive a fork, it never touches.
"""

import argparse
import filecmp
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import grain  # noqa: F401
import zarr

import flaxvgg.cam.photos
import flaxvgg.evaluation.localisation
import flaxvgg.sparsity.counting  # noqa: F401
from tests.streaming_jobs import Drawn, means_job

_IMAGES = 400


def child(out: Path, started: int) -> None:
    """Stream, and say when it begins."""
    from flaxvgg.streaming import Source, stream

    source = Source.of_grain(Drawn(_IMAGES, 32))
    begun = partial(os.write, started, b"x")
    stream(means_job(), source, out, size=(32, 32), batch=1, advance=lambda *_: begun())


def run(out: Path, delay: float | None) -> tuple[bool, float]:
    """Stream in a child, killed so many seconds after it began; whether it ended, and when."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            child(out, theirs)
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    os.read(ours, 1)
    began = time.perf_counter()
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(ours)
    if status not in (0, signal.SIGKILL) or (status and delay is None):
        raise SystemExit(f"a run failed by itself ({status})")
    return status == 0, time.perf_counter() - began


def differences(a: Path, b: Path) -> list[str]:
    """Files that are not the same in both folders."""
    found = filecmp.dircmp(a, b)
    names = [*found.left_only, *found.right_only]
    names += filecmp.cmpfiles(a, b, found.common_files, shallow=False)[1]
    return [*names, *(x for sub in found.common_dirs for x in differences(a / sub, b / sub))]


def trials(count: int, seed: int, folder: Path) -> tuple[int, int]:
    """Kill `count` runs; how many stores were finished that way, all the same, and units lost."""
    draw = random.Random(seed)
    _, whole = run(folder / "whole.zarr", None)
    kills = stores = 0
    out, before = folder / "killed.zarr", 0
    while kills < count or out.exists():
        ended = run(out, draw.uniform(0, whole) if kills < count else None)[0]
        kills += not ended
        # A chunk of status is a unit that is done; the store itself is there whole or not at all.
        done = int((zarr.open_group(out)["status"][:] != 0).sum()) if out.exists() else 0
        if done < before:
            raise SystemExit(f"{before} images were done, and {done} are")
        before = done
        if ended:
            found = differences(folder / "whole.zarr", out)
            if found:
                raise SystemExit(f"not the same: {found}")
            shutil.rmtree(out)
            stores, before = stores + 1, 0
    return kills, stores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, stores = trials(options.count, options.seed, Path(folder))
    print(f"killed {kills} times; {stores} stores finished, each the same as one undisturbed")


if __name__ == "__main__":
    sys.exit(main())
