"""What a method of attribution is: its options, and a function of a network and images."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from flaxvgg.cam.network import Network
from flaxvgg.cam.targets import Targets
from flaxvgg.network.model import VGG


class Found(NamedTuple):
    """What a method finds: values (N, K, H, W, 3), classes and scores (N, K), and details by name.

    Details are arrays (N, K, ...).
    """

    values: Float[Array, "n k h w 3"]
    classes: Int[Array, "n k"]
    scores: Float[Array, "n k"]
    details: dict[str, Array]


class Method(NamedTuple):
    """A method of `flaxvgg.attribute`.

    `options` is a dataclass, registered as a pytree: arrays are its data, what a program is
    compiled for is its metadata. It checks its own values. `find` takes a network, images
    (N, H, W, 3), targets and the options, is pure, and runs under `jax.jit`. Options that depend on
    the model are first made what `find` takes by `settle`, which raises ValueError for wrong ones.
    """

    options: type
    find: Callable[[Network, Array, Targets, Any], Found]
    settle: Callable[[Any, VGG], Any] = lambda options, model: options
