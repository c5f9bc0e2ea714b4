"""Kill saves at any moment, and read while others save: `python -m tests.checkpoint_trials`.

Both also as on a system that cannot exchange two names, with the moment between two renames drawn
out. As in `kill_trials`, children are forked by a process that never touches JAX's devices.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from orbax.checkpoint import v1  # noqa: F401

from flaxvgg import checkpoint, replacing
from flaxvgg.config import VGGConfig
from flaxvgg.mapping import entries
from flaxvgg.zoo import from_torch

_NAMES = ("orbax", "model.safetensors")


def fork(work: Callable[[], None]) -> int:
    """Do something in a child, which begins with code 1 and ends with 0."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def save_on_and_on(path: Path, in_two_steps: bool, started: int) -> None:
    """Save models that hold one number, 0, 1, 2, ..., and say when the first one is there."""
    if in_two_steps:
        rename = Path.rename
        replacing.exchange = lambda a, b: False

        def slowly(self: Path, target: Path) -> Path:
            renamed = rename(self, target)
            time.sleep(0.3)
            return renamed

        Path.rename = slowly
    shapes = {x.torch: x.torch_shape for x in entries(VGGConfig.features_only("vgg11", "small"))}
    for i in range(10**6):
        arrays = {name: np.full(shape, i, np.float32) for name, shape in shapes.items()}
        model = from_torch("vgg11", arrays)
        checkpoint.save(model, path)
        if not i:
            os.write(started, b"x")


def read(path: Path) -> None:
    """Load, and find one number everywhere."""
    found = nnx.to_flat_state(nnx.state(checkpoint.load(path)))
    numbers = {float(x) for _, value in found for x in np.unique(np.asarray(value[...]))}
    if len(numbers) != 1:
        raise SystemExit(f"parts of several saves: {numbers}")


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def trials(count: int, reads: int, seed: int, folder: Path) -> Counter[str]:
    """How many savers were killed, and how many reads beside a living one were good."""
    draw, done = random.Random(seed), Counter[str]()
    for i in range(count):
        path, in_two_steps = folder / _NAMES[i % 2], i % 4 < 2
        ours, theirs = os.pipe()
        pid = fork(lambda path=path, two=in_two_steps, say=theirs: save_on_and_on(path, two, say))
        os.close(theirs)
        if not os.read(ours, 1):
            raise SystemExit("a saver failed by itself")
        os.close(ours)
        if i < reads:
            for _ in range(20):
                done["reads"] += 1
                done["reads that failed"] += ended(fork(lambda path=path: read(path))) != 0
        time.sleep(draw.uniform(0, 1.5))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) != -signal.SIGKILL:
            raise SystemExit("a saver failed by itself")
        done["kills"] += 1
        done["nothing under the name"] += not path.exists()
        done["lost"] += ended(fork(lambda path=path: read(path))) != 0
    replacing.sweep(folder)
    done["leftovers"] = len(list(folder.iterdir())) - len(_NAMES)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument(
        "--reads", type=int, default=8, help="savers that are read beside, 20 times"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = trials(options.count, options.reads, options.seed, Path(folder))
    print(", ".join(f"{name}: {number}" for name, number in done.items()))
    return int(bool(done["lost"] or done["reads that failed"] or done["leftovers"]))


if __name__ == "__main__":
    sys.exit(main())
