"""The network as JAX sees it: shapes, names, transformations, dropout, initialisation, errors."""

import functools
import inspect
import re
from collections.abc import Iterator

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, flatten_chw
from flaxvgg.weights.mapping import build, model_arrays
from helpers import random_images, torch_features, torch_vgg

CLASSES = 5

# The blocked products of precision "highest" take long to compile: where they are not what is
# tested, precision is "default", which on a CPU is float32 as well.
logits = jax.jit(lambda model, images: model(images))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return torch_vgg("vgg11", num_classes=CLASSES)


@pytest.fixture(scope="module")
def model(network) -> VGG:
    return flaxvgg.from_torch("vgg11", network.state_dict())


@pytest.fixture(scope="module")
def default(model) -> VGG:
    """The same model at precision "default"."""
    return build(model.config, model_arrays(model), precision="default")


@pytest.fixture(scope="module")
def initialised() -> VGG:
    return flaxvgg.vgg11(num_classes=CLASSES, rngs=nnx.Rngs(7), precision="default")


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(random_images(4, 32, 32))


def _features_only(seed: int = 0) -> VGG:
    config = VGGConfig.features_only("vgg11", "no head here")
    return VGG(config, rngs=nnx.Rngs(seed), precision="default")


def _with_batch_norm() -> VGG:
    return flaxvgg.from_torch("vgg11_bn", torch_features("vgg11_bn"), precision="default")


@functools.cache
def _abstract(arch: str, **kwargs) -> VGG:
    return nnx.eval_shape(lambda: VGG(VGGConfig.classifier(arch), rngs=nnx.Rngs(0), **kwargs))


def _train(model: VGG) -> VGG:
    """The model in training mode; the original stays as it is."""
    return nnx.view(model, deterministic=False, only=nnx.Dropout)


def _close(ours, theirs, rtol: float = 1e-5):
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max()


def _nchw(x) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


# Shapes, names, values.


@pytest.mark.parametrize(
    ("size", "map_size"), [((32, 32), (1, 1)), ((63, 96), (1, 3)), ((64, 33), (2, 1))]
)
def test_shapes(size, map_size):
    model, images = _abstract("vgg13"), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m.features(x), model, images).shape == (2, *map_size, 512)
    assert jax.eval_shape(lambda m, x: m.gap(x), model, images).shape == (2, 512)
    assert jax.eval_shape(lambda m, x: m(x), model, images).shape == (2, 1000)


def test_values_are_torchs(network, model, default, images):
    with torch.no_grad():
        features = network.features(_nchw(images))
        expected = network(_nchw(images))
    _close(logits(model, images), expected)
    _close(default(images), expected)
    _close(np.moveaxis(np.asarray(default.features(images)), -1, 1), features)
    _close(default.gap(images), features.mean((2, 3)))
    # A NumPy array is as good as one of JAX's.
    _close(default(np.asarray(images)), expected)


def test_flatten_chw_by_hand():
    maps = jnp.arange(12.0).reshape(1, 2, 3, 2)  # value = 6 h + 2 w + c
    assert flatten_chw(maps).tolist() == [[0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]]
    assert flatten_chw(maps[0]).tolist() == flatten_chw(maps)[0].tolist()


def test_activations_are_keyed_by_the_names_asked_for(default, images):
    same = {
        "conv5_2": ["features.18"],
        "relu5_2": ["features.19", "block5_conv2"],
        "pool5": ["features.20", "block5_pool", "features"],
        "fc6": ["classifier.0"],
        "relu6": ["fc1", "classifier.1"],
        "relu7": ["fc2", "classifier.4"],
        "fc8": ["classifier.6", "classifier"],
        "prob": ["predictions"],
    }
    asked = [name for paper, aliases in same.items() for name in (*aliases, paper)]
    found = default.activations(images, asked)
    assert list(found) == asked
    for paper, aliases in same.items():
        for alias in aliases:
            np.testing.assert_array_equal(found[alias], found[paper])
    np.testing.assert_array_equal(found["fc8"], default(images))
    np.testing.assert_array_equal(found["pool5"], default.features(images))
    np.testing.assert_array_equal(found["relu5_2"], np.maximum(found["conv5_2"], 0))
    np.testing.assert_allclose(found["prob"].sum(-1), np.ones(4), rtol=1e-6)
    assert (found["conv5_2"] < 0).any()
    assert found["conv5_2"].shape == (4, 2, 2, 512)
    assert found["fc6"].shape == (4, 4096)


