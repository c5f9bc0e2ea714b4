"""flaxvgg view: a store in a real browser, and what its server refuses."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from pages import DESK, opened, settled, text
from PIL import Image

from flaxvgg.cam.photos import plan_maps
from flaxvgg.commands.serving import is_loopback, serve
from flaxvgg.files.foreign import plain
from flaxvgg.network.provenance import Provenance
from flaxvgg.plotting.store_view import StoreView
from flaxvgg.streaming import Store, find_source, maps_job, sparsity_job, stream
from flaxvgg.streaming.store import StoreError
from helpers import TINY_GAP, check_refused, run_flaxvgg, tiny_vgg

EVIL = "<img src=x onerror=alert(1)>&amp;'\".png"
CLASSES = ("cat", "space shuttle", "dog", "<b onclick=alert(1)>\x1b[31m", "terrier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, name in enumerate([*(f"{i}.png" for i in range(6)), EVIL]):
        pixels = rng.integers(0, 40 * i + 16, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module")
def maps(folder, tmp_path_factory):
    """A store of two methods' maps."""
    model = tiny_vgg(TINY_GAP, provenance=Provenance("random", classes=CLASSES))
    plan = plan_maps(model, ("cam", "grad_cam"), "top2", None, "paper", (32, 48))
    path = tmp_path_factory.mktemp("stores") / "maps.zarr"
    stream(maps_job(model, plan), find_source(folder), path, size=(32, 48))
    return Store(path)


