"""Files that somebody made to do harm: each runs, reads, allocates or recurses where it is let."""

import io
import itertools
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch

from flaxvgg.network.config import VGGConfig
from flaxvgg.network.provenance import Provenance
from tests.fuzz import files as valid
from tests.fuzz.array_pickles import hostile_pickles
from tests.fuzz.cases import Arrays, Seed
from tests.fuzz.mutations import crc

_TEXT = 'open("executed", "w")'
_HUGE = 2**62


def hostile_cases() -> Iterator[tuple[str, Seed]]:
    """The kind of the target, and the file; most are to be refused."""
    for kind, name, data, refused in _cases():
        yield kind, Seed(name, data, hostile=refused)


def _cases() -> Iterator[tuple[str, str, bytes, bool]]:
    for data in _images():
        yield "PNG", "bomb.png", data, True
    for pickled in _pickles():
        yield ".pth", "evil.pth", _archive_of(pickled), True
        yield ".pth", "evil.pth", pickled, True
        yield ".pth, legacy", "evil.pth", _legacy_of(pickled), True
    for data, refused in _archives():
        yield ".pth", "odd.pth", data, refused
    for value in _odd_tensors():
        yield ".pth", "odd.pth", valid.torch_file(value), True
        yield ".pth, legacy", "odd.pth", valid.torch_file(value, archive=False), True
    for data, refused in _safetensors():
        yield ".safetensors", "odd.safetensors", data, refused
    for data in _checkpoints():
        yield "our .safetensors", "odd.safetensors", data, True
    for data in hostile_pickles():
        yield ".ckpt", "odd.ckpt", data, True
    for data in _onnx_files():
        yield ".onnx", "odd.onnx", data, True
    for data in _hdf5_files():
        yield ".h5", "odd.h5", data, True
    for data in _keras_archives():
        yield ".keras", "odd.keras", data, True
    for data in _tables():
        yield "CSV", "labels.csv", data, True
    for data in _annotations():
        yield "Pascal VOC", "Annotations/a.xml", data, True
    for name in (b"\xff\xfe", b"a" * 300, b"\0", b"a\na"[:0]):
        yield "Pascal VOC", "ImageSets/Main/trainval.txt", name, True


# Images.


def _png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    all_chunks = ((b"IHDR", head), *chunks, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4, "big") + kind + content + crc(kind + content)
        for kind, content in all_chunks
    )


def _images() -> Iterator[bytes]:
    yield _png(60000, 60000, (b"IDAT", zlib.compress(bytes(10**6))))
    yield _png(2**31 - 1, 2**31 - 1, (b"IDAT", b""))
    yield _png(0, 40, (b"IDAT", b""))
    bomb = b"note\0\0" + zlib.compress(bytes(8 << 20))
    yield _png(40, 40, (b"zTXt", bomb), (b"IDAT", zlib.compress(bytes(41 * 40))))
    # Ghostscript would run it.
    yield (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n"
        b"(executed) (w) file closefile\nshowpage\n%%EOF\n"
    )
    yield b"P6 99999 99999 255\n" + bytes(1000)
    yield b"P6 -40 40 255\n" + bytes(4800)
    yield b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(9) + b"\x02\0;"
    yield b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, -40, *(1, 24, *6 * [0])
    )
    entries = struct.pack("<HHIIHHII", 256, 4, 1, 2**31 - 1, 257, 4, 1, 2**31 - 1)
    yield b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    yield b"II*\0" + struct.pack("<IHHHII", 8, 1, 256, 4, 1, 40) + struct.pack("<I", 8)  # a loop


# PyTorch.


