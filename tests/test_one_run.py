"""Two commands at once on one --out: the second is refused in a line, before it does any work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxvgg.files.locking import LockedError, alone_beside, alone_in
from helpers import check_refused, run_flaxvgg

COMMANDS = {
    "cam": (["cam", "PHOTO", "--out", "OUT"], alone_in),
    "attribute": (["attribute", "PHOTO", "--out", "OUT"], alone_in),
    "sparsity": (["sparsity", "PHOTO", "--out", "OUT"], alone_in),
    "demo": (["demo", "PHOTO", "--out", "OUT"], alone_in),
    "compare": (["compare", "PHOTO", "PHOTO", "--out", "OUT"], alone_in),
    "compare.csv": (["compare", "PHOTO", "PHOTO", "--out", "OUT.csv"], alone_beside),
    "features": (["features", "PHOTO", "--out", "OUT.npz"], alone_beside),
}
_HOLD = """
import sys, time
from pathlib import Path
from flaxvgg.files.locking import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def photo(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "a.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_run_is_refused_before_it_loads_anything(tmp_path, photo, monkeypatch, name):
    command, alone = COMMANDS[name]
    given = [x.replace("OUT", str(tmp_path / "out")) for x in command]
    out = Path(given[-1])
    if alone is alone_in:
        out.mkdir()
        (out / "kept.txt").write_text("of the first")
    module = command[0]
    monkeypatch.setattr(f"flaxvgg.commands.{module}.load_model", lambda *_: pytest.fail("loaded"))
    with alone(out) as held:
        assert held
        before = sorted(x.name for x in tmp_path.rglob("*"))
        result = run_flaxvgg(*(str(photo) if x == "PHOTO" else x for x in given))
        check_refused(result, f"{out} is being written by another run (process {os.getpid()} on")
        assert sorted(x.name for x in tmp_path.rglob("*")) == before
    left = {x.name for x in tmp_path.rglob("*")} - {"photos", "a.png", "out", "kept.txt"}
    assert not left


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path, photo, monkeypatch):
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(out)], stdout=subprocess.PIPE)

    def load(*_):
        raise ValueError("it went on to the model")

    monkeypatch.setattr("flaxvgg.commands.sparsity.load_model", load)
    command = "sparsity", photo, "--size", "32x32", "--out", out
    try:
        assert holder.stdout.readline() == b"held\n"
        check_refused(run_flaxvgg(*command), f"process {holder.pid} on")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert (out / ".lock").exists()
    check_refused(run_flaxvgg(*command), "it went on to the model")
    assert not (out / ".lock").exists()


def test_a_lock_beside_a_file_with_the_longest_name(tmp_path):
    out = tmp_path / f"{251 * 'n'}.npz"
    with alone_beside(out) as held:
        assert held
        with pytest.raises(LockedError), alone_beside(out):
            pass
        with alone_beside(tmp_path / f"{251 * 'm'}.npz") as other:
            assert other
    assert not list(tmp_path.iterdir())


def test_a_lock_in_a_folder_behind_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for _ in range(2):
        with alone_in(tmp_path / "link"), pytest.raises(LockedError), alone_in(tmp_path / "link"):
            pass
    assert [x.name for x in tmp_path.iterdir()] == ["link"]
