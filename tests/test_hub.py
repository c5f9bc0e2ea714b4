"""Weights where a path or a repository is taken: Keras and ONNX files, and the Hugging Face hub."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from huggingface_hub import constants

import flaxvgg
from helpers import quickly, torch_features
from networks import random_images, random_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = flaxvgg.VGGConfig.features_only("vgg11", "an example")


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub on this machine, as far as a download and an upload need one."""

    files: dict[str, bytes]
    requests: list[str]
    tokens: list[str | None]

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        self._file(send=True)

    def do_PUT(self) -> None:
        self.files[self.path] = self._body()
        self._answer(200, b"")

    def do_POST(self) -> None:
        body, base = self._body(), f"http://{self.headers['Host']}"
        self.requests.append(self.path)
        self.tokens.append(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            answer = {"url": f"{base}/me/vgg", "name": "me/vgg", "id": "me/vgg"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            large = {"safetensors"}
            modes = ["lfs" if name.split(".")[-1] in large else "regular" for name in names]
            found = zip(names, modes, strict=True)
            answer = {
                "files": [{"path": x, "uploadMode": m, "shouldIgnore": False} for x, m in found]
            }
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            answer = {
                "transfer": "basic",
                "objects": [
                    x | {"actions": {"upload": {"href": f"{base}/put/{x['oid']}", "header": {}}}}
                    for x in objects
                ],
            }
        elif "/commit/" in self.path:
            self.files["commit"] = body
            url = f"{base}/me/vgg/commit/{COMMIT}"
            answer = {"commitUrl": url, "commitOid": COMMIT, "success": True}
        else:
            self._answer(404, b"{}")
            return
        self._answer(200, json.dumps(answer).encode())

    def _file(self, *, send: bool) -> None:
        content = self.files.get(self.path)
        self.requests.append(self.path)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        self._answer(200, content, headers, send=send)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, body: bytes, headers=None, *, send: bool = True) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if send and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of no files, which huggingface_hub talks to."""
    handler = type("Hub", (_Hub,), {"files": {}, "requests": [], "tokens": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def model() -> flaxvgg.VGG:
    return flaxvgg.with_gap(random_model(CONFIG), 3, rngs=nnx.Rngs(0))


def _same(a: flaxvgg.VGG, b: flaxvgg.VGG) -> bool:
    before, after = flaxvgg.to_torch(a), flaxvgg.to_torch(b)
    return before.keys() == after.keys() and all((before[k] == after[k]).all() for k in before)


# Of the hub's client about itself.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_model_goes_to_the_hub_and_comes_back(hub, model):
    commit = model.push_to_hub("me/vgg", token="hf_secret")
    assert commit.endswith(f"/me/vgg/commit/{COMMIT}")
    assert set(hub.tokens) >= {"Bearer hf_secret"}
    lines = [json.loads(line) for line in hub.files["commit"].splitlines()]
    written = {line["value"]["path"]: line["key"] for line in lines if "path" in line["value"]}
    assert written == {"README.md": "file", "config.json": "file", "model.safetensors": "lfsFile"}
    (stored,) = (data for path, data in hub.files.items() if path.startswith("/put/"))
    hub.files["/me/vgg/resolve/main/model.safetensors"] = stored
    again = flaxvgg.VGG.from_pretrained("me/vgg")
    assert _same(again, model)
    assert again.provenance.source == model.provenance.source
    # A README.md of one's own stays.
    hub.files["/me/vgg/resolve/main/README.md"] = b"mine"
    model.push_to_hub("me/vgg", token="hf_secret")
    assert b"README.md" not in hub.files["commit"]


def test_a_repository_in_other_names(hub):
    tensors = {name: x.numpy() for name, x in torch_features("vgg11").items()}
    tensors = {name: x for name, x in tensors.items() if name.startswith("features.")}
    base = "/someone/a-vgg/resolve/v1"
    hub.files[f"{base}/model.safetensors"] = safetensors.numpy.save(tensors)
    hub.files[f"{base}/config.json"] = b'{"architecture": "vgg11"}'
    model = flaxvgg.VGG.from_pretrained("someone/a-vgg", revision="v1", param_dtype="bfloat16")
    assert model.config.arch == "vgg11"
    assert model.provenance.source == "someone/a-vgg"
    assert model.conv_stack.conv1_1.kernel[...].dtype == "bfloat16"
    with pytest.raises(flaxvgg.WeightsError, match="cannot download someone/none"):
        flaxvgg.VGG.from_pretrained("someone/none")


def test_published_weights_by_their_repository(hub, monkeypatch):
    tensors = {name: x.numpy() for name, x in torch_features("vgg11").items()}
    file = safetensors.numpy.save({k: x for k, x in tensors.items() if k.startswith("features.")})
    hub.files["/timm/vgg11.tv_in1k/resolve/main/model.safetensors"] = file
    model = flaxvgg.VGG.from_pretrained("timm/vgg11.tv_in1k")
    assert model.provenance.source == "torchvision VGG11_Weights.IMAGENET1K_V1"
    assert _same(model, flaxvgg.vgg11(weights="DEFAULT"))
    assert _same(model, flaxvgg.VGG.from_pretrained("VGG11_Weights.DEFAULT"))


def test_what_is_no_repository(model, hub):
    with pytest.raises(flaxvgg.WeightsError, match="is no repository of the hub"):
        flaxvgg.VGG.from_pretrained("nothing")
    hub.do_POST = lambda self: self._answer(403, b'{"error": "you may not"}')
    with pytest.raises(flaxvgg.WeightsError, match="cannot write to me/vgg on the hub"):
        model.push_to_hub("me/vgg", token="hf_secret")


@pytest.mark.parametrize("suffix", quickly((".onnx", ".h5", ".keras"), ".onnx"))
def test_files_of_keras_and_onnx_where_a_path_is_taken(suffix, tmp_path):
    path = tmp_path / f"vgg{suffix}"
    if suffix == ".onnx":
        made = random_model(CONFIG)
        path.write_bytes(flaxvgg.to_onnx(made, "features"))
        expected = flaxvgg.to_torch(made)["features.0.weight"]
    else:
        expected = _keras_file(path)
    arch = "vgg11" if suffix == ".onnx" else "vgg16"
    for model in (
        getattr(flaxvgg, arch)(weights=path, dtype="bfloat16"),
        flaxvgg.VGG.from_pretrained(path, dtype="bfloat16"),
    ):
        assert model.config.arch == arch
        assert model.conv_stack.conv1_1.dtype == "bfloat16"
        np.testing.assert_array_equal(flaxvgg.to_torch(model)["features.0.weight"], expected)
        assert model.features(random_images(1, 32, 32)).shape == (1, 1, 1, 512)
    with pytest.raises(flaxvgg.WeightsError, match=f"holds a {arch}, not a vgg13"):
        flaxvgg.vgg13(weights=path)


def _keras_file(path: Path) -> np.ndarray:
    """Keras's VGG16 without a classifier; its first kernel as PyTorch has it."""
    import keras

    network = keras.applications.VGG16(weights=None, include_top=False)
    network.save(path)
    return network.layers[1].get_weights()[0].transpose(3, 2, 0, 1)