def _pickles() -> Iterator[bytes]:
    """Programs for the unpickler, one for each way it has of calling something."""
    text = _TEXT.encode()
    yield b"cbuiltins\nexec\n(V" + text + b"\ntR."  # REDUCE
    yield b"(V" + text + b"\nibuiltins\nexec\n."  # INST
    yield b"(cbuiltins\nexec\nV" + text + b"\no."  # OBJ
    yield b"\x80\x02cbuiltins\nexec\n(V" + text + b"\nt\x81."  # NEWOBJ
    yield b"\x80\x04cbuiltins\nexec\n(V" + text + b"\nt}\x92."  # NEWOBJ_EX
    name = b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93"
    yield name + b"\x8c" + bytes([len(text)]) + text + b"\x85R."  # STACK_GLOBAL
    yield b"cos\nsystem\n(Vtouch executed\ntR."
    yield b"ctorch.serialization\nload\n(Vweights.pth\nI01\ntR."
    yield b"ctorch._utils\n_rebuild_tensor_v2\n(cbuiltins\nexec\nVx\nttR."
    yield b"ccollections\nOrderedDict\n(tR(dV__class__\ncbuiltins\nexec\nsb."  # BUILD
    yield b"\x80\x04" + b"]" * 100_000 + b"."
    yield b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b"."  # nested tuples
    yield b"\x80\x04\x8e" + struct.pack("<Q", _HUGE) + b"x."  # BINBYTES8 of exabytes
    yield b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."


def _archive_of(pickled: bytes) -> bytes:
    """The archive of a state dict with another pickle."""
    return _repacked(valid.torch_file({"a": torch.ones(3)}), {"archive/data.pkl": pickled})


def _repacked(archive: bytes, changed: dict[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w", **options) as new:
        for name in old.namelist():
            new.writestr(options.get("prefix", "") + name, changed.get(name, old.read(name)))
    return file.getvalue()


def _legacy_of(pickled: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001})
    return b"".join(pickle.dumps(x, 2) for x in head) + pickled + pickle.dumps([], 2)


def _state() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in valid.random_weights().items()}


def _archives() -> Iterator[tuple[bytes, bool]]:
    whole = valid.torch_file(_state())
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(f"../{name}", old.read(name))
    yield packed.getvalue(), False  # nothing is unpacked, so the name does no harm
    yield _repacked(whole, {}, compression=zipfile.ZIP_DEFLATED), True
    bomb = {"archive/data.pkl": bytes(8 << 20)}
    yield _repacked(whole, bomb, compression=zipfile.ZIP_DEFLATED), True
    spoiled = bytearray(whole)
    place = whole.index(_state()["features.0.weight"].numpy().tobytes())
    spoiled[place + 7] ^= 1
    yield bytes(spoiled), True


def _odd_tensors() -> Iterator[dict[str, Any]]:
    """Values that a state dict may have, and that are no plain arrays of numbers."""
    name, state = "features.0.weight", _state()
    weight = state[name]
    yield state | {name: weight.to_sparse()}
    yield state | {name: weight.to(torch.complex64)}
    yield state | {name: weight.to(torch.float8_e4m3fn)}
    yield state | {name: torch.empty(weight.shape, device="meta")}
    yield state | {name: torch.zeros(1).expand(10**6, 10**6, 10**3)}
    yield state | {name: weight > 0}
    yield state | {name: _quantised(weight)}
    yield state | {f"module.{name}": 2 * weight}
    yield {7: weight}
    yield {"state_dict": state, "ema": {name: 2 * x for name, x in state.items()}}


def _quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its end is announced
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


# Safetensors, and what we keep in them.


def _safetensors() -> Iterator[tuple[bytes, bool]]:
    weights = valid.random_weights()
    for data in _damaged_safetensors(weights):
        yield data, True
    twins = {f"module.{name}": array for name, array in weights.items()} | weights
    yield valid.safetensors_file(twins), False  # the same twice, so no matter which
    for name in ("module.features.0.weight", "features.18.bias"):
        yield valid.safetensors_file(twins | {name: 2 * twins[name]}), True


