"""Many devices and processes: the same results, each with its part of the state and the images."""

import dataclasses
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import flaxvgg
import sharded
from flaxvgg.commands.console import Shown
from flaxvgg.images.datasets import image_folder
from flaxvgg.network import sharding
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.training import data as data_module
from flaxvgg.training.data import batches, reading
from flaxvgg.training.run import train
from flaxvgg.training.settings import Data, Model, Run
from helpers import TINY_CLASSIFIER, TINY_GAP, tiny_vgg
from networks import coloured_photos

RECIPE = PREPROCESSING["torchvision"]
# Of the largest number of an array: sums over images are taken in another order.
ROUNDING = 16 * np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve noisy images of each of three colours, in a folder for each."""
    return coloured_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def expected(photos):
    """On one device."""
    return sharded.results(flaxvgg.data_mesh(jax.devices()[:1]), photos)


def elsewhere(devices: int, parts: int, cases: str, photos: Path, out: Path) -> dict:
    """What so many processes, each with so many devices, find together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": "."}
    command = [sys.executable, "-W", "error", sharded.__file__, out, photos, cases]
    processes = [
        subprocess.Popen(
            [*command, str(part), str(parts), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in range(parts)
    ]
    try:
        said = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(said)
    return dict(np.load(out))


@pytest.mark.parametrize(
    ("devices", "processes", "cases"),
    [(8, 1, ",".join(sharded.CASES)), (2, 2, "classifier")],
    ids=["8 devices", "2 processes"],
)
def test_results_do_not_depend_on_where_they_are_computed(
    expected, photos, tmp_path, devices: int, processes: int, cases: str
):
    found = elsewhere(devices, processes, cases, photos, tmp_path / "found.npz")
    devices *= processes
    names = expected.keys()
    if processes > 1:
        names = {name for name in names if not name.startswith(("score map", "frozen"))}
    assert found.keys() == names
    for name in names - {f"{case} bytes" for case in sharded.CASES}:
        x, y = expected[name], found[name]
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        # Integers, whole maps, and sums that are exact in any order are the same to the last bit.
        same = not np.issubdtype(x.dtype, np.inexact) or name in ("sums", "features")
        atol = 0 if same else ROUNDING * abs(x).max()
        np.testing.assert_allclose(y, x, rtol=0, atol=atol, err_msg=name)
        assert x.any(), name
    # Kernels are divided; biases and counters are small and everywhere.
    whole = expected["classifier bytes"] / devices
    assert whole < found["classifier bytes"] < whole + 1500


def test_a_rule_says_where_arrays_lie():
    mesh = flaxvgg.data_mesh()
    model = tiny_vgg(TINY_CLASSIFIER)
    seen = {}

    def rule(path, array, mesh):
        seen[path] = array.shape
        return PartitionSpec("data") if path == "head.fc6.kernel" else PartitionSpec()

    placed = flaxvgg.place(model, mesh, rule)
    assert seen["conv_stack.conv1_1.bias"] == (8,)
    assert placed.head.fc6.kernel[...].addressable_data(0).shape == (294, 16)
    assert placed.conv_stack.conv1_1.kernel[...].is_fully_replicated
    trainer = flaxvgg.Trainer.of(placed)
    state = trainer.start(placed)  # which lies as the model does
    (moments, *_), _ = jax.tree.flatten(state.optimiser[0].mu["head"]["fc6"]["kernel"])
    assert moments.addressable_data(0).shape == (294, 16)
    seen.clear()
    flaxvgg.place(state, mesh, rule)
    assert {"step", "trained.head.fc6.kernel", "kept.conv_stack.conv1_1.kernel"} <= seen.keys()


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 512, 512), (None, None, "data")),
        ((25089, 4096), (None, "data")),  # the largest axis that two devices divide
        ((25088, 4096), ("data",)),
        ((1025, 1025), ()),
        ((512, 511), ()),  # too small
    ],
)
def test_large_arrays_are_divided_along_the_largest_axis_that_fits(shape, spec):
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = flaxvgg.fully_sharded("kernel", array, flaxvgg.data_mesh())
    assert [names and "data" for names in found] == list(spec)


