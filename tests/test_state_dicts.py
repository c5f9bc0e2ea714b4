"""State dicts as people have them: wrapped, nested, pruned, with heads of their own."""

import argparse
import json
import mmap
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import flaxvgg
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.network.config import VGGConfig
from flaxvgg.weights.checkpoint import CheckpointError
from flaxvgg.weights.mapping import MappingError, config_for, entries
from flaxvgg.weights.parameters import StateDictError
from flaxvgg.weights.published import WeightsError, read_weights
from flaxvgg.weights.state_dicts import torchvision_names
from flaxvgg.weights.torch_files import MappedFile


def _features(arch: str = "vgg11", value: float = 0.5) -> dict[str, np.ndarray]:
    """Convolutions of one repeated number, which take no memory; every one another number."""
    known = entries(VGGConfig.features_only(arch, ""))
    return {
        entry.torch: np.broadcast_to(
            np.asarray(value + i, np.int64 if entry.integer else np.float32), entry.torch_shape
        )
        for i, entry in enumerate(known)
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": np.broadcast_to(np.float32(0.01), (outputs, inputs)),
        f"{name}.bias": np.zeros(outputs, np.float32),
    }


def _same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(found[n] is expected[n] for n in expected)


PREFIXES = ["module.", "model.", "backbone.", "net.", "_orig_mod.", "module._orig_mod.", "a.b.c."]


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize("arch", ["vgg11", "vgg16_bn"])
def test_what_all_names_begin_with_is_taken_off(prefix, arch):
    state = _features(arch)
    wrapped = {prefix + name: x for name, x in state.items()}
    for value in (wrapped, {"epoch": 3, "anything": wrapped}, {"a": {"b": wrapped}, "acc": 0.5}):
        named = torchvision_names(value)
        assert _same(named.tensors, state)
        assert named.notes == ()


@pytest.mark.parametrize("instead", ["features.module.", "features._orig_mod.", "", "features_"])
@pytest.mark.parametrize("before", ["", "model.", "backbone."])
def test_convolutions_by_other_names(instead, before):
    state = _features()
    head = _linear("fc", 25088, 10)
    wrapped = {before + name.replace("features.", instead): x for name, x in state.items()}
    assert _same(torchvision_names(wrapped).tensors, state)
    found = torchvision_names(wrapped | {before + name: x for name, x in head.items()}).tensors
    convolutions = {name: x for name, x in found.items() if name.startswith("features.")}
    assert _same(convolutions, state)


def test_of_several_networks_one_is_asked_for():
    first, second = _features(), _features(value=7.5)
    both = {"model": first, "ema": {f"module.{name}": x for name, x in second.items()}}
    message = r"2 VGGs, whose names begin with 'model\.features\.' and 'ema\.module\.features\.'"
    with pytest.raises(StateDictError, match=message):
        torchvision_names(both)
    assert _same(torchvision_names(both, prefix="ema.").tensors, second)
    assert _same(torchvision_names(both, prefix="model.").tensors, first)
    with pytest.raises(StateDictError, match="has no VGG whose names begin with 'x'"):
        torchvision_names(both, prefix="x")
    # The same numbers twice are no question, and the architecture may tell.
    assert _same(torchvision_names({"model": first, "best": dict(first)}).tensors, first)
    teacher = {"teacher": _features("vgg19"), "student": first}
    assert _same(torchvision_names(teacher, arch="vgg11").tensors, first)
    with pytest.raises(StateDictError, match="2 VGGs"):
        torchvision_names(teacher, arch="vgg13")


