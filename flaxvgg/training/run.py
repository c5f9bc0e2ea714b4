"""A whole run: batches, steps, checkpoints, validation and curves, resumable at any moment."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from flaxvgg.evaluation.classification import accuracy
from flaxvgg.files.folders import write_bytes
from flaxvgg.files.foreign import AnyPath
from flaxvgg.images.datasets import LabelledImages
from flaxvgg.images.fingerprint import model_digest
from flaxvgg.images.labelled import read_labelled
from flaxvgg.images.loading import normalise
from flaxvgg.network.model import VGG
from flaxvgg.network.processes import is_first, meet, total
from flaxvgg.network.sharding import Device, batch_mesh, place, shard_batch, whole
from flaxvgg.training.checkpoints import Checkpoints
from flaxvgg.training.collapse import cannot_be_negative, diagnose
from flaxvgg.training.data import batches, reading
from flaxvgg.training.frozen import Features, compute_features, last_frozen
from flaxvgg.training.inventory import (
    Entry,
    differences,
    digest,
    read_csv,
    take_inventory,
    to_csv,
)
from flaxvgg.training.log import Log, Row
from flaxvgg.training.places import (
    CHECKPOINTS,
    CONFUSION,
    DATA,
    MODEL,
    Bucket,
    Folder,
    place_of,
)
from flaxvgg.training.settings import Run
from flaxvgg.training.trainer import Trainer, TrainState
from flaxvgg.training.validation import (
    confusion_csv,
    has_one_class_each,
    line,
    measures,
    metric_name,
    say_absent,
    scores_of,
)
from flaxvgg.watching import Watcher
from flaxvgg.weights.checkpoint import CheckpointError, save


class TrainingError(ValueError):
    """Training cannot go on: a loss that is not finite, or a network that learns no more."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a run ended: how many steps of all were done, the rows of metrics.csv, and the metric."""

    steps: int
    of: int
    rows: list[Row]
    metric: str


def read_images(run: Run) -> tuple[LabelledImages, LabelledImages]:
    """The images to train on, and those for validation. Raises ValueError for what does not fit."""
    train = read_labelled(run.data.train).without_gaps()
    if run.data.validation is None:
        train, validation = train.split(run.data.held_out, run.training.seed)
    else:
        validation = read_labelled(run.data.validation, train.classes)
    counts = zip(train.classes, train.labels.sum(0), strict=True)
    empty = [name for name, count in counts if not count]
    if empty:
        raise ValueError(f"no image to train on is of class {', '.join(empty)}")
    if run.training.loss == "softmax" and (train.labels.sum(1) != 1).any():
        raise ValueError('loss "softmax" needs one label for each image: choose "multilabel"')
    if (train.labels == train.labels[0]).all():
        names = [name for name, there in zip(train.classes, train.labels[0], strict=True) if there]
        raise ValueError(
            f"every image to train on is of class {', '.join(names)}: there is nothing to learn; "
            "add images of another class, or of none (in a CSV file, with empty labels)"
        )
    return train, validation


def train(
    load: Callable[[], VGG],
    run: Run,
    out: AnyPath,
    stop: Callable[[], bool] = lambda: False,
    devices: Sequence[Device] | None = None,
    watch: Watcher = Watcher(),
    decoders: int = 0,
) -> Trained:
    """Train a new head on the model that `load` gives, and write what comes of it into `out`.

    `out` is a folder, or, for one process, an address in a bucket (s3://, gs://). What comes is
    checkpoints/ (a run that was killed goes on from the last one and ends in the same parameters,
    bit for bit on as many devices), data.csv (the images, and their contents), metrics.csv,
    tensorboard/, and, at the end, model/: the best by the validation metric, for `flaxvgg.load`,
    and for images of one class each confusion.csv. A run with more epochs than before goes on,
    unless its schedule is "cosine", to what it would have been with them at once. All images are
    decoded once before the first step. A run goes on only with the images, labels and weights that
    it began with, and one at a time in `out`. Frozen convolutions run once for an image that is the
    same in every epoch: what the head gets of it is kept in features/. The metric is the mean
    average precision, with "softmax" the accuracy. `stop` is asked after each step. Batches are
    shared by `devices`, by default all, or by as many of them as divide a batch; a run may go on on
    another number, to the same within rounding. Batches are read in threads, or in `decoders`
    processes besides, to the same bits. Several processes of `jax.distributed`, which see the same
    files, all call this: each decodes its part of every batch and of the validation images, and
    writes its part of a checkpoint; the first alone writes everything else, is told what happens,
    and gets the rows; `stop` of any of them stops all. Raises TrainingError where training cannot
    go on, with the reason and the cure; DatasetError with all broken images; CheckpointError where
    something else was trained in `out`; LockedError while another run writes there; ValueError for
    what does not fit; RemoteError for an address that cannot be reached.
    """
    if not is_first():
        watch = Watcher()
    mesh = _mesh(jax.devices() if devices is None else devices, run.data.batch, watch)
    where = place_of(out)
    with contextlib.ExitStack() as held:
        if is_first() or isinstance(where, Bucket):
            where.check(run.data)
        images, validation = read_images(run)
        if is_first():
            held.enter_context(where.alone(watch))
        return _train(load, run, where, stop, mesh, images, validation, watch, decoders)


