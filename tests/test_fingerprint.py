"""Contents of files, what differs between two data sets, and one run at a time."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from flaxvgg.files.locking import LockedError, alone
from flaxvgg.files.threads import in_threads
from flaxvgg.images.fingerprint import UNKNOWN, Known, content_of, content_of_file, what_differs


@pytest.mark.parametrize("size", [0, 1, 1000, 128 * 1024])
def test_every_byte_of_a_photo_counts(tmp_path, size):
    data = bytearray(np.random.default_rng(0).bytes(size))
    (tmp_path / "a").write_bytes(data)
    found = content_of_file(tmp_path / "a")
    assert found == content_of(bytes(data)) != UNKNOWN
    for place in {0, size // 2, size - 1} if size else ():
        data[place] ^= 1
        (tmp_path / "a").write_bytes(data)
        assert content_of_file(tmp_path / "a") != found
        data[place] ^= 1


def test_of_a_large_file_both_ends_its_size_and_any_36_kib_count(tmp_path):
    size = 1_000_000
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    contents = set()
    for start in (None, *range(0, size - 36 * 1024, 77_777)):
        given = data.copy()
        if start is not None:
            given[start : start + 36 * 1024] ^= 1
        (tmp_path / "a").write_bytes(given.tobytes())
        contents.add(content_of_file(tmp_path / "a"))
    for given in (data[:-1], data[1:], np.append(data[:-1], data[-1] ^ 1)):
        (tmp_path / "a").write_bytes(given.astype(np.uint8).tobytes())
        contents.add(content_of_file(tmp_path / "a"))
    assert len(contents) == 1 + len(range(0, size - 36 * 1024, 77_777)) + 3


def test_an_array_is_its_values_its_shape_and_its_label():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    others = [image.reshape(6, 4, 3), image.view(np.int8), image[::-1], image[:-1]]
    assert len({content_of(x) for x in [image, *others]}) == 5
    assert content_of(image, 3) == content_of(image.copy(), np.int64(3)) != content_of(image, 4)
    assert content_of(image, None) != content_of(image, 0)


def test_what_never_ends_is_no_content(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match=r"regular|No such|directory"):
            content_of_file(path)


def known(**images):
    return {
        name: Known(content, tuple(labels.split())) for name, (content, labels) in images.items()
    }


BEFORE = known(a=(1, "cat"), b=(2, "cat"), c=(3, "dog"), d=(4, "dog"))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (BEFORE, ""),
        (dict(reversed(BEFORE.items())), ""),
        (known(a=(1, "cat"), b=(9, "cat"), c=(3, "dog"), d=(4, "dog")), "1 changed (b)"),
        (
            known(a=(1, "cat"), b=(2, "cat dog"), c=(3, "dog"), d=(4, "dog")),
            "1 with other labels (b), by content, classes cat -> cat;dog",
        ),
        (
            known(a=(3, "cat"), b=(4, "cat"), c=(1, "dog"), d=(2, "dog")),
            "4 changed (a, b, c, ...), by content, classes dog -> cat, cat -> dog",
        ),
        (
            known(x=(1, "ape"), y=(2, "ape"), c=(3, "dog"), d=(4, "dog")),
            "2 added (x, y), 2 removed (a, b), by content, classes cat -> ape",
        ),
        (known(a=(UNKNOWN, "cat"), b=(2, "cat"), c=(3, "dog"), d=(4, "dog")), ""),
    ],
)
def test_what_differs(now, told):
    assert what_differs(BEFORE, now) == told


def test_in_threads_keeps_the_order_and_reads_not_all_ahead():
    taken = []

    def items():
        for i in range(10_000):
            taken.append(i)
            yield i

    found = in_threads(lambda i: i * i, items())
    assert next(found) == 0
    assert len(taken) < 16 * (os.cpu_count() or 1) + 3
    assert list(found) == [i * i for i in range(1, 10_000)]


_HOLD = """
import sys, time
from pathlib import Path
from flaxvgg.files.locking import alone
with alone(Path(sys.argv[1]), Path(sys.argv[1], ".lock")) as held:
    print(held, flush=True)
    time.sleep(100)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    out = tmp_path / "a" / "run"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(out)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"True\n"
        says = rf"{out} is being written by another run \(process {holder.pid} on .*\): wait"
        for _ in range(2):
            with pytest.raises(LockedError, match=says), alone(out, out / ".lock"):
                pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert (out / ".lock").exists()
    with alone(out, out / ".lock") as held:
        assert held
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), alone(out, out / ".lock"):
            pass
    assert not (out / ".lock").exists()
    assert out.exists()


def test_a_lock_leaves_no_folders_that_it_made(tmp_path):
    (tmp_path / "a").mkdir()
    with alone(tmp_path / "a/b/c", tmp_path / "a/b/c/.lock"):
        assert (tmp_path / "a/b/c").is_dir()
    assert [x.name for x in tmp_path.rglob("*")] == ["a"]