def test_every_layer_of_every_architecture_has_its_shape():
    for arch in ("vgg11", "vgg19_bn"):
        abstract, images = _abstract(arch), jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32)
        names = abstract.config.layer_names
        found = jax.eval_shape(lambda m, x, names=names: m.activations(x, names), abstract, images)
        assert tuple(sorted(found)) == tuple(sorted(names))
        shapes = {name: value.shape for name, value in found.items()}
        assert shapes["conv1_1"] == shapes["relu1_1"] == (2, 96, 64, 64)
        assert shapes["pool1"] == (2, 48, 32, 64)
        assert shapes["relu3_2"] == (2, 24, 16, 256)
        assert shapes["pool5"] == (2, 3, 2, 512)
        assert shapes["avgpool"] == (2, 7, 7, 512)
        assert shapes["flatten"] == (2, 25088)
        assert shapes["drop6"] == shapes["fc7"] == (2, 4096)
        assert shapes["fc8"] == shapes["prob"] == (2, 1000)


def test_no_layers_asked_for_is_no_layers(default, images):
    assert default.activations(images, []) == {}
    # An iterator is as good as a list.
    assert list(default.activations(images, iter(["pool1"]))) == ["pool1"]


def _equations(closed: jex.core.ClosedJaxpr) -> Iterator[jex.core.JaxprEqn]:
    """All that is computed, inside of other functions too, as often as it is computed."""
    for equation in closed.jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, jex.core.ClosedJaxpr):
                    yield from _equations(inner)


def test_layers_after_the_deepest_asked_for_are_not_computed():
    model = _abstract("vgg16", precision="default")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def counts(function) -> tuple[int, int]:
        names = [x.primitive.name for x in _equations(jax.make_jaxpr(function)(model, images))]
        convolutions = names.count("conv3x3") + names.count("conv3x3_block")
        return convolutions, names.count("linear") + names.count("dot_general")

    # The average pooling is two products here, one for rows and one for columns.
    assert counts(lambda m, x: m.activations(x, ["conv1_1"])) == (1, 0)
    assert counts(lambda m, x: m.activations(x, ["relu3_1", "pool1"])) == (5, 0)
    assert counts(lambda m, x: m.features(x)) == (13, 0)
    assert counts(lambda m, x: m.gap(x)) == (13, 0)
    assert counts(lambda m, x: m.activations(x, ["relu6"])) == (13, 3)
    assert counts(lambda m, x: m(x)) == (13, 5)
    assert counts(lambda m, x: m.activations(x, [])) == (0, 0)


# Transformations.


def test_jit_with_the_model_as_argument(model, default, images):
    traced = []

    @jax.jit
    def probabilities(model, images):
        traced.append(1)
        return model.activations(images, ["prob", "conv1_1"])

    first = probabilities(default, images)
    assert sorted(first) == ["conv1_1", "prob"]
    assert not np.allclose(first["prob"], probabilities(default, images + 1)["prob"])
    # Other weights are other data, not another program.
    scaled = jax.tree.map(lambda leaf: leaf / 2, default)
    assert not np.allclose(first["prob"], probabilities(scaled, images)["prob"])
    assert len(traced) == 1
    _close(logits(model, images), logits(default, images))


def test_vmap_over_a_leading_axis_and_over_single_images(model, default, images):
    mapped = jax.jit(lambda model, images: jax.vmap(model)(images))
    pairs, expected = images.reshape(2, 2, 32, 32, 3), default(images)
    _close(mapped(model, images), expected)
    _close(mapped(default, images), expected)
    _close(mapped(default, pairs), expected.reshape(2, 2, CLASSES))
    # Leading axes need no vmap, and neither does a single image.
    _close(default(pairs), expected.reshape(2, 2, CLASSES))
    _close(logits(default, images[0]), expected[0])
    assert jax.eval_shape(VGG.features, default, images[0]).shape == (1, 1, 512)
    assert default.gap(pairs).shape == (2, 2, 512)
    assert default.activations(pairs, ["flatten"])["flatten"].shape == (2, 2, 25088)