def _train(
    load: Callable[[], VGG],
    run: Run,
    where: Folder | Bucket,
    stop: Callable[[], bool],
    mesh: Mesh,
    images: LabelledImages,
    validation: LabelledImages,
    watch: Watcher,
    decoders: int,
) -> Trained:
    loaded = load()
    model = run.model.with_head(loaded, len(images.classes), run.training.seed)
    model.provenance = dataclasses.replace(
        loaded.provenance,
        source=f"{loaded.provenance.source}, trained on {run.data.train.name}",
        sha256="",
        classes=images.classes,
    )
    batches_of = partial(
        batches,
        images,
        run.data,
        model.preprocessing,
        epochs=run.epochs,
        seed=run.training.seed,
        part=jax.process_index(),
        parts=jax.process_count(),
    )
    photos = batches_of()
    out = where.folder
    before = read_csv(out / DATA)
    entries = take_inventory(run, images, validation, model.preprocessing, before, watch)
    data = {
        "images": digest(entries),
        "classes": images.classes,
        "weights": model_digest(loaded, ["conv_stack"]),
        "preprocessing": dataclasses.asdict(model.preprocessing),
    }
    frozen = not run.training.stack_rate
    after = last_frozen(model.config) if frozen else None
    trainer = Trainer.of(model, run.training, steps=len(photos), after=after)
    state, position = trainer.start(model), None
    then = where.keep if isinstance(where, Bucket) else None
    with Checkpoints(out / CHECKPOINTS, run.to_json(), run.keep, data, then) as kept:
        _check_data(kept, data, before, entries, run, where.named(""), watch)
        found = kept.last(state)
        if is_first():
            write_bytes(out / DATA, to_csv(entries))
        if found is None:
            say_absent(validation, metric_name(run.training.loss), watch)
            _warn(model, run, photos[0], watch)
        else:
            state, position = found
            watch.say(f"resuming after step {int(state.step)} of {len(photos)}")
        features = Features()
        if frozen and int(state.step) < len(photos):
            rest = validation, data, out, mesh, decoders, stop, watch
            computed = compute_features(model, run, images, *rest)
            features, stop = (computed, stop) if computed else (features, lambda: True)
        # Features that are kept need no decoding.
        iterator = reading(batches_of(features=features.train), 0 if features.train else decoders)
        if position is not None:
            iterator.set_state(position)
        state = place(state, mesh)
        with (
            contextlib.closing(iterator),
            Log(out, int(state.step)) if is_first() else contextlib.nullcontext() as log,
        ):
            session = _Session(
                run, trainer, mesh, validation, photos, features, iterator, kept, log, stop, watch
            )
            state = session.until_stopped(state)
        if int(state.step) == len(photos):
            best = trainer.model(kept.best(state))
            _finish(best, run, validation, features, where, watch)
    meet("flaxvgg: a run has ended")
    rows = log.rows if log else []
    return Trained(int(state.step), len(photos), rows, metric_name(run.training.loss))


def _finish(
    best: VGG,
    run: Run,
    validation: LabelledImages,
    features: Features,
    where: Folder | Bucket,
    watch: Watcher,
) -> None:
    """Write the best model, and what it takes for what."""
    save(best, where.folder / MODEL)
    where.keep()
    watch.say(f"written: {where.named(MODEL)}")
    if has_one_class_each(validation):
        scores = scores_of(best, validation, run.data.size, watch, features.validation)
        if is_first():
            write_bytes(where.folder / CONFUSION, confusion_csv(scores, validation))
            watch.say(f"the best: accuracy {accuracy(scores, validation.labels):.3f}")


def _check_data(
    kept: Checkpoints,
    data: Mapping[str, Any],
    before: Sequence[Entry],
    entries: Sequence[Entry],
    run: Run,
    out: str,
    watch: Watcher,
) -> None:
    """Raise CheckpointError where a run would go on with other images or weights."""
    noted, now = kept.data_of_last(), json.loads(json.dumps(data))
    if noted is None or noted == now:
        return
    if not noted:
        watch.warn(
            f"the checkpoints in {out} are of an earlier flaxvgg, which noted neither images nor "
            "weights: whether they are still the same cannot be checked"
        )
        return
    problems = []
    if noted.get("images") != now["images"]:
        known = before if digest(before) == noted.get("images") else ()
        told = differences(known, entries) if known else f"which, {DATA} does not tell any more"
        problems.append(f"the images differ: {told or 'they come in another order'}")
    if noted.get("classes") != now["classes"]:
        names = [", ".join(x) for x in (noted.get("classes") or [], now["classes"])]
        problems.append(f"the classes were {names[0]}, and are {names[1]}")
    if noted.get("weights") != now["weights"]:
        problems.append(f"{run.model.weights} has other weights")
    if noted.get("preprocessing") != now["preprocessing"]:
        problems.append("the weights want another preprocessing")
    raise CheckpointError(
        f"{out} is of a run on other data: {'; '.join(problems)}: restore them, or choose another "
        "folder (--out)"
    )