def _damaged_safetensors(weights: Arrays) -> Iterator[bytes]:
    whole = valid.safetensors_file(weights)
    length = int.from_bytes(whole[:8], "little")
    data = whole[8 + length :]

    def of(table: Any) -> bytes:
        text = table if isinstance(table, bytes) else json.dumps(table).encode()
        return len(text).to_bytes(8, "little") + text + data

    table = json.loads(whole[8 : 8 + length])
    first = table["features.0.weight"]
    second = table["features.0.bias"]
    for changed in (
        {"data_offsets": [0, 2**64]},
        {"data_offsets": [2**64 - 4, 2**64]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": [first["data_offsets"][1], 0]},
        {"data_offsets": second["data_offsets"]},
        {"shape": [2**32, 2**32, 3, 3]},
        {"shape": [-3, -3, 3, 3]},
        {"dtype": "F128"},
        {"dtype": "I32"},
        {"dtype": "F8_E4M3"},
    ):
        yield of(table | {"features.0.weight": first | changed})
    yield of(table | {"features.0.bias": second | {"data_offsets": first["data_offsets"]}})
    yield of(table | {"x" * 10**6: second})
    yield of({})
    yield of(b"[" * 10**5 + b"]" * 10**5)
    yield of(b'{"__metadata__":' + b'{"a":' * 10**5 + b"}" * 10**5)
    yield of(b'{"__metadata__": {"flaxvgg": "' + b"[" * 10**5 + b'"}}')
    for size in (0, 1, 2**31, _HUGE, 2**64 - 1, 100 << 20):
        yield size.to_bytes(8, "little") + whole[8:]
    yield b"\x89HDF\r\n\x1a\n" + bytes(100)


def _checkpoints() -> Iterator[bytes]:
    """Headers of the first format, which had no checksums, that say what no model has."""
    weights, config = valid.random_weights(), VGGConfig.features_only("vgg11", "")
    header = {
        "format": 1,
        "config": config.to_json(),
        "provenance": Provenance("a file", "00").to_json(),
        "dtype": "float32",
        "param_dtype": "float32",
    }

    def of(header: Any) -> bytes:
        text = header if isinstance(header, str) else json.dumps(header)
        return valid.safetensors_file(weights, {"flaxvgg": text})

    linear = {"name": "fc", "kind": "linear", "torch": "classifier", "inputs": 6, "outputs": 5}
    for changed in (
        {"format": [1]},
        {"format": 10**30},
        {"dtype": "object"},
        {"dtype": "nothing"},
        {"dtype": 7},
        {"dtype": "int8"},
        {"param_dtype": None},
        {"provenance": None},
        {"provenance": {"source": "x"}},
        {"config": None},
        {"config": "vgg11"},
        {"config": {}},
        {"config": config.to_json() | {"arch": "vgg12"}},
        {"config": config.to_json() | {"arch": ["vgg11"]}},
        {"config": config.to_json() | {"head": 7}},
        {"config": config.to_json() | {"head": [7]}},
        {"config": config.to_json() | {"head": [{"name": "x", "kind": "exec"}]}},
        {"config": config.to_json() | {"head": [linear | {"outputs": 10**12}]}},
        {"config": config.to_json() | {"head": [linear | {"outputs": -1}]}},
        {"config": config.to_json() | {"head": [linear | {"outputs": "5"}]}},
        {"config": config.to_json() | {"head": [linear | {"rate": "a"}]}},
        {"config": config.to_json() | {"head": [linear | {"inputs": None}]}},
        {"config": config.to_json() | {"head": [linear | {"name": "__class__"}]}},
        {"config": config.to_json() | {"last_pool": False, "extra": 1}},
    ):
        yield of(header | changed)
    for name in header:
        yield of({key: value for key, value in header.items() if key != name})
    yield of("{")
    yield of("7")
    yield of("[" * 10**5 + "]" * 10**5)
    yield of('{"a":' * 10**5 + "1" + "}" * 10**5)


# ONNX.


def _onnx_files() -> Iterator[bytes]:
    def changed(change: Any) -> bytes:
        model = onnx.load_from_string(valid.onnx_file(True))
        change(model.graph)
        return model.SerializeToString()

    def external(location: str) -> Any:
        def change(graph: onnx.GraphProto) -> None:
            tensor = graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)

        return change

    (Path.cwd() / "x").unlink(missing_ok=True)
    for location in ("/dev/zero", "/etc/passwd", "../../outside", "missing", "", "."):
        yield changed(external(location))

    def dims(*values: int) -> Any:
        def change(graph: onnx.GraphProto) -> None:
            graph.initializer[0].dims[:] = values

        return change

    for values in ((_HUGE, 3, 3, 3), (-1, 3, 3, 3), (2**31, 2**31, 3, 3), (), (3, 3, 3)):
        yield changed(dims(*values))

    def no_data(graph: onnx.GraphProto) -> None:
        graph.initializer[0].ClearField("raw_data")

    def kind(number: int) -> Any:
        def change(graph: onnx.GraphProto) -> None:
            graph.initializer[0].data_type = number

        return change

    def loop(graph: onnx.GraphProto) -> None:
        graph.node[1].output[0] = graph.node[1].input[0]

    def cycle(graph: onnx.GraphProto) -> None:
        graph.node[1].input[0] = graph.node[4].output[0]

    def twice(graph: onnx.GraphProto) -> None:
        graph.node[4].output[0] = graph.node[1].output[0]

    def computed(*nodes: onnx.NodeProto) -> Any:
        def change(graph: onnx.GraphProto) -> None:
            name = graph.initializer[0].name
            del graph.initializer[0]
            nodes[-1].output[0] = name
            for node in reversed(nodes):
                graph.node.insert(0, node)

        return change

    def constant(value: list[int]) -> onnx.NodeProto:
        tensor = onnx.helper.make_tensor("", 7, [len(value)], value)
        return onnx.helper.make_node("Constant", [], ["shape"], value=tensor)

    make = onnx.helper.make_node
    yield changed(no_data)
    for number in (0, 8, 10, 99):
        yield changed(kind(number))
    for change in (loop, cycle, twice):
        yield changed(change)
    yield changed(computed(constant([2**20] * 3), make("ConstantOfShape", ["shape"], ["x"])))
    chain = [constant([3, 3, 3, 3]), make("ConstantOfShape", ["shape"], ["0"])]
    chain += [make("Identity", [str(i)], [str(i + 1)]) for i in range(2000)]
    yield changed(computed(*chain))
    yield changed(computed(make("Nonsense", ["features.0.bias"], ["x"])))
    yield changed(computed(make("Reshape", ["features.0.bias"], ["x"])))

    def huge_window(graph: onnx.GraphProto) -> None:
        del graph.node[2].attribute[:]

    def no_weight(graph: onnx.GraphProto) -> None:
        del graph.node[0].input[1:]

    def no_output(graph: onnx.GraphProto) -> None:
        del graph.node[1].output[:]

    def no_input(graph: onnx.GraphProto) -> None:
        del graph.node[1].input[:]

    def odd_permutation(graph: onnx.GraphProto) -> None:
        graph.node[1].CopyFrom(
            make(
                "Transpose", [graph.node[1].input[0]], [graph.node[1].output[0]], perm=[9, 9, 9, 9]
            )
        )

    for change in (huge_window, no_weight, no_output, no_input, odd_permutation):
        yield changed(change)
    yield from _onnx_windows(changed)
    yield from _onnx_fronts(changed)


