"""Frozen convolutions run once for an image, and nothing else becomes of a run by that."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from flaxvgg.network import model as network
from flaxvgg.network.config import VGGConfig
from flaxvgg.training import feature_files, frozen, trainer, validation
from flaxvgg.training.feature_files import FeatureFiles
from flaxvgg.training.frozen import Backbone, last_frozen
from flaxvgg.training.run import Trained, train
from flaxvgg.training.settings import Data, Model, Run
from flaxvgg.training.trainer import Optimisation, Trainer
from flaxvgg.watching import Watcher
from helpers import quickly
from networks import TINY_GAP, coloured_photos, random_model, tiny_vgg

SIZE = (32, 32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve noisy images of each of three colours: 30 to train on, 6 for validation."""
    return coloured_photos(tmp_path_factory.mktemp("photos"))


class Said(Watcher):
    """What a run says, in lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say


@pytest.fixture
def run_of(monkeypatch, photos):
    """Runs with a tiny network: into a folder, and what they say."""

    def with_head(model: Model, *_) -> flaxvgg.VGG:
        head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=3))
        return tiny_vgg(head, precision="default", dtype=jnp.dtype(model.dtype))

    monkeypatch.setattr(Model, "with_head", with_head)

    def run(out: Path, stop=lambda: False, **options) -> tuple[Trained, list[str]]:
        data = {"flip": False} | {x: options.pop(x) for x in ("flip", "crop") if x in options}
        of_run = {"epochs": options.pop("epochs", 3)}
        model = Model(dtype=options.pop("dtype", "float32"))
        options = {"loss": "softmax", "learning_rate": 1e-2, "average": 0.5} | options
        data = Data(photos, size=SIZE, batch=4, held_out=0.17, **data)
        said = Said()
        settings = Run(data, model, Optimisation(**options), **of_run)
        return train(lambda: tiny_vgg(TINY_GAP), settings, out, stop, watch=said), said.lines

    return run


@pytest.fixture
def convolved(monkeypatch):
    """How many images went through the convolutions, each time they do, in whatever program."""
    counts: list[int] = []
    original = network.run_layers

    def counting(stacks, x, wanted, *, after=None, **options):
        if after is None:
            jax.debug.callback(lambda x: counts.append(len(x)), x)
        return original(stacks, x, wanted, after=after, **options)

    jax.clear_caches()
    for module in (network, frozen, trainer, validation):
        monkeypatch.setattr(module, "run_layers", counting)
    yield lambda: (jax.effects_barrier(), sum(counts))[1]
    jax.clear_caches()


def assert_same(one: tuple[Trained, Path], other: tuple[Trained, Path]) -> None:
    """To the bit: the metrics of every step, and every parameter of the best model."""
    assert one[0].rows == other[0].rows
    assert checksums(one[1]) == checksums(other[1])


def checksums(out: Path) -> dict[str, str]:
    """Of the parameters of a run's model, whose tiny network cannot be loaded."""
    told = json.loads((out / "model" / "_CHECKPOINT_METADATA").read_text())
    return told["custom_metadata"]["flaxvgg"]["checksums"]


@pytest.mark.parametrize("dtype", quickly(["float32", "bfloat16"], "float32"))
def test_what_is_kept_changes_no_bit(run_of, tmp_path, monkeypatch, dtype):
    kept, said = run_of(tmp_path / "kept", dtype=dtype)
    size = "1.73 kB" if dtype == "float32" else "864 bytes"  # 36 images, 12 channels
    line = f"kept in {tmp_path / 'kept' / 'features'}: 30 for training and 6 for validation, "
    assert any(line + size in x for x in said)
    monkeypatch.setattr(frozen, "_PART_OF_FREE", 0)
    every, said = run_of(tmp_path / "every", dtype=dtype)
    assert any("run in every epoch: their features would take" in x for x in said)
    assert not (tmp_path / "every" / "features").exists()
    assert kept.rows[-1]["loss"] < kept.rows[0]["loss"]
    assert_same((kept, tmp_path / "kept"), (every, tmp_path / "every"))


def test_the_convolutions_see_every_image_once(run_of, convolved, tmp_path):
    run_of(tmp_path, epochs=1)
    once = convolved()
    assert once == 32 + 8  # of 30 and 6: whole batches of 4
    run_of(tmp_path, epochs=3)  # the finished run, extended
    assert convolved() == once


@pytest.mark.slow
def test_without_room_they_see_every_image_in_every_epoch(run_of, convolved, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "_PART_OF_FREE", 0)
    run_of(tmp_path, epochs=2)
    assert convolved() == 2 * 28 + 3 * 8  # those for validation once more for the confusion


def test_images_of_which_parts_are_seen_are_not_kept(run_of, convolved, tmp_path):
    _, lines = run_of(tmp_path, epochs=2, crop=0.5, flip=True)
    line = "run in every epoch on the images to train on, of which each time another part is seen"
    assert sum(line in x for x in lines) == 1
    assert {x.name for x in (tmp_path / "features").iterdir()} == {"validation-000000.safetensors"}
    assert convolved() == 2 * 28 + 8


def test_mirrored_images_are_kept_besides(run_of, convolved, tmp_path, monkeypatch):
    kept, said = run_of(tmp_path / "kept", flip=True)
    assert any("60 for training, as they are and mirrored, and 6 for validation" in x for x in said)
    assert convolved() == 60 + 8
    monkeypatch.setattr(frozen, "_PART_OF_FREE", 0)
    every, _ = run_of(tmp_path / "every", flip=True)
    assert_same((kept, tmp_path / "kept"), (every, tmp_path / "every"))


