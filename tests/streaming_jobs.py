"""What is streamed by processes that must start quickly: no PyTorch, devices only when needed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG

IMAGES = 400


class SmallConfig(VGGConfig):
    """As little of a network as there can be."""

    conv_stack = (
        Layer("conv1_1", "conv", "features.0", inputs=3, outputs=8, kernel=3),
        Layer("relu1_1", "relu", "features.1"),
        Layer("pool1", "max_pool", "features.2"),
    )


_HEAD = (
    Layer("gap", "global_avg_pool", "avgpool"),
    Layer("flatten", "flatten"),
    Layer("fc", "linear", "classifier", inputs=8, outputs=5),
)


def small_model() -> VGG:
    """A model of NumPy arrays."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: VGG(SmallConfig("vgg11", _HEAD), rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), model)


def means_job():
    """A job that costs nothing: its way into the store is what is tested."""
    from flaxvgg.streaming import Job, Looked

    def look(model, images, valid, asked) -> Looked:
        positive = jnp.where(valid[:, None], (images > 0).sum(axis=(1, 2)), 0).sum(axis=0)
        rows = {"mean": images.mean(axis=(1, 2)), "corner": images[:, :8, :8]}
        return Looked(rows, {"positive": positive})

    return Job("means", small_model(), {}, look)


def on_device(job):
    """A job with its model as arrays of JAX, as what checks shapes wants it."""
    return dataclasses.replace(job, model=jax.tree.map(jnp.asarray, job.model))


class Drawn:
    """Images of two sizes, drawn when they are read; every seventh is broken."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict:
        shape = self.size + 8 * (i % 2), self.size, 3
        pixels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        return {"image": b"broken" if i % 7 == 3 else pixels, "label": i % 5}
