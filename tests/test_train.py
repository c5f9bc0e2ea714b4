"""flaxvgg train: runs that learn, resume exactly, and stop with a reason; nothing lost."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from typer.testing import CliRunner

import flaxvgg
from flaxvgg.commands.cli import app
from flaxvgg.images.datasets import image_folder
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.training.data import batches, reading
from flaxvgg.training.log import Log, read_rows
from flaxvgg.training.run import TrainingError, train
from flaxvgg.training.settings import Data, Model, Run, read_run
from flaxvgg.training.trainer import Optimisation
from flaxvgg.weights.checkpoint import CheckpointError
from helpers import TINY_GAP, random_model, run_flaxvgg, tiny_vgg
from networks import COLOURS, coloured_photos

SIZE = (32, 32)
RECIPE = PREPROCESSING["torchvision"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve noisy images of each of three colours, in a folder for each."""
    return coloured_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def stack():
    """vgg11's convolutions, random."""
    return random_model(VGGConfig.features_only("vgg11", "random"), precision="default")


@pytest.fixture(scope="module")
def weights(stack, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "stack.safetensors"
    flaxvgg.save(stack, path)
    return path


@pytest.fixture
def tiny(monkeypatch):
    """What to load for a run whose network does not matter: it gets a tiny one."""

    def with_head(model: Model, _: VGG, num_classes: int, seed: int) -> VGG:
        head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=num_classes))
        return tiny_vgg(head, precision="default", dtype=jnp.dtype(model.dtype))

    monkeypatch.setattr(Model, "with_head", with_head)
    return lambda: tiny_vgg(TINY_GAP)


def a_run(photos: Path, **options) -> Run:
    """Two epochs of seven steps."""
    training = {"loss": "softmax", "learning_rate": 1e-2, "average": 0.5} | options
    run = {name: training.pop(name) for name in ("epochs", "every", "keep") if name in training}
    model = training.pop("model", Model())
    data = Data(photos, size=SIZE, batch=4, crop=0.5)
    return Run(data, model, Optimisation(**training), **{"epochs": 2} | run)


def arrays(path: Path) -> dict[str, np.ndarray]:
    return flaxvgg.to_torch(flaxvgg.load(path))


