"""What a rule is: how relevance, or a gradient, goes from a layer's output to its input."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array

from flaxvgg.attribution.operation import Operation
from flaxvgg.cam.network import as_float32
from flaxvgg.network.config import Kind, Layer
from flaxvgg.network.model import LayerStack

Back = Callable[[Array], Array]
Number = Any  # a float or an array; in a tree of shardings, one of these

WEIGHTED: tuple[Kind, ...] = ("conv", "linear")
ACTIVATIONS: tuple[Kind, ...] = ("relu", "leaky_relu", "shifted_relu")
AVERAGES: tuple[Kind, ...] = ("average_pool", "l2_pool", "avg_pool", "global_avg_pool")
ROUTES: tuple[Kind, ...] = ("max_pool", "flatten", "windows", "dropout")


class Site(NamedTuple):
    """A layer, and what the forward pass left there, at least in float32.

    `inputs` are what it read, `outputs` what it gave; what lies between a layer with weights and
    its ReLU is there only if the rule of the former `reads` it. `nonnegative`: no input is
    negative. `gated`: outputs that are not positive have no relevance, because a ReLU follows.
    """

    layer: Layer
    stack: LayerStack
    inputs: Any
    outputs: Any
    nonnegative: bool = False
    gated: bool = False

    @property
    def operation(self) -> Operation:
        """What a layer with weights computes, for any weights."""
        return Operation(self.layer, self._module)

    @property
    def kernel(self) -> Array:
        """The weights, (k, k, C, O) or (K, O)."""
        return as_float32(self._module.kernel[...])

    @property
    def bias(self) -> Array:
        """The bias, (O,)."""
        return as_float32(self._module.bias[...])

    def apply(self, x: Array) -> Array:
        """The layer's output for the input `x`."""
        return self.stack._apply(self.layer, x, None)

    @property
    def _module(self) -> Any:
        return getattr(self.stack, self.layer.name)


class Rule:
    """What all rules have in common. They are dataclasses, pytrees whose leaves are their numbers.

    A rule is one function: of a `Site` it makes the function that takes the relevance (N, ...) of
    the layer's output to that of its input. What does not depend on the class, such as a forward
    pass with other weights, is computed when that is made, once for all classes. `kinds` are the
    kinds of layers that it is for.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()

    def __call__(self, site: Site) -> Back:
        """The function from the relevance of the layer's output to that of its input."""
        raise NotImplementedError

    def reads(self, gated: bool) -> bool:
        """Whether it needs the output of a layer with weights."""
        return False

    def keeps_zeros(self, layer: Layer) -> bool | None:
        """Whether inputs of zero get no relevance; None: if no outputs of zero had any."""
        return None