def _onnx_windows(changed: Any) -> Iterator[bytes]:
    """Convolutions and poolings that slide as none can."""

    def setting(at: int, **values: list[int]) -> Any:
        def change(graph: onnx.GraphProto) -> None:
            kept = [a for a in graph.node[at].attribute if a.name not in values]
            del graph.node[at].attribute[:]
            new = (onnx.helper.make_attribute(name, value) for name, value in values.items())
            graph.node[at].attribute.extend([*kept, *new])

        return change

    for at in (0, 2):  # a convolution, a pooling
        for strides in ([0, 0], [1], [-1, -1], [1, 1, 1], [2**40, 2**40]):
            yield changed(setting(at, strides=strides))
        yield changed(setting(at, pads=[1, 1, 1]))
        yield changed(setting(at, dilations=[2]))
        yield changed(setting(at, kernel_shape=[5]))


def _onnx_fronts(changed: Any) -> Iterator[bytes]:
    """Nodes before the first convolution whose constants do not fit."""

    def front(op: str, *constants: np.ndarray, **attributes: Any) -> bytes:
        def change(graph: onnx.GraphProto) -> None:
            names = [f"c{i}" for i in range(len(constants))]
            node = onnx.helper.make_node(op, ["input", *names], ["front"], **attributes)
            graph.node[0].input[0] = "front"
            graph.node.insert(0, node)
            for name, constant in zip(names, constants, strict=True):
                graph.initializer.append(onnx.numpy_helper.from_array(constant, name))

        return changed(change)

    for pads in ([1, 1, 1], [[0, 0], [0, 0]], [0.5] * 8, [-1] * 8, []):
        yield front("Pad", np.array(pads))
    yield front("Pad", np.zeros(4, int), np.array(0.0), np.array([9, 9]))
    for indices in ([0.0, 1, 2], [7, 0, 1], [], [[0, 1, 2]]):
        yield front("Gather", np.array(indices), axis=1)
    yield front("Slice", np.array([0.0]), np.array([2.0]), np.array([1]))
    yield front("Slice", np.array([0]), np.array([0]), np.array([1]))
    for value in (np.inf, np.nan, np.zeros((3, 2)), np.array(["a"], object), np.zeros(0)):
        yield front("Mul", np.array(value) if not isinstance(value, np.ndarray) else value)
    kernel = np.ones((3, 3, 1, 1), np.float32)
    yield front("Conv", kernel, np.ones(2, np.float32))
    yield front("BatchNormalization", *(np.full(3, x, np.float32) for x in (1, 0, 0, -1)))