def toml(path: Path, photos: Path, weights: Path, **training) -> Path:
    values = {"loss": "softmax", "learning_rate": 1e-2, "average": 0.5} | training
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    path.write_text(
        f"epochs = 2\nevery = 3\n[data]\ntrain = {json.dumps(str(photos))}\nsize = [32, 32]\n"
        "batch = 4\ncrop = 0.5\n"
        f"[model]\nweights = {json.dumps(str(weights))}\n[training]\n{lines}\n"
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(photos, weights, tmp_path_factory):
    """What `flaxvgg train` makes of it, and what it says."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = toml(folder / "run.toml", photos, weights)
    result = CliRunner().invoke(
        app, ["train", "--config", str(config), "--out", str(folder / "run")]
    )
    assert result.exit_code == 0, result.output
    return folder / "run", result.output


def test_a_run_learns_and_leaves_everything_it_promises(undisturbed, weights, photos):
    out, said = undisturbed
    assert "epoch   2 of 2" in said
    assert "accuracy 1.000" in said
    model = flaxvgg.load(out / "model")
    assert model.classes == ("blue", "green", "red")
    assert model.provenance.source.endswith(f"trained on {photos.name}")
    before = flaxvgg.to_torch(flaxvgg.load(weights))
    after = arrays(out / "model")
    assert all((after[name] == before[name]).all() for name in before)  # the stack is frozen
    images = flaxvgg.load_images([photos / "red" / "0.png", photos / "blue" / "1.png"], SIZE)
    assert model(images).argmax(-1).tolist() == [2, 0]
    explanation = flaxvgg.explain(model, images, method="cam")
    assert explanation.classes.tolist() == [[2], [0]]
    rows = read_rows(out / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert [row["step"] for row in rows if row["validation_metric"] is not None] == [7, 14]
    assert rows[-1]["loss"] < rows[0]["loss"]
    with Image.open(out / "curves.png") as picture:
        assert picture.size == (1100, 374)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["14", "7"]


def test_the_accuracy_and_what_is_taken_for_what(undisturbed):
    """Of a run on folders: by class, of the best model, over the part that was held out."""
    out, said = undisturbed
    lines = (out / "confusion.csv").read_text().splitlines()
    assert lines[0] == "class,blue,green,red,recall"
    table = np.array([line.split(",")[1:4] for line in lines[1:]], int)
    assert 4 * 7 <= 36 - table.sum() < 4 * 8  # all but those that seven batches are of
    last = [row for row in read_rows(out / "metrics.csv") if row["validation_accuracy"] is not None]
    best = max(row["validation_accuracy"] for row in last)
    assert np.trace(table) / table.sum() == pytest.approx(best)
    assert f"the best: accuracy {best:.3f}" in said


def test_a_finished_run_is_extended_to_what_it_would_have_been(tiny, photos, tmp_path):
    once = train(tiny, a_run(photos, epochs=3), tmp_path / "once")
    train(tiny, a_run(photos, epochs=2), tmp_path / "run")
    again = train(tiny, a_run(photos, epochs=3), tmp_path / "run")
    assert (again.steps, again.rows) == (once.steps, once.rows)  # to the bit, step by step
    with pytest.raises(CheckpointError, match="epochs"):
        train(tiny, a_run(photos, epochs=2), tmp_path / "run")


def test_a_run_whose_rates_went_to_zero_is_not_extended(tiny, photos, tmp_path):
    train(tiny, a_run(photos, epochs=1, schedule="cosine"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="epochs"):
        train(tiny, a_run(photos, epochs=2, schedule="cosine"), tmp_path / "run")


def test_several_labels_of_an_image_have_no_confusion(tiny, photos, tmp_path):
    names = "".join(
        f"{photos}/blue/{i}.png,blue;green\n{photos}/red/{i}.png,red\n" for i in range(12)
    )
    table = tmp_path / "labels.csv"
    table.write_text(f"image,labels\n{names}")
    done = train(tiny, a_run(table, epochs=1, loss="multilabel"), tmp_path / "run")
    assert done.rows[-1]["validation_accuracy"] is None
    assert not (tmp_path / "run" / "confusion.csv").exists()


def test_the_former_name_of_the_validation_images_is_answered(photos, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[data]\ntrain = "photos"\ntest = "other"\n')
    with pytest.raises(ValueError, match="write validation"):
        read_run(path)


def test_tensorboard_has_the_same_figures(undisturbed):
    out, _ = undisturbed
    (file,) = (out / "tensorboard").iterdir()
    rows = {row["step"]: row for row in read_rows(out / "metrics.csv")}
    data, at, seen = file.read_bytes(), 0, 0
    while at < len(data):  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += length + 16
        for value in event.summary.value:
            assert value.simple_value == np.float32(rows[event.step][value.tag])
            seen += 1
    assert seen == 14 * 5 + 2 * 3  # loss, mAP and accuracy of two epochs


_KILLED = """
import os, signal, sys
from flaxvgg.commands.cli import app
from flaxvgg.training.log import Log
add = Log.add
def add_and_die(self, row):
    add(self, row)
    if row["step"] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
Log.add = add_and_die
app(sys.argv[1:])
"""


def test_a_killed_run_ends_in_the_same_bits(undisturbed, photos, weights, tmp_path):
    config = toml(tmp_path / "run.toml", photos, weights)
    command = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    # Compiled as here (conftest.py): it is the same bits that are asked for.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = [sys.executable, "-c", _KILLED, *command]
    killed = subprocess.run(program, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 9
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    # The last checkpoint that was finished: it is written while training goes on.
    assert re.search(r"resuming after step [67] of 14", result.output)
    expected, found = arrays(undisturbed[0] / "model"), arrays(tmp_path / "run" / "model")
    assert all((expected[name] == found[name]).all() for name in expected)
    assert read_rows(undisturbed[0] / "metrics.csv") == read_rows(tmp_path / "run" / "metrics.csv")


@pytest.mark.slow
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not(photos, tiny, tmp_path):
    run = a_run(photos, every=2, stack_rate=0.1)
    whole = train(tiny, run, tmp_path / "whole")
    assert whole.steps == whole.of == 14
    for at in (1, 7, 9):  # asked before an epoch, before a step and behind an epoch
        asked = iter(range(100))
        first = train(tiny, run, tmp_path / str(at), lambda: next(asked) >= at)  # noqa: B023
        assert first.steps < 14
        assert not (tmp_path / str(at) / "model").exists()
        again = train(tiny, run, tmp_path / str(at))
        # Equal to the last bit at every step, and in what was tested by the moving average.
        assert again.rows == whole.rows == read_rows(tmp_path / str(at) / "metrics.csv")


def test_a_finished_run_is_not_run_again(photos, tiny, tmp_path):
    train(tiny, a_run(photos), tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    again = train(tiny, a_run(photos), tmp_path)
    assert again.steps == again.of == 14
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_ctrl_c_keeps_the_step(photos, weights, tiny, tmp_path, monkeypatch):
    config = toml(tmp_path / "run.toml", photos, weights)
    add = Log.add

    def press(self, row):
        add(self, row)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Log, "add", press)
    command = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 130
    assert "stopped after step 3 of 14: rerun the command to resume" in result.output
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 2e-2}, r"training.learning_rate was 0.01, and is 0.02"),
        ({"epochs": 1}, r"epochs was 2, and is 1"),
        ({"average": 0.0}, r"average.* is unexpected"),
        ({"stack_rate": 0.1}, r"conv_stack.* is missing"),
    ],
)
def test_checkpoints_of_another_run_are_refused(photos, tiny, tmp_path, options, said):
    train(tiny, a_run(photos), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(CheckpointError, match=said) as error:
        train(tiny, a_run(photos, **options), tmp_path)
    assert "choose another folder" in str(error.value)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_collapse_is_foretold_and_named_when_it_comes(photos, weights, tmp_path):
    folder = tmp_path / "run"
    options = {"loss": "multilabel", "learning_rate": 100.0, "optimiser": "sgd"}
    config = toml(tmp_path / "run.toml", photos, weights, **options)
    text = config.read_text().replace(
        "[training]", 'head = "score_map"\nchannels = 8\nlast = "relu"\n[training]'
    )
    config.write_text(text.replace("epochs = 2", "epochs = 20"))
    result = CliRunner().invoke(app, ["train", "--config", str(config), "--out", str(folder)])
    assert result.exit_code == 2
    assert "at risk: the scores are means of a ReLU" in result.output
    assert "collapsed: every score is exactly 0" in result.output
    assert 'last="none"' in result.output
    assert not (folder / "model").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_checkpoint(photos, tiny, tmp_path):
    # The first step is as good as any other; what it leads to is not.
    run = a_run(photos, optimiser="sgd", learning_rate=3e38, every=1)
    with pytest.raises(
        TrainingError, match=r"step 2, .*: loss (nan|inf), .*lower the learning rate"
    ):
        train(tiny, run, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    kept = train(tiny, run, tmp_path, lambda: True)
    assert (kept.steps, kept.of) == (1, 14)
    assert [row["step"] for row in kept.rows] == [1]


_FULL = """
import resource, sys
from flaxvgg.commands.cli import app
from flaxvgg.training.checkpoints import Checkpoints
save = Checkpoints.save
def save_on_a_full_disk(self, state, data, metric=None):
    if int(state.step) > 7:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    save(self, state, data, metric)
Checkpoints.save = save_on_a_full_disk
app(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_the_last_checkpoint_is_whole(
    photos, weights, stack, tmp_path
):
    config = toml(tmp_path / "run.toml", photos, weights)
    command = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    full = subprocess.run([sys.executable, "-c", _FULL, *command], capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    last = full.stderr.strip().splitlines()[-1]  # a thread of Orbax may have had its say before
    assert last.startswith("error: no checkpoint could be written")
    assert last.endswith("make room and run again")
    kept = train(lambda: stack, read_run(config), tmp_path / "run", lambda: True)
    assert kept.steps in (6, 7)  # it was whole, and could be read


def test_a_damaged_checkpoint_is_named(photos, tiny, tmp_path):
    run = a_run(photos)
    asked = iter(range(100))
    train(tiny, run, tmp_path, lambda: next(asked) > 2)
    (step,) = (tmp_path / "checkpoints").iterdir()
    for file in step.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="is damaged"):
        train(tiny, run, tmp_path)


def test_batches_are_the_same_from_any_number_on(photos):
    images, data = image_folder(photos), Data(photos, size=SIZE, batch=8, crop=0.3)
    dataset = batches(images, data, RECIPE, epochs=2, seed=0)
    assert len(dataset) == 2 * (36 // 8)
    iterator = reading(dataset)
    seen = [next(iterator) for _ in range(3)]
    state = json.loads(json.dumps(iterator.get_state()))
    rest = list(iterator)
    assert len(seen) + len(rest) == len(dataset)
    again = reading(batches(images, data, RECIPE, epochs=2, seed=0))
    again.set_state(state)
    for one, other in zip(rest, again, strict=True):
        np.testing.assert_array_equal(one["pixels"], other["pixels"])
        np.testing.assert_array_equal(one["labels"], other["labels"])
    assert seen[0]["pixels"].shape == (8, 32, 32, 3)
    assert seen[0]["pixels"].dtype == np.uint8
    assert not np.array_equal(seen[0]["labels"], rest[1]["labels"])  # the next epoch's first
    other = next(reading(batches(images, data, RECIPE, epochs=2, seed=1)))
    assert not np.array_equal(other["pixels"], seen[0]["pixels"])


def test_without_augmentation_a_batch_is_what_the_recipe_makes(photos):
    images = image_folder(photos)
    data = Data(photos, size=SIZE, batch=4, flip=False)
    batch = next(reading(batches(images, data, RECIPE, epochs=1, seed=0)))
    every = np.asarray(flaxvgg.load_images(images.paths, SIZE))
    for pixels, label in zip(flaxvgg.normalise(batch["pixels"]), batch["labels"], strict=True):
        same = (every == np.asarray(pixels)).all(axis=(1, 2, 3))
        assert same.sum() == 1
        np.testing.assert_array_equal(images.labels[same][0], label)


def test_multilabel_runs_from_a_csv_file_with_everything_on(photos, tiny, tmp_path):
    with (photos / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels"])
        for path in sorted(photos.glob("*/*.png")):
            other = ";warm" if path.parent.name == "red" else ""
            writer.writerow([path.relative_to(photos), path.parent.name + other])
    data = Data(photos / "labels.csv", size=SIZE, batch=4)
    options = Optimisation(
        learning_rate=1e-2, schedule="cosine", warmup=2, clip=1.0, accumulate=2, stack_rate=0.01
    )
    run = Run(data, Model(dtype="bfloat16"), options, epochs=2)
    done = train(tiny, run, tmp_path)
    # Two batches make a step: the rate rises for two of them, and falls to nothing.
    rates = [row["learning_rate"] for row in done.rows]
    assert rates[:4] == pytest.approx([0, 0, 5e-3, 5e-3])
    assert rates[4] == pytest.approx(1e-2)
    assert rates[-1] < 5e-3
    assert done.rows[-1]["loss"] < done.rows[0]["loss"]
    assert done.rows[-1]["validation_metric"] > 0.5  # the mean average precision


def test_the_heads_that_a_file_can_ask_for(stack):
    for options, names in {
        (): "pool5 gap flatten fc prob",
        (("channels", 8),): "conv6 relu6 gap flatten fc prob",
        (("head", "score_map"), ("channels", 8)): "conv6 relu6 conv7 gap means prob",
        (
            ("head", "score_map"),
            ("channels", 8),
            ("last", "relu"),
            ("batch_norm", True),
            ("fc", True),
        ): "conv6 bn6 relu6 conv7 bn7 relu7 gap means fc prob",
    }.items():
        model = Model(**dict(options)).with_head(stack, 3, 0)
        assert " ".join(model.config.layer_names).endswith("relu5_2 " + names)
        assert model.config.num_classes == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs = ", "no TOML file"),
        (f"epochs = {'[' * 150}{']' * 150}", "no TOML file: its values are nested more than 100"),
        (f"epochs = {'[' * 5000}{']' * 5000}", "no TOML file"),
        ("epochs = 2", 'data is missing: write [data] and, below it, train = "FOLDER"'),
        ('[data]\ntrain = "photos"\n[training]\nlerning_rate = 1', "did you mean learning_rate?"),
        ('[data]\ntrain = "photos"\n[trainng]', "trainng is no option: did you mean training?"),
        ('[data]\ntrain = "photos"\nepochs = 2', "belongs above the first [section]"),
        ('[data]\ntrain = "photos"\nlearning_rate = 1', "it belongs below [training]"),
        ("[data]\nbatch = 4", 'data.train is missing: write train = "FOLDER" below [data]'),
        ('[data]\ntrain = "photos"\nsize = 224', "data.size must be two whole numbers, [height"),
        ('[data]\ntrain = "photos"\nsize = [64]', "data.size must be two whole numbers, [height"),
        ('[data]\ntrain = "photos"\nsize = [1, "x"]', "data.size must be two whole numbers"),
        ('[data]\ntrain = "photos"\nheld_out = 2', "held_out must be between 0 and 1, not 2"),
        ("[data]\ntrain = 3", "data.train is 3: it must be a path, in quotes"),
        ('data = "photos"', "data is 'photos': it must be a section"),
        ('[data]\ntrain = "photos"\n[training]\nlearning_rate = inf', "must be above 0, not inf"),
        ('[data]\ntrain = "photos"\n[training]\nclip = nan', "clip must be at least 0, not nan"),
        ('[data]\ntrain = "photos"\n[model]\nfc = "perhaps"', "must be true or false"),
        ('[data]\ntrain = "photos"\n[training]\nlearning_rate = -1', "learning_rate must be above"),
        (
            '[data]\ntrain = "photos"\n[model]\nhead = "fc"',
            "model.head is 'fc': choose 'gap' or 'score_map'",
        ),
        (
            '[data]\ntrain = "photos"\nbatch = "many"',
            "data.batch is 'many': it must be a whole number",
        ),
        ('[data]\ntrain = "photos"\nsize = [16, 16]', "size must be at least 32"),
        ('epochs = 0\n[data]\ntrain = "photos"', "epochs and keep must be at least 1"),
        ('[data]\ntrain = "nowhere"', "nowhere: no such folder or file"),
        ('[data]\ntrain = "empty"', "class dog is empty"),
        ('[data]\ntrain = "labels.csv"', "line 2: gone.png is missing"),
        ('[data]\ntrain = "photos"\nbatch = 64', "fewer than a batch"),
        ('[data]\ntrain = "photos"\nvalidation = "other"', "'owl' is none of the classes"),
        ('[data]\ntrain = "both.csv"\n[training]\nloss = "softmax"', "needs one label for each"),
        ('[data]\ntrain = "photos"\n[model]\nweights = "gone.safetensors"', "gone.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_made(photos, weights, tmp_path, text, said):
    (tmp_path / "photos").symlink_to(photos)
    for folder in ("empty/dog", "empty/cat", "other/owl"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("empty/cat/0.png", "other/owl/0.png"):
        (tmp_path / name).write_bytes((photos / "red" / "0.png").read_bytes())
    (tmp_path / "labels.csv").write_text("image,labels\ngone.png,cat\n")
    (tmp_path / "both.csv").write_text(
        "image,labels\n" + "".join(f"photos/{c}/{i}.png,a;b\n" for c in COLOURS for i in range(3))
    )
    if "[model]" not in text:
        text += f"\n[model]\nweights = {json.dumps(str(weights))}\n"
    (tmp_path / "run.toml").write_text(text)
    command = ["train", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert said in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_a_torn_row_is_left_out(tmp_path):
    with Log(tmp_path, 0) as log:
        log.add({"step": 1, "epoch": 1, "loss": 0.5})
        log.add({"step": 2, "epoch": 1, "loss": 0.25})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,1,0.1")  # a process that was killed in the middle of a line
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.csv")] == [0.5, 0.25]
    with Log(tmp_path, 1) as log:
        assert [row["step"] for row in log.rows] == [1]
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == [1]


@pytest.mark.parametrize("name", ["photos", "photos/run"])
def test_a_run_does_not_become_a_class_of_its_own_images(photos, tmp_path, name):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "run.toml").write_text('[data]\ntrain = "photos"')
    before = sorted(tmp_path.rglob("*"))
    result = run_flaxvgg("train", "--config", tmp_path / "run.toml", "--out", tmp_path / name)
    assert result.exit_code == 2, result.output
    assert "where every folder is a class: choose another --out" in result.stderr.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["VOC2007", "VOC2007/run"])
def test_a_run_in_a_folder_of_pascal_voc_is_no_class_of_it(tmp_path, name):
    voc = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    (tmp_path / "run.toml").write_text('[data]\ntrain = "VOC2007"')
    result = run_flaxvgg("train", "--config", tmp_path / "run.toml", "--out", tmp_path / name)
    assert result.exit_code == 2
    assert (
        "trainval" in result.stderr
    )  # the list of its images is missing, and nothing else is wrong
