"""What a method of `explain` needs besides: its options, checked before anything is computed.

Arrays are data of these pytrees, so that others are no other program; numbers that say how often
something is done are part of it.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# float | Float[Array, ""], or what JAX's transformations put in the place of an array.
Number = Any

pytree = jax.tree_util.register_dataclass


@partial(pytree, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of methods that take none."""


@partial(pytree, data_fields=["alpha"], meta_fields=["references"])
@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of "finer_cam": how many of the closest classes are compared, and how much they count.

    `alpha` None is the convention's: 1 for "grad-cam", else 0.6.
    """

    alpha: Number | None = None
    references: int = 3

    def __post_init__(self):
        _check_count("references", self.references)


@partial(pytree, data_fields=["sigmas"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rarity:
    """Of "fem": how many standard deviations above a channel's mean a rare activation is."""

    sigmas: Number = 2.0


@partial(pytree, data_fields=["gamma"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Kernel:
    """Of "kpca_cam": the factor within tanh; None is 1 over the number of channels."""

    gamma: Number | None = None


@partial(pytree, data_fields=["key", "noise"], meta_fields=["samples"])
@dataclasses.dataclass(frozen=True)
class NoisyImages:
    """Of "smooth_grad_cam++": random key, number of noisy images, and their noise's deviation.

    It is in units of the normalised image.
    """

    key: Any
    samples: int = 4
    noise: Number = 0.3

    def __post_init__(self):
        _check_count("samples", self.samples)


@partial(pytree, data_fields=["key", "noise"], meta_fields=["samples"])
@dataclasses.dataclass(frozen=True)
class NoisyMasks:
    """Of "ss_cam": random key, number of noisy masks a channel, and their noise's deviation."""

    key: Any
    samples: int = 35
    noise: Number = 2.0

    def __post_init__(self):
        _check_count("samples", self.samples)


@partial(pytree, data_fields=[], meta_fields=["samples"])
@dataclasses.dataclass(frozen=True)
class Integration:
    """Of "is_cam": how many strengths of each channel's mask are added up."""

    samples: int = 10

    def __post_init__(self):
        _check_count("samples", self.samples)


@partial(pytree, data_fields=[], meta_fields=["concepts"])
@dataclasses.dataclass(frozen=True)
class Concepts:
    """Of "deep_feature_factorisation": how many concepts are looked for."""

    concepts: int = 5

    def __post_init__(self):
        _check_count("concepts", self.concepts)


OPTIONS: dict[str, type] = {
    "finer_cam": Comparison,
    "fem": Rarity,
    "kpca_cam": Kernel,
    "smooth_grad_cam++": NoisyImages,
    "ss_cam": NoisyMasks,
    "is_cam": Integration,
    "deep_feature_factorisation": Concepts,
}


def options_of(method: str, kind: type, given: Mapping[str, Any]) -> Any:
    """The options `given` as an instance of the dataclass `kind`.

    Raises ValueError for one that the method has not, and for one that it needs and was not given.
    """
    fields = dataclasses.fields(kind)
    known = [field.name for field in fields]
    foreign = [name for name in given if name not in known]
    if foreign:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"{method!r} has no option {foreign[0]!r}: {takes}")
    if "key" in known and not _is_key(given.get("key")):
        raise ValueError(f"{method!r} is random: pass key=jax.random.key(0)")
    return kind(**given)


def needs_options(method: str) -> bool:
    """Whether there is an option that must be given."""
    fields = dataclasses.fields(OPTIONS.get(method, NoOptions))
    return any(field.default is dataclasses.MISSING for field in fields)


def _is_key(key: Any) -> bool:
    if not isinstance(key, jax.Array):
        return False
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim == 0
    return key.dtype == jnp.uint32 and key.ndim == 1  # as `jax.random.PRNGKey` makes them


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
