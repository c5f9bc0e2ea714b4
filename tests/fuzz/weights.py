"""The readers of `convert`, and the formats' own libraries."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import numpy_helper

from tests.fuzz import inert
from tests.fuzz.array_pickles import array_pickle, true_arrays
from tests.fuzz.cases import Arrays, Seed, Target, in_place
from tests.fuzz.files import (
    CONVS,
    KERAS_FRONTS,
    VGG11,
    keras_archive,
    keras_config,
    keras_functional,
    keras_h5,
    keras_weights_h5,
    onnx_file,
    onnx_quantised_file,
    random_weights,
    safetensors_file,
    safetensors_set,
    torch_file,
)

# isort: split
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.weights.file_kinds import file_kind
from flaxvgg.weights.mapping import MappingError, arrays_from_torch, config_for, entries


def weight_targets() -> list[Target]:
    """One for each format."""
    half = random_weights(ml_dtypes.bfloat16)
    tensors = {name: torch.from_numpy(array) for name, array in random_weights().items()}
    wrapped = {f"module.{name}": tensor.half() for name, tensor in tensors.items()}
    training = {"epoch": 3, "state_dict": wrapped, "lr": 0.1}
    shared = torch.cat([tensor.ravel() for tensor in tensors.values()])
    parts = shared.split([tensor.numel() for tensor in tensors.values()])
    views = {n: part.view(tensors[n].shape) for n, part in zip(tensors, parts, strict=True)}
    nested = {"a": {"b": {f"model._orig_mod.{n}": x for n, x in tensors.items()}}}
    steps = {n: x.transpose(0, -1).contiguous().transpose(0, -1) for n, x in tensors.items()}
    repeated = steps | {
        "features.0.bias": torch.tensor(0.5).expand(tensors["features.0.bias"].shape)
    }
    beside = {"callbacks": {"best": Path("a.ckpt")}, "seen": {3}, "rng": np.random.default_rng(1)}
    lightning = beside | {"state_dict": {f"net.0.{n}": x for n, x in tensors.items()}}
    twins = tensors | {f"module.{n}": x.clone() for n, x in tensors.items()}
    pickles = [tensors, training, views, nested, repeated, lightning, twins]
    kinds = {
        ".safetensors": [
            Seed("weights.safetensors", safetensors_file(random_weights())),
            Seed("weights.safetensors", safetensors_file(half, {"format": "pt"})),
        ],
        ".pth": [Seed("weights.pth", torch_file(value)) for value in pickles],
        ".pth, legacy": [Seed("weights.pth", torch_file(value, False)) for value in pickles],
        ".onnx": [
            *(Seed("weights.onnx", onnx_file(raw)) for raw in (True, False)),
            Seed("weights.onnx", onnx_file(True, front=True)),
            Seed("weights.onnx", onnx_quantised_file()),
        ],
        ".h5": [
            *(Seed("weights.h5", keras_h5(whole)) for whole in (True, False)),
            Seed("weights.h5", keras_h5(True, config=keras_config(*KERAS_FRONTS[0]))),
        ],
        ".weights.h5": [Seed("vgg.weights.h5", keras_weights_h5())],
        ".ckpt": [Seed("vgg16.ckpt", array_pickle())],
        ".keras": [
            Seed("vgg.keras", keras_archive()),
            *(Seed("vgg.keras", keras_archive(keras_config(*front))) for front in KERAS_FRONTS),
            Seed("vgg.keras", keras_archive(keras_functional())),
        ],
    }
    errors = (SourceError, MappingError)
    parts = [Seed(name, data) for name, data in safetensors_set().items()]
    return [
        *(
            Target(kind, 6, seeds, errors, _read_weights, _true_weights, in_place)
            for kind, seeds in kinds.items()
        ),
        Target("index", 6, parts, errors, _read_weights, _true_set, _in_a_set),
    ]


def _in_a_set(folder: Path, name: str, data: bytes) -> Path:
    """One of the files of a set, among the others as they should be; the path is the index's."""
    files = safetensors_set()
    for other, content in (files | {name: data}).items():
        (folder / other).write_bytes(content)
    return folder / next(iter(files))


def _true_set(data: bytes, path: Path, whole: bytes) -> Arrays:
    if file_kind(path) != "index":  # weights of another kind under its name
        return _true_weights(data, path, whole)
    where = json.loads(path.read_text())["weight_map"]
    parts = {part: _true_safetensors((path.parent / part).read_bytes()) for part in where.values()}
    found = {name: array for arrays in parts.values() for name, array in arrays.items()}
    assert where.keys() <= found.keys()
    return {name[name.find("features.") :]: array for name, array in found.items()}


def _read_weights(path: Path) -> Arrays:
    source = read_source(str(path))
    config, left_out = config_for(source.arch, source.state_dict)
    state = {name: x for name, x in source.state_dict.items() if name not in left_out}
    arrays = arrays_from_torch(config, state, None, source.release)
    found = {}
    for entry in entries(config):
        array = arrays[entry.path]
        found[entry.torch] = array if array.ndim < 4 else array.transpose(3, 2, 0, 1)
    return found