def _mesh(devices: Sequence[Device], batch: int, watch: Watcher) -> Mesh:
    """The devices that share a batch: as many as divide it."""
    mesh = batch_mesh(devices, batch)
    if mesh.size < len(devices):
        watch.warn(
            f"training on {mesh.size} of {len(devices)} devices: they share batch = {batch}; a "
            f"multiple of {len(devices)} uses all"
        )
    return mesh


@dataclasses.dataclass(frozen=True)
class _Session:
    """A run from its last checkpoint on."""

    run: Run
    trainer: Trainer
    mesh: Mesh
    validation: LabelledImages
    photos: grain.MapDataset  # all batches of the run, as pixels
    features: Features
    batches: Iterator[Mapping[str, np.ndarray]]
    checkpoints: Checkpoints
    log: Log | None  # of the first process
    stop: Callable[[], bool]
    watch: Watcher

    def until_stopped(self, state: TrainState) -> TrainState:
        """The state at the end, or where `stop` said so; it is on disk then."""
        steps = len(self.photos)
        an_epoch = steps // self.run.epochs
        while int(state.step) < steps and not self._is_to_stop():
            epoch, done = divmod(int(state.step), an_epoch)
            row: dict[str, float | int] = {}
            with self.watch.bar(f"epoch {epoch + 1} of {self.run.epochs}", an_epoch, done) as bar:
                while done < an_epoch and not self._is_to_stop():
                    state, row = self._step(state, epoch)
                    done += 1
                    bar.show(done, told=f"loss {row['loss']:.4f}")
                    if done < an_epoch:
                        self._note(row)
                        if self.run.every and int(state.step) % self.run.every == 0:
                            self._save(state)
            if done == an_epoch:
                row |= self._validated(state)
                self._note(row)
                self._save(state, row["validation_metric"])
                self.watch.say(line(row, self.run.epochs, self.run.training.loss))
        if self._is_to_stop():
            self._save(state)
        self.checkpoints.wait()
        return state

    def _step(self, state: TrainState, epoch: int) -> tuple[TrainState, dict[str, float | int]]:
        options, trainer = self.run.training, self.trainer
        batch = shard_batch(next(self.batches), self.mesh)
        rate = trainer.learning_rate(int(state.step))
        state, metrics = trainer.step(state, self._given(batch), batch["labels"])
        values = {name: float(value) for name, value in metrics.items()}
        where = f"step {int(state.step)}, whose state is not kept"
        if not all(map(math.isfinite, values.values())):
            at = f"loss {values['loss']:g}, gradient norm {values['gradient_norm']:g}"
            raise TrainingError(
                f"{where}: {at}: lower the learning rate, or bound the gradient (clip)"
            )
        if not values["gradient_norm"] and not values["largest_score"]:
            model = whole(trainer.model(state, average=False))
            own: Any = self.photos[int(state.step) - 1]
            images = normalise(own["pixels"], trainer.preprocessing)
            raise TrainingError(f"{where}: {diagnose(model, images, own['labels'], options.loss)}")
        at = {"step": int(state.step), "epoch": epoch + 1}
        return state, {**at, **values, "learning_rate": rate}

    def _given(self, batch: Mapping[str, Array]) -> Array:
        """What the trainer takes: images, or where the convolutions are frozen their features."""
        if "features" in batch:
            return batch["features"]
        if self.features.backbone is not None:
            return self.features.backbone(batch["pixels"])
        return normalise(batch["pixels"], self.trainer.preprocessing)

    def _validated(self, state: TrainState) -> dict[str, float]:
        """Loss, metric and accuracy on the validation images."""
        # One device of a process: photos are decoded one after the other, which takes longer.
        model = whole(self.trainer.model(state))
        size, features = self.run.data.size, self.features.validation
        scores = scores_of(model, self.validation, size, self.watch, features)
        found = measures(scores, self.validation, self.run.training.loss)
        if not math.isfinite(found["validation_loss"]):
            raise TrainingError(
                f"the validation loss is {found['validation_loss']}: lower the learning rate"
            )
        return found

    def _is_to_stop(self) -> bool:
        """Whether a process has been asked to stop: all of them do then, behind the same step."""
        return total(self.stop()) > 0

    def _note(self, row: Row) -> None:
        if self.log is not None:
            self.log.add(row)

    def _save(self, state: TrainState, metric: float | None = None) -> None:
        self.checkpoints.save(state, self.batches.get_state(), metric)


def _warn(model: VGG, run: Run, batch: Mapping[str, np.ndarray], watch: Watcher) -> None:
    """Say beforehand where a network is made to collapse."""
    if cannot_be_negative(model.config):
        images = normalise(batch["pixels"], model.preprocessing)
        found = diagnose(model, images, batch["labels"], run.training.loss)
        watch.warn(str(found))
