"""Weight files in PyTorch's formats: read, refused, or downloaded; against local servers only."""

import contextlib
import hashlib
import http.server
import os
import pickle
import re
import socket
import threading
import time
import zipfile
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import torchvision

from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.weights import published as weights
from flaxvgg.weights.published import (
    PUBLISHED,
    Published,
    WeightsError,
    fetch_hub,
    fetch_torchvision,
    imagenet_classes,
    provenance_of,
    published,
    read_weights,
    sha256,
)

# read_weights knows nothing of architectures, so a few small tensors are a state dict.
STATE_DICT = {
    "features.0.weight": torch.arange(64 * 27, dtype=torch.float32).reshape(64, 3, 3, 3),
    "features.0.bias": torch.linspace(-1, 1, 64),
    "features.1.num_batches_tracked": torch.tensor(7),
    "classifier.6.weight": torch.randn(5, 4096, generator=torch.Generator().manual_seed(0)),
}


def _save(path: Path, value: object = STATE_DICT, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def _assert_state_dict(path: Path):
    file = read_weights(path)
    assert list(file.tensors) == list(STATE_DICT)
    for name, tensor in STATE_DICT.items():
        found = torch.as_tensor(file.tensors[name])
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def _refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# Reading.


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ""])
def test_a_state_dict(tmp_path, legacy, suffix):
    _assert_state_dict(_save(tmp_path / f"weights{suffix}", legacy=legacy))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_of_a_parallel_model(tmp_path, legacy, key):
    parallel = {f"module.{name}": tensor for name, tensor in STATE_DICT.items()}
    value = {"epoch": 3, key: parallel, "optimizer": {"lr": 0.1}}
    _assert_state_dict(_save(tmp_path / "weights.pth", value, legacy))


def test_parameters_are_read_as_arrays(tmp_path):
    marked = torch.nn.Parameter(2 * torch.ones(3))
    marked.owner = "somebody"  # kept with the tensor, by another function
    value = {"features.0.bias": torch.nn.Parameter(torch.ones(3)), "features.2.bias": marked}
    file = read_weights(_save(tmp_path / "weights.pth", value))
    np.testing.assert_array_equal(file.tensors["features.0.bias"], np.ones(3, np.float32))
    np.testing.assert_array_equal(file.tensors["features.2.bias"], 2 * np.ones(3, np.float32))


def test_a_zip_archive_is_mapped_and_its_pages_can_be_given_back(tmp_path):
    value = {"classifier.0.weight": torch.arange(1 << 20, dtype=torch.float32)}
    file = read_weights(_save(tmp_path / "weights.pth", value))
    array = file.tensors["classifier.0.weight"]
    file.release(array)
    # They come back from the file.
    np.testing.assert_array_equal(array, np.arange(1 << 20, dtype=np.float32))


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = {f"module.{name}": tensor.numpy() for name, tensor in STATE_DICT.items()}
    safetensors.numpy.save_file(arrays, path)
    file = read_weights(path)
    assert file.tensors.keys() == STATE_DICT.keys()
    for name, array in file.tensors.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, STATE_DICT[name].numpy())
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_timms_names(tmp_path):
    path = tmp_path / "model.safetensors"
    timm = {
        "features.0.weight": "features.0.weight",
        "pre_logits.fc1.weight": "classifier.0.weight",
        "pre_logits.fc1.bias": "classifier.0.bias",
        "pre_logits.fc2.weight": "classifier.3.weight",
        "pre_logits.fc2.bias": "classifier.3.bias",
        "head.fc.weight": "classifier.6.weight",
        "head.fc.bias": "classifier.6.bias",
    }
    arrays = {name: np.full((2, 1, 1, 1), i, np.float32) for i, name in enumerate(timm)}
    safetensors.numpy.save_file(arrays, path)
    found = read_weights(path).tensors
    assert {name: array[0, 0, 0, 0] for name, array in found.items()} == {
        torchvision_name: i for i, torchvision_name in enumerate(timm.values())
    }


# Refusing.


def test_a_missing_file(tmp_path):
    _refused(tmp_path / "weights.pth", "does not exist$")


