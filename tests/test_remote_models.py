"""Models and training runs in buckets, on a real S3 server of this machine."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from object_store import BUCKET, at, full_after, some

import flaxvgg
from flaxvgg.files import remote, remote_folders
from flaxvgg.files.locking import LockedError
from flaxvgg.files.remote import GoneError, RemoteError
from flaxvgg.files.remote_locking import alone_at
from flaxvgg.network.config import VGGConfig
from flaxvgg.weights import checkpoint
from flaxvgg.weights.checkpoint import CheckpointError
from helpers import TINY_GAP, TinyConfig, random_model, run_flaxvgg, tiny_vgg

PLACE = f"s3://{BUCKET}/models"


@pytest.fixture(scope="module")
def stack():
    """vgg11's convolutions, random."""
    return random_model(VGGConfig.features_only("vgg11", "random"))


@pytest.fixture(scope="module")
def models():
    """Two small models that differ."""
    return [tiny_vgg(TINY_GAP, seed=seed) for seed in range(2)]


@pytest.fixture
def tiny(monkeypatch):
    """What is loaded is as small as what was saved."""
    monkeypatch.setattr(checkpoint, "VGGConfig", TinyConfig)


def arrays(model) -> dict[str, np.ndarray]:
    return flaxvgg.to_torch(model)


def same(a, b) -> bool:
    a, b = arrays(a), arrays(b)
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def names(url: str) -> list[str]:
    return [name for name, _ in remote.objects_below(url)]


@pytest.mark.parametrize("name", ["checkpoint", "model.safetensors"])
def test_a_model_is_saved_replaced_and_read(models, tiny, proxy, name):
    url = f"{PLACE}/read/{name}"
    for model in models:
        flaxvgg.save(model, url)
        assert same(flaxvgg.load(Path(url)), model)
    # Of the one that was replaced nothing is left, and no lock.
    kept = {x.partition("/")[0] for x in names(url)}
    assert len(kept) == 2 * (name == "checkpoint")
    assert {x.partition("/")[0] for x in names(f"{PLACE}/read")} <= {"checkpoint", name}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "model.safetensors"])
def test_a_server_that_fails_is_asked_again(stack, proxy, name):
    """Of 36 MB, which go in several parts."""
    url = f"{PLACE}/failing/{name}"
    proxy.fault = some(0, 0.1, "503 SlowDown", "500 InternalError", "cut")
    for _ in range(3):
        flaxvgg.save(stack, url)
        assert same(flaxvgg.load(url), stack)
    assert proxy.faults > 0


@pytest.mark.slow
def test_what_is_there_stays_until_the_other_is_whole(models, tiny, proxy, monkeypatch):
    monkeypatch.setitem(remote._RETRIES, "max_retries", 0)
    url = f"{PLACE}/whole"
    flaxvgg.save(models[0], url)
    before = names(url)
    # No room after so many writes, whichever they are.
    for most in itertools.count(3):  # the lock is the first one
        proxy.fault = full_after(most)
        try:
            with pytest.raises(RemoteError, match=r"no room .*: make room") as error:
                flaxvgg.save(models[1], url)
        except pytest.fail.Exception:
            break
        assert "\n" not in str(error.value)
        assert same(flaxvgg.load(url), models[0])
    assert most > 5
    proxy.fault = lambda *_: None
    assert same(flaxvgg.load(url), models[1])
    assert not set(names(url)) & set(before) - {"flaxvgg.json"}
    # A reader who has looked when the other was there gets the new one.
    fetch = remote_folders._fetch_file

    def replaced(*told) -> bool:
        monkeypatch.setattr(remote_folders, "_fetch_file", fetch)
        flaxvgg.save(models[0], url)
        return fetch(*told)

    monkeypatch.setattr(remote_folders, "_fetch_file", lambda *told: False)
    with pytest.raises(GoneError, match=r"is damaged: .* is missing"):
        flaxvgg.load(url)
    looked = iter([fetch, replaced])
    monkeypatch.setattr(remote_folders, "_fetch_file", lambda *told: next(looked)(*told))
    assert same(flaxvgg.load(url), models[0])