# Keras.


def _hdf5_files() -> Iterator[bytes]:
    name = f"model_weights/{valid.CONVS[0].name}/{valid.CONVS[0].name}/kernel:0"

    def replaced(make: Any) -> bytes:
        def change(file: h5py.File) -> None:
            del file[name]
            make(file)

        return valid.keras_h5(True, change)

    def huge(*shape: int) -> Any:
        return lambda file: file.create_dataset(name, shape, np.float32, chunks=(1,) * len(shape))

    yield replaced(huge(2**20, 2**20, 3, 3))
    yield replaced(huge(2**15, 2**15, 1, 1))
    yield replaced(
        lambda file: file.create_dataset(
            name, (3, 3, 3, 3), np.uint8, external=[("/etc/passwd", 0, 81)]
        )
    )
    yield replaced(lambda file: file.__setitem__(name, h5py.ExternalLink("odd.h5", "/x")))
    yield replaced(lambda file: file.__setitem__(name, h5py.SoftLink("/" + name)))
    yield replaced(lambda file: file.create_group(name))
    yield replaced(lambda file: file.__setitem__(name, "text"))
    yield replaced(lambda file: file.__setitem__(name, np.array(["a", "b"], object)))
    yield replaced(lambda file: file.__setitem__(name, h5py.Empty(np.float32)))
    yield replaced(lambda file: file.__setitem__(name, np.zeros(3, [("a", "f4"), ("b", "i4")])))
    yield replaced(lambda file: file.__setitem__(name, np.float32(1)))

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((3, 3, 3, 3), np.float32)
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 3, 3, 3), np.float32)
        file.create_virtual_dataset(name, layout)

    yield replaced(virtual)

    def attribute(room: str, key: str, value: Any) -> bytes:
        return valid.keras_h5(True, lambda file: file[room].attrs.__setitem__(key, value))

    first = valid.CONVS[0].name
    yield attribute("model_weights", "layer_names", 7)
    yield attribute("model_weights", "layer_names", h5py.Empty("S1"))
    yield attribute("model_weights", "layer_names", [b"missing"])
    yield attribute("model_weights", "layer_names", [b"\xff\xfe"])
    yield attribute("model_weights", "layer_names", [first.encode()] * 8)
    yield attribute(f"model_weights/{first}", "weight_names", [b"../" + first.encode()])
    yield attribute(f"model_weights/{first}", "weight_names", [b""])
    for config in _configurations():
        yield attribute("/", "model_config", config)
    yield attribute("/", "model_config", 7)
    yield attribute("/", "model_config", np.bytes_(b"\xff\xfe"))


