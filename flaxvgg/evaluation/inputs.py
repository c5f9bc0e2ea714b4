"""What the measures that run the network take, checked; and how changed images go through it."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.cam.methods import check_evaluating
from flaxvgg.cam.network import Network
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, AnyArray

CHUNK = 32  # images in one pass
Probability = Literal["softmax", "sigmoid"]
PROBABILITIES = get_args(Probability)
Activation = Literal["softmax", "sigmoid", "linear"]
_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "linear": lambda logits: logits,
}
ACTIVATIONS = get_args(Activation)


class Inputs:
    """A model, images, a map of each and a class of each: checked, and as JAX's arrays.

    `maps` are of the images' height and width; with `colours` they may have a value for each colour
    too. `activations` are those that make sense.
    """

    def __init__(
        self,
        model: VGG,
        images: AnyArray,
        maps: AnyArray,
        classes: AnyArray,
        activation: str,
        *,
        activations: tuple[str, ...] = PROBABILITIES,
        colours: bool = False,
    ):
        images = check_batch(images, model)
        if maps.shape != images.shape[:3] and not (colours and maps.shape == images.shape):
            wanted = "one map of the image's size for each, as explanation.heatmaps()[:, 0]"
            if colours:
                wanted += ", or attribution.values[:, 0]"
            name = "attributions" if colours else "heatmaps"
            raise ValueError(f"{name} of shape {maps.shape} for images of {images.shape}: {wanted}")
        if classes.shape != images.shape[:1] or not jnp.issubdtype(classes.dtype, jnp.integer):
            raise ValueError(
                f"classes must be one whole number for each of {len(images)} images, not "
                f"{classes.dtype} {classes.shape}"
            )
        count = model.config.head_output.outputs
        outside = [c for c in np.asarray(classes).tolist() if not 0 <= c < count]
        if outside:
            raise ValueError(f"no class {outside[0]}: the model has classes 0 to {count - 1}")
        if activation not in activations:
            raise ValueError(f"no activation {activation!r}: choose from {', '.join(activations)}")
        check_evaluating(model)
        self.images, self.maps = jnp.asarray(images), jnp.asarray(maps)
        check_finite(self.maps, "the attribution" if colours else "the heat map")
        self.classes = jnp.asarray(classes, jnp.int32)
        # Without its provenance: other weights of the same network are no other program.
        self.network = (model.conv_stack, model.head), model.config, activation

    def like_images(self, baseline: AnyArray) -> Array:
        """A baseline as an array. Raises ValueError if it is not of the images' shape."""
        if baseline.shape != self.images.shape:
            raise ValueError(f"baseline {baseline.shape} must be of the images' shape")
        return jnp.asarray(baseline, self.images.dtype)

    def over_colours(self) -> Float[Array, "n h w 3"]:
        """The maps as attributions to each colour; a map counts for all three."""
        maps = self.maps if self.maps.ndim == 4 else self.maps[..., None]
        return jnp.broadcast_to(maps, self.images.shape).astype(self.images.dtype)


def check_batch(images: AnyArray, model: VGG | None = None) -> AnyArray:
    """Images (N, H, W, 3) as the network takes them. Raises ValueError for others, and for none."""
    images = check_images(images, None if model is None else model.preprocessing)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must have shape (N, H, W, 3), N at least 1, not {images.shape}")
    return images


def check_key(key: object) -> None:
    """Raise ValueError for what is no key of JAX's."""
    dtype = getattr(key, "dtype", type(key).__name__)
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key must be one, as jax.random.key(0) makes it, not {dtype}")


def check_samples(samples: int, least: int = 1) -> None:
    """Raise ValueError for too few samples."""
    if samples < least:
        raise ValueError(f"samples must be at least {least}, not {samples}")


def check_finite(x: Array, what: str) -> Array:
    """The array (N, ...) itself. Raises ValueError, naming the image, where it is not finite."""
    finite = np.asarray(jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))))
    if not finite.all():
        raise ValueError(f"{what} of image {np.flatnonzero(~finite)[0]} is not finite")
    return x


def values_of_changed(
    network: Network,
    activation: str,
    shown: Callable[[Int[Array, " c"]], tuple[Array, Array]],
    classes: Int[Array, " n"],
    count: int,
) -> Float[Array, " count"]:
    """The class's value for `count` changed images, made and run in chunks to bound the memory.

    `shown(numbers)` gives the changed images of these numbers, and which image each one comes from.
    """

    def of_chunk(numbers: Int[Array, " c"]) -> Float[Array, " c"]:
        image, changed = shown(numbers)
        values = _ACTIVATIONS[activation](network.scores(changed))
        return values[jnp.arange(len(numbers)), classes[image]]

    return in_chunks(of_chunk, count)


def in_chunks(
    of_chunk: Callable[[Int[Array, " c"]], Float[Array, " c"]], count: int
) -> Float[Array, " count"]:
    """`of_chunk` of the numbers 0 to `count` - 1, at most `CHUNK` at a time."""
    chunk = min(CHUNK, count)
    numbers = jnp.arange(-(-count // chunk) * chunk) % count  # the last chunk is filled up
    return lax.map(of_chunk, numbers.reshape(-1, chunk)).reshape(-1)[:count]
