"""Deep feature factorisation: which concepts a layer's activations are made of, and where."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.cam.options import Concepts

_SWEEPS, _TOLERANCE = 200, 1e-4  # scikit-learn's


def factors(a: Float[Array, "n h w c"], options: Concepts) -> Float[Array, "n k h w"]:
    """How much of each concept is where (Collins et al. 2018, arXiv:1806.10206).

    Non-negative matrix factorisation of each image's activations, less each channel's minimum:
    channels times concepts, concepts times places. It is scikit-learn's, as the package grad-cam
    calls it: coordinate descent from the numbers that NumPy draws with seed 0, until the violation
    of the optimum has sunk to 1e-4 of the first, or after 200 sweeps. Each image is factorised for
    itself, so that it is explained alike in any batch; grad-cam factorises a batch as one.
    """
    n, h, w, channels = a.shape
    count, places = options.concepts, h * w
    x = a.reshape(n, places, channels).mT
    x = x - x.min(axis=2, keepdims=True)
    rng = np.random.RandomState(0)  # a program's constants: the same for every image
    drawn = [np.abs(rng.standard_normal(size)) for size in ((count, places), (channels, count))]
    size = jnp.sqrt(x.mean(axis=(1, 2), keepdims=True) / count)
    maps = size * jnp.asarray(drawn[0].T[None], x.dtype)
    concepts = size * jnp.asarray(drawn[1][None], x.dtype)
    none = jnp.zeros_like(x[:, 0, 0])

    def sweep(i: int | Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        concepts, maps, first, done = state
        new_concepts, violation = _descended(concepts, maps, x)
        new_maps, more = _descended(maps, new_concepts, x.mT)
        violation = violation + more
        first = jnp.where(i == 0, violation, first)
        stays = (done > 0)[:, None, None]
        concepts = jnp.where(stays, concepts, new_concepts)
        maps = jnp.where(stays, maps, new_maps)
        done = jnp.where(violation <= _TOLERANCE * first, 1, done)
        return concepts, maps, first, done

    _, maps, _, _ = lax.fori_loop(0, _SWEEPS, sweep, (concepts, maps, none, none))
    return maps.mT.reshape(n, count, h, w)


def _descended(
    factor: Float[Array, "n i k"], other: Float[Array, "n j k"], x: Float[Array, "n i j"]
) -> tuple[Float[Array, "n i k"], Float[Array, " n"]]:
    """One factor after a sweep over its columns, and how far its gradient was from the optimum."""
    gram = jnp.einsum("njk,njl->nkl", other, other, precision="highest")
    wanted = jnp.einsum("nij,njk->nik", x, other, precision="highest")

    def column(t: int | Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, violation = state
        curvature = gram[:, t]
        own, value = curvature[:, t, None], factor[:, :, t]
        slope = jnp.einsum("nir,nr->ni", factor, curvature, precision="highest") - wanted[:, :, t]
        downhill = jnp.where(value == 0, jnp.minimum(slope, 0), slope)
        moved = jnp.maximum(value - slope / jnp.where(own == 0, 1, own), 0)
        factor = factor.at[:, :, t].set(jnp.where(own == 0, value, moved))
        return factor, violation + jnp.abs(downhill).sum(axis=1)

    state = factor, jnp.zeros_like(factor[:, 0, 0])
    return lax.fori_loop(0, factor.shape[2], column, state)