def test_gradients_are_torchs(network, model, images):
    cotangent = np.random.default_rng(1).standard_normal((4, CLASSES)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(model, images):
        return (model(images) * cotangent).sum()

    parameters, pixels = gradients(model, images)
    inputs = _nchw(images).requires_grad_()
    network.zero_grad()
    (network(inputs) * torch.from_numpy(cotangent)).sum().backward()
    _close(np.moveaxis(np.asarray(pixels), -1, 1), inputs.grad, rtol=1e-4)
    ours = flaxvgg.to_torch(parameters)
    for name, parameter in network.named_parameters():
        assert np.isfinite(ours[name]).all(), name
        assert np.abs(ours[name]).max() > 0, name
        _close(ours[name], parameter.grad, rtol=1e-4)
    network.zero_grad()


def test_gradients_of_a_model_with_batch_norm():
    model = _with_batch_norm()
    images = jnp.asarray(random_images(1, 32, 32))
    graph, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    @jax.jit
    @jax.grad
    def gradients(parameters, statistics):
        return nnx.merge(graph, parameters, statistics).gap(images).sum()

    state = nnx.to_flat_state(gradients(parameters, statistics))
    found = {".".join(path[1:]): float(abs(variable[...]).max()) for path, variable in state}
    assert "bn5_2.scale" in found
    assert "bn5_2.mean" not in found
    assert len(found) == 4 * 8
    assert all(np.isfinite(value) for value in found.values())
    assert found["conv1_1.kernel"] > 0


def test_a_batch_sharded_over_two_devices(model, default, images):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    replicated = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch")))
    names = ["pool5", "fc8"]
    found = jax.jit(lambda m, x: m.activations(x, names))(replicated, sharded)
    expected = default.activations(images, names)
    for name in names:
        assert len(found[name].sharding.device_set) == 2
        assert not found[name].sharding.is_fully_replicated
        _close(found[name], expected[name])


# Precision and dtypes.


def _precisions(model: VGG) -> list[str]:
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    equations = _equations(jax.make_jaxpr(lambda m, x: m(x))(model, images))
    products = [x for x in equations if x.primitive.name in ("conv3x3_block", "linear")]
    found = [x.params["precision"] for x in products]
    return [p if p is None or isinstance(p, str) else p.name.lower() for p in found]


def test_precision_reaches_every_product():
    for model in (_abstract("vgg11"), _abstract("vgg11", precision="highest")):
        assert _precisions(model) == ["highest"] * 11
    assert _precisions(_abstract("vgg11", precision="high")) == ["high"] * 11
    assert _precisions(_abstract("vgg11", precision="default")) == ["default"] * 11


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(network, images):
    state_dict = {k: v for k, v in network.state_dict().items() if "features" in k}
    half = flaxvgg.from_torch("vgg11", state_dict, dtype=jnp.bfloat16)
    full = flaxvgg.from_torch("vgg11", state_dict, precision="default")
    assert {v.dtype for v in jax.tree.leaves(nnx.state(half))} == {jnp.dtype(jnp.float32)}
    found = half.activations(images, ["conv1_1", "pool5"])
    assert {v.dtype for v in found.values()} == {jnp.dtype(jnp.bfloat16)}
    pooled = half.gap(images)
    assert pooled.dtype == jnp.bfloat16
    _close(found["pool5"], full.features(images), rtol=0.05)
    _close(pooled, full.gap(images), rtol=0.05)
    # It is bfloat16 that was computed in, not float32 that was rounded at the end.
    rounded = full.features(images).astype(jnp.bfloat16)
    assert (found["pool5"] != rounded).any()


def test_param_dtype():
    model = _abstract("vgg11", param_dtype=jnp.bfloat16)
    assert {v.dtype for v in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.bfloat16)}
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, images).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_under_strict_promotion(dtype):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), dtype)
    logits = jax.eval_shape(lambda m, x: m(x), _abstract("vgg11_bn", dtype=dtype), images)
    assert logits.dtype == dtype


# Dropout.


def test_dropout_is_off_at_first_and_after_eval(initialised, images):
    model = nnx.clone(initialised)
    first = model(images)
    np.testing.assert_array_equal(model(images, rngs=nnx.Rngs(dropout=0)), first)
    model.train()
    assert (model(images, rngs=nnx.Rngs(dropout=0)) != first).any()
    model.eval()
    np.testing.assert_array_equal(model(images), first)