def _configurations() -> Iterator[str]:
    whole = json.loads(valid.keras_config())
    layers = whole["config"]["layers"]
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAAAAAAAAEAAAA=\n"}}
    run = {"class_name": "Lambda", "config": {"name": "l", "function": code}}
    for at in (1, len(layers) // 2):
        with_lambda = [*layers[:at], run, *layers[at:]]
        yield json.dumps(whole | {"config": {"layers": with_lambda}})
    for odd in _odd_layers():
        yield json.dumps(whole | {"config": {"layers": [odd, *layers]}})
    for odd in _odd_calls():
        functional = json.loads(valid.keras_functional())
        functional["config"]["layers"][2]["inbound_nodes"] = odd
        yield json.dumps(functional)
    yield _model_in_model()
    yield "[1, 2]"
    yield "7"
    yield '"text"'
    yield '{"class_name": 7, "config": 7}'
    yield '{"class_name": ["Conv2D"], "config": {}}'
    yield '{"config": {"layers": 7}}'
    yield '{"config": {"layers": [7]}}'
    yield "["
    yield "[" * 10**4 + "]" * 10**4
    yield '{"config": {"layers": [' * 2000 + "]}}" * 2000


def _odd_layers() -> Iterator[dict[str, Any]]:
    """Layers in front whose settings are no settings."""
    for key, kind in (("scale", "Rescaling"), ("offset", "Rescaling"), ("mean", "Normalization")):
        for value in ("x", {}, [[1], 2], [1, 2], {"a": 1}, 10**400, float("inf"), [[[]]], [None]):
            own = {"scale": 2, "mean": 1, "variance": 1, "name": "odd"} | {key: value}
            yield {"class_name": kind, "config": own}
    for axis in ([[1], 2], {}, "x", [[]], 10**30):
        own = {"name": "odd", "axis": axis, "mean": 1, "variance": 1}
        yield {"class_name": "Normalization", "config": own}
    for padding in ("x", [[1], 2], [[1, 2], None], [[-1, 0], 0], {}, [1, 2, 3], [["a", "b"], 1]):
        yield {"class_name": "ZeroPadding2D", "config": {"name": "odd", "padding": padding}}
    for epsilon in ("x", [], {}, None, -1, float("nan"), 1e300):
        own = {"name": valid.CONVS[0].name, "epsilon": epsilon}
        yield {"class_name": "BatchNormalization", "config": own}
    yield {"class_name": "Conv2D", "config": {"name": valid.CONVS[0].name, "kernel_size": {}}}
    yield {"class_name": "Activation", "config": {"name": "odd", "activation": {"class_name": []}}}
    yield {"class_name": "TFOpLambda", "config": {"name": "odd", "function": ["cast"]}}
    yield {"class_name": "GetItem", "config": {"name": "odd"}}


def _odd_calls() -> Iterator[Any]:
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": ["item", 0, 0]}}
    yield [{"args": [], "kwargs": {"surprise": tensor}}]
    yield [{"args": [tensor], "kwargs": [1]}]
    yield [{"args": {"0": tensor}, "kwargs": {}}]
    yield [{"args": [tensor, ["item", 0, 0, {}]], "kwargs": {}}]
    yield [{"args": [tensor, ["nothing", 0, 0]], "kwargs": {}}]
    yield [{"args": [tensor, "x"], "kwargs": {}}]
    yield [["item", 0, 0, [1]]]
    yield [[]]
    yield {"0": 1}
    yield "text"


def _model_in_model() -> str:
    """Models that have no layers and are called twice by each other: 2^20 calls."""
    image = {"class_name": "InputLayer", "name": "i", "config": {"name": "i"}}
    inner: dict[str, Any] = {
        "layers": [image | {"inbound_nodes": []}],
        "input_layers": [["i", 0, 0]],
        "output_layers": [["i", 0, 0]],
    }
    for _ in range(20):
        called = {"class_name": "Functional", "name": "m", "config": inner}
        nodes = [[["i", 0, 0, {}]], [["m", 0, 0, {}]]]
        inner = {
            "layers": [image | {"inbound_nodes": []}, called | {"inbound_nodes": nodes}],
            "input_layers": [["i", 0, 0]],
            "output_layers": [["m", 1, 0]],
        }
    return json.dumps({"class_name": "Functional", "config": inner})


def _keras_archives() -> Iterator[bytes]:
    for config in _configurations():
        yield valid.keras_archive(config)
    whole = valid.keras_archive()
    for name in ("model.weights.h5", "config.json"):
        bomb = {name: b" " * (8 << 20)}
        yield _repacked(whole, bomb, compression=zipfile.ZIP_DEFLATED)
    yield _repacked(whole, {"model.weights.h5": b"\x89HDF\r\n\x1a\n"})
    yield _repacked(whole, {"config.json": b"\xff\xfe"})
    locked = bytearray(whole)
    for at in (whole.index(b"PK\x03\x04") + 6, *(_all(whole, b"PK\x01\x02", 8))):
        locked[at] |= 1  # "encrypted"
    yield bytes(locked)
    for at in _all(whole, b"PK\x01\x02", 10)[1:]:  # metadata.json is never read
        odd = bytearray(whole)
        odd[at] = 99  # a way of compression that nobody knows
        yield bytes(odd)


def _all(data: bytes, mark: bytes, offset: int) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at + offset)
        at = data.find(mark, at + 1)
    return found