def _true_weights(data: bytes, path: Path, whole: bytes) -> Arrays:
    kind = file_kind(path)
    match kind:
        case "safetensors":
            found = _true_safetensors(data)
        case "torch":
            found = _true_torch(data)
        case "arrays":
            found = true_arrays(data)
        case "onnx":
            found = _true_onnx(data)
        case _:
            found = _true_keras(data, path)
    return {name[name.find("features.") :]: array for name, array in found.items()}


def _true_safetensors(data: bytes) -> Arrays:
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    table.pop("__metadata__", None)
    dtypes = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
    found, ends = {}, 0
    for name, told in table.items():
        start, stop = told["data_offsets"]
        content = data[8 + length :][start:stop]
        assert len(content) == stop - start
        found[name] = np.frombuffer(content, dtypes[told["dtype"]]).reshape(told["shape"])
        ends += stop - start
    assert 8 + length + ends == len(data), "tensors overlap, or do not fill the file"
    return found


def _true_torch(data: bytes) -> Arrays:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None, "a wrong checksum"
            data = _as_saved(archive)
    value = torch.load(io.BytesIO(data), "cpu", weights_only=False, pickle_module=inert)
    return {
        name: tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.detach().numpy()
        for name, tensor in _tensors(value, "")
        if "features." in name
    }


def _as_saved(archive: zipfile.ZipFile) -> bytes:
    """The archive with the names that PyTorch's reader looks for."""
    packed = io.BytesIO()
    names = archive.namelist()
    root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
    with zipfile.ZipFile(packed, "w") as new:
        for name in names:
            new.writestr(f"archive/{name.removeprefix(root)}", archive.read(name))
        if f"{root}version" not in names:
            new.writestr("archive/version", "3\n")
    return packed.getvalue()


def _tensors(value: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")


def _true_onnx(data: bytes) -> Arrays:
    """The weights of the convolutions in order, if the file's own graph computes with them."""
    model = onnx.load_from_string(data)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    found = {}
    kept = {
        node.output[0]: [numpy_helper.to_array(initializers[name]) for name in node.input]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for layer, node in zip(CONVS, nodes, strict=True):
        for name, used in zip(("weight", "bias"), node.input[1:], strict=True):
            if used in kept:
                whole, scale, zero = kept[used]
                array = (whole.astype(np.int32) - zero).astype(scale.dtype) * scale
            else:
                array = numpy_helper.to_array(initializers[used])
            found[f"{layer.torch}.{name}"] = array
    # What stands before the first convolution is part of the recipe, and no weight.
    return found | ({} if nodes[0].input[0] != "input" else _as_computed(data, found))


def _as_computed(data: bytes, weights: Arrays) -> Arrays:
    """Nothing where ONNX Runtime's features are PyTorch's with these weights; else what differs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception:  # it is picky about names and declared outputs, which change no weight
        return {}
    dtype = weights["features.0.weight"].dtype
    told = session.get_inputs()[0].shape  # numbers, and names of what may be any
    shape = [n if isinstance(n, int) else 32 for n in told[2:]]
    images = np.random.default_rng(2).standard_normal((1, 3, *shape)).astype(dtype)
    (features,) = session.run(None, {session.get_inputs()[0].name: images})
    x = torch.from_numpy(images).double()
    for layer in VGG11.conv_stack:
        match layer.kind:
            case "conv":
                w, b = (
                    torch.from_numpy(weights[f"{layer.torch}.{name}"].astype(np.float64))
                    for name in ("weight", "bias")
                )
                x = torch.nn.functional.conv2d(x, w, b, padding=1)
            case "relu":
                x = x.relu()
            case _:
                x = torch.nn.functional.max_pool2d(x, 2)
    error = np.abs(features - x.numpy()).max() / max(np.abs(x.numpy()).max(), 1e-30)
    return {} if error < 1e-3 or not np.isfinite(error) else {f"error {error}": np.zeros(0)}


def _true_keras(data: bytes, path: Path) -> Arrays:
    # Of a path HDF5 leaves out what no reader of local files needs.
    source: io.BytesIO | Path = path
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            json.loads(archive.read("config.json"))
            source = io.BytesIO(archive.read("model.weights.h5"))
    found = {}
    with h5py.File(source) as file:
        for i, layer in enumerate(CONVS):
            group = file.get("model_weights", file)
            names = [f"{layer.name}/{layer.name}/{x}:0" for x in ("kernel", "bias")]
            if "layers" in file:
                group, names = (
                    file,
                    [f"layers/conv2d{f'_{i}' if i else ''}/vars/{j}" for j in (0, 1)],
                )
            kernel, bias = (group[name][()] for name in names)
            found[f"{layer.torch}.weight"] = kernel.transpose(3, 2, 0, 1)
            found[f"{layer.torch}.bias"] = bias
    return found
