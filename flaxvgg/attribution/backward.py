"""The way back through the layers: a forward pass that keeps what rules need, and the rules."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from flaxvgg.attribution.merging import without_batch_norm
from flaxvgg.attribution.rules import Rule, Site
from flaxvgg.cam.network import Network, as_float32, as_scores
from flaxvgg.network.config import Layer
from flaxvgg.network.model import LayerStack

# Which layers make negative values of none, by their kinds.
_SIGNED = ("conv", "linear", "leaky_relu", "shifted_relu")


class Forward(NamedTuple):
    """One forward pass. `steps` are the layers to the logits, BatchNorms merged, with their stacks.

    `outputs` has what they gave, by name, at least in float32; the images under "".
    """

    steps: tuple[tuple[Layer, LayerStack], ...]
    outputs: dict[str, Array]
    logits: Array

    @classmethod
    def of(
        cls,
        network: Network,
        images: Float[Array, "n h w 3"],
        *rules: Mapping[str, Rule],
        kept: Collection[str] = (),
    ) -> "Forward":
        """The pass that the given rules, by layer, can go back through.

        A convolution's output that none of them reads, and that is not `kept`, does not exist: the
        ReLU is computed with it.
        """
        network = without_batch_norm(network)
        steps = tuple((layer, stack) for stack in network.stacks for layer in stack.layers)
        names = [layer.name for layer, _ in steps]
        steps = steps[: names.index(network.output) + 1]
        layers = [layer for layer, _ in steps]
        wanted = set(kept) | {
            layer.name
            for layer, following in zip(layers, [*layers[1:], None], strict=True)
            if layer.kind != "conv" or following is None or following.kind != "relu"
        }
        for chosen in rules:
            gates = _gates(layers, chosen)
            wanted |= {name for name, rule in chosen.items() if rule.reads(gates.get(name, False))}
        found = network.run(images, wanted)
        logits = found[network.output]
        outputs = {name: as_float32(x) for name, x in {"": images, **found}.items()}
        return cls(steps, outputs, logits)

    @property
    def scores(self) -> Float[Array, "n classes"]:
        """Logits in float32; those of a fully-convolutional head are averaged over space."""
        return as_scores(self.logits)

    def by_logits(self, cotangent: Float[Array, "n classes"]) -> Array:
        """The derivative by the output of the last layer, of whatever shape."""
        _, pull_back = jax.vjp(as_scores, as_float32(self.logits))
        return pull_back(cotangent)[0]

    @property
    def largest(self) -> Any:
        """The bytes of the first layer's output, which is the largest; or a symbol."""
        x = next(x for name, x in self.outputs.items() if name)
        return x.nbytes

    def back(
        self, rules: Mapping[str, Rule], until: str = ""
    ) -> Callable[[Array], dict[str, Array]]:
        """From what is at the last layer's output to what is at every output down to `until`.

        What does not depend on the former is computed here. The images' is under "".
        """
        layers = [layer for layer, _ in self.steps]
        gates = _gates(layers, rules)
        before = ["", *(layer.name for layer in layers)]
        nonnegative, ways = False, []
        for (layer, stack), name in zip(self.steps, before, strict=False):
            inputs, outputs = self.outputs.get(name), self.outputs.get(layer.name)
            gated = gates[layer.name]
            site = Site(layer, stack, inputs, outputs, nonnegative, gated)
            ways.append((name, rules[layer.name](site)))
            nonnegative = layer.kind == "relu" or (nonnegative and layer.kind not in _SIGNED)
        first = before.index(until)

        def back(relevance: Array) -> dict[str, Array]:
            found = {layers[-1].name: relevance}
            for name, way in reversed(ways[first:]):
                relevance = found[name] = way(relevance)
            return found

        return back


def _gates(layers: list[Layer], rules: Mapping[str, Rule]) -> dict[str, bool]:
    """Of which layers an output that is not positive has no relevance, since a ReLU follows."""
    zeros = True  # logits times the derivative: where the former are zero, so is this
    gates, following = {}, ""
    for layer in reversed(layers):
        gates[layer.name] = zeros and following == "relu"
        if (keeps := rules[layer.name].keeps_zeros(layer)) is not None:
            zeros = keeps
        following = layer.kind
    return gates
