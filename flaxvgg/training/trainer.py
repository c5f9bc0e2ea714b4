"""One step of training as a pure function of a state that can be stored and sharded."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, PyTree, Shaped

from flaxvgg.cam.network import as_scores
from flaxvgg.files.choices import choose
from flaxvgg.network.model import VGG, AnyArray, check_images, run_layers
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.training.losses import LOSSES, Loss, check_labels

Optimiser = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """What moves the parameters, and how far.

    `learning_rate` is the head's; the convolutions' is `stack_rate` times that, and at 0 they are
    frozen, BatchNorm statistics included. `schedule` goes from it to 0 over the run ("cosine") or
    stays ("constant"), after `warmup` steps from 0. `clip` bounds the global norm of the gradient
    (0: not at all). `weight_decay` is added to the gradient as PyTorch's SGD and Adam do, and
    decoupled for "adamw". `accumulate` batches make one step. `average` is the decay, batch by
    batch, of an exponential moving average of the parameters (0: none). Dropout draws from `seed`.

    >>> flaxvgg.Optimisation(loss="softmax", optimiser="sgd", momentum=0.9, stack_rate=0.1).clip
    0.0
    """

    loss: Loss = "multilabel"
    optimiser: Optimiser = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0  # of "sgd"
    stack_rate: float = 0.0
    schedule: Schedule = "constant"
    warmup: int = 0
    clip: float = 0.0
    weight_decay: float = 0.0
    accumulate: int = 1
    average: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in {
            "loss": get_args(Loss),
            "optimiser": get_args(Optimiser),
            "schedule": get_args(Schedule),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"no {name} {getattr(self, name)!r}: {choose(getattr(self, name), choices)}"
                )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("stack_rate", "clip", "weight_decay", "warmup", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("momentum", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, not {self.accumulate}")

    def rate(self, steps: int | None) -> Callable[[Any], Any]:
        """The head's learning rate by the optimiser's step, for a run of so many batches."""
        if self.schedule == "constant":
            after = optax.constant_schedule(self.learning_rate)
        elif steps is None:
            raise ValueError('schedule "cosine" needs the number of steps')
        else:
            updates = steps // self.accumulate - self.warmup
            after = optax.cosine_decay_schedule(self.learning_rate, max(1, updates))
        if not self.warmup:
            return after
        start = optax.linear_schedule(0.0, self.learning_rate, self.warmup)
        return optax.join_schedules([start, after], [self.warmup])

    def transformation(self, steps: int | None) -> optax.GradientTransformation:
        """The optimiser as optax has it, for a run of so many batches."""
        chain = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        if self.weight_decay and self.optimiser != "adamw":
            chain.append(optax.add_decayed_weights(self.weight_decay))
        if self.optimiser != "sgd":
            chain.append(optax.scale_by_adam())
        elif self.momentum:
            chain.append(optax.trace(self.momentum))
        if self.weight_decay and self.optimiser == "adamw":
            chain.append(optax.add_decayed_weights(self.weight_decay))
        chain.append(optax.scale_by_learning_rate(self.rate(steps)))
        if self.stack_rate != 1:
            chain.append(optax.masked(optax.scale(self.stack_rate), _is_stack))
        made = optax.chain(*chain)
        if self.accumulate == 1:
            return made
        return optax.MultiSteps(made, self.accumulate).gradient_transformation()


def _is_stack(parameters: PyTree) -> Any:
    """True for each parameter of the convolutions."""

    def of_path(path: tuple[Any, ...], _: Any) -> bool:
        return path[0].key == "conv_stack"

    return jax.tree_util.tree_map_with_path(of_path, parameters)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trained", "kept", "optimiser", "average"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in training, as a pytree: a run goes on from it as if it had never stopped.

    `trained` holds the parameters that the optimiser moves, `kept` frozen parameters and BatchNorm
    statistics, `average` the moving average of the trained ones or None.

    >>> state = flaxvgg.Trainer.of(model).start(model)
    >>> int(state.step), state.average
    (0, None)
    """

    step: Int[Array, ""]
    trained: PyTree
    kept: PyTree
    optimiser: Any
    average: PyTree | None


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A model's structure, a loss and an optimiser: from a state and a batch to the next state.

    With `after` set to a layer, images are that layer's outputs, computed before once and for all.
    Trainers of the same models and options are equal, and what was compiled for one serves another.

    >>> trainer = flaxvgg.Trainer.of(model, flaxvgg.Optimisation(learning_rate=1e-3))
    >>> state, labels = trainer.start(model), jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> state, metrics = trainer.step(state, images, labels)
    >>> trained = trainer.model(state)
    """

    optimisation: Optimisation
    structure: nnx.GraphDef
    preprocessing: Preprocessing
    classes: int
    steps: int | None = None
    after: str | None = None

    @classmethod
    def of(
        cls,
        model: VGG,
        optimisation: Optimisation = Optimisation(),
        *,
        steps: int | None = None,
        after: str | None = None,
    ) -> "Trainer":
        """A trainer of models like this one, for a run of `steps` batches.

        Raises ValueError for a model without a head, an unknown layer, and where "cosine" is not
        told the number of steps.
        """
        _ = model.config.head_output  # or what it raises
        after = None if after is None else model.config.resolve(after)
        inside = {layer.name for layer in model.config.conv_stack}
        if after in inside and optimisation.stack_rate:
            raise ValueError(f"the convolutions before {after} cannot be trained from its outputs")
        structure, _, _ = _split(model, optimisation)
        trainer = cls(
            optimisation, structure, model.preprocessing, model.config.num_classes, steps, after
        )
        trainer.learning_rate(0)  # or what it raises
        return trainer

    def learning_rate(self, step: int) -> float:
        """The head's learning rate at a step, which counts batches."""
        return float(self.optimisation.rate(self.steps)(step // self.optimisation.accumulate))

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optimiser as optax has it."""
        return self.optimisation.transformation(self.steps)

    def start(self, model: VGG) -> TrainState:
        """The state before the first step, on the model's devices (`flaxvgg.place`).

        The model's arrays are copied: a step donates them.
        """
        _, trained, kept = jax.tree.map(jnp.copy, _split(model, self.optimisation))
        average = jax.tree.map(jnp.copy, trained) if self.optimisation.average else None
        return TrainState(
            jnp.zeros((), jnp.int32), trained, kept, self.transformation.init(trained), average
        )

    def step(
        self,
        state: TrainState,
        images: Shaped[AnyArray, "..."],
        labels: Shaped[AnyArray, "..."] | Sequence[Any],
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """The next state, and the metrics of the batch: (N, H, W, 3) images and (N, K) labels.

        The old state's memory is used for the new one, on the same devices. Labels are 0 or 1, or
        between; with "softmax" those of an image add up to 1. Metrics are the `loss` and
        `gradient_norm` before the step, and `largest_score`, the largest magnitude of a score.
        Raises ValueError, with the old state as it was, for images that the model does not take,
        labels of another shape, and, outside of a transformation, other values.
        """
        images = jnp.asarray(images)
        self._check(images)
        check_labels(labels, (len(images), self.classes), self.optimisation.loss)
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.floating):
            labels = labels.astype(jnp.float32)
        shardings = tuple(_sharding(array) for array in jax.tree.leaves(state))
        return self._step(shardings, state, images, labels)

    @partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
    def _step(
        self,
        shardings: tuple[NamedSharding | None, ...],
        state: TrainState,
        images: Float[Array, "n ..."],
        labels: Float[Array, "n k"],
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        options = self.optimisation
        key = jax.random.fold_in(jax.random.key(options.seed), state.step)

        def loss_of(trained: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            kept = jax.tree.map(lambda x: x, state.kept)  # statistics are set inside of this trace
            model = nnx.merge(self.structure, trained, kept)
            model.train()
            if not options.stack_rate:
                model.conv_stack.eval()
            scores = self._scores(model, images, key)
            _, _, kept = _split(model, options)
            return LOSSES[options.loss](scores, labels), (scores, kept)

        (loss, (scores, kept)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        with jax.numpy_dtype_promotion("standard"):  # which optax builds upon
            found = self.transformation.update(gradients, state.optimiser, state.trained)
            updates, optimiser = found
            trained = optax.apply_updates(state.trained, updates)
        average = state.average
        if average is not None:
            decay = options.average
            average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, trained)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "largest_score": abs(scores).max(),
        }
        following = TrainState(state.step + 1, trained, kept, optimiser, average)
        return _laid(following, shardings), metrics

    @partial(jax.jit, static_argnums=0)
    def scores(self, state: TrainState, images: Shaped[AnyArray, "..."]) -> Float[Array, "n k"]:
        """The scores (N, K) in evaluation mode, by the moving average where there is one.

        Raises ValueError for images that the model does not take.
        """
        self._check(images)
        return self._scores(self.model(state), images, None)

    def model(self, state: TrainState, *, average: bool = True) -> VGG:
        """The model in evaluation mode, with the moving average where there is one and wanted.

        It shares the state's arrays, which the next step takes.
        """
        trained = state.average if average and state.average is not None else state.trained
        model = nnx.merge(self.structure, trained, state.kept)
        model.eval()
        return model

    def _check(self, images: AnyArray) -> None:
        """Raise ValueError for what is no batch of images, or of the outputs of layer `after`."""
        shape = tuple(images.shape)
        if self.after is None:
            check_images(images)
            if len(shape) != 4:
                raise ValueError(f"a batch of images has shape (N, H, W, 3), not {shape}")
        elif not jnp.issubdtype(images.dtype, jnp.floating) or 0 in shape:
            raise ValueError(
                f"outputs of {self.after} are floats of shape (N, ...), not {images.dtype} {shape}"
            )

    def _scores(self, model: VGG, images: Array, key: Array | None) -> Float[Array, "n k"]:
        output = model.config.head_output.name
        stacks = model.conv_stack, model.head
        return as_scores(run_layers(stacks, images, {output}, after=self.after, rngs=key)[output])


def _split(model: VGG, options: Optimisation) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    """The structure, what is trained, and everything else."""

    def is_trained(path: tuple[Any, ...], value: Any) -> bool:
        moved = path[0] == "head" or options.stack_rate > 0
        return moved and isinstance(value, nnx.Param)

    structure, trained, kept = nnx.split(model, is_trained, ...)
    return structure, trained, kept


def _sharding(array: Any) -> NamedSharding | None:
    """How an array lies on a mesh, where that is known."""
    found = None if isinstance(array, jax.core.Tracer) else getattr(array, "sharding", None)
    return found if isinstance(found, NamedSharding) else None


def _laid(state: TrainState, shardings: tuple[NamedSharding | None, ...]) -> TrainState:
    """The state where another one lies: XLA would divide what is made of divided arrays."""
    leaves = [
        array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)
        for array, sharding in zip(jax.tree.leaves(state), shardings, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