def test_a_directory(tmp_path):
    _refused(tmp_path, "is a directory: a weights file was expected$")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    _refused(tmp_path / name, "is empty: download it again$")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_web_page(tmp_path, name):
    (tmp_path / name).write_text("\n\n<!DOCTYPE html><html><body>Rate limited</body></html>")
    _refused(tmp_path / name, "is a web page, not weights: download the file itself$")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_files(tmp_path, legacy):
    content = _save(tmp_path / "whole.pth", legacy=legacy).read_bytes()
    path = tmp_path / "weights.pth"
    size = len(content)
    # A byte of every fiftieth part, and each of the first and last bytes.
    lengths = {*range(1, 40), *range(size - 40, size), *range(1, size, size // 50)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        _refused(path, "truncated|damaged|is no PyTorch file")


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({n: t.numpy() for n, t in STATE_DICT.items()}, path)
    content = path.read_bytes()
    for length in (1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        _refused(path, "is no safetensors file, or truncated: ")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(tmp_path, name, seed):
    noise = np.random.default_rng(seed).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    for content in (noise, b"PK\x03\x04" + noise, b"\x80\x02" + noise):
        (tmp_path / name).write_bytes(content)
        _refused(tmp_path / name, "is no|damaged|truncated")


def test_another_kind_of_zip_archive(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("cat.jpg", b"meow")
    _refused(tmp_path / "photos.pth", r"is a zip archive of other files \(cat.jpg\): unpack it")


class _Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("where", ["instead", "inside"])
def test_a_malicious_pickle_does_not_run(tmp_path, kind, where):
    trap = tmp_path / "executed"
    value = _Malicious(trap)
    value = value if where == "instead" else {**STATE_DICT, "features.0.extra": value}
    path = tmp_path / "weights.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        _save(path, value, legacy=kind == "legacy")
    _refused(path, "it was not executed: save model.state_dict\\(\\) instead")
    assert not trap.exists()
    # The trap is one: this is what would have happened.
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
# torch cannot find the source code of a class that it pickles in the old format.
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_model(tmp_path, legacy):
    path = _save(tmp_path / "model.pth", torch.nn.Sequential(torch.nn.Linear(2, 2)), legacy)
    _refused(
        path,
        r"holds an object \(torch\.nn\..*Sequential\), .* not executed: save model\.state_dict",
    )


@pytest.mark.parametrize(
    "value",
    [
        [torch.ones(2)],
        torch.ones(2),
        {"epoch": 3},
        {"state_dict": [1]},
        7,
    ],
    ids=["list", "tensor", "numbers", "nested list", "number"],
)
def test_what_is_no_state_dict(tmp_path, value):
    path = _save(tmp_path / "weights.pth", value)
    _refused(path, r"holds no state dict: save model\.state_dict\(\) instead$")


# The records of published weights.


def _torchvisions(record: Published):
    enum = getattr(torchvision.models, f"{record.arch.upper()}_Weights")
    return enum[record.name]


def test_all_of_torchvisions_weights_are_published():
    theirs = {
        (name, member.name)
        for name in torchvision.models.list_models(include="vgg*")
        for member in torchvision.models.get_model_weights(name)
    }
    assert {(record.arch, record.name) for record in PUBLISHED} == theirs
    assert len(PUBLISHED) == 9


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda record: record.title)
def test_a_record_is_torchvisions(record):
    theirs = _torchvisions(record)
    assert str(theirs) == record.title
    assert record.url == theirs.url
    assert theirs.url.endswith(f"-{record.sha256_prefix}.pth")
    assert len(record.sha256_prefix) == 8
    transforms = theirs.transforms()
    recipe = PREPROCESSING[record.preprocessing]
    assert list(recipe.mean) == transforms.mean
    assert list(recipe.std) == transforms.std
    assert (transforms.crop_size, transforms.resize_size) == ([224], [256])
    assert (recipe.divisor, recipe.channels, recipe.fit) == (255.0, "RGB", "crop")
    assert transforms.interpolation.value == recipe.interpolation == "bilinear"
    provenance = record.provenance("ab" * 32)
    assert provenance.source == f"torchvision {record.title}"
    assert provenance.preprocessing is recipe
    assert list(provenance.classes) == (theirs.meta["categories"] or [])
    # The classifier of IMAGENET1K_FEATURES is no classifier.
    assert len(provenance.classes) == (1000 if record.name == "IMAGENET1K_V1" else 0)


def test_the_hub_has_what_torchvision_calls_v1():
    for record in PUBLISHED:
        expected = f"timm/{record.arch}.tv_in1k" if record.name == "IMAGENET1K_V1" else ""
        assert record.hub == expected


def test_class_names():
    classes = imagenet_classes()
    assert list(classes) == torchvision.models.VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    assert (classes[0], classes[281], classes[999]) == ("tench", "tabby", "toilet tissue")


def test_weights_that_are_not_published():
    message = "^vgg11 has no published weights 'IMAGENET1K_FEATURES': choose from IMAGENET1K_V1$"
    with pytest.raises(WeightsError, match=message):
        published("vgg11", "IMAGENET1K_FEATURES")
    names = "IMAGENET1K_V1, IMAGENET1K_FEATURES, IMAGENET1K_V1_CONVOLUTIONS"
    with pytest.raises(WeightsError, match=f"choose from {names}$"):
        published("vgg16", "IMAGENET1K_V2")


def test_published_weights_are_recognised_by_their_digest():
    digest = "397923af" + "0" * 56
    found = provenance_of(Path("renamed.pth"), digest)
    assert found.source == "torchvision VGG16_Weights.IMAGENET1K_V1"
    assert len(found.classes) == 1000
    features = provenance_of(Path("x.pth"), "88682ab5" + "0" * 56)
    assert features.preprocessing.name == "features"
    other = provenance_of(Path("/tmp/mine.pth"), "12345678" + "0" * 56)
    assert (other.source, other.classes) == ("mine.pth", ())
    assert other.sha256 == "12345678" + "0" * 56


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


# Downloads, from this machine.


@contextlib.contextmanager
def _server(files: dict[str, bytes], headers: dict[str, str] | None = None, cut: int = 0):
    """The address of a server of those files; the last `cut` bytes of each are never sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self, body: bool = False):
            content = files.get(self.path)
            requests.append((self.command, self.path))
            if content is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) - cut])

        def do_GET(self):
            self.do_HEAD(body=True)

        def log_message(self, *args):
            pass

    requests: list[tuple[str, str]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def torch_cache(tmp_path, monkeypatch) -> Path:
    """torch.hub's cache of checkpoints, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def state_dict_bytes(tmp_path) -> bytes:
    return _save(tmp_path / "served.pth").read_bytes()


def _record(content: bytes, url: str, monkeypatch) -> Published:
    record = Published(
        "vgg11", "IMAGENET1K_V1", f"vgg11-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    )
    monkeypatch.setattr(Published, "url", property(lambda self: f"{url}/models/{self.file}"))
    return record


def test_torchvisions_file_is_downloaded_once(torch_cache, state_dict_bytes, monkeypatch):
    files = {}
    with _server(files) as (url, requests):
        record = _record(state_dict_bytes, url, monkeypatch)
        files[f"/models/{record.file}"] = state_dict_bytes
        path = fetch_torchvision(record)
        assert path == torch_cache / record.file
        assert path.read_bytes() == state_dict_bytes
        _assert_state_dict(path)
        assert fetch_torchvision(record) == path
    assert requests == [("GET", f"/models/{record.file}")]
    assert os.listdir(torch_cache) == [record.file]


@pytest.mark.parametrize("what", ["other bytes", "cut short", "a web page"])
def test_a_wrong_download_leaves_nothing_behind(torch_cache, state_dict_bytes, monkeypatch, what):
    files = {}
    with _server(files, cut=1000 if what == "cut short" else 0) as (url, _):
        record = _record(state_dict_bytes, url, monkeypatch)
        files[f"/models/{record.file}"] = {
            "other bytes": state_dict_bytes[:-1] + b"x",
            "cut short": state_dict_bytes,
            "a web page": b"<html>Sign in to this network</html>",
        }[what]
        with pytest.raises(WeightsError, match="answered with other bytes than") as caught:
            fetch_torchvision(record)
    assert os.listdir(torch_cache) == []
    for part in (record.url, record.file, f"into {torch_cache} by hand"):
        assert part in str(caught.value)


def test_a_server_that_is_not_there(torch_cache, monkeypatch):
    record = _record(b"", _closed_port(), monkeypatch)
    with pytest.raises(WeightsError, match="Connection refused") as caught:
        fetch_torchvision(record)
    for part in (record.title, f"put {record.file} into {torch_cache} by hand", record.url):
        assert part in str(caught.value)
    assert os.listdir(torch_cache) == []


def test_a_file_that_is_not_there(torch_cache, monkeypatch):
    with _server({}) as (url, _):
        record = _record(b"", url, monkeypatch)
        with pytest.raises(WeightsError, match=r"cannot download VGG11_Weights.* 404"):
            fetch_torchvision(record)
    assert os.listdir(torch_cache) == []


def test_a_file_put_there_by_hand(torch_cache, state_dict_bytes, monkeypatch):
    record = _record(state_dict_bytes, _closed_port(), monkeypatch)
    torch_cache.mkdir(parents=True)
    (torch_cache / record.file).write_bytes(state_dict_bytes)
    _assert_state_dict(fetch_torchvision(record))
    (torch_cache / record.file).write_bytes(state_dict_bytes[:-10])
    message = f"is damaged: its SHA-256 does not begin with {record.sha256_prefix}; delete it"
    with pytest.raises(WeightsError, match=message):
        fetch_torchvision(record)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILE = "/timm/vgg11.tv_in1k/resolve/main/model.safetensors"
HUB_RECORD = published("vgg11", "IMAGENET1K_V1")


@pytest.fixture
def safetensors_bytes() -> bytes:
    return safetensors.numpy.save({n: t.numpy() for n, t in STATE_DICT.items()})


@pytest.fixture
def use_hub(tmp_path, monkeypatch):
    """A function that makes huggingface_hub talk to an address, with an empty cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)

    def use(url: str) -> Path:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return tmp_path / "hub"

    return use


def _hub_headers(etag: str) -> dict[str, str]:
    return {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}


def test_the_hubs_file_is_downloaded_once(use_hub, safetensors_bytes):
    digest = hashlib.sha256(safetensors_bytes).hexdigest()
    with _server({HUB_FILE: safetensors_bytes}, _hub_headers(digest)) as (url, requests):
        cache = use_hub(url)
        path = fetch_hub(HUB_RECORD)
        assert fetch_hub(HUB_RECORD) == path
    assert requests.count(("GET", HUB_FILE)) == 1
    assert cache in path.parents
    assert path.resolve().name == digest
    found = read_weights(path)
    assert found.sha256 == digest
    assert found.tensors.keys() == STATE_DICT.keys()
    # And without a network from then on.
    use_hub(_closed_port())
    assert fetch_hub(HUB_RECORD) == path


def test_bytes_that_differ_from_the_hubs_digest(use_hub, safetensors_bytes):
    with _server({HUB_FILE: safetensors_bytes}, _hub_headers("ab" * 32)) as (url, _):
        use_hub(url)
        with pytest.raises(WeightsError, match=f"{'ab' * 32} is damaged: delete it and try again$"):
            fetch_hub(HUB_RECORD)


def _refused_by_the_hub(reason: str) -> None:
    with pytest.raises(
        WeightsError, match=f"cannot download {HUB_RECORD.title} .*{reason}"
    ) as caught:
        fetch_hub(HUB_RECORD)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in ("try again with a network", HUB_RECORD.hub, HUB_RECORD.file, "path as weights"):
        assert part in message


def test_a_hub_that_is_not_there(use_hub):
    use_hub(_closed_port())
    _refused_by_the_hub("Connection refused")


def test_a_hub_without_the_file(use_hub):
    with _server({}) as (url, _):
        use_hub(url)
        _refused_by_the_hub("404 .*")


def test_a_server_that_is_no_hub(use_hub, safetensors_bytes):
    with _server({HUB_FILE: safetensors_bytes}) as (url, _):
        use_hub(url)
        _refused_by_the_hub("")


def test_a_hub_that_hangs_up(use_hub, safetensors_bytes, monkeypatch):
    # It would be tried again five times, a minute in all.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    headers = _hub_headers(hashlib.sha256(safetensors_bytes).hexdigest())
    with _server({HUB_FILE: safetensors_bytes}, headers, cut=1000) as (url, _):
        cache = use_hub(url)
        _refused_by_the_hub("")
    assert not list(cache.rglob("model.safetensors"))


def test_a_network_that_is_switched_off(use_hub, monkeypatch):
    use_hub("http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _refused_by_the_hub("")


# Damage of any kind, and no torch.


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
# An opcode of a later pickle protocol can come out of a spoiled byte.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_spoiled_bytes_are_read_or_refused_but_never_anything_else(tmp_path, legacy):
    content = _save(tmp_path / "whole.pth", legacy=legacy).read_bytes()
    rng, path, refused = np.random.default_rng(0), tmp_path / "weights.pth", 0
    for _ in range(300):
        spoiled = bytearray(content)
        spoiled[rng.integers(600)] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            tensors = read_weights(path).tensors
        except WeightsError:
            refused += 1
        else:
            assert isinstance(tensors, dict)
    assert refused > 50


def _packed_again(whole: Path, path: Path, changed: dict[str, bytes], **options: int) -> Path:
    """The archive with other members."""
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.partition("/")[2], old.read(name)))
    return path


def test_an_old_file_that_names_bytes_that_it_has_not(tmp_path):
    """PyTorch gives whatever the memory held before."""
    both = torch.arange(8.0)
    path = _save(tmp_path / "weights.pth", {"a": both[:4], "b": both[4:]}, legacy=True)
    content = path.read_bytes()
    # The number of a storage is with each tensor in it, and in the list of bytes that follow.
    key = next(x for x in re.findall(rb"\d{10,}", content) if content.count(x) > 2)
    other = key[:-1] + (b"1" if key.endswith(b"0") else b"0")
    path.write_bytes(content.replace(key, other, 1))
    _refused(path, "is damaged: its tensors are not as large as it says")


def test_one_flipped_bit_in_an_archive(tmp_path):
    path = _save(tmp_path / "weights.pth")
    content = bytearray(path.read_bytes())
    content[content.index(STATE_DICT["features.0.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert len(torch.load(path)) == len(STATE_DICT)  # PyTorch does not look
    _refused(path, "is damaged: weights/data/0 has a wrong checksum; download it again")


def test_a_member_whose_checksum_is_of_nothing(tmp_path):
    """`zipfile` reads none of it, and finds the checksum right."""
    path = _save(tmp_path / "weights.pth")
    content = bytearray(path.read_bytes())
    name = content.rindex(b"weights/data/0")  # in the directory: 46 bytes, then the name
    assert content[name - 46 : name - 42] == b"PK\x01\x02"
    content[name - 30 : name - 22] = bytes(8)  # the checksum, and the size in the archive
    path.write_bytes(content)
    assert zipfile.ZipFile(path).testzip() is None
    _refused(path, "is damaged: a member has two sizes; download it again")


@pytest.mark.parametrize("version", ["0", "11", "2147483648"])
def test_an_archive_of_another_version(tmp_path, version):
    whole = _save(tmp_path / "weights.pth")
    path = _packed_again(whole, tmp_path / "later.pth", {"version": f"{version}\n".encode()})
    with pytest.raises(RuntimeError, match="version"):
        torch.load(path)
    _refused(path, f"has version {version} of PyTorch's format, and 1 to 10 are known: save it")


def test_an_archive_that_was_compressed(tmp_path):
    whole = _save(tmp_path / "weights.pth")
    path = _packed_again(whole, tmp_path / "packed.pth", {}, compression=zipfile.ZIP_DEFLATED)
    _refused(path, "was packed again by another program: pack it uncompressed")


def test_a_tensor_without_all_of_its_bytes(tmp_path):
    """PyTorch would take what follows in the mapped file."""
    whole = _save(tmp_path / "weights.pth")
    path = _packed_again(whole, tmp_path / "short.pth", {"data/1": bytes(7)})
    _refused(path, "is damaged: its tensors are not as large as it says")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_one_tensor_under_two_names(tmp_path, name):
    weight = STATE_DICT["features.0.weight"]
    both = {"features.0.weight": weight, "module.features.0.weight": 2 * weight}
    if name.endswith(".pth"):
        _save(tmp_path / name, both)
    else:
        safetensors.torch.save_file(both, tmp_path / name)
    _refused(tmp_path / name, r"has features\.0\.weight twice, under different names: keep one")


def test_names_that_are_no_strings(tmp_path):
    _refused(_save(tmp_path / "weights.pth", {7: torch.ones(3)}), "holds no state dict")


def test_an_archive_on_many_disks(tmp_path):
    path = _save(tmp_path / "weights.pth")
    content = bytearray(path.read_bytes())
    locator = content.rindex(b"PK\x06\x07")
    content[locator + 16] = 9  # the number of disks
    path.write_bytes(content)
    _refused(path, "is damaged or truncated: zipfiles that span multiple disks")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_no_file_needs_torch(tmp_path, monkeypatch, legacy):
    path = _save(tmp_path / "weights.pth", legacy=legacy)

    def no_torch(name: str, *args, whole=__import__, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", no_torch)
    assert list(weights.read_weights(path).tensors) == list(STATE_DICT)
    with pytest.raises(WeightsError, match=r"needs PyTorch: install torch, or use a \.safetensors"):
        weights.fetch_torchvision(PUBLISHED[0])
