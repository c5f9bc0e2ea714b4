"""Trainings by several processes, each forked from one that has imported everything already.

`python -m tests.train_worker TRIAL FOLDER` does one of `TRIALS` and prints what came of it.
JAX's devices, which do not survive a fork, the first process never touches.
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain  # noqa: F401
import jax
import numpy as np
from flax import nnx

import flaxvgg
import flaxvgg.commands.train
import flaxvgg.plotting.training
import flaxvgg.training.feature_files
import flaxvgg.training.run
from flaxvgg.commands.cli import app
from flaxvgg.commands.processes import join_processes
from flaxvgg.training.checkpoints import Checkpoints
from flaxvgg.training.settings import Model
from flaxvgg.weights.mapping import model_arrays
from tests.networks import TINY_CLASSIFIER, TINY_GAP, coloured_photos, tiny_vgg

_LONGEST = 250  # seconds, on a machine that has other things to do as well
_TOML = """
epochs = {epochs}
every = 2
[data]
train = {train}
size = [32, 32]
batch = 4
crop = 0.5
[model]
weights = "tiny"
[training]
loss = "softmax"
learning_rate = 0.01
"""
_BY_ADAM = "average = 0.5\nstack_rate = 0.1\n"
_BY_SGD = 'optimiser = "sgd"\n'  # of the head alone: what rounding can come to is known

AtStep = Callable[[int, int], None]  # is told the step, and the process


class Ended(NamedTuple):
    """How a process ended: its exit code, or minus a signal; and what it said."""

    code: int
    said: str


def together(
    folder: Path, name: str, processes: int, devices: int, body: Callable[[int], int]
) -> list[Ended]:
    """How so many processes end, with so many devices each, that are `body(process)`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pids = []
    for process in range(processes):
        said = folder / f"{name}-{process}.txt"
        pid = os.fork()
        if not pid:
            os.environ |= {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_ENABLE_COMPILATION_CACHE": "false",
            }
            if processes > 1:
                os.environ |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(process),
                }
            _be(partial(body, process), said)
        pids.append((pid, said))
    ended, latest = [], time.monotonic() + _LONGEST
    for pid, said in pids:
        status = None
        while status is None and time.monotonic() < latest:
            found, code = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if found else None
            time.sleep(0.05)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = -1000  # it hung
        ended.append(Ended(status, said.read_text()))
    return ended


