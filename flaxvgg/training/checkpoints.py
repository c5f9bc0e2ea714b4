"""The states of a run on disk: the last and the best ones, written while training goes on."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from flaxvgg.files.records import difference, first_line
from flaxvgg.training.trainer import TrainState
from flaxvgg.weights.checkpoint import CheckpointError
from flaxvgg.weights.orbax_options import ORBAX_DAMAGE

_METRIC = "metric"


class Checkpoints:
    """The states of one run in a folder: the last one, and the `keep` of the highest metric.

    They are written in the background, each whole or not at all: a run that is killed at any moment
    finds the last one that was finished. `run` are its options, which have to be those of the
    states that are there; `data` says what it learns from, for `data_of_last`; `then` is called in
    the background when a state is whole, and `save` and `wait` wait for it. Of several processes
    all do everything here alike: each writes its part of a state, however that is sharded, and
    reads all of it.
    """

    def __init__(
        self,
        folder: Path,
        run: Mapping[str, Any],
        keep: int,
        data: Mapping[str, Any] | None = None,
        then: Callable[[], None] | None = None,
    ):
        self._then, self._thread = then, ThreadPoolExecutor(1)
        self._called: Future[None] | None = None
        self._run = json.loads(json.dumps(run))
        self._data = json.loads(json.dumps(data))
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[_METRIC],
                        n=keep,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, data: Any, metric: float | None = None) -> None:
        """Write the state, and that of the data, as of now. Raises CheckpointError.

        The state is copied before this returns. An error of the previous save is raised too; one of
        the previous `then` when this state is on disk.
        """
        step = int(state.step)
        failed = self._failed()
        self.wait()
        if any(found.step == step for found in self._checkpointer.checkpoints):
            return
        metrics = None if metric is None else {_METRIC: metric}
        told = {"run": self._run, "data": data, "learns_from": self._data}
        # Copied: on a CPU, Orbax would write the memory that the next step takes for its own.
        copied = _named(state, np.array if jax.process_count() == 1 else jnp.copy)
        with self._writing():
            self._checkpointer.save_async(step, copied, metrics=metrics, custom_metadata=told)
        if failed is not None:
            self.wait()
            raise failed
        if self._then is not None:
            self._called = self._thread.submit(self._when_whole, self._then)

    def _when_whole(self, then: Callable[[], None]) -> None:
        with self._writing():
            self._checkpointer.wait()
        then()

    def _failed(self) -> BaseException | None:
        """Wait for `then`; why it failed."""
        called, self._called = self._called, None
        return None if called is None else called.exception()

    def wait(self) -> None:
        """Wait until the last state is on disk. Raises CheckpointError where it could not be."""
        if (failed := self._failed()) is not None:
            raise failed
        with self._writing():
            self._checkpointer.wait()

    def data_of_last(self) -> Mapping[str, Any] | None:
        """What the last state was learnt from: empty where it was not noted, None without one.

        Raises CheckpointError where it cannot be read.
        """
        found = self._checkpointer.latest
        if found is None:
            return None
        return (self._metadata(found.step).custom_metadata or {}).get("learns_from") or {}

    def last(self, template: TrainState) -> tuple[TrainState, Any] | None:
        """The last state and that of its data; None where there is none.

        Raises CheckpointError where it is another network's, or of another run.
        """
        found = self._checkpointer.latest
        return None if found is None else self._read(found.step, template)

    def best(self, template: TrainState) -> TrainState:
        """The state with the highest metric; the last one where none has any."""
        found = list(self._checkpointer.checkpoints)
        # Of equal ones the later; one that was not tested only where none was.
        ranks = [((x.metrics or {}).get(_METRIC, -np.inf), x.step) for x in found]
        return self._read(max(ranks)[1], template)[0]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        # After an error another process may be gone: Orbax would wait for it, for minutes.
        if error[0] is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Wait for the last save and let go of the folder. Raises CheckpointError as `wait`."""
        failed = self._failed()
        self._thread.shutdown()
        with self._writing():
            self._checkpointer.close()
        if failed is not None:
            raise failed

    def _read(self, step: int, template: TrainState) -> tuple[TrainState, Any]:
        where, metadata = self._where(step), self._metadata(step)
        told = metadata.custom_metadata
        if not isinstance(told, dict) or "data" not in told:
            raise CheckpointError(f"{where} is damaged, or was not written by flaxvgg train")
        expected = _named(template, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
        stored = metadata.metadata
        if stored is None:  # which is what Orbax makes of a table of contents that it cannot read
            raise CheckpointError(f"{where} is damaged: delete that folder, and run again")
        problems = [f"{name} is missing" for name in expected if name not in stored]
        problems += [f"{name} is unexpected" for name in stored if name not in expected]
        problems += [
            f"{name} is {tuple(stored[name].shape)}, not {tuple(x.shape)}"
            for name, x in expected.items()
            if name in stored and tuple(stored[name].shape) != tuple(x.shape)
        ]
        run, ours = _extended(told.get("run"), self._run), self._run
        if self._data and told.get("learns_from"):
            run, ours = _without_places(run), _without_places(ours)
        if problems or run != ours:
            reason = problems[0] if problems else difference(run, ours)
            raise CheckpointError(
                f"{where} is of another run: {reason}; choose another folder, or delete this one"
            )
        try:
            # As NumPy arrays, which JAX adopts.
            like = _named(template, lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape))
            arrays = self._checkpointer.load(step, like)
        except ORBAX_DAMAGE as error:
            raise CheckpointError(f"{where} is damaged: {first_line(error)}") from None
        leaves = [jax.numpy.asarray(arrays[name]) for name in expected]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), told["data"]

    def _where(self, step: int) -> str:
        return f"{self._checkpointer.directory} at step {step}"

    def _metadata(self, step: int) -> Any:
        try:
            return self._checkpointer.metadata(step)
        except ORBAX_DAMAGE as error:
            raise CheckpointError(f"{self._where(step)} is damaged: {first_line(error)}") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            folder = self._checkpointer.directory
            raise CheckpointError(
                f"no checkpoint could be written to {folder} ({first_line(error)}): the last good "
                "one is as it was; make room and run again"
            ) from None


def _extended(run: Any, ours: Mapping[str, Any]) -> Any:
    """The options of a stored run with as many epochs as ours, where ours goes further.

    Not with a schedule whose rates depend on how many there are.
    """
    try:
        goes_further = run["epochs"] < ours["epochs"]
        is_same_so_far = ours["training"]["schedule"] == "constant"
    except (TypeError, KeyError):
        return run
    return run | {"epochs": ours["epochs"]} if goes_further and is_same_so_far else run


def _without_places(run: Any) -> Any:
    """Options without where images and weights lie: their contents are compared.

    What is no such table is left as it is.
    """
    if not isinstance(run, dict):
        return run
    places = {"data": {"train", "validation"}, "model": {"weights"}}
    return {
        room: {name: x for name, x in options.items() if name not in places.get(room, ())}
        if isinstance(options, dict)
        else options
        for room, options in run.items()
    }


def _named(state: TrainState, convert) -> dict[str, Any]:
    """Every array of a state by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): convert(leaf) for path, leaf in leaves}