@pytest.mark.parametrize("spec", [("rows",), (None,) * 4 + ("data",), ("data",)])
def test_a_rule_that_does_not_fit_is_named(spec):
    with pytest.raises(
        ValueError, match=r"conv1_1.kernel of shape \(3, 3, 3, 8\) cannot be placed"
    ):
        flaxvgg.place(
            tiny_vgg(TINY_GAP),
            flaxvgg.data_mesh(),
            lambda path, *_: PartitionSpec(*spec if path.endswith("kernel") else ()),
        )


def test_a_batch_that_devices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"3 images cannot be shared by 2 devices: make the batch"):
        flaxvgg.shard_batch(np.zeros((3, 32, 32, 3)), flaxvgg.data_mesh())


def test_a_process_reads_its_own_part_of_every_batch(photos, monkeypatch):
    images, options = image_folder(photos), Data(photos, size=(32, 32), batch=8, crop=0.3)
    make = partial(batches, images, options, RECIPE, epochs=2, seed=0)
    whole = list(make())
    opened = []
    open_image = data_module.open_image
    monkeypatch.setattr(data_module, "open_image", lambda p: opened.append(p) or open_image(p))
    parts = [list(reading(make(part=part, parts=2))) for part in range(2)]
    assert len(opened) == len(whole) * 8  # and none twice
    for batch, *own in zip(whole, *parts, strict=True):
        for name, x in batch.items():
            np.testing.assert_array_equal(x, np.concatenate([part[name] for part in own]))
    for part, parts in ((0, 3), (2, 2)):
        with pytest.raises(ValueError, match=rf"part {part} of {parts} of batch = 8"):
            make(part=part, parts=parts)


# Whole runs.


@pytest.fixture
def tiny(monkeypatch):
    head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=3))
    monkeypatch.setattr(Model, "with_head", lambda *_: tiny_vgg(head, precision="default"))
    return lambda: tiny_vgg(TINY_GAP)


def a_run(photos: Path, batch: int = 4) -> Run:
    options = flaxvgg.Optimisation("softmax", learning_rate=1e-2, average=0.5)
    return Run(Data(photos, size=(32, 32), batch=batch), training=options, epochs=1)


def test_a_run_goes_on_on_more_devices_and_on_fewer(photos, tiny, tmp_path):
    run, (one, other) = a_run(photos), jax.devices()
    whole = train(tiny, run, tmp_path / "whole", devices=[one])
    for devices in ([one], [one, other]):
        asked = iter(range(10))
        stopped = train(tiny, run, tmp_path / "run", lambda: next(asked) > 2, devices)  # noqa: B023
        assert stopped.steps < stopped.of
    again = train(tiny, run, tmp_path / "run", devices=[one])
    assert again.steps == again.of
    for row, same in zip(again.rows, whole.rows, strict=True):
        numbers = {name: value for name, value in same.items() if value is not None}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)


def test_devices_that_do_not_divide_the_batch_are_left_out(photos, tiny, tmp_path, capsys):
    train(tiny, a_run(photos, batch=9), tmp_path, watch=Shown())
    assert "training on 1 of 2 devices" in capsys.readouterr().err


def test_devices_of_each_process_that_divide_a_batch():
    class Device(NamedTuple):
        process_index: int
        number: int

    def chosen(processes: int, each: int, batch: int) -> list[tuple[int, int]]:
        devices = [Device(p, i) for i in range(each) for p in range(processes)]
        found: list[tuple[int, int]] = []
        mesh = flaxvgg.data_mesh()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "data_mesh", lambda devices: found.extend(devices) or mesh)
            sharding.batch_mesh(devices, batch)
        return [tuple(x) for x in found]

    # As many of each, and those of a process one behind the other, as its part of a batch is.
    assert chosen(2, 2, 8) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert chosen(2, 2, 6) == [(0, 0), (1, 0)]
    assert chosen(1, 3, 4) == [(0, 0), (0, 1)]
    with pytest.raises(ValueError, match="batch = 9 cannot be shared by 2 processes: make it a mu"):
        chosen(2, 2, 9)
