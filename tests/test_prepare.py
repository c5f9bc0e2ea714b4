"""Prepared models: the outputs of the model itself, to the bit, in every way that it is run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import export
from jax.sharding import Mesh, PartitionSpec

import flaxvgg
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import Packed
from flaxvgg.network.prepared import prepared_bytes
from flaxvgg.ops import convolution, native
from helpers import TINY_GAP, quickly, random_images, random_model, tiny_vgg

# Maps by F(2x4), F(2x2) and direct sums, and sizes that no tile divides.
SIZES = [(64, 64), (32, 32), (97, 75), (224, 33)]


@pytest.fixture(scope="module")
def model() -> flaxvgg.VGG:
    return random_model(VGGConfig.features_only("vgg11", "no head here"))


def assert_same(found, expected) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def packed(model: flaxvgg.VGG) -> list[jax.Array]:
    return jax.tree.leaves(nnx.state(model, Packed))


@pytest.mark.parametrize("size", quickly(SIZES, (97, 75)), ids=str)
def test_all_layers_are_the_models_to_the_bit(model, size):
    images = random_images(2, *size)
    fast = flaxvgg.prepare(model, size)
    names = model.config.layer_names
    run = jax.jit(lambda model, x: model.activations(x, names))
    assert_same(run(fast, images), run(model, images))
    assert_same(fast.features(images), model.features(images))
    assert sum(x.nbytes for x in packed(fast)) == prepared_bytes(model, size) > 0
    assert not packed(model)  # it is as it was


def test_a_packed_kernel_is_what_is_multiplied_by(model):
    images = random_images(1, 64, 64)
    fast = flaxvgg.prepare(model, (64, 64))
    wrong = jax.tree.map(lambda x: x, fast)
    conv = wrong.conv_stack.conv3_1
    conv.packed = Packed(2 * conv.packed[...])
    names = ["conv2_1", "conv3_1"]
    found, expected = (m.activations(images, names) for m in (wrong, model))
    assert_same(found["conv2_1"], expected["conv2_1"])
    bias = np.asarray(conv.bias[...])
    found, expected = (np.asarray(x["conv3_1"]) - bias for x in (found, expected))
    np.testing.assert_allclose(found, 2 * expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", quickly([(40, 64), (64, 100), (128, 128)], (64, 100)), ids=str)
def test_images_of_another_size_are_taken_too(model, size):
    images = random_images(1, *size)
    assert_same(flaxvgg.prepare(model, (64, 64)).features(images), model.features(images))


@pytest.mark.slow
def test_batch_norm_and_heads():
    images = random_images(2, 64, 64)
    normalised = random_model(VGGConfig.gap("vgg11_bn", num_classes=3))
    assert_same(flaxvgg.prepare(normalised, (64, 64))(images), normalised(images))
    plain = random_model(VGGConfig.features_only("vgg11", "no head here"))
    for headed in (
        flaxvgg.with_gap(plain, 3, channels=32, rngs=nnx.Rngs(0)),
        flaxvgg.with_score_map(plain, 3, channels=24, rngs=nnx.Rngs(0)),
    ):
        fast = flaxvgg.prepare(headed, (64, 64))
        assert len(packed(fast)) > len(packed(flaxvgg.prepare(plain, (64, 64))))
        assert_same(fast(images), headed(images))
        # Another head is put on the kernels themselves.
        again = flaxvgg.with_gap(fast, 2, rngs=nnx.Rngs(1))
        assert not packed(again)
        assert again.prepared_for is None


@pytest.mark.parametrize("pooling", quickly(["average", "l2"]))
def test_other_pooling_and_padding(model, pooling):
    other = flaxvgg.with_pooling(model, pooling, padding="replicate")
    images = random_images(1, 75, 97)
    fast = flaxvgg.prepare(other, (75, 97))
    assert_same(fast.features(images), other.features(images))
    # No kernel was packed in vain, for maps of another size.
    names = [layer.name for layer in other.config.conv_stack if layer.kind == "conv"]
    for name in names:
        conv = getattr(fast.conv_stack, name)
        conv.packed = Packed(0 * conv.packed[...])
    for name, found in fast.activations(images, names).items():
        bias = getattr(fast.conv_stack, name).bias[...]
        assert_same(found, np.broadcast_to(bias, found.shape))


def test_every_transformation(model):
    images = random_images(4, 64, 64)
    fast = flaxvgg.prepare(model, (64, 64))
    one = images[:1]
    expected = np.asarray(model.features(images))
    assert_same(jax.jit(lambda m, x: m.features(x))(fast, images), expected)
    assert_same(jax.vmap(lambda x: fast.features(x[None])[0])(images), expected)
    with jax.disable_jit():
        assert_same(fast.features(one), expected[:1])
    mesh = Mesh(np.array(jax.devices()[:2]), "data")
    data, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        lambda m, x: m.features(x), mesh=mesh, in_specs=(whole, data), out_specs=data
    )
    assert_same(jax.jit(mapped)(fast, images), expected)
    spread = flaxvgg.place(fast, flaxvgg.data_mesh(), flaxvgg.fully_sharded)
    across = flaxvgg.shard_batch(images, flaxvgg.data_mesh())
    assert_same(jax.jit(lambda m, x: m.features(x))(spread, across), expected)
    # Pytrees of the model are not registered for serialised programs: its arrays are closed over.
    exported = export.export(jax.jit(fast.features))(jax.ShapeDtypeStruct(one.shape, np.float32))
    np.testing.assert_allclose(
        exported.call(one), expected[:1], rtol=0, atol=1e-4 * abs(expected).max()
    )
    assert "flaxvgg_" not in exported.mlir_module()


def test_derivatives_by_images(model):
    images = jnp.asarray(random_images(1, 32, 32))
    fast = flaxvgg.prepare(model, (32, 32))

    def loss(images, model):
        return (model.features(images) ** 2).sum()

    assert_same(*(jax.jit(jax.value_and_grad(loss))(images, m) for m in (fast, model)))
    tangent = images[::-1]
    assert_same(
        *(jax.jvp(lambda x, m=m: m.features(x), (images,), (tangent,)) for m in (fast, model))
    )
    second = [
        jax.jvp(lambda x, m=m: jax.grad(loss)(x, m), (images,), (tangent,))[1]
        for m in (fast, model)
    ]
    assert_same(*second)


def test_what_it_cannot_is_said(model, tmp_path):
    images = random_images(1, 64, 64)
    fast = flaxvgg.prepare(model, (64, 64))
    with pytest.raises(
        ValueError, match="no derivatives with respect to its kernels: train the model that"
    ):
        jax.grad(lambda model: model.features(images).sum())(fast)
    with pytest.raises(ValueError, match="is not trained: train the model that"):
        fast.train()
    for path in (tmp_path / "checkpoint", tmp_path / "model.safetensors"):
        with pytest.raises(flaxvgg.CheckpointError, match="is not saved: save the model that"):
            flaxvgg.save(fast, path)
    assert not list(tmp_path.iterdir())
    for size in [(31, 64), (0, 0)]:
        with pytest.raises(ValueError, match="images are at least 32x32"):
            flaxvgg.prepare(model, size)
    fast.eval()
    assert_same(flaxvgg.to_torch(fast), flaxvgg.to_torch(model))


@pytest.mark.filterwarnings("ignore:this network has other weights")
@pytest.mark.slow
def test_distances_by_a_prepared_model():
    whole = random_model(VGGConfig.features_only("vgg16", "no head here"))
    fast = flaxvgg.prepare(whole, (64, 64))
    a, b = (jax.nn.sigmoid(jnp.asarray(random_images(1, 64, 64, seed=i))) for i in (0, 1))

    def distance(a, model):
        return flaxvgg.lpips(model, a, b, value_range=(0, 1)).sum()

    assert_same(*(jax.value_and_grad(distance)(a, m) for m in (fast, whole)))


def test_where_nothing_is_transformed_it_is_the_model(model, monkeypatch):
    half = random_model(model.config, dtype=jnp.bfloat16)
    assert not packed(flaxvgg.prepare(half))
    assert prepared_bytes(half) == 0
    monkeypatch.setattr(native, "IS_AVAILABLE", False)
    assert not packed(flaxvgg.prepare(model))
    assert prepared_bytes(model) == 0


def test_elsewhere_it_goes_by_the_kernel():
    """The program for a GPU, which nobody runs here, knows no operation of ours."""
    tiny = flaxvgg.prepare(tiny_vgg(TINY_GAP), (32, 32))
    assert packed(tiny)
    program = export.export(jax.jit(tiny.__call__), platforms=["cuda"])(
        jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    )
    assert "flaxvgg_" not in program.mlir_module()
    packing = export.export(
        jax.jit(partial(convolution.pack, height=32, width=32)), platforms=["cuda"]
    )(jax.ShapeDtypeStruct((3, 3, 16, 16), np.float32))
    assert "flaxvgg_" not in packing.mlir_module()


@pytest.mark.slow
def test_maps_of_a_prepared_model():
    tiny = tiny_vgg()
    images = random_images(2, 64, 64)
    fast = flaxvgg.prepare(tiny, (64, 64))
    for method in ("grad_cam", "score_cam", "full_grad", "ablation_cam"):
        found, expected = (flaxvgg.explain(m, images, [1, 2], method).maps for m in (fast, tiny))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * abs(expected).max())


def test_a_kernel_packed_for_another_size_is_refused():
    x, kernel = jnp.ones((1, 64, 64, 16)), jnp.ones((3, 3, 16, 16))
    wrong = native.pack(kernel, 8, 8)
    with pytest.raises(jax.errors.JaxRuntimeError, match="what flaxvgg_pack makes of it"):
        native.conv3x3_packed(x, wrong, jnp.zeros(16), False, False).block_until_ready()


def test_it_is_as_close_to_float64_as_pytorch():
    """At the sizes at which tiles are wide, with values of either sign and without structure."""
    for channels in (16, 64):
        x, kernel = (
            random_images(1, 48, 48, channels=channels),
            random_images(3, 3, channels, channels=64, seed=1),
        )
        truth, plain = (
            torch.nn.functional.conv2d(
                torch.tensor(x, dtype=dtype).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(kernel, dtype=dtype).permute(3, 2, 0, 1).contiguous(),
                padding=1,
            )
            .permute(0, 2, 3, 1)
            .numpy()
            for dtype in (torch.float64, torch.float32)
        )
        found = np.asarray(convolution.conv3x3(jnp.asarray(x), jnp.asarray(kernel)))
        errors = [np.sqrt(((a - truth) ** 2).mean()) for a in (found, plain)]
        assert errors[0] <= 1.5 * errors[1]
