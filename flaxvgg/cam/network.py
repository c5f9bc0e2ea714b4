"""What a method runs: the network's layers, from the images or from any layer on, to its scores."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.layers import sum_dtype
from flaxvgg.network.model import LayerStack, run_layers

# Layers that keep channels apart: what is added to a whole channel is added to all it gives.
_POOLING = ("max_pool", "avg_pool", "global_avg_pool", "flatten", "dropout")


class Network(NamedTuple):
    """A model without its provenance, so that other weights are no other program."""

    stacks: tuple[LayerStack, LayerStack]
    config: VGGConfig

    def run(
        self,
        x: Array,
        wanted: Collection[str],
        after: str | None = None,
        shifts: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """`flaxvgg.network.model.run_layers` of this network."""
        return run_layers(self.stacks, x, wanted, after=after, shifts=shifts or {})

    @property
    def output(self) -> str:
        """The layer of the logits."""
        return self.config.head_output.name

    def scores(self, x: Array, after: str | None = None) -> Float[Array, "n classes"]:
        """Logits in float32; those of a fully-convolutional head are averaged over space."""
        return as_scores(self.run(x, [self.output], after)[self.output])

    def pooled_by(self, layer: str) -> Layer | None:
        """The linear layer that sees `layer` with only pooling in between, if there is one."""
        layers = self.config.layers
        for following in layers[self.config.layer_names.index(layer) + 1 :]:
            if following.kind not in _POOLING:
                return following if following.kind == "linear" else None
        return None

    def kernel_by_place(self, linear: Layer) -> Float[Array, "places c units"]:
        """The weights of a linear layer that reads a flattened map of `linear.inputs` channels."""
        kernel = self.parameters(linear.name).kernel[...]
        return kernel.reshape(-1, linear.inputs, linear.outputs)

    def parameters(self, layer: str):
        """The module of a layer that has parameters."""
        stack = next(stack for stack in self.stacks if hasattr(stack, layer))
        return getattr(stack, layer)


def as_scores(logits: Array) -> Float[Array, "n classes"]:
    """Logits (N, classes) in float32; of a score map (N, h, w, classes), the mean over space."""
    logits = as_float32(logits)
    return logits.mean(axis=(1, 2)) if logits.ndim == 4 else logits


def as_float32(x: Array) -> Array:
    """The array in float32, or in float64 if it is that already."""
    return x.astype(sum_dtype(x.dtype))
