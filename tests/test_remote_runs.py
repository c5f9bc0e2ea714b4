"""Training runs in a bucket, on a real S3 server of this machine: the same as in a folder."""

import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from object_store import BUCKET, full_after, some

import flaxvgg
from flaxvgg.files import remote
from flaxvgg.files.locking import LockedError
from flaxvgg.files.remote import RemoteError
from flaxvgg.files.remote_locking import alone_at
from flaxvgg.training.places import Bucket
from flaxvgg.training.run import train
from flaxvgg.training.settings import Data, Model, Run
from flaxvgg.training.trainer import Optimisation
from flaxvgg.watching import Watcher
from flaxvgg.weights import checkpoint
from flaxvgg.weights.checkpoint import CheckpointError
from helpers import TINY_GAP, TinyConfig, tiny_vgg
from networks import coloured_photos

PLACE = f"s3://{BUCKET}/runs"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return coloured_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def tiny(monkeypatch):
    """What to load for a run whose network does not matter: it gets a tiny one."""

    def with_head(model: Model, _: object, num_classes: int, seed: int):
        head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=num_classes))
        return tiny_vgg(head, precision="default", dtype=jnp.dtype(model.dtype))

    monkeypatch.setattr(Model, "with_head", with_head)
    monkeypatch.setattr(checkpoint, "VGGConfig", TinyConfig)
    return lambda: tiny_vgg(TINY_GAP)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Go to another machine: one that has nothing of any run. Gives where it would."""

    def go() -> Path:
        home = tmp_path / f"machine{next(count)}"
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        return home / "flaxvgg" / "runs"

    count = itertools.count()
    go()
    return go


def a_run(photos: Path, epochs: int = 2, every: int = 3) -> Run:
    """Seven steps an epoch."""
    training = Optimisation(loss="softmax", learning_rate=1e-2, average=0.5)
    return Run(
        Data(photos, size=(32, 32), batch=4, crop=0.5), Model(), training, epochs, every=every
    )


def stopped_after(steps: int):
    """A `stop` that says so behind a step. (It is asked twice at the beginning of an epoch.)"""
    asked = iter(range(1000))
    return lambda: next(asked) >= steps + 1


def objects(url: str) -> list[str]:
    return [name for name, _ in remote.objects_below(url)]


def same_models(a: str | Path, b: str | Path) -> bool:
    a, b = (flaxvgg.to_torch(flaxvgg.load(x)) for x in (a, b))
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_one_run_at_a_time_and_nowhere_else(photos, tiny, proxy, machine, monkeypatch):
    run, home = a_run(photos), machine()
    remote.write(f"{PLACE}/refused/notes.txt", b"")
    with pytest.raises(ValueError, match=r"also holds notes\.txt, and is no run: choose another"):
        train(tiny, run, f"{PLACE}/refused")
    with pytest.raises(ValueError, match="s3://bucket is a whole bucket: add a name"):
        train(tiny, run, f"s3://{BUCKET}")
    with pytest.raises(ValueError, match="a web server is read only"):
        train(tiny, run, "https://example.org/run")
    with pytest.raises(RemoteError, match="s3://none: no such bucket: create it"):
        train(tiny, run, "s3://none/run")
    with (
        alone_at(f"{PLACE}/held"),
        pytest.raises(LockedError, match="is being written by another run"),
    ):
        train(tiny, run, f"{PLACE}/held")
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="several processes write into a folder that all of them"):
        Bucket(f"{PLACE}/many").check(run.data)
    assert not home.exists()


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine(photos, tiny, proxy, machine, tmp_path):
    run, url, home = a_run(photos), f"{PLACE}/on", machine()
    whole = train(tiny, run, tmp_path / "whole")
    first = train(tiny, run, url, stopped_after(4))
    assert 0 < first.steps < first.of
    assert not [x for x in home.rglob("*") if x.is_file()]  # the bucket has it all
    machine()
    again = train(tiny, run, url)
    assert again.rows == whole.rows
    assert same_models(f"{url}/model", tmp_path / "whole" / "model")
    for name in ("data.csv", "metrics.csv", "confusion.csv"):
        assert remote.Object(f"{url}/{name}").fetch()[0] == (tmp_path / "whole" / name).read_bytes()
    steps = {x.split("/")[1] for x in objects(url) if x.startswith("checkpoints/")}
    assert steps == {x.name for x in (tmp_path / "whole" / "checkpoints").iterdir()}
    assert f"{PLACE}/.on.lock".removeprefix(f"{PLACE}/") not in objects(PLACE)
    # What does not fit is said of the address, and stays there.
    with pytest.raises(CheckpointError, match=f"^{url}/checkpoints at step 14 is of another run"):
        train(tiny, dataclasses.replace(run, every=2), url)
    assert train(tiny, a_run(photos, epochs=3), url).steps == 21


@pytest.mark.slow
def test_photos_in_the_bucket_are_those_of_the_folder(photos, tiny, proxy, machine, tmp_path):
    for path in photos.rglob("*.png"):
        remote.write(f"{PLACE}/photos/{path.relative_to(photos)}", path.read_bytes())
    there = Path(f"{PLACE}/photos")
    whole = train(tiny, a_run(photos), tmp_path / "whole")
    assert train(tiny, a_run(there), tmp_path / "there").rows == whole.rows
    # A run may go from one to the other.
    train(tiny, a_run(photos), f"{PLACE}/moved", stopped_after(4))
    assert train(tiny, a_run(there), f"{PLACE}/moved").rows == whole.rows
    with pytest.raises(ValueError, match="is among the images: choose another --out"):
        train(tiny, a_run(there), f"{PLACE}/photos/run")
    remote.write(f"{PLACE}/photos/red/x.png", b"broken")
    with pytest.raises(ValueError, match=rf"{PLACE}/photos: red/x.png: "):
        train(tiny, a_run(there), tmp_path / "broken")


@pytest.mark.slow
def test_servers_that_fail_and_come_back(photos, tiny, proxy, server, machine, monkeypatch):
    """Whatever the server does, the run ends in the same bits, and a line says what is wrong."""
    run = a_run(photos)
    whole = train(tiny, run, f"{PLACE}/spoilt/whole")
    # A tenth of all requests fail, from the first one on.
    proxy.fault = some(1, 0.1, "503 SlowDown", "500 InternalError", "cut")
    assert train(tiny, run, f"{PLACE}/spoilt/tenth").rows == whole.rows
    assert proxy.faults > 5
    # The server dies while a checkpoint is put there, and is started again.
    down = threading.Thread(target=lambda: (server.kill(), time.sleep(1), server.start()))
    puts = itertools.count()

    def crash(method: str, path: str) -> None:
        if method == "PUT" and "checkpoints/7/" in path and next(puts) == 2:
            down.start()

    proxy.fault = crash
    assert train(tiny, run, f"{PLACE}/spoilt/down").rows == whole.rows
    down.join()
    # Nothing more fits after so many writes: the folder is kept and named, and gone on with.
    monkeypatch.setitem(remote._RETRIES, "max_retries", 1)
    remote._made.cache_clear()
    said, home, url = [], machine(), f"{PLACE}/spoilt/full"
    for most in range(2, 400, 12):
        proxy.fault = full_after(most)
        try:
            assert train(tiny, run, url).rows == whole.rows
            break
        except RemoteError as error:
            said.append(str(error))
    proxy.fault = lambda *_: None
    assert len(said) > 2
    kept = rf"no room \(507 QuotaExceeded\): make room; until then the run is kept in {home}/full-"
    assert all(re.search(kept, line) for line in said), said
    assert not [x for x in home.rglob("*") if x.is_file()]
    for how in ("tenth", "down", "full"):
        assert same_models(f"{PLACE}/spoilt/{how}/model", f"{PLACE}/spoilt/whole/model"), how
        left = {x.partition("/")[2].partition("/")[0] for x in objects(f"{PLACE}/spoilt/{how}")}
        assert {"7", "14"} <= left, how


@pytest.mark.slow
def test_what_the_bucket_has_not_is_gone_on_with(photos, tiny, proxy, machine, monkeypatch):
    """Of a run that lost its server in the middle; and with another one's instead, if later."""
    run, url, home = a_run(photos), f"{PLACE}/behind", machine()
    whole = train(tiny, run, f"{PLACE}/ahead")
    monkeypatch.setitem(remote._RETRIES, "max_retries", 0)
    remote._made.cache_clear()

    def fault(method: str, path: str) -> str | None:
        return "403 AccessDenied" if "checkpoints/7" in path and method == "PUT" else None

    proxy.fault = fault
    with pytest.raises(RemoteError, match=rf"access is denied .* is kept in {home}/behind-"):
        train(tiny, run, url)
    # The state at which it was noticed is kept as well.
    (kept,) = home.glob("behind-*/checkpoints")
    assert "9" in {x.name for x in kept.iterdir()}
    proxy.fault = lambda *_: None
    told = []

    class Heard(Watcher):
        def say(self, text: str) -> None:
            told.append(text)

    assert train(tiny, run, url, watch=Heard()).rows == whole.rows
    assert told[0].startswith(f"resuming with what {home}/behind-")
    assert "resuming after step 9 of 14" in told
    assert same_models(f"{url}/model", f"{PLACE}/ahead/model")