@pytest.fixture(scope="module")
def zeros(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "zeros.zarr"
    stream(sparsity_job(tiny_vgg(TINY_GAP), None), find_source(folder), path, size=(32, 48))
    return Store(path)


class Client:
    """Asks a server, as any program on this machine could."""

    def __init__(self, port: int):
        self.port = port

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def json(self, path: str):
        status, data = self.ask(path)
        assert status == 200, data
        return json.loads(data)


@pytest.fixture
def served(request, maps, folder):
    server = serve(StoreView(maps, folder), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Client(server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_rows_are_sorted_and_read_as_they_are_asked_for(served, maps):
    scores, classes = maps.read("score")[:, 0], maps.read("class")[:, 0]
    done = [i for i, name in enumerate(maps.read("name")) if name != "broken.png"]
    assert len(done) == 7

    def rows(query: str) -> list[int]:
        return [row["i"] for row in served.json(f"/list?{query}")["rows"]]

    assert rows("count=100") == done
    assert rows("count=2&start=3") == done[3:5]
    assert rows("count=100&sort=score&down=1") == sorted(done, key=lambda i: -scores[i])
    assert rows("count=100&sort=class") == sorted(done, key=lambda i: classes[i])
    assert rows("count=100&text=ONERROR") == [list(maps.read("name")).index(EVIL)]
    assert rows("start=900&count=5") == rows("count=0") == []
    item = served.json(f"/item/{done[2]}")
    assert item["labels"] == [plain(CLASSES[x]) for x in maps.read("class")[done[2]]]
    assert item["scores"] == pytest.approx(maps.read("score")[done[2]].tolist())
    raw = maps.read("grad_cam")[done[2]]
    ranges = [[x.min(), x.max()] for x in raw]
    assert np.array(item["maps"][1][0]["ranges"]) == pytest.approx(np.array(ranges))
    status, data = served.ask(f"/thumbnail/{done[0]}")
    assert status == 200
    assert data.startswith(b"\xff\xd8")


def test_what_is_refused(served, maps, tmp_path):
    broken = list(maps.read("name")).index("broken.png")
    for path in (f"/item/{broken}", "/item/99", "/item/-1", "/item/0x1", "/etc/passwd",
                 "/../maps.zarr", "/list?start=x", "/picture/1/2"):  # fmt: skip
        assert served.ask(path)[0] == 404, path
    for host in ("evil.example", f"evil.example:{served.port}", ""):
        assert served.ask("/", Host=host)[0] == 403
    assert served.ask("/", Host=f"localhost:{served.port}")[0] == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert served.ask("/", method)[0] == 501
    status, data = served.ask("/", "HEAD")
    assert (status, data) == (200, b"")


def test_names_that_lead_elsewhere_show_no_photo(maps, folder, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "secret.png")
    view = StoreView(maps, folder)
    view._names[0] = os.path.relpath(tmp_path / "secret.png", folder)
    with pytest.raises(ValueError, match="not in the folder"):
        view.picture(0, small=True)
    view._names[0] = str(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="not in the folder"):
        view.picture(0, small=True)


def test_zeros_by_layer(zeros, folder):
    view = StoreView(zeros, folder)
    shares = zeros.read("zeros") / zeros.read("values")
    for layer in range(4):
        rows = [x["i"] for x in view.listing({"sort": "zeros", "down": "1", "layer": str(layer),
                                           "count": "9"})["rows"]]  # fmt: skip
        found = shares[rows, layer]
        assert (np.diff(found) <= 0).all()
    item = view.item(rows[0])
    assert item["facts"][0][0] == "relu1_1"
    assert f"{100 * shares[rows[0], 0]:.1f} % zero" in item["facts"][0][1]


def test_classes_have_names_as_far_as_they_are_known(maps, folder):
    view = StoreView(Store(maps.path), folder)
    row, first = 0, int(maps.read("class")[0, 0])
    (listed,) = view.listing({"count": "1"})["rows"]
    assert listed["i"] == row
    assert listed["keys"]["class"] == plain(CLASSES[first])
    assert ["class", plain(CLASSES[first])] in view.item(row)["facts"]
    assert "\x1b" not in json.dumps(view.item(row), ensure_ascii=False)
    view.store.class_names = ()  # of a store that was made before there were names
    assert view.item(row)["labels"][0] == f"class {first}"
    assert view.listing({"count": "1"})["rows"][0]["keys"]["class"] == f"class {first}"


@pytest.mark.parametrize("names", [5, [1, 2], [None]])
def test_names_that_are_none_make_no_store(maps, tmp_path, names):
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(maps.path, damaged)
    told = json.loads((damaged / "zarr.json").read_text())
    told["attributes"]["flaxvgg"]["class_names"] = names
    (damaged / "zarr.json").write_text(json.dumps(told))
    with pytest.raises(StoreError, match="is no store of flaxvgg"):
        Store(damaged)


def test_nothing_is_written(maps, folder):
    def state() -> dict[str, float]:
        return {str(path): path.stat().st_mtime_ns for path in maps.path.rglob("*")}

    before = state()
    view = StoreView(Store(maps.path), folder)
    view.page()
    view.listing({"sort": "score", "count": "5"})
    view.item(1)
    view.picture(1, small=True)
    assert state() == before


def test_a_store_in_a_browser(served, tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with Browser(program, tmp_path / "profile") as browser:
        address = f"http://127.0.0.1:{served.port}/"
        opened(browser, address, DESK)
        assert all(url.startswith((address, "data:")) for url in browser.requests)
        assert browser.complaints == []
        assert "cam: colours from" in text(browser, ".told")
        assert browser.evaluate("document.querySelectorAll('[onerror], [onclick]').length") == 0
        labels = served.json("/item/0")["labels"]
        assert text(browser, ".classes b") == labels[0]
        assert (
            browser.evaluate(
                "[...document.querySelectorAll('.class option')].map((x) => x.textContent)"
            )
            == labels
        )
        assert text(browser, ".count") == "7 photos"
        browser.evaluate(
            """(async () => {
            document.querySelector('.photos').scrollIntoView();
            while (![...document.querySelectorAll(".photos img")].some((x) => x.naturalWidth))
              await new Promise(requestAnimationFrame);
            })()"""
        )
        browser.evaluate("document.querySelectorAll('.photos button')[6].click()")
        browser.evaluate(
            """(async () => {
            while (document.querySelector(".name").textContent !=
                   document.querySelectorAll('.photos span')[6].textContent)
              await new Promise(requestAnimationFrame);
            })()"""
        )
        settled(browser)
        assert browser.evaluate("document.querySelector('.under canvas').width") == 48


def test_the_command_listens_here_only_and_ends_by_ctrl_c(maps, folder):
    code = "from flaxvgg.commands.cli import app; app()"
    command = [sys.executable, "-c", code, "view", str(maps.path), "--photos", str(folder)]
    environment = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            assert match, line
            assert Client(int(match[1])).ask("/")[0] == 200
            running.send_signal(signal.SIGINT)
            assert "ended" in running.stdout.read()
            assert running.wait(60) == 0
        finally:
            running.kill()
    assert [is_loopback(x) for x in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_bad_input_is_one_line(maps, tmp_path: Path):
    check_refused(run_flaxvgg("view", tmp_path / "none.zarr"), "does not exist")
    (tmp_path / "a.png").write_bytes(b"")
    check_refused(run_flaxvgg("view", tmp_path / "a.png"), "a.png is a file, and no store")
    missing = tmp_path / "missing"
    check_refused(run_flaxvgg("view", maps.path, "--photos", missing), "is no folder")
