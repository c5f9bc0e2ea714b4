"""The same convolutions with another pooling between them, or other values beyond the edge."""

import dataclasses

from flaxvgg.network.config import Padding, Pooling
from flaxvgg.network.model import VGG
from flaxvgg.weights.mapping import build, model_arrays


def with_pooling(model: VGG, pooling: Pooling, *, padding: Padding | None = None) -> VGG:
    """The same network with another pooling behind each of its five blocks.

    "max" is VGG's own, "average" the 2x2 mean that Gatys et al. 2016 took for style transfer
    (arXiv:1508.06576), "l2" the one of DISTS (Ding et al. 2020, arXiv:2004.07728), which rounds odd
    sizes up. `padding` is what lies beyond the edge of every map: "zeros", or "replicate", the
    edge's own values, as in PyTorch's `padding_mode`; None leaves it as it is. The parameters are
    shared, not copied; checkpoints keep both words. Raises ValueError for another word.

    >>> average = flaxvgg.with_pooling(model, "average")
    >>> average.config.layers[2].kind, average.features(images).shape
    ('average_pool', (2, 2, 2, 512))
    """
    kept = model.config.padding if padding is None else padding
    conv = model.conv_stack.conv1_1
    return build(
        dataclasses.replace(model.config, pooling=pooling, padding=kept),
        model_arrays(model),
        dtype=conv.dtype,
        param_dtype=conv.param_dtype,
        precision=conv.precision,
        provenance=model.provenance,
    )
