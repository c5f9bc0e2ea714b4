"""The sample heads: GAP and one linear layer for a few classes, each fitted to one set of weights.

They make class activation maps of real features possible without 528 MB. There is one for
torchvision's IMAGENET1K_V1 (sample_head_v1.md says what it was fitted on, how good it is, and what
it is not for), and one for a network that was fine-tuned from Keras's (sample_head.md).
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
from jaxtyping import Float

from flaxvgg.files.replacing import write_atomically
from flaxvgg.heads.replacement import with_head
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Provenance
from flaxvgg.weights.mapping import model_arrays

_FILES = ("sample_head_v1.safetensors", "sample_head.safetensors")


@dataclasses.dataclass(frozen=True)
class SampleHead:
    """A linear layer on GAP, and what is known of it.

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

    `model` holds convolutions that one of `packaged_heads` was fitted on, whatever its own head is
    and however they got there, in float32 or bfloat16: torchvision's IMAGENET1K_V1, say, as
    `flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")` has them. The convolutions are shared, not
    copied. Raises ValueError for another architecture, other convolutions, or a model that expects
    another preprocessing. Not for use inside `jax.jit`: the weights are looked at.

    >>> convolutions = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    >>> flaxvgg.with_sample_head(convolutions).classes[:2]
    ('astronaut', 'cat')
    """
    head = sample_head_of(model)
    config = VGGConfig.gap(model.config.arch, num_classes=len(head.bias))
    dtype = model.conv_stack.conv1_1.param_dtype
    arrays = {
        ("head", "fc", "kernel"): jnp.asarray(head.weight.T, dtype),
        ("head", "fc", "bias"): jnp.asarray(head.bias, dtype),
    }
    provenance = dataclasses.replace(model.provenance, classes=head.provenance.classes)
    return with_head(model, config, arrays, provenance)


def sample_head_of(model: VGG) -> SampleHead:
    """The sample head that was fitted on this model's convolutions. Raises ValueError for none."""
    heads = packaged_heads()
    problems = [head.misfit(model) for head in heads]
    if "" in problems:
        return heads[problems.index("")]
    if model.config.arch == heads[0].arch:
        digest = convolutions_digest(model)
        known = [i for i, head in enumerate(heads) if head.convolutions == digest]
        if known:  # fed with another recipe
            raise ValueError(problems[known[0]])
        sources = " or of ".join(head.provenance.source for head in heads)
        raise ValueError(
            f"the sample heads were fitted on the convolutions of {sources}, and these are others: "
            "fit one with python -m experiments.gap_finetune"
        )
    raise ValueError(problems[0])


@functools.cache
def packaged_heads() -> tuple[SampleHead, ...]:
    """The heads that come with the package, torchvision's first."""
    return tuple(read_head(Path(__file__).with_name(file)) for file in _FILES)


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
