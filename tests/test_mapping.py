"""torch names <-> Flax paths: a bijection, bit for bit, and errors that name every entry."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from flax import nnx

import flaxvgg
from flaxvgg.config import ARCHITECTURES, VGGConfig
from flaxvgg.mapping import MappingError, build, config_for, entries, nearest_arch
from flaxvgg.model import VGG
from flaxvgg.parameters import StateDictError
from helpers import random_images, torch_vgg


def _meta_state_dict(arch: str, **kwargs) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return getattr(torchvision.models, arch)(**kwargs).state_dict()


def _bits(array) -> bytes:
    return np.ascontiguousarray(np.asarray(array)).tobytes()


def _tensor_bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.fixture(scope="module")
def full() -> dict[str, torch.Tensor]:
    """A vgg11_bn with its classifier, 3 classes."""
    return torch_vgg("vgg11_bn", num_classes=3).state_dict()


@pytest.fixture(scope="module")
def features(full) -> dict[str, torch.Tensor]:
    """The convolutions of the same, 37 MB. No test may change it."""
    return {name: tensor for name, tensor in full.items() if name.startswith("features.")}


def _zeros(*shape: int, value: float = 0.0) -> np.ndarray:
    """An array of one repeated value that takes no memory."""
    return np.broadcast_to(np.float32(value), shape)


def _classifier(classes: int = 3, value: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "classifier.0.weight": _zeros(4096, 25088, value=value),
        "classifier.0.bias": _zeros(4096, value=value),
        "classifier.3.weight": _zeros(4096, 4096, value=value),
        "classifier.3.bias": _zeros(4096, value=value),
        "classifier.6.weight": _zeros(classes, 4096, value=value),
        "classifier.6.bias": _zeros(classes, value=value),
    }


# The bijection.


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_entries_are_torchvisions_state_dict_and_the_models_state(arch):
    config = VGGConfig.classifier(arch, num_classes=17)
    found = entries(config)
    theirs = _meta_state_dict(arch, num_classes=17)
    assert [entry.torch for entry in found] == list(theirs)
    assert [entry.torch_shape for entry in found] == [tuple(t.shape) for t in theirs.values()]
    assert [entry.integer for entry in found] == [
        not t.dtype.is_floating_point for t in theirs.values()
    ]
    skeleton = nnx.eval_shape(lambda: VGG(config, rngs=nnx.Rngs(0)))
    ours = {path: variable.shape for path, variable in nnx.to_flat_state(nnx.state(skeleton))}
    assert {entry.path: entry.shape for entry in found} == ours
    assert (
        len({entry.path for entry in found}) == len({entry.torch for entry in found}) == len(found)
    )


def test_there_and_back_with_a_classifier_bit_for_bit(full):
    model = flaxvgg.from_torch("vgg11_bn", full)
    assert model.config == VGGConfig.classifier("vgg11_bn", num_classes=3)
    back = flaxvgg.to_torch(model)
    assert list(back) == list(full)
    for name, tensor in full.items():
        assert back[name].shape == tuple(tensor.shape), name
        assert back[name].dtype == tensor.numpy().dtype, name
        assert np.array_equal(back[name], tensor.numpy()), name
    assert back["features.1.num_batches_tracked"] == 7
    # fc6 by hand: torch's column c * 49 + 7 * i + j is our row (7 * i + j) * 512 + c.
    kernel, weight = np.asarray(model.head.fc6.kernel[...]), full["classifier.0.weight"].numpy()
    for c, i, j, out in ((0, 0, 0, 0), (511, 6, 5, 4095), (3, 0, 6, 17), (300, 4, 2, 1000)):
        assert kernel[(7 * i + j) * 512 + c, out] == weight[out, c * 49 + 7 * i + j]


def test_a_model_there_and_back_bit_for_bit():
    config = VGGConfig.features_only("vgg11_bn", "these weights come without a classifier")
    model = VGG(config, rngs=nnx.Rngs(3))
    again = flaxvgg.from_torch("vgg11_bn", flaxvgg.to_torch(model))
    assert again.config == config
    first, second = (dict(nnx.to_flat_state(nnx.state(m))) for m in (model, again))
    assert first.keys() == second.keys()
    for path, variable in first.items():
        assert type(variable) is type(second[path])
        assert variable[...].dtype == second[path][...].dtype
        assert _bits(variable[...]) == _bits(second[path][...])


def test_convolution_kernels_are_hwio(features):
    model = flaxvgg.from_torch("vgg11_bn", features)
    kernel, weight = np.asarray(model.conv_stack.conv2_1.kernel[...]), features["features.4.weight"]
    assert kernel.shape == (3, 3, 64, 128)
    for i, j, c, out in ((0, 0, 0, 0), (0, 2, 5, 100), (2, 1, 63, 127)):
        assert kernel[i, j, c, out] == weight[out, c, i, j]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_stay_bit_for_bit(features, dtype):
    source = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in features.items()
    }
    model = flaxvgg.from_torch("vgg11_bn", source)
    expected = jnp.dtype(str(dtype).removeprefix("torch."))
    assert model.conv_stack.conv1_1.kernel[...].dtype == expected
    assert model.conv_stack.conv1_1.param_dtype == expected
    back = flaxvgg.to_torch(model)
    for name, tensor in source.items():
        if tensor.is_floating_point():
            assert back[name].dtype == expected
        assert _bits(back[name]) == _tensor_bits(tensor), name
    # It computes in float32 all the same.
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m.features(x), model, images).dtype == jnp.float32


def test_float64_weights_need_x64(features):
    source = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in features.items()
    }
    with pytest.raises(MappingError) as caught:
        flaxvgg.from_torch("vgg11_bn", source)
    floats = [name for name, tensor in source.items() if tensor.is_floating_point()]
    (problem,) = caught.value.problems
    assert problem.startswith(f"{len(floats)} tensors are float64, and would lose digits: ")
    assert "--dtype float32 (param_dtype in Python)" in problem
    rounded = flaxvgg.to_torch(flaxvgg.from_torch("vgg11_bn", source, param_dtype=jnp.float32))
    name = "features.4.weight"  # made of float32, so nothing is lost
    assert _bits(rounded[name]) == _tensor_bits(features[name])
    with jax.enable_x64(True):
        model = flaxvgg.from_torch("vgg11_bn", source)
        assert model.conv_stack.conv1_1.kernel[...].dtype == jnp.float64
        back = flaxvgg.to_torch(model)
    for name, tensor in source.items():
        assert _bits(back[name]) == _tensor_bits(tensor), name


def test_param_dtype_rounds_weights_and_keeps_statistics(features):
    model = flaxvgg.from_torch("vgg11_bn", features, param_dtype=jnp.bfloat16)
    back = flaxvgg.to_torch(model)
    for name, tensor in features.items():
        if "running" in name:
            assert _bits(back[name]) == _tensor_bits(tensor)
        elif tensor.is_floating_point():
            assert _bits(back[name]) == _tensor_bits(tensor.bfloat16()), name
    assert back["features.1.num_batches_tracked"].dtype == np.int64


def test_torch_tensors_numpy_arrays_and_jax_arrays_are_the_same(features):
    expected = flaxvgg.to_torch(flaxvgg.from_torch("vgg11_bn", features))
    parameters = {
        name: torch.nn.Parameter(t, requires_grad=t.is_floating_point())
        for name, t in features.items()
    }
    arrays = {name: tensor.numpy() for name, tensor in features.items()}
    on_device = {
        name: jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)
        for name, array in arrays.items()
    }
    strided = {
        name: tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim else tensor
        for name, tensor in features.items()
    }
    for source in (parameters, arrays, on_device, strided):
        found = flaxvgg.to_torch(flaxvgg.from_torch("vgg11_bn", source))
        assert all(_bits(found[name]) == _bits(expected[name]) for name in expected)


def test_the_classifier_as_convolutions(full):
    source = dict(full)
    source["classifier.0.weight"] = full["classifier.0.weight"].reshape(4096, 512, 7, 7)
    source["classifier.3.weight"] = full["classifier.3.weight"].reshape(4096, 4096, 1, 1)
    source["classifier.6.weight"] = full["classifier.6.weight"].reshape(3, 4096, 1, 1)
    model = flaxvgg.from_torch("vgg11_bn", source)
    assert model.config.num_classes == 3
    for name, array in flaxvgg.to_torch(model).items():
        assert array.shape == tuple(full[name].shape)
        assert np.array_equal(array, full[name].numpy()), name


def test_the_source_is_neither_changed_nor_shared(features):
    source = {name: tensor.clone() for name, tensor in features.items()}
    model = flaxvgg.from_torch("vgg11_bn", source)
    assert list(source) == list(features)
    assert all(torch.equal(source[name], features[name]) for name in features)
    for tensor in source.values():
        tensor.zero_()
    back = flaxvgg.to_torch(model)
    assert all(np.array_equal(back[name], features[name].numpy()) for name in features)
    # And what to_torch gives is the caller's own.
    for array in back.values():
        array[...] = 0
    again = flaxvgg.to_torch(model)
    assert all(np.array_equal(again[name], features[name].numpy()) for name in features)


def test_read_only_arrays_are_enough(features):
    source = {name: tensor.numpy().copy() for name, tensor in features.items()}
    for array in source.values():
        array.flags.writeable = False
    back = flaxvgg.to_torch(flaxvgg.from_torch("vgg11_bn", source))
    assert all(np.array_equal(back[name], source[name]) for name in source)


def test_the_batch_count_may_be_missing(features):
    source = {n: t for n, t in features.items() if not n.endswith("num_batches_tracked")}
    model = flaxvgg.from_torch("vgg11_bn", source)
    assert int(model.conv_stack.bn1_1.num_batches_tracked[...]) == 0


# Errors.


def test_all_problems_are_named_together(features):
    source = dict(features)
    source["features.0.weight"] = source["features.0.weight"][:, :2]
    source["features.0.bias"] = source["features.0.bias"].to(torch.int32)
    del source["features.1.weight"]
    source["features.1.running_mean"] = torch.full((64,), float("nan"))
    spoiled = source["features.4.weight"].clone()
    spoiled[0, 0, 0, 0], spoiled[127, 63, 2, 2] = float("inf"), -float("inf")
    source["features.4.weight"] = spoiled
    source["features.1.num_batches_tracked"] = torch.tensor(7.0)
    source["features.99.weight"] = torch.zeros(2)
    expected = [
        "features.0.weight: shape (64, 2, 3, 3), expected (64, 3, 3, 3)",
        "features.0.bias: int32, expected floating point",
        "features.1.weight: missing, expected (64,)",
        "features.1.running_mean: 64 of 64 values are NaN or infinite in float32",
        "features.4.weight: 2 of 73728 values are NaN or infinite in float32",
        "features.1.num_batches_tracked: float32, expected an integer",
        "features.99.weight: unexpected",
    ]
    with pytest.raises(MappingError, match=r"^this is no vgg11_bn: 7 problems\n") as caught:
        flaxvgg.from_torch("vgg11_bn", source)
    assert sorted(caught.value.problems) == sorted(expected)
    assert all(f"\n  {problem}" in str(caught.value) for problem in expected)
    assert isinstance(caught.value, ValueError)


def _odd_tensors() -> dict[str, torch.Tensor]:
    tensor = torch.ones(64, 3, 3, 3)
    return {
        "sparse": tensor.to_sparse(),
        "float8": tensor.to(torch.float8_e4m3fn),
        "without data": torch.empty(64, 3, 3, 3, device="meta"),
    }


@pytest.mark.parametrize("kind", ["sparse", "float8", "without data"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_tensors_that_are_no_arrays_are_named(features, kind):
    odd = features | {"features.0.weight": _odd_tensors()[kind]}
    with pytest.raises(MappingError, match=r"this is no .*: features\.0\.weight: \S+"):
        flaxvgg.from_torch("vgg11_bn", odd)
    odd = features | {"classifier.6.bias": _odd_tensors()[kind]}
    with pytest.raises(MappingError, match=r"classifier\.6\.bias"):
        flaxvgg.from_torch("vgg11_bn", odd)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found(features, value):
    spoiled = features["features.8.bias"].clone()
    spoiled[255] = value
    message = re.escape("features.8.bias: 1 of 256 values are NaN or infinite in float32")
    with pytest.raises(MappingError, match=f"^this is no vgg11_bn: {message}$"):
        flaxvgg.from_torch("vgg11_bn", features | {"features.8.bias": spoiled})


def test_values_that_overflow_the_dtype_asked_for_are_found(features):
    large = features["features.8.bias"].clone()
    large[3] = 1e6
    source = features | {"features.8.bias": large}
    assert flaxvgg.from_torch("vgg11_bn", source).config.arch == "vgg11_bn"
    with np.errstate(over="ignore"), pytest.raises(MappingError, match="infinite in float16"):
        flaxvgg.from_torch("vgg11_bn", source, param_dtype=jnp.float16)


@pytest.mark.parametrize("other", [a for a in ARCHITECTURES if a != "vgg16"])
def test_the_weights_of_another_architecture_are_named(other):
    message = f"^this is no vgg16: these are the weights of a {other}$"
    with pytest.raises(MappingError, match=message):
        flaxvgg.from_torch("vgg16", _meta_state_dict(other))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nearest_arch(arch):
    names = list(_meta_state_dict(arch))
    assert nearest_arch(names) == (arch, 0)
    assert nearest_arch([n for n in names if "num_batches" not in n]) == (arch, 0)
    names.remove("features.0.weight")
    assert nearest_arch([*names, "features.x"]) == (arch, 2)


def test_an_unknown_architecture(features):
    with pytest.raises(ValueError, match="unknown architecture 'vgg12'"):
        flaxvgg.from_torch("vgg12", features)


def test_an_empty_state_dict():
    with pytest.raises(StateDictError, match=r"^what was given holds no state dict: "):
        flaxvgg.from_torch("vgg11", {})


# The classifier that is no classifier.


def test_no_classifier_is_features_only(features):
    model = flaxvgg.from_torch("vgg11_bn", features)
    with pytest.raises(ValueError, match="no logits: these weights come without a classifier"):
        model(jnp.asarray(random_images(1, 32, 32)))
    assert list(flaxvgg.to_torch(model)) == list(features)


def test_a_nan_classifier_is_features_only_and_says_why(features):
    state_dict = features | _classifier(value=float("nan"))
    model = flaxvgg.from_torch("vgg11_bn", state_dict, precision="default")
    images = jnp.asarray(random_images(1, 32, 32))
    assert model.config.num_classes == 0
    reason = r"NaN by design \(torchvision publishes IMAGENET1K_FEATURES for its features\)"
    with pytest.raises(ValueError, match=f"no logits: its classifier is {reason}"):
        model(images)
    with pytest.raises(ValueError, match=f"no layer 'fc1': its classifier is {reason}"):
        model.activations(images, ["fc1"])
    assert jnp.isfinite(model.features(images)).all()


def test_a_partly_nan_classifier_is_refused(features):
    classifier = _classifier()
    classifier["classifier.6.weight"] = _zeros(3, 4096, value=float("nan"))
    bias = np.zeros(3, np.float32)
    bias[1] = np.nan
    with pytest.raises(MappingError) as caught:
        flaxvgg.from_torch("vgg11_bn", features | classifier | {"classifier.6.bias": bias})
    assert caught.value.problems == [
        "classifier.6.weight: 12288 of 12288 values are NaN or infinite in float32",
        "classifier.6.bias: 1 of 3 values are NaN or infinite in float32",
    ]


def test_half_a_classifier_does_not_pass_for_features_only(features):
    state_dict = features | _classifier()
    del state_dict["classifier.6.weight"]
    config, left_out = config_for("vgg11_bn", state_dict)
    assert config == VGGConfig.classifier("vgg11_bn", num_classes=1000)
    assert left_out == set()


@pytest.mark.parametrize("classes", [1, 2, 365])
def test_the_number_of_classes_is_read_from_the_weights(classes):
    config, left_out = config_for("vgg19", _meta_state_dict("vgg19") | _classifier(classes))
    assert config == VGGConfig.classifier("vgg19", num_classes=classes)
    assert left_out == set()


def test_build_refuses_arrays_that_are_not_the_skeletons():
    config = VGGConfig.features_only("vgg11", "")
    arrays = {entry.path: np.zeros(entry.shape, np.float32) for entry in entries(config)}
    arrays["conv_stack", "conv1_1", "bias"] = np.zeros(3, np.float32)
    del arrays["conv_stack", "conv2_1", "kernel"]
    arrays["head", "fc9", "bias"] = np.zeros(3, np.float32)
    with pytest.raises(MappingError) as caught:
        build(config, arrays)
    assert caught.value.problems == [
        "head.fc9.bias: unexpected",
        "conv_stack.conv1_1.bias: shape (3,), expected (64,)",
        "conv_stack.conv2_1.kernel: missing, expected (3, 3, 64, 128)",
    ]