def test_what_is_wrong_is_one_line(models, tiny, proxy, server):
    url = f"{PLACE}/wrong"
    flaxvgg.save(models[0], url)
    remote.write(f"{PLACE}/f.safetensors/x", b"")

    def refused(says: str, kind: type[Exception], work) -> None:
        with pytest.raises(kind, match=says) as error:
            work()
        assert "\n" not in str(error.value)

    def saved(place: str):
        return lambda: flaxvgg.save(models[1], place)

    with alone_at(url):
        refused("is being written by another run", LockedError, saved(url))
    refused("s3://none: no such bucket: create it", RemoteError, saved("s3://none/m"))
    refused("a whole bucket: add a name", CheckpointError, saved(f"s3://{BUCKET}"))
    refused("also holds f.safetensors/x, and is no saved folder", CheckpointError, saved(PLACE))
    refused("is a folder, with", CheckpointError, saved(f"{PLACE}/f.safetensors"))
    refused("a web server is read only", CheckpointError, saved("https://example.org/m"))
    refused("no file, and no whole folder", GoneError, lambda: flaxvgg.load(f"{PLACE}/none"))
    with at(server.port, key="other"):
        refused("access is denied", RemoteError, saved(url))
        refused("access is denied", RemoteError, lambda: flaxvgg.load(url))
    assert same(flaxvgg.load(url), models[0])
    # A file that is another one, and a table that leads elsewhere.
    table = json.loads(remote.Object(f"{url}/flaxvgg.json").fetch()[0])
    name = max(table["files"], key=lambda name: table["files"][name]["size"])
    data = remote.Object(f"{url}/{table['below']}/{name}").fetch()[0]
    remote.write(f"{url}/{table['below']}/{name}", data[:-1] + bytes([data[-1] ^ 1]))
    refused(f"{url} is damaged: {name} is", GoneError, lambda: flaxvgg.load(url))
    for odd in ("../x", "/x", "a/../../x", "C:\\x", "."):
        table["files"] = {odd: {}}
        remote.write(f"{url}/flaxvgg.json", json.dumps(table).encode())
        refused("its flaxvgg.json cannot be read", GoneError, lambda: flaxvgg.load(url))
    # The checkpoint's own checks name the address, too.
    remote.write(f"{PLACE}/cut.safetensors", b"\x08" + bytes(7) + b"{}")
    cut = f"{PLACE}/cut.safetensors"
    refused(f"^{cut} is no safetensors file", CheckpointError, lambda: flaxvgg.load(cut))


@pytest.mark.slow
def test_commands_take_and_give_models_at_addresses(stack, proxy, tmp_path):
    flaxvgg.save(stack, tmp_path / "m.safetensors")
    for name in ("m.safetensors", "m.pth", "m"):
        url = f"{PLACE}/cli/{name}"
        source = tmp_path / "m.safetensors"
        told = run_flaxvgg("convert", source, "--out", url, "--json")
        assert told.exit_code == 0, told.stderr
        assert json.loads(told.stdout)["written"] == url
    assert "vgg11" in run_flaxvgg("info", f"{PLACE}/cli/m").stdout
    back = run_flaxvgg("convert", f"{PLACE}/cli/m", "--out", tmp_path / "back.safetensors")
    assert back.exit_code == 0, back.stderr
    assert same(flaxvgg.load(tmp_path / "back.safetensors"), stack)
    for name in ("m.safetensors", "m"):
        assert same(flaxvgg.vgg11(weights=f"{PLACE}/cli/{name}"), stack)
    refused = run_flaxvgg("convert", f"{PLACE}/cli/no", "--out", tmp_path / "x.safetensors")
    assert refused.exit_code == 2
    assert "no file, and no whole folder" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not Path("s3:").exists()
