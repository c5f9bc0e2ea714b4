"""Kill a run at any moment, go on, and compare: `python -m tests.kill_trials --count 50`.

What is killed are a store that is streamed into, and with `--training` a training run. The first
process forks a child for each run, which is ready at once: what takes long to import is there.
JAX's devices and TensorStore, which do not survive a fork, it never touches.
"""

import argparse
import dataclasses
import filecmp
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grain  # noqa: F401
import zarr

import flaxvgg.cam.photos
import flaxvgg.evaluation.localisation
import flaxvgg.sparsity.counting
import flaxvgg.training.run  # noqa: F401
from flaxvgg.streaming.units import Unfinished
from tests.networks import TINY_GAP, coloured_photos, tiny_vgg
from tests.streaming_jobs import Drawn, means_job

_IMAGES = 400


class Trial(NamedTuple):
    """What is killed.

    `child` does it into a path, and writes a byte when it begins; `done` counts what is on disk of
    it, `differences` names what is not the same in two that have ended, `remove` removes one.
    """

    name: str
    child: Callable[[Path, int], None]
    done: Callable[[Path], int]
    differences: Callable[[Path, Path], list[str]]
    remove: Callable[[Path], None] = shutil.rmtree


def stream_child(out: Path, started: int) -> None:
    """Stream, and say when it begins."""
    from flaxvgg.streaming import Source, stream
    from flaxvgg.streaming.places import Folder

    Folder.save_every = (0.0, 1.0)[os.getpid() % 2]
    source = Source.of_grain(Drawn(_IMAGES, 32))
    begun = partial(os.write, started, b"x")
    stream(means_job(), source, out, size=(32, 32), batch=1, advance=lambda *_: begun())


def images_done(out: Path) -> int:
    """The images that a store has, and those saved of units that it has not.

    It is there whole or not at all.
    """
    if not out.exists():
        return 0
    group = zarr.open_group(out)
    status, unit = group["status"][:], group.attrs["flaxvgg"]["unit"]
    units = Unfinished(out / "status" / "unfinished")
    begun = [number for number in units.numbers() if not status[number * unit]]
    return int((status != 0).sum()) + units.images(begun)


def train_child(photos: Path, out: Path, started: int) -> None:
    """Train, say when it begins, and note the digest of the model that comes of it."""
    from flaxvgg.images.fingerprint import model_digest
    from flaxvgg.training import run as training
    from flaxvgg.training.settings import Data, Model, Run
    from flaxvgg.training.trainer import Optimisation

    head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=3))

    def begin():
        os.write(started, b"x")
        return tiny_vgg(head, precision="default")

    def save_and_note(model, path):
        save(model, path)
        (out / "digest").write_text(model_digest(model))

    save, training.save = training.save, save_and_note
    Model.with_head = lambda self, model, classes, seed: model
    data = Data(photos, size=(32, 32), batch=4, crop=0.5)
    options = Optimisation(learning_rate=1e-2, average=0.5)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    training.train(begin, Run(data, Model(), options, epochs=3, every=2), out)


def step_done(out: Path) -> int:
    """The last step that there is a checkpoint of."""
    folder = out / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def other_run(a: Path, b: Path) -> list[str]:
    """What is not the same of two runs: images, metrics, and the bits of the model."""
    names = ["data.csv", "metrics.csv", "digest"]
    return [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()]


def run(trial: Trial, out: Path, delay: float | None) -> tuple[bool, float]:
    """Do it in a child, killed so many seconds after it began; whether it ended, and when."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            trial.child(out, theirs)
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


def trials(trial: Trial, count: int, seed: int, folder: Path) -> tuple[int, int]:
    """Kill `count` runs; how many were, and how many ended, all the same, with nothing lost."""
    draw = random.Random(seed)
    undisturbed, out = folder / "undisturbed", folder / "killed"
    _, whole = run(trial, undisturbed, None)
    kills = ends = before = 0
    while kills < count or before:
        ended = run(trial, out, draw.uniform(0, whole) if kills < count else None)[0]
        kills += not ended
        done = trial.done(out)
        if done < before:
            raise SystemExit(f"{before} were done, and {done} are")
        before = done
        if ended:
            found = trial.differences(undisturbed, out)
            if found:
                raise SystemExit(f"not the same: {found}")
            trial.remove(out)
            ends, before = ends + 1, 0
    return kills, ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        trial = Trial("stores", stream_child, images_done, differences)
        if options.training:
            photos = Path(name, "photos")
            photos.mkdir()
            child = partial(train_child, coloured_photos(photos))
            trial = Trial("runs", child, step_done, other_run)
        kills, ends = trials(trial, options.count, options.seed, Path(name))
    print(f"killed {kills} times; {ends} {trial.name} ended, each the same as one undisturbed")


if __name__ == "__main__":
    sys.exit(main())