def test_dropout_drops_half_and_keeps_the_mean(initialised, images):
    names = ["relu6", "drop6"]
    found = _train(initialised).activations(images, names, rngs=nnx.Rngs(dropout=0))
    before, after = np.asarray(found["relu6"], np.float64), np.asarray(found["drop6"], np.float64)
    kept = after != 0
    np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-6)
    positive = before > 0
    n = positive.sum()
    assert abs(kept[positive].mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    # Standard error of the sum of x_i * {0, 2}: sqrt(sum x_i^2).
    assert abs(after.sum() - before.sum()) < 5 * np.sqrt((before**2).sum())


@pytest.mark.parametrize("as_key", [False, True], ids=["Rngs", "key"])
def test_dropout_masks_differ_between_keys_layers_and_images(initialised, images, as_key):
    def rngs(seed: int):
        return jax.random.key(seed) if as_key else nnx.Rngs(dropout=seed)

    model = _train(initialised)
    names = ["relu6", "drop6", "relu7", "drop7"]

    def masks(seed: int) -> dict[str, np.ndarray]:
        found = model.activations(images, names, rngs=rngs(seed))
        return {
            drop: np.where(found[relu] > 0, found[drop] > 0, -1)
            for relu, drop in (("relu6", "drop6"), ("relu7", "drop7"))
        }

    first, again, other = masks(0), masks(0), masks(1)
    for drop in ("drop6", "drop7"):
        np.testing.assert_array_equal(first[drop], again[drop])
        both = (first[drop] >= 0) & (other[drop] >= 0)
        assert 0.4 < (first[drop] == other[drop])[both].mean() < 0.6
    for a, b in ((first["drop6"], first["drop7"]), (first["drop6"][0], first["drop6"][1])):
        both = (a >= 0) & (b >= 0)
        assert both.sum() > 400
        assert 0.4 < (a == b)[both].mean() < 0.6


def test_dropout_under_jit_differs_from_step_to_step(initialised, images):
    step = jax.jit(lambda model, images, key: model(images, rngs=key))
    model = _train(initialised)
    first, second = step(model, images, jax.random.key(0)), step(model, images, jax.random.key(1))
    assert (first != second).any()
    np.testing.assert_array_equal(first, step(model, images, jax.random.key(0)))
    # A legacy key is taken too.
    assert step(model, images, jax.random.PRNGKey(0)).shape == (4, CLASSES)


def test_dropout_without_rngs_is_a_clear_error(initialised, images):
    model = _train(initialised)
    with pytest.raises(ValueError, match=r"dropout is on .* pass rngs=.* or call model\.eval\(\)"):
        model(images)
    # What lies before the dropout needs no rngs.
    assert model.features(images).shape == (4, 1, 1, 512)
    assert list(model.activations(images, ["relu6"])) == ["relu6"]


def test_view_leaves_the_original_alone(initialised, images):
    training = _train(initialised)
    assert (training(images, rngs=nnx.Rngs(dropout=0)) != initialised(images)).any()
    assert initialised.head.drop6.deterministic
    evaluating = nnx.view(training, deterministic=True, only=nnx.Dropout)
    np.testing.assert_array_equal(evaluating(images), initialised(images))


def test_train_switches_batch_statistics_on(images):
    model = _with_batch_norm()
    first, last = model.conv_stack.bn1_1, model.conv_stack.bn5_2
    before, mean = model.features(images), last.mean[...]
    assert int(first.num_batches_tracked[...]) == 7
    model.train()
    model.features(images)
    assert int(first.num_batches_tracked[...]) == 8
    assert (last.mean[...] != mean).all()
    model.eval()
    assert (model.features(images) != before).any()
    assert int(first.num_batches_tracked[...]) == 8


def test_without_dropout_training_mode_needs_no_rngs():
    config = VGGConfig.classifier("vgg11", dropout=0.0)
    model = nnx.eval_shape(lambda: VGG(config, rngs=nnx.Rngs(0)))
    model.train()
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, images).shape == (1, 1000)


# Initialisation.


def _check_normal(values: np.ndarray, std: float):
    """Mean, variance and fourth moment to five standard errors, and the whole shape."""
    values = values.ravel()
    z, n = values.astype(np.float64) / std, values.size
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)  # a truncated normal has less
    assert scipy.stats.kstest(z[:100_000], "norm").pvalue > 1e-4


