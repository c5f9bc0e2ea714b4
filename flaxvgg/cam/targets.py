"""What is explained: classes, or any scores that are computed from the logits."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.files.foreign import plain
from flaxvgg.network.model import AnyArray

# From logits (N, C) to scores (N, K).
ScoreFunction = Callable[[Float[Array, "n c"]], Float[Array, "n k"]]
Classes = int | np.integer | str | Sequence[int | str] | Int[AnyArray, "..."] | ScoreFunction | None

_LARGEST = 256 * 2**20  # bytes of derivatives that are held at once


@partial(jax.tree_util.register_dataclass, data_fields=["classes"], meta_fields=["function"])
@dataclasses.dataclass(frozen=True)
class Targets:
    """K scores of each of N images: those of `classes` (N, K), or what `function` makes of logits.

    Neither means each image's top class. A pytree: other classes are no other program, another
    function is.
    """

    classes: Any = None  # in a tree of shardings, one of these
    function: ScoreFunction | None = None

    @classmethod
    def of(cls, classes: Classes, images: Any, count: int, names: Sequence[str] = ()) -> "Targets":
        """The targets that a user means, for so many images, classes and, if known, their names.

        Raises ValueError for a class that there is none of, and for arrays of other shapes.
        """
        if callable(classes):
            return cls(function=classes)
        if classes is None:
            return cls()
        if isinstance(classes, str) and classes == "all" and "all" not in names:
            classes = np.arange(count)
        elif isinstance(classes, str):
            classes = _index(classes, names)
        elif isinstance(classes, Sequence):
            classes = [_index(x, names) if isinstance(x, str) else x for x in classes]
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

    def map(self, logits: Float[Array, "n c"], of_one: Callable[[Array], Any], held: Any) -> Any:
        """`of_one` of each target's cotangent (N, C) of the logits, as arrays (N, K, ...).

        `of_one` gives a pytree of arrays (N, ...); `held` is how many bytes it holds meanwhile, or
        a symbol: as many targets at a time as memory allows.
        """
        if self.function is not None:
            scores, pull_back = jax.vjp(self._computed, logits)
            each = jnp.eye(scores.shape[1], dtype=scores.dtype)

            def cotangent(unit: Array) -> Array:
                return pull_back(unit[None] + jnp.zeros_like(scores))[0]
        else:
            each = self._chosen(logits).T

            def cotangent(wanted: Array) -> Array:
                one_hot = jax.nn.one_hot(wanted, logits.shape[-1], dtype=logits.dtype)
                # Zeros like the logits know over which devices these differ, in `jax.shard_map`.
                return one_hot + jnp.zeros_like(logits)

        at_once = max(1, _LARGEST // max(held, 1)) if isinstance(held, int) else 1

        def of_target(x: Array) -> Any:
            return of_one(cotangent(x))

        if isinstance(held, int) and each.shape[0] <= at_once:
            found = jax.vmap(of_target)(each)
        else:
            found = lax.map(of_target, each, batch_size=at_once)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

    def _chosen(self, logits: Array) -> Array:
        if self.classes is not None:
            return self.classes
        return logits.argmax(axis=-1, keepdims=True).astype(jnp.int32)

    def _computed(self, logits: Array) -> Array:
        assert self.function is not None
        scores = jnp.asarray(self.function(logits))
        if scores.ndim != 2 or scores.shape[0] != logits.shape[0]:
            raise ValueError(
                f"the function of `classes` gave {scores.shape} for logits {logits.shape}: scores "
                "must have shape (N, K)"
            )
        return scores


def _index(name: str, names: Sequence[str]) -> int:
    """The class of that name. Raises ValueError, with the names that are close, for none."""
    if name in names:
        return list(names).index(name)
    if not names:
        raise ValueError(
            f"classes must be numbers, not {plain(name)!r}: the weights know no names of classes"
        )
    close = difflib.get_close_matches(name, names, 3) or list(names[:3])
    raise ValueError(f"no class {plain(name)!r}: did you mean {', '.join(map(plain, close))}?")