# flaxvgg train on a tiny network; killed at a step, or within the upload of a folder.
_PROGRAM = """
import dataclasses, os, signal, sys
from networks import TINY_GAP, tiny_vgg
from flaxvgg.commands import cli, train
from flaxvgg.files import remote_folders
from flaxvgg.training import places
from flaxvgg.training.log import Log
from flaxvgg.training.settings import Model

def with_head(model, loaded, classes, seed):
    return tiny_vgg((*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=classes)))

Model.with_head = with_head
train.load_model = lambda *told, **options: tiny_vgg(TINY_GAP)
kind, at = sys.argv.pop(1), int(sys.argv.pop(1))
add, put, write, folders = Log.add, places.put_folder, remote_folders.write, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def add_and_die(self, row):
    add(self, row)
    if kind == "step" and row["step"] == at:
        die()

def write_and_die(*told, **options):
    write(*told, **options)
    if kind == "put" and len(folders) == at:
        die()

def put_noted(folder, url):
    folders.append(folder)
    put(folder, url)

Log.add, places.put_folder, remote_folders.write = add_and_die, put_noted, write_and_die
cli.app(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(photos, tiny, proxy, machine, tmp_path):
    """At a step, or within the upload of a checkpoint or of the model; on other machines."""
    config = tmp_path / "run.toml"
    config.write_text(
        f'epochs = 2\nevery = 3\n[data]\ntrain = "{photos}"\nsize = [32, 32]\nbatch = 4\n'
        '[training]\nloss = "softmax"\nlearning_rate = 1e-2\n'
    )
    command = "train", "--config", str(config), "--out"
    tests = Path(__file__).parent
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment |= {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}

    def run(out: object, kind: str = "whole", where: int = 0) -> subprocess.CompletedProcess:
        machine()
        home = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
        return subprocess.run(
            [sys.executable, "-c", _PROGRAM, kind, str(where), *command, str(out)],
            env=environment | home,
            capture_output=True,
            text=True,
        )

    done = run(tmp_path / "whole")
    assert not done.returncode, done.stderr
    for kind, where in ("step", 9), ("put", 3), ("put", 7):
        out = f"{PLACE}/killed/{kind}{where}"
        killed = run(out, kind, where)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "model/flaxvgg.json" not in objects(out)
        again = run(out)
        assert not again.returncode, again.stderr
        assert f"written: {out}/model" in again.stdout
        assert re.search(r"resuming after step \d+ of 14", again.stdout)
        assert same_models(f"{out}/model", tmp_path / "whole" / "model")
        rows = remote.Object(f"{out}/metrics.csv").fetch()[0]
        assert rows == (tmp_path / "whole" / "metrics.csv").read_bytes()
        assert "curves.png" in objects(out)