def test_initialisation_is_torchvisions(initialised):
    for layer in initialised.config.conv_stack:
        if layer.kind == "conv":
            conv = getattr(initialised.conv_stack, layer.name)
            _check_normal(np.asarray(conv.kernel[...]), np.sqrt(2 / (9 * layer.outputs)))
            np.testing.assert_array_equal(conv.bias[...], np.zeros(layer.outputs, np.float32))
    for name in ("fc6", "fc7", "fc8"):
        linear = getattr(initialised.head, name)
        # Four million of fc6's hundred million, from all over it.
        _check_normal(np.asarray(linear.kernel[...]).ravel()[:: 25 if name == "fc6" else 1], 0.01)
        np.testing.assert_array_equal(linear.bias[...], np.zeros_like(linear.bias[...]))


def test_batch_norm_begins_as_the_identity():
    @jax.jit  # which leaves out the kernels that nothing here asks for
    def initialised_norms() -> list[nnx.Module]:
        stack = flaxvgg.vgg11_bn().conv_stack
        return [getattr(stack, layer.name) for layer in stack.layers if layer.kind == "batch_norm"]

    norms = initialised_norms()
    assert len(norms) == 8
    for norm in norms:
        for variable, value in ((norm.scale, 1), (norm.bias, 0), (norm.mean, 0), (norm.var, 1)):
            assert (variable[...] == value).all()
        assert int(norm.num_batches_tracked[...]) == 0


def test_initialisation_is_determined_by_the_rngs():
    first, again, other = (nnx.state(_features_only(seed)) for seed in (0, 0, 1))
    for (path, a), (_, b), (_, c) in zip(
        *(nnx.to_flat_state(state) for state in (first, again, other)), strict=True
    ):
        np.testing.assert_array_equal(a[...], b[...])
        if path[-1] == "kernel":
            assert (a[...] != c[...]).mean() > 0.99
    # No two layers are alike.
    kernel_3_2, kernel_4_1 = (
        first["conv_stack"][f"conv{n}"]["kernel"][...] for n in ("4_2", "5_1")
    )
    assert (kernel_3_2 != kernel_4_1).mean() > 0.99


# Errors. The shape checks of the test suite would speak first, so the function is called bare.


def _activations(model: VGG, shape: tuple[int, ...], dtype=jnp.float32, layers=("pool5",)):
    return inspect.unwrap(VGG.activations)(model, jnp.zeros(shape, dtype), list(layers))


@pytest.fixture(scope="module")
def abstract() -> VGG:
    return _abstract("vgg11")


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_])
def test_images_that_are_no_floats(abstract, dtype):
    name = jnp.dtype(dtype).name
    message = rf"^images are {name}: the network takes normalised floats \(model.load_images\)$"
    with pytest.raises(ValueError, match=message):
        _activations(abstract, (1, 32, 32, 3), dtype)


def test_channels_first_images(abstract):
    message = r"must have shape \(N, H, W, 3\), not \(1, 3, 32, 64\); .* transpose \(0, 2, 3, 1\)"
    with pytest.raises(ValueError, match=message):
        _activations(abstract, (1, 3, 32, 64))


@pytest.mark.parametrize("shape", [(1, 32, 32, 1), (1, 32, 32, 4), (32, 3), (3,), ()])
def test_images_of_another_shape(abstract, shape):
    message = re.escape(f"must have shape (N, H, W, 3), not {shape}") + "$"
    with pytest.raises(ValueError, match=message):
        _activations(abstract, shape)


@pytest.mark.parametrize("size", [(31, 32), (32, 31), (1, 1)])
def test_images_that_are_too_small(abstract, size):
    message = f"^images of {size[0]}x{size[1]} are too small: at least 32x32 survive"
    with pytest.raises(ValueError, match=message):
        _activations(abstract, (1, *size, 3))


def test_one_name_instead_of_a_list(abstract):
    with pytest.raises(ValueError, match=r"^layers must be a list of names: \['pool5'\]$"):
        inspect.unwrap(VGG.activations)(abstract, jnp.zeros((1, 32, 32, 3)), "pool5")


def test_unknown_layers(abstract):
    with pytest.raises(ValueError, match="vgg11 has no layer 'conv5_3'; did you mean"):
        _activations(abstract, (1, 32, 32, 3), layers=["pool5", "conv5_3"])


def test_a_model_without_a_head_says_so(images):
    model = _features_only()
    with pytest.raises(ValueError, match="this model has no logits: no head here"):
        model(images)
    with pytest.raises(ValueError, match="this model has no layer 'fc2': no head here"):
        model.activations(images, ["fc2"])
    assert model.features(images).shape == (4, 1, 1, 512)


def test_an_empty_batch(default):
    assert logits(default, jnp.zeros((0, 32, 32, 3))).shape == (0, CLASSES)