@pytest.mark.slow
def test_nothing_is_kept_where_the_convolutions_are_trained(run_of, tmp_path):
    _, said = run_of(tmp_path, epochs=1, stack_rate=0.1)
    assert not (tmp_path / "features").exists()
    assert not any("features" in x for x in said)


@pytest.mark.parametrize("lost", quickly([False, True], False))
def test_a_stopped_run_goes_on_to_the_same_bits(run_of, convolved, tmp_path, lost):
    """With its features, and where somebody has removed them."""
    whole, _ = run_of(tmp_path / "whole")
    asked = iter(range(100))
    first, _ = run_of(tmp_path / "run", lambda: next(asked) >= 20)
    assert 0 < first.steps < first.of
    if lost:
        for file in (tmp_path / "run" / "features").iterdir():
            file.unlink()
    before = convolved()
    again, _ = run_of(tmp_path / "run")
    assert convolved() - before == (40 if lost else 0)
    assert_same((again, tmp_path / "run"), (whole, tmp_path / "whole"))


def test_a_run_stopped_among_its_features_computes_the_rest(
    run_of, convolved, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_files, "_IMAGES", 8)
    asked = iter(range(100))
    first, _ = run_of(tmp_path, lambda: next(asked) >= 3)
    assert first.steps == 0
    assert len(list((tmp_path / "features").iterdir())) == 3  # of 8 images each
    assert convolved() == 24
    again, _ = run_of(tmp_path)
    assert again.steps == again.of
    assert convolved() == 32 + 8


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", quickly([torn, flipped, emptied], flipped))
def test_a_damaged_file_is_named_and_made_anew(run_of, tmp_path, damage):
    whole, _ = run_of(tmp_path / "whole", epochs=2)
    run_of(tmp_path / "run", epochs=1)
    file = tmp_path / "run" / "features" / "training-000000.safetensors"
    before = file.read_bytes()
    damage(file)
    again, said = run_of(tmp_path / "run", epochs=2)
    assert [x for x in said if "is damaged" in x] == [
        f"{file} is damaged: its features are computed anew"
    ]
    assert file.read_bytes() == before
    assert_same((again, tmp_path / "run"), (whole, tmp_path / "whole"))


def test_features_of_something_else_are_not_taken(tmp_path):
    row = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    rows = np.arange(600 * 6, dtype=np.float32).reshape(600, 2, 3)
    files = FeatureFiles(tmp_path / "features", "train", "this", 600, row)
    assert files.missing() == ([0, 1], [])
    files.write(0, rows[:512])
    files.write(1, rows[512:])
    assert files.missing() == ([], [])
    for image in 0, 511, 512, 599:
        np.testing.assert_array_equal(files[image], rows[image])
    for key, count in ("that", 600), ("this", 599):
        other = FeatureFiles(tmp_path / "features", "train", key, count, row)
        assert other.missing() == ([0, 1] if key == "that" else [1], [])
    with pytest.raises(ValueError, match="is not for features"):
        files.write(1, rows[:512])


def test_what_is_kept_is_what_the_head_is_trained_on():
    for layer, config in {
        "flatten": VGGConfig.gap("vgg16", num_classes=3),
        "relu5_3": VGGConfig.gap("vgg16", num_classes=3, channels=8),
        "relu5_2": VGGConfig.score_map("vgg11_bn", num_classes=3, batch_norm=True),
    }.items():
        assert last_frozen(config) == layer


def _steps(model: flaxvgg.VGG, size: tuple[int, int]) -> None:
    """Three steps on images and on features; the features of an image in two batches."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, *size, 3)).astype(np.uint8)
    labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    mesh = flaxvgg.data_mesh(jax.devices()[:1])
    backbone = Backbone(model, size, mesh)

    def of(some: list[int]) -> np.ndarray:
        return np.asarray(backbone(flaxvgg.shard_batch(pixels[some], mesh)))

    features = np.concatenate([of([*range(i, i + 4)]) for i in range(0, 12, 4)])
    for some in [7, 2, 11, 0], [9, 9, 1, 9]:
        np.testing.assert_array_equal(of(some), features[some])
    options = Optimisation(loss="softmax", average=0.5)
    one = Trainer.of(model, options)
    other = Trainer.of(model, options, after=last_frozen(model.config))
    of_images, of_features = one.start(model), other.start(model)
    for i in range(0, 12, 4):
        images = flaxvgg.normalise(pixels[i : i + 4], model.preprocessing)
        of_images, _ = one.step(of_images, images, labels)
        of_features, _ = other.step(of_features, features[i : i + 4], labels)
    for a, b in zip(jax.tree.leaves(of_images), jax.tree.leaves(of_features), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_on_features_is_the_step_on_images():
    head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=3))
    _steps(tiny_vgg(head, precision="default"), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
@pytest.mark.parametrize("head", ["gap", "channels", "score_map"])
def test_a_step_on_features_is_the_step_on_images_of_every_head(arch, head):
    stack = random_model(VGGConfig.features_only(arch, "random"), precision="default")
    rngs = nnx.Rngs(0)
    model = {
        "gap": lambda: flaxvgg.with_gap(stack, 3, rngs=rngs),
        "channels": lambda: flaxvgg.with_gap(stack, 3, channels=8, rngs=rngs),
        "score_map": lambda: flaxvgg.with_score_map(
            stack, 3, channels=16, last="none", batch_norm=True, rngs=rngs
        ),
    }[head]()
    _steps(model, (64, 96))
