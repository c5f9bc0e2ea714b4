"""The sample head: GAP and one linear layer for a few classes, fitted to one set of convolutions.

It makes class activation maps of real features possible without a download. sample_head.md says
what it was fitted on, how good it is, and what it is not for.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from flaxvgg.files.replacing import write_atomically
from flaxvgg.heads.replacement import with_gap
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Provenance
from flaxvgg.weights.mapping import model_arrays

_FILE = Path(__file__).with_name("sample_head.safetensors")


@dataclasses.dataclass(frozen=True)
class SampleHead:
    """A linear layer behind GAP, and what is known of it.

    `weight` (classes, 512) and `bias` (classes) are as in PyTorch. `convolutions` is the
    `convolutions_digest` of those that it was fitted on, `provenance` where these are from, what
    they expect, and the classes. `facts` are figures for the card, as JSON.
    """

    arch: str
    convolutions: str
    provenance: Provenance
    weight: Float[np.ndarray, "classes c"]
    bias: Float[np.ndarray, " classes"]
    facts: dict[str, Any]

    def misfit(self, model: VGG) -> str:
        """Why the head does not belong on this model's convolutions; "" where it does."""
        source, ours, recipe = self.provenance.source, model.config.arch, model.preprocessing
        if ours != self.arch:
            return f"the sample head is for {self.arch}, not {ours}"
        if recipe != self.provenance.preprocessing:
            return (
                "the sample head is for images preprocessed as "
                f"{self.provenance.preprocessing.name!r}, but model.provenance says {recipe.name!r}"
            )
        if convolutions_digest(model) != self.convolutions:
            return (
                f"the sample head was fitted on the convolutions of {source}, and these are "
                "others: fit one with python -m experiments.gap_finetune"
            )
        return ""


def with_sample_head(model: VGG) -> VGG:
    """The same convolutions with the sample head behind them: a GAP model with named classes.

    `model` holds the convolutions that the head was fitted on, whatever its own head is and however
    they got there: those of `packaged_head().provenance.source`, in float32 or bfloat16. The
    convolutions are shared, not copied. Raises ValueError for another architecture, other
    convolutions, or a model that expects another preprocessing. Not for use inside `jax.jit`: the
    weights are looked at.
    """
    head = packaged_head()
    if problem := head.misfit(model):
        raise ValueError(problem)
    gap = with_gap(model, len(head.bias), rngs=nnx.Rngs(0))
    linear = gap.head.fc
    linear.kernel[...] = jnp.asarray(head.weight.T, linear.kernel.dtype)
    linear.bias[...] = jnp.asarray(head.bias, linear.bias.dtype)
    gap.provenance = dataclasses.replace(gap.provenance, classes=head.provenance.classes)
    return gap


@functools.cache
def packaged_head() -> SampleHead:
    """The head that comes with the package."""
    return read_head(_FILE)


def read_head(path: Path) -> SampleHead:
    """The head that `write_head` wrote."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        facts = json.loads(file.metadata()["flaxvgg"])
        weight, bias = (file.get_tensor(f"classifier.{name}") for name in ("weight", "bias"))
    provenance = Provenance.from_json(facts.pop("provenance"))
    return SampleHead(facts.pop("arch"), facts.pop("convolutions"), provenance, weight, bias, facts)


def write_head(path: Path, head: SampleHead) -> None:
    """Write a head as .safetensors, with the names that PyTorch knows its arrays by."""
    from safetensors.numpy import save_file

    arrays = {"classifier.weight": head.weight, "classifier.bias": head.bias}
    record = {
        "arch": head.arch,
        "convolutions": head.convolutions,
        "provenance": head.provenance.to_json(),
    }
    metadata = {"flaxvgg": json.dumps(record | head.facts, sort_keys=True)}
    write_atomically(path.absolute(), lambda target: save_file(arrays, target, metadata))


def convolutions_digest(model: VGG) -> str:
    """SHA-256 of the convolutions' parameters, rounded to bfloat16.

    So a copy in bfloat16 is the same as its original in float32, and a network that was trained on
    is another one.
    """
    found = hashlib.sha256()
    for path, array in sorted(model_arrays(model).items()):
        if path[0] == "conv_stack":
            found.update("/".join(path).encode())
            found.update(np.asarray(jax.lax.convert_element_type(array, jnp.bfloat16)).tobytes())
    return found.hexdigest()
