"""Distances and losses under JAX's transformations, and on meshes: the same numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg.network.model import VGG
from helpers import REAL_WEIGHTS, quickly, tiny_vgg

LAYERS = {"relu1_1": 1.0, "conv2_1": 0.5}
# LPIPS and DISTS are of one network; the losses of any.
DISTANCES: dict[str, Callable[..., jax.Array]] = {
    "lpips": flaxvgg.lpips,
    "dists": flaxvgg.dists,
    "perceptual_loss": partial(flaxvgg.perceptual_loss, layers=LAYERS),
    "style_loss": partial(flaxvgg.style_loss, layers=LAYERS),
    "contextual_loss": partial(flaxvgg.contextual_loss, layers=LAYERS),
}
A, B = np.random.default_rng(0).random((2, 2, 32, 32, 3), np.float32)
DATA = PartitionSpec("data")


@pytest.fixture(scope="module")
def real() -> VGG:
    return flaxvgg.vgg16(weights=REAL_WEIGHTS)


@pytest.fixture
def model(name: str, request: pytest.FixtureRequest) -> VGG:
    return request.getfixturevalue("real") if name in ("lpips", "dists") else tiny_vgg()


def distance(name: str, model: VGG, a: Any, b: Any) -> jax.Array:
    return DISTANCES[name](model, a, b, value_range=(0, 1))


def gradient(name: str, model: VGG, a: Any, b: Any) -> jax.Array:
    return jax.grad(lambda a: distance(name, model, a, b).sum())(a)


def assert_close(found: Any, expected: Any) -> None:
    expected = np.asarray(expected)
    bound = 2e-5 * abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=bound)


def _one(name: str, model: VGG, a: jax.Array, b: jax.Array) -> jax.Array:
    return distance(name, model, a[None], b[None])[0]


WAYS: dict[str, Callable[..., jax.Array]] = {
    "jit": lambda name, m, a, b: jax.jit(partial(distance, name))(m, a, b),
    "vmap": lambda name, m, a, b: jax.vmap(partial(_one, name, m))(a, b),
    "no batch": lambda name, m, a, b: jax.vmap(partial(distance, name, m))(a, b),
    "map": lambda name, m, a, b: lax.map(lambda pair: _one(name, m, *pair), (a, b)),
    "remat": lambda name, m, a, b: jax.checkpoint(partial(distance, name))(m, a, b),
    "one reference": lambda name, m, a, b: jax.vmap(partial(_one, name, m), (0, None))(a, b[0]),
}


@pytest.mark.parametrize("name", quickly(DISTANCES, "lpips", "perceptual_loss"))
def test_every_way_gives_the_same_distances(name: str, model: VGG):
    a, b = jnp.asarray(A), jnp.asarray(B)
    expected = distance(name, model, a, b)
    against_first = distance(name, model, a, b[jnp.array([0, 0])])
    for way, function in WAYS.items():
        other = against_first if way == "one reference" else expected
        assert_close(function(name, model, a, b), other)


@pytest.mark.parametrize("name", quickly(DISTANCES, "lpips", "perceptual_loss"))
def test_modes_of_differentiation_agree(name: str, model: VGG):
    a, b = jnp.asarray(A), jnp.asarray(B)

    @jax.jit
    def found(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = jax.checkpoint(lambda a: distance(name, model, a, b).sum())
        of_one = jax.grad(partial(_one, name, model))
        return jax.grad(loss)(a), jax.vmap(of_one)(a, b)

    expected = jax.jit(partial(gradient, name))(model, a, b)
    for other in found(a):
        assert_close(other, expected)


@pytest.mark.parametrize("name", quickly(DISTANCES, "lpips", "perceptual_loss"))
def test_on_a_mesh_with_explicit_axes(name: str, model: VGG):
    mesh = jax.make_mesh((2,), ("data",))
    assert mesh.axis_types == (AxisType.Explicit,)
    placed = flaxvgg.place(model, mesh)
    a, b = jax.device_put((A, B), NamedSharding(mesh, DATA))
    found = distance(name, placed, a, b)
    assert jax.typeof(found).sharding.spec[0] == "data"
    assert_close(found, distance(name, model, A, B))
    expected = jax.jit(partial(gradient, name))(model, jnp.asarray(A), jnp.asarray(B))
    with jax.set_mesh(mesh):
        slope = jax.jit(partial(gradient, name))(placed, a, b)
    assert jax.typeof(slope).sharding.spec[0] == "data"
    assert_close(slope, expected)


@pytest.mark.parametrize("name", quickly(DISTANCES, "lpips", "perceptual_loss"))
def test_batches_that_are_spread_over_devices(name: str, model: VGG):
    mesh = flaxvgg.data_mesh()
    a, b = flaxvgg.shard_batch((A, B), mesh)
    placed = flaxvgg.place(model, mesh)
    found = jax.jit(partial(distance, name))(placed, a, b)
    assert len(found.sharding.device_set) == 2
    assert_close(found, distance(name, model, A, B))
    assert_close(jax.jit(partial(gradient, name))(placed, a, b), gradient(name, model, A, B))


@pytest.mark.parametrize("name", quickly(DISTANCES, "lpips", "perceptual_loss"))
def test_shard_map(name: str, model: VGG):
    mesh = flaxvgg.data_mesh()
    for function in (distance, gradient):
        given = partial(function, name, model)
        mapped = jax.shard_map(given, mesh=mesh, in_specs=(DATA, DATA), out_specs=DATA)
        assert_close(jax.jit(mapped)(A, B), given(jnp.asarray(A), jnp.asarray(B)))
