"""Files and folders that are replaced whole: in one step, in two, by several writers at once."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flaxvgg.files import replacing
from flaxvgg.files.replacing import (
    WriteError,
    exchange,
    read_whole,
    replace_whole,
    restore,
    sweep,
    write_atomically,
)


@pytest.fixture(params=[True, False], ids=["exchanged", "in two steps"])
def in_one_step(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(replacing, "exchange", lambda a, b: False)
    return request.param


def _folder(text: str):
    def write(target: Path):
        target.mkdir()
        for name in "ab":
            (target / name).write_text(text)

    return write


def _texts(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def test_two_names_are_exchanged_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system has no such step")
    assert (tmp_path / "a" / "file").read_text() == "b"
    assert (tmp_path / "b" / "file").read_text() == "a"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


def test_a_folder_is_replaced_whole(tmp_path, in_one_step):
    for text in ("one", "two", "three"):
        replace_whole(tmp_path / "model", _folder(text))
        assert _texts(tmp_path / "model") == {text}
        assert os.listdir(tmp_path) == ["model"]


def test_a_writer_that_is_overtaken_between_its_two_steps_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(replacing, "exchange", lambda a, b: False)
    path, rename = tmp_path / "model", Path.rename
    replace_whole(path, _folder("start"))
    overtaken = []

    def rename_and_be_overtaken(self: Path, target: Path) -> Path:
        found = rename(self, target)
        if not overtaken:
            overtaken.append(target)
            replace_whole(path, _folder("theirs"))
        return found

    monkeypatch.setattr(Path, "rename", rename_and_be_overtaken)
    replace_whole(path, _folder("ours"))
    assert overtaken
    assert _texts(path) == {"ours"}
    assert os.listdir(tmp_path) == ["model"]


def test_names_up_to_the_longest_can_be_replaced(tmp_path):
    path = tmp_path / ("n" * 251 + ".npz")
    for text in ("one", "two"):
        write_atomically(path, lambda target, text=text: target.write_text(text))
        assert path.read_text() == text
    with pytest.raises(WriteError, match=r"File name too long\), and is as it was: choose a sh"):
        write_atomically(tmp_path / ("n" * 256), lambda target: target.write_text(""))


def test_links_stay_links_also_those_that_lead_nowhere_yet(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "disk" / "folder")
    (tmp_path / "file").symlink_to("disk/file")  # relative to the link
    for text in ("one", "two"):
        replace_whole(tmp_path / "folder", _folder(text))
        write_atomically(tmp_path / "file", lambda target, text=text: target.write_text(text))
        assert _texts(tmp_path / "folder") == {text}
        assert (tmp_path / "file").read_text() == text
        assert (tmp_path / "folder").is_symlink()
        assert (tmp_path / "file").is_symlink()
        assert sorted(os.listdir(tmp_path / "disk")) == ["file", "folder"]
        assert sorted(os.listdir(tmp_path)) == ["disk", "file", "folder"]
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(WriteError, match="circle is a symbolic link that leads back to itself"):
        write_atomically(tmp_path / "circle", lambda target: target.write_text(""))


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, said in [
        (tmp_path / "folder", "is a directory: choose another name for the file"),
        (tmp_path / "pipe", "is neither a file nor a directory"),
        (tmp_path / "none" / "x", "none is no directory: create it first"),
        (tmp_path / "pipe" / "x", "pipe is no directory: create it first"),
        (tmp_path / "zero\0byte", "a name cannot hold a zero byte"),
    ]:
        with pytest.raises(WriteError, match=said) as caught:
            write_atomically(path, lambda target: target.write_text(""))
        assert len(str(caught.value).splitlines()) == 1
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO):

        def write(target: Path, number: int = number):
            target.write_text("half")
            raise OSError(number, os.strerror(number))

        with pytest.raises(WriteError, match=os.strerror(number)):
            write_atomically(tmp_path / "new", write)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from flaxvgg.files import replacing

when = sys.argv[2]
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def write(target):
    target.mkdir()
    (target / "a").write_text("new")
    if when == "writing":
        kill()
    (target / "b").write_text("new")
    if when == "waiting":
        print("ready", flush=True)
        time.sleep(60)

if when == "between":
    replacing.exchange = lambda a, b: False
    Path.replace = kill
replacing.replace_whole(Path(sys.argv[1]), write)
"""


def _writer(path: Path, when: str) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", _KILLED, str(path), when]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def _killed(path: Path, when: str) -> int:
    with _writer(path, when) as writer:
        return writer.wait()


def test_what_writers_that_were_killed_have_left_is_removed(tmp_path):
    path, other = tmp_path / "model", tmp_path / ".flaxvgg-saving-00000000-1-0"
    other.mkdir()  # another machine's: nobody here knows whether it still runs
    replace_whole(path, _folder("old"))
    assert [_killed(path, "writing") for _ in range(2)] == [-9, -9]
    assert len(os.listdir(tmp_path)) == 4
    with _writer(path, "waiting") as alive:
        assert alive.stdout is not None
        alive.stdout.readline()
        assert len(sweep(tmp_path)) == 2
        assert len(os.listdir(tmp_path)) == 3  # the living one's is left
        alive.kill()
    assert len(sweep(tmp_path)) == 1
    assert sorted(os.listdir(tmp_path)) == [other.name, "model"]
    assert _texts(path) == {"old"}


@pytest.mark.parametrize("mend", [restore, lambda path: sweep(path.parent)], ids=["load", "save"])
def test_a_kill_between_two_renames_is_mended(tmp_path, mend):
    path = tmp_path / "model"
    replace_whole(path, _folder("old"))
    assert _killed(path, "between") == -9
    assert not path.exists()
    mend(path)
    assert _texts(path) == {"old"}
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["model"]


def test_who_reads_while_others_write_gets_one_or_the_other(tmp_path, in_one_step):
    """Two writers and this reader, who looks at one file after the other."""
    path, stop = tmp_path / "model", threading.Event()
    replace_whole(path, _folder("start"))
    problems = []

    def keep_writing(text: str):
        try:
            while not stop.is_set():
                replace_whole(path, _folder(text))
                stop.wait(0.001)
        except WriteError as error:
            problems.append(error)

    def read() -> set[str]:
        restore(path)
        try:
            return {(path / name).read_text() for name in "ab"}
        except OSError as error:
            raise WriteError(str(error)) from None

    writers = [threading.Thread(target=keep_writing, args=(text,)) for text in ("one", "two")]
    for writer in writers:
        writer.start()
    try:
        seen = [read_whole(path, read, WriteError) for _ in range(200)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not problems
    assert {len(texts) for texts in seen} == {1}  # never one file of each
    assert os.listdir(tmp_path) == ["model"]


def test_damage_that_nobody_makes_meanwhile_is_damage(tmp_path):
    calls = []

    def read():
        calls.append(1)
        raise WriteError("damaged")

    with pytest.raises(WriteError, match="damaged"):
        read_whole(tmp_path, read, WriteError)
    assert len(calls) == 1
    path = tmp_path / "file"

    def replaced():
        path.unlink(missing_ok=True)
        path.write_text("other")
        raise WriteError("damaged")

    with pytest.raises(WriteError, match="was replaced 100 times while it was read"):
        read_whole(path, replaced, WriteError)