def _be(body: Callable[[], int], said: Path) -> None:
    """Be a process that writes what it says into a file, and end."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    jax.config.update("jax_disable_most_optimizations", True)
    code = 70
    try:
        code = body()
        jax.distributed.shutdown()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(
    folder: Path, name: str, processes: int, devices: int, at_step: AtStep = lambda *_: None
) -> list[Ended]:
    """`flaxvgg train` into folder/name; `at_step` is called behind each step in each process."""

    def body(process: int) -> int:
        head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=3))
        Model.with_head = lambda *_: tiny_vgg(head, precision="default")
        flaxvgg.commands.train.load_model = lambda *_, **options: tiny_vgg(TINY_GAP)
        whole = flaxvgg.training.run._Session._step

        def step(self: Any, state: Any, epoch: int) -> Any:
            state, row = whole(self, state, epoch)
            at_step(row["step"], process)
            return state, row

        flaxvgg.training.run._Session._step = step
        arguments = ["train", "--config", f"{folder}/run.toml", "--out", f"{folder}/{name}"]
        try:
            app(arguments + ["--distributed"] * (processes > 1))
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
        return 0

    return together(folder, name, processes, devices, body)


def prepare(folder: Path, options: str = _BY_ADAM, epochs: int = 1) -> None:
    """Photos, and the file that says how to train on them."""
    if not (folder / "photos").exists():
        (folder / "photos").mkdir()
        coloured_photos(folder / "photos")
    text = _TOML.format(epochs=epochs, train=json.dumps(f"{folder}/photos"))
    (folder / "run.toml").write_text(text + options)


def _whole(*ended: Ended) -> None:
    """Raise AssertionError where a process did not end well."""
    assert all(not x.code for x in ended), "\n".join(f"{x.code}: {x.said}" for x in ended)


def _digests(folder: Path, name: str) -> dict[str, str]:
    """What stands for what a run has left: the bits of its model, and its metrics.

    Not by Orbax, which would begin to use JAX's devices here.
    """
    told = json.loads((folder / name / "model" / "_CHECKPOINT_METADATA").read_text())
    return {
        "model": json.dumps(told["custom_metadata"]["flaxvgg"]["checksums"], sort_keys=True),
        "metrics": (folder / name / "metrics.csv").read_text(),
    }


def same(folder: Path) -> dict[str, Any]:
    """Two processes of one device, and one of two: a sum of two numbers has no order."""
    prepare(folder)
    _whole(*train(folder, "2x1", 2, 1), *train(folder, "1x2", 1, 2))
    return {name: _digests(folder, name) for name in ("2x1", "1x2")}


def close(folder: Path) -> dict[str, Any]:
    """Two processes of two devices, and one of four."""
    prepare(folder, _BY_SGD)
    _whole(*train(folder, "2x2", 2, 2), *train(folder, "1x4", 1, 4))
    return {name: _digests(folder, name)["metrics"] for name in ("2x2", "1x4")}


def resumed(folder: Path) -> dict[str, Any]:
    """Two processes, both killed behind step 9, gone on with by one of two devices, and of one."""

    def kill(step: int, process: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(folder, epochs=2)
    _whole(*train(folder, "undisturbed", 1, 2))
    found: dict[str, Any] = {"undisturbed": _digests(folder, "undisturbed")}
    for devices in 2, 1:
        name = f"1x{devices}"
        killed = train(folder, name, 2, 1, kill)
        assert any(x.code == -signal.SIGKILL for x in killed), killed
        (again,) = train(folder, name, 1, devices)
        _whole(again)
        found[name] = _digests(folder, name) | {"said": again.said}
    return found


def kept(folder: Path) -> dict[str, Any]:
    """Frozen convolutions, whose features are kept: by two processes, and by one with two devices.

    Two processes that are killed are gone on with by one, with their features and without.
    """

    def kill(step: int, process: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(folder, _BY_SGD, epochs=2)
    toml = folder / "run.toml"
    toml.write_text(toml.read_text().replace("crop = 0.5", "flip = false"))
    flaxvgg.training.feature_files._IMAGES = 8  # so that both processes have files to make
    _whole(*train(folder, "2x1", 2, 1), *train(folder, "1x2", 1, 2))
    for name in "killed", "without":
        ended = train(folder, name, 2, 1, kill)
        assert any(x.code == -signal.SIGKILL for x in ended), ended
        if name == "without":
            shutil.rmtree(folder / name / "features")
        _whole(*train(folder, name, 1, 2))
    runs = "2x1", "1x2", "killed", "without"
    features = {
        name: {x.name: x.read_bytes().hex() for x in (folder / name / "features").iterdir()}
        for name in runs
    }
    return {name: _digests(folder, name) | {"features": features[name]} for name in runs}


def lost(folder: Path) -> dict[str, Any]:
    """One of two processes is killed, the second or the first."""
    prepare(folder)
    found = {}
    for victim in 1, 0:

        def kill(step: int, process: int, victim: int = victim) -> None:
            if step == 3 and process == victim:
                os.kill(os.getpid(), signal.SIGKILL)

        ended = train(folder, f"lost-{victim}", 2, 1, kill)
        found[str(victim)] = ended[1 - victim]._asdict()
    return found


def stopped(folder: Path) -> dict[str, Any]:
    """The second of two processes gets SIGTERM, as from a scheduler; then both again."""

    def ask(step: int, process: int) -> None:
        if step == 3 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    prepare(folder)
    ended = train(folder, "run", 2, 1, ask)
    kept = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    again = train(folder, "run", 2, 1)
    _whole(*again)
    return {
        "ended": [x._asdict() for x in ended],
        "checkpoints": kept,
        "again": [x.said for x in again],
    }


def sharded(folder: Path) -> dict[str, Any]:
    """A state and a model that are divided among two processes, written, and read by one."""

    def state_of(rule: Any) -> tuple[flaxvgg.Trainer, Any]:
        model = tiny_vgg(TINY_CLASSIFIER, precision="default")
        trainer = flaxvgg.Trainer.of(model, flaxvgg.Optimisation(stack_rate=0.1))
        mesh = flaxvgg.data_mesh()
        return trainer, flaxvgg.place(trainer.start(model), mesh, rule)

    def write(process: int) -> int:
        join_processes()
        trainer, state = state_of(partial(flaxvgg.fully_sharded, least=64))
        kernel = state.trained["head"]["fc6"]["kernel"][...]
        assert not kernel.is_fully_addressable
        kept = Checkpoints(folder / "checkpoints", {}, 1)
        kept.save(state, {"next": 3})
        kept.close()
        for name in "model", "model.safetensors":
            flaxvgg.save(trainer.model(state), folder / name)
        return 0

    def read(process: int) -> int:
        from orbax.checkpoint import v1 as ocp
        from safetensors.numpy import load_file

        trainer, state = state_of(flaxvgg.replicated)
        found, position = Checkpoints(folder / "checkpoints", {}, 1).last(state) or (None, None)
        assert position == {"next": 3}
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b)
        model = trainer.model(state)
        stored = nnx.traversals.flatten_mapping(ocp.load(folder / "model"))
        for path, array in model_arrays(model).items():
            np.testing.assert_array_equal(stored[path], array)
        named = load_file(folder / "model.safetensors")
        for name, array in flaxvgg.to_torch(model).items():
            np.testing.assert_array_equal(named[name], array)
        return 0

    _whole(*together(folder, "write", 2, 1, write), *together(folder, "read", 1, 1, read))
    return {}


TRIALS = {trial.__name__: trial for trial in (same, close, resumed, kept, lost, stopped, sharded)}

if __name__ == "__main__":
    trial, place = sys.argv[1:]
    print(json.dumps(TRIALS[trial](Path(place))))