def test_what_is_no_part_of_it_is_left_out_with_a_note():
    state = _features()
    extra = {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
    named = torchvision_names(state | extra)
    assert _same(named.tensors, state)
    assert named.notes == ("no part of the VGG, and left out: 'mean' (0, 0, 0), 'std' (1, 1, 1)",)
    loss = {f"loss.vgg.{name}": x for name, x in state.items()}
    named = torchvision_names(loss | {"generator.conv1.weight": np.zeros((8, 3, 9, 9))})
    assert _same(named.tensors, state)
    assert "'generator.conv1.weight'" in named.notes[0]


@pytest.mark.parametrize(
    ("room", "numbers"), [("classifier.", (1, 4, 6)), ("classifier.", (0, 2, 4)), ("fc", "678")]
)
def test_a_classifier_by_other_names(room, numbers):
    sizes = ((25088, 4096), (4096, 4096), (4096, 7))
    old, new = {}, {}
    for number, ours, size in zip(numbers, (0, 3, 6), sizes, strict=True):
        layer = _linear(f"{room}{number}", *size)
        old |= layer
        new |= {f"classifier.{ours}.{n.rpartition('.')[2]}": x for n, x in layer.items()}
    named = torchvision_names(_features() | old)
    assert _same(named.tensors, _features_like(named.tensors) | new)
    assert named.notes[0].endswith("are taken for fc6, fc7 and fc8")
    assert config_for("vgg11", named.tensors)[0] == VGGConfig.classifier("vgg11", num_classes=7)


def _features_like(tensors):
    return {name: x for name, x in tensors.items() if name.startswith("features.")}


HEADS = {
    "cifar": (("classifier.1", 512, 512), ("classifier.4", 512, 512), ("classifier.6", 512, 10)),
    "fc": (("fc", 25088, 10),),
    "classifier": (("classifier", 25088, 10),),
    "small": (("classifier.0", 25088, 64), ("classifier.3", 64, 10)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_another_head_is_left_out_and_said(kind):
    head = {name: x for layer in HEADS[kind] for name, x in _linear(*layer).items()}
    named = torchvision_names({f"module.{n}": x for n, x in (_features() | head).items()})
    config, left_out = config_for("vgg11", named.tensors)
    sizes = "-".join(map(str, [HEADS[kind][0][1], *(layer[2] for layer in HEADS[kind])]))
    because = f"the head {sizes} is not VGG's"
    assert config == VGGConfig.features_only("vgg11", because)
    assert left_out == head.keys()


def test_pruned_weights_are_multiplied_by_their_masks():
    rng = np.random.default_rng(0)
    state = {name: torch.from_numpy(x.copy()) for name, x in _features().items()}
    weight = torch.from_numpy(rng.standard_normal((64, 3, 3, 3)).astype(np.float32))
    mask = (weight.abs() > 0.5).float()
    del state["features.0.weight"]
    state |= {"features.0.weight_orig": weight, "features.0.weight_mask": mask}
    named = torchvision_names(state)
    np.testing.assert_array_equal(named.tensors["features.0.weight"], (weight * mask).numpy())
    assert named.notes == ("pruned: 1 parameters were multiplied by their masks",)


def test_what_weights_are_computed_from_is_named():
    def with_parts(*parts: str):
        state = _features()
        weight = state.pop("features.3.weight")
        return state | {f"features.3.{part}": weight for part in parts}

    for parts, word in (
        (("weight_g", "weight_v"), "weight normalisation"),
        (("weight_orig", "weight_u"), "spectral normalisation"),
        (("parametrizations.weight.original0",), "a parametrisation"),
    ):
        with pytest.raises(StateDictError, match=rf"of {word} \(torch.*save model\.state_dict"):
            torchvision_names(with_parts(*parts))
    small = {name: x.astype(np.int8) for name, x in _features().items()}
    with pytest.raises(StateDictError, match=r"is quantised, at .*save the float weights"):
        torchvision_names(small)


def test_convolutions_without_bias_before_batch_norm():
    state = _features("vgg11_bn")
    convs = {name.rpartition(".")[0] for name, x in state.items() if x.ndim == 4}
    biases = {f"{conv}.bias" for conv in convs}
    without = {name: x for name, x in state.items() if name not in biases}
    assert len(without) == len(state) - 8
    named = torchvision_names(without)
    assert named.tensors.keys() == state.keys()
    assert not any(named.tensors[f"{conv}.bias"].any() for conv in convs)
    assert named.notes == ("the convolutions have no bias, and get zeros: BatchNorm has its own",)
    # One that is missing is damage.
    some = without | {"features.4.bias": state["features.4.bias"]}
    assert "features.0.bias" not in torchvision_names(some).tensors


def test_a_module_a_wrapped_one_and_grey_images():
    network = torch.nn.Module()
    network.features = torch.nn.ParameterList()
    state = {name: torch.from_numpy(x.copy()) for name, x in _features().items()}
    network.state_dict = lambda: {f"module.{name}": x for name, x in state.items()}
    model = flaxvgg.from_torch("vgg11", network)
    found = flaxvgg.to_torch(model)
    assert all(np.array_equal(found[name], x.numpy()) for name, x in state.items())
    assert model.provenance.preprocessing.name == "torchvision"
    assert model.provenance.guess == "a state dict does not say it"
    grey = state | {"features.0.weight": state["features.0.weight"][:, :1]}
    with pytest.raises(MappingError, match=r"images of 1 channel.*repeat\(1, 3, 1, 1\) / 3"):
        flaxvgg.from_torch("vgg11", grey)


# Files.


class _Anything:
    """A class that the reader must not look for."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_hyperparameters_of_any_kind_may_stand_beside(tmp_path, legacy):
    state = {name: torch.tensor(x.flat[0]).expand(x.shape) for name, x in _features().items()}
    value = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(71.2),
        "when": _Anything(),
        "path": tmp_path,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
        "model": state,
    }
    path = tmp_path / "epoch=3.ckpt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    file = read_weights(path)
    assert file.tensors.keys() == state.keys()
    assert all(np.array_equal(file.tensors[name], x.numpy()) for name, x in state.items())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_memory_that_is_repeated_or_shared_is_read_and_given_back(tmp_path, legacy):
    base = torch.arange(1 << 16, dtype=torch.float32)
    value = {
        "expanded": torch.tensor(3.0).expand(512, 512, 3, 3),
        "rows": base[:512].expand(1024, 512),
        "overlapping": base.as_strided((1000, 2000), (1, 20)),
        "transposed": base.view(256, 256).T,
        "sparse steps": base[::64],
        "shared": base,
        "part": base[1000:30000],
        "empty": base[:0],
    }
    path = tmp_path / "strides.pth"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    file = read_weights(path)
    for _ in range(2):  # and are there again
        for name, x in value.items():
            np.testing.assert_array_equal(file.tensors[name], x.numpy(), name)
            file.release(file.tensors[name])
    own = np.arange(1 << 16)
    file.release(own)
    file.release(own[::-1])
    np.testing.assert_array_equal(own, np.arange(1 << 16))


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages")
def test_a_large_sparse_file_is_given_back(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    mapped = MappedFile(path)

    def resident() -> int:
        maps = Path("/proc/self/smaps").read_text("utf-8").split(str(path))[1]
        return int(maps.partition("Rss:")[2].split()[0]) * 1024

    assert mapped.bytes.sum() == 0
    assert resident() == 64 << 20
    mapped.release(mapped.bytes[100:-100])
    assert resident() <= 2 * mmap.PAGESIZE


def test_one_kind_under_anothers_name_and_sets_of_files(tmp_path):
    state = {name: torch.tensor(x.flat[0]).repeat(x.shape) for name, x in _features().items()}
    torch.save(state, tmp_path / "a.safetensors")
    safetensors.torch.save_file(state, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        source = read_source(str(tmp_path / name))
        assert source.arch == "vgg11"
        assert source.state_dict.keys() == state.keys()
        assert source.provenance.preprocessing.name == "torchvision"
        assert source.provenance.guess.startswith("the file does not say it")
    given = read_source(str(tmp_path / "b.pth"), preprocessing="keras").provenance
    assert (given.preprocessing.name, given.guess) == ("keras", "")
    names, files = list(state), ["1-of-2.safetensors", "2-of-2.safetensors"]
    folder = tmp_path / "set"
    folder.mkdir()
    for i, file in enumerate(files):
        safetensors.torch.save_file({n: state[n] for n in names[i::2]}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: files[i % 2] for i, n in enumerate(names)}}))
    for path in (index, folder):
        found = read_weights(path).tensors
        assert all(np.array_equal(found[name], x.numpy()) for name, x in state.items())
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": where | {"classifier.9.weight": files[0]}}))
    with pytest.raises(WeightsError, match=r"names 'classifier\.9\.weight', which none of its"):
        read_weights(folder)
    (folder / files[1]).unlink()
    with pytest.raises(WeightsError, match=r"names '2-of-2\.safetensors', which is missing"):
        read_weights(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../b.pth"}}))
    with pytest.raises(WeightsError, match="which is no file beside it"):
        read_weights(index)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
        (b"\x1f\x8b\x08" + bytes(50), "packed with gzip: unpack it first"),
        (bytes(257) + b"ustar" + bytes(300), "is a tar archive: unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "is it a Keras file, and complete"),
        (b"\x08\x08\x12\x07pytorch", "holds no ONNX graph"),
        (pickle.dumps({"features.0.weight": [1.0]}), "is a pickle, and no PyTorch file"),
        (b"\x93NUMPY\x01", "is a NumPy array: flaxvgg.from_torch takes"),
        (b"{}", "is no index of weights"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        flaxvgg.vgg11(weights=path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(CheckpointError) as caught:
        flaxvgg.load(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    with pytest.raises(SourceError, match=r"is a TorchScript archive.*state_dict"):
        read_source(str(tmp_path / "scripted.pt"))


def test_a_file_of_pytorch_is_no_checkpoint_and_says_what_to_type(tmp_path):
    torch.save({"features.0.bias": torch.ones(3)}, tmp_path / "a.pth")
    said = r"other weights \(torch\): convert it with flaxvgg convert"
    with pytest.raises(CheckpointError, match=said):
        flaxvgg.load(tmp_path / "a.pth")
