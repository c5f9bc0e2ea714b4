"""What is explained: classes, or any scores that are computed from the logits."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from flaxvgg.cam.names import find_class
from flaxvgg.network.model import AnyArray

# From logits (N, C) to scores (N, K).
ScoreFunction = Callable[[Float[Array, "n c"]], Float[Array, "n k"]]
Cotangent = Callable[[Float[Array, "n c"]], Float[Array, "n c"]]
Classes = int | np.integer | str | Sequence[int | str] | Int[AnyArray, "..."] | ScoreFunction | None

_LARGEST = 256 * 2**20  # bytes of derivatives that are held at once


@partial(jax.tree_util.register_dataclass, data_fields=["classes", "function"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Targets:
    """K scores of each of N images: those of `classes` (N, K), or what `function` makes of logits.

    Neither means each image's top class. A pytree: other classes are no other program, nor are
    other arguments of a `jax.tree_util.Partial`; another function is.
    """

    classes: Any = None  # or what JAX's transformations put in the place of an array
    function: Partial | None = None

    @classmethod
    def of(cls, classes: Classes, images: Any, count: int, names: Sequence[str] = ()) -> "Targets":
        """The targets that a user means, for so many images (or a symbol), classes and their names.

        Raises ValueError for a class that there is none of, and for arrays of other shapes.
        """
        if callable(classes):
            return cls(function=classes if isinstance(classes, Partial) else Partial(classes))
        if classes is None:
            return cls()
        if isinstance(classes, str) and classes == "all" and "all" not in names:
            classes = np.arange(count)
        elif isinstance(classes, str):
            classes = find_class(classes, names, count)
        elif isinstance(classes, Sequence):
            classes = [find_class(x, names, count) if isinstance(x, str) else x for x in classes]
        array = classes if isinstance(classes, jax.Array) else np.asarray(classes)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"classes must be whole numbers, not {array.dtype}")
        if not isinstance(array, jax.core.Tracer):
            outside = sorted({int(c) for c in np.ravel(array) if not 0 <= c < count})
            if outside:
                raise ValueError(f"no class {outside[0]}: the model has classes 0 to {count - 1}")
        if array.ndim < 2:
            array = jnp.broadcast_to(jnp.atleast_1d(array), (images, max(array.size, 0)))
        if array.ndim != 2 or array.shape[0] != images or not array.shape[1]:
            raise ValueError(
                f"classes of shape {np.shape(classes)} for {images} images: pass one class, a list "
                "of classes for every image, or an array (N, K)"
            )
        return cls(jnp.asarray(array, jnp.int32))

    def settled(self, logits: Float[Array, "*s n c"]) -> "Targets":
        """These targets, with the top classes of these logits where no classes were given."""
        if self.function is not None or self.classes is not None:
            return self
        return Targets(logits.argmax(axis=-1, keepdims=True).astype(jnp.int32))

    def scores(self, logits: Float[Array, "n c"]) -> tuple[Int[Array, "n k"], Float[Array, "n k"]]:
        """The classes (N, K), -1 for scores of a function, and the scores (N, K).

        The score of a class that there is none of is NaN: under `jax.jit` nobody can check.
        """
        if self.function is not None:
            scores = self._computed(logits)
            return jnp.full(scores.shape, -1, jnp.int32), scores
        classes = self._chosen(logits)
        taken = jnp.take_along_axis(logits, classes, axis=1, mode="clip")
        exists = (classes >= 0) & (classes < logits.shape[1])
        return classes, jnp.where(exists, taken, jnp.nan)

    def map(self, logits: Float[Array, "*s n c"], of_one: Callable[[Array], Any], held: Any) -> Any:
        """`of_one` of each target's cotangent (N, C) of the logits, as arrays (N, K, ...).

        `of_one` gives a pytree of arrays (N, ...); `held` is how many bytes it holds meanwhile, or
        a symbol: as many targets at a time as memory allows. Logits (S, N, C) are those of S
        variants of the images, for targets that are chosen; so are their cotangents.
        """
        return self.map_at(logits, lambda cotangent: of_one(cotangent(logits)), held)

    def map_at(
        self, logits: Float[Array, "*s n c"], of_one: Callable[[Cotangent], Any], held: Any
    ) -> Any:
        """The same where `of_one` is given each target's cotangent as a function of the logits.

        For methods that run the network on other images too; the top classes are those of `logits`.
        """
        if self.function is not None:

            def of_batch(logits: Array) -> Array:
                compute = self._computed if logits.ndim == 2 else jax.vmap(self._computed)
                return compute(logits)

            scores = jax.eval_shape(of_batch, logits)
            each = jnp.eye(scores.shape[-1], dtype=scores.dtype)

            def cotangent(unit: Array, logits: Array) -> Array:
                scores, pull_back = jax.vjp(of_batch, logits)
                return pull_back(jnp.zeros_like(scores) + jnp.broadcast_to(unit, scores.shape))[0]
        else:
            each = self._chosen(logits).T

            def cotangent(unit: Array, logits: Array) -> Array:
                one_hot = jax.nn.one_hot(unit, logits.shape[-1], dtype=logits.dtype)
                # Zeros like the logits know over which devices these differ, in `jax.shard_map`.
                return jnp.broadcast_to(one_hot, logits.shape) + jnp.zeros_like(logits)

        at_once = max(1, _LARGEST // max(held, 1)) if isinstance(held, int) else 1

        def of_target(unit: Array) -> Any:
            return of_one(partial(cotangent, unit))

        if isinstance(held, int) and each.shape[0] <= at_once:
            found = jax.vmap(of_target)(each)
        else:
            found = lax.map(of_target, each, batch_size=at_once)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

    def _chosen(self, logits: Array) -> Array:
        classes = self.settled(logits).classes
        assert classes is not None
        return classes

    def _computed(self, logits: Array) -> Array:
        assert self.function is not None
        scores = jnp.asarray(self.function(logits))
        if scores.ndim != 2 or scores.shape[0] != logits.shape[0]:
            raise ValueError(
                f"the function of `classes` gave {scores.shape} for logits {logits.shape}: scores "
                "must have shape (N, K)"
            )
        return scores