# Labels.


def _tables() -> Iterator[bytes]:
    for name in (b"a" * 300, b"a/" * 5000, b"\0", b"a.png\0", b"../../../../etc", b"", b"."):
        yield b"image,labels\n" + name + b",cat\n"
    yield b'image,labels\n"' + b"a" * 200_000 + b'",cat\n'
    yield b"image,labels\n\xff\xfe,cat\n"
    yield b"image,labels\n"
    yield b"image,labels,labels\na.png,cat,dog\n"
    yield b"image,labels\na.png,cat,dog\n"
    yield b'image,labels\n"a.png,cat\n'


def _annotations() -> Iterator[bytes]:
    def objects(text: str, head: str = "") -> bytes:
        return f"{head}<annotation>{text}</annotation>".encode()

    def box(left: str, top: str = "1", right: str = "30", bottom: str = "30") -> str:
        corners = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        return f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"

    names = "abcdefghij"
    laughs = "".join(f'<!ENTITY {b} "{10 * f"&{a};"}">' for a, b in itertools.pairwise(names))
    laughs = f'<!DOCTYPE x [<!ENTITY a "ha">{laughs}]>'
    yield objects("<object><name>&j;</name></object>", laughs)
    long = f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]>'
    yield objects(f"<object><name>{'&a;' * 50_000}</name></object>", long)
    for where in ("file:///etc/passwd", "http://127.0.0.1:9/x"):
        outside = f'<!DOCTYPE x [<!ENTITY a SYSTEM "{where}">]>'
        yield objects("<object><name>&a;</name></object>", outside)
    yield objects(box("1"), '<?xml version="1.0" encoding="nonsense"?>')
    yield objects(box("1"), '<?xml version="1.0" encoding="utf-7"?>')
    yield objects(box("1"), '<?xml version="1.0" encoding="shift_jis"?>')
    yield "".join("<object>" for _ in range(100_000)).encode()
    yield objects("<object>" * 10_000 + "</object>" * 10_000)
    for wrong in ("inf", "1e400", "nan", "", "x", "31", "9" * 5000):
        yield objects(box(wrong))
    yield objects(box("20", right="10"))
    yield objects(box("1", top="20", bottom="10"))
    yield b""
    yield bytes(1000)
