"""Training in many processes: the same as in one, whoever is lost, however many go on."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvgg
from flaxvgg.images.datasets import image_folder
from flaxvgg.images.loading import load_pixels
from flaxvgg.network import processes
from flaxvgg.network.processes import gathered, own_part, told_by_first, total
from flaxvgg.network.sharding import whole
from flaxvgg.training.checkpoints import Checkpoints
from flaxvgg.training.data import batches
from flaxvgg.training.settings import Data
from flaxvgg.training.trainer import TrainState
from helpers import TINY_GAP, tiny_vgg

EPS = float(np.finfo(np.float32).eps)


def trial(name: str, folder: Path) -> dict[str, Any]:
    """What came of one of `tests.train_worker.TRIALS`."""
    command = [sys.executable, "-m", "tests.train_worker", name, str(folder)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def columns(metrics: str) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader(io.StringIO(metrics)))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


@pytest.mark.slow
def test_two_processes_train_to_the_bits_of_one_with_two_devices(tmp_path):
    found = trial("same", tmp_path)
    assert found["2x1"] == found["1x2"]
    assert len(columns(found["1x2"]["metrics"])["loss"]) == 7


@pytest.mark.slow
def test_sums_of_four_devices_are_rounded_in_another_order_only(tmp_path):
    """A bound that is derived, for the head alone and plain steps against the gradient.

    A device has one image of a batch of 4. Of fc, its part of the gradient is at most f / 4, where
    f is its largest feature, or 1 for the bias: probabilities differ from labels by at most 1. Two
    orders of the sum of four such parts differ by 3 eps times the sum of their magnitudes at most,
    so by 3 eps f; the step then adds its own rounding. Both count once a step, 7 times, and what
    has come in by then is enlarged by at most 1 + rate h a step, h <= (|f|^2 + 1) / 2 the curvature
    of the loss. The loss follows the parameters by at most 2 (sum of |f| + 1) of it.
    """
    found = trial("close", tmp_path)
    ours, theirs = (columns(found[name]) for name in ("2x2", "1x4"))
    steps, rate = 7, 0.01
    images, model = image_folder(tmp_path / "photos"), tiny_vgg(TINY_GAP)
    recipe = model.preprocessing
    data = Data(tmp_path / "photos", size=(32, 32), batch=4, crop=0.5)
    seen = [x["pixels"] for x in batches(images, data, recipe, epochs=1, seed=0)]
    seen.append(np.stack([load_pixels(path, (32, 32), recipe) for path in images.paths]))
    features = np.asarray(model.gap(flaxvgg.normalise(np.concatenate(seen), recipe)))
    f = features.max()
    curvature = (features.shape[1] * f**2 + 1) / 2
    off = steps * (rate * 3 * EPS * max(f, 1) + EPS) * (1 + rate * curvature) ** steps
    for name in ("loss", "validation_loss"):
        both = np.isfinite(theirs[name])
        assert both.any()
        difference = abs(ours[name] - theirs[name])[both]
        assert difference.max() <= 2 * (features.shape[1] * f + 1) * off
    assert (ours["step"] == theirs["step"]).all()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path):
    """The same images in the same order; to the bit where two devices are two again."""
    found = trial("resumed", tmp_path)
    whole_run = found["undisturbed"]
    assert "resuming after step" in found["1x2"]["said"]
    assert found["1x2"]["model"] == whole_run["model"]
    assert found["1x2"]["metrics"] == whole_run["metrics"]
    wanted, rows = columns(whole_run["metrics"]), columns(found["1x1"]["metrics"])
    assert len(rows["loss"]) == 14
    # Another image in a batch would change the loss in its first digits.
    np.testing.assert_allclose(rows["loss"], wanted["loss"], rtol=1e-4)


@pytest.mark.slow
def test_features_are_computed_by_several_processes_to_the_same_bits(tmp_path):
    """Each has some of the files; a killed run is gone on with by another number of processes."""
    found = trial("kept", tmp_path)
    for name in "1x2", "killed", "without":
        assert found[name] == found["2x1"], name
    assert len(found["2x1"]["features"]) == 4 + 1  # of 8 images each, 28 or so and 7


@pytest.mark.slow
def test_the_loss_of_a_process_ends_all_with_a_line(tmp_path):
    found = trial("lost", tmp_path)
    said = "error: another process of this run has ended: see what it said, and start all of them"
    left = found["1"]  # of the second one
    errors = [line for line in left["said"].splitlines() if "rror" in line]
    assert left["code"] == 2, left
    assert len(errors) == 1, left
    assert errors[0].startswith(said)
    # With the first one goes the service that joins them: JAX may be the one that says so.
    left = found["0"]
    assert left["code"] in (2, -signal.SIGABRT), left
    assert said in left["said"] or "Terminating process because the JAX" in left["said"]


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_stops_all_behind_the_same_step(tmp_path):
    found = trial("stopped", tmp_path)
    assert [x["code"] for x in found["ended"]] == [130, 130]
    assert "stopped after step 3 of 7: rerun the command to resume" in found["ended"][0]["said"]
    assert "3" in found["checkpoints"]
    assert "resuming after step 3 of 7" in found["again"][0]
    assert "epoch" not in found["again"][1]  # one log


@pytest.mark.slow
def test_what_is_divided_among_processes_is_written_whole(tmp_path):
    assert trial("sharded", tmp_path) == {}


def test_alone_a_process_hears_itself():
    assert total(3) == 3
    assert gathered(b"abc") == [b"abc"]
    assert told_by_first("a\udcff") == "a\udcff"


def test_parts_are_everything_once(monkeypatch):
    for count in 0, 1, 7, 1000:
        for parts in 1, 3, 256:
            monkeypatch.setattr(jax, "process_count", lambda: parts)  # noqa: B023
            found = []
            for part in range(parts):
                monkeypatch.setattr(jax, "process_index", lambda: part)  # noqa: B023
                found.append(own_part(count))
            assert [x for own in found for x in own] == list(range(count))
            assert max(map(len, found)) - min(map(len, found)) <= 1


def test_what_others_say_is_as_long_as_it_was(monkeypatch):
    """Texts of several lengths, and none at all, by arrays of one size."""
    given = [b"long", b"", b"a\0"]
    asked = []

    def allgather(array: np.ndarray) -> np.ndarray:
        asked.append(array)
        if array.dtype == np.int32:
            return np.array([len(x) for x in given])
        return np.stack([np.frombuffer(x.ljust(4, b"\0"), np.uint8) for x in given])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", allgather)
    assert gathered(b"long") == given
    assert [x.shape for x in asked] == [(), (4,)]


def test_what_is_divided_is_whole_again():
    tree = {"kernel": np.arange(512, dtype=np.float32).reshape(16, 32), "step": np.int32(3)}
    placed = flaxvgg.place(tree, flaxvgg.data_mesh(), partial(flaxvgg.fully_sharded, least=64))
    assert not placed["kernel"].is_fully_replicated
    for name, x in whole(placed).items():
        assert len(x.sharding.device_set) == 1
        np.testing.assert_array_equal(x, tree[name])
    assert whole(tree)["step"] == 3  # no array of JAX


def test_a_state_of_copies_is_not_written_from_memory_that_is_taken(tmp_path, monkeypatch):
    """As several processes write it: the next step takes the memory of the state."""
    state = TrainState(jnp.int32(3), {"kernel": jnp.arange(9.0)}, {}, (), None)
    expected = [np.array(x) for x in jax.tree.leaves(state)]
    kept, copied = Checkpoints(tmp_path / "c", {}, 1), {}
    monkeypatch.setattr(
        kept._checkpointer, "save_async", lambda step, arrays, **_: copied.update(arrays)
    )
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    kept.save(state, {})
    for x in jax.tree.leaves(state):
        x.delete()
    for x, wanted in zip(copied.values(), expected, strict=True):
        np.testing.assert_array_equal(x, wanted)
