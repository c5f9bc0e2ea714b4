"""Images decoded in several processes: the same bits in the same order, and errors in one line."""

import os
import pickle
import re
import signal
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from records import write_records
from streaming_jobs import means_job, on_device
from test_streaming import same_files

from flaxvgg.files.remote import RemoteError
from flaxvgg.images.ahead import ahead
from flaxvgg.images.labelled import read_labelled
from flaxvgg.images.loading import ImageError
from flaxvgg.images.spooled import Spooled
from flaxvgg.images.table_files import DatasetError
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming import find_source, stream
from flaxvgg.training.data import batches, reading
from flaxvgg.training.settings import Data
from networks import noise_photos

RECIPE = PREPROCESSING["torchvision"]
BROKEN = "cats/01.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    return noise_photos(root, {"cats": 7, "dogs": 6}, lambda i: (36, 40 + i), BROKEN)


def packed(kind: str, folder: Path, out: Path) -> Path:
    """The images in a file of this kind."""
    path, paths = out / kind, sorted(folder.rglob("*.png"))
    match kind:
        case "a.zip":
            with zipfile.ZipFile(path, "w") as file:
                for photo in paths:
                    file.write(photo, photo.relative_to(folder))
        case "a.parquet":
            cells = [{"bytes": x.read_bytes(), "path": f"{i}.png"} for i, x in enumerate(paths)]
            parquet.write_table(pyarrow.table({"image": cells}), path, row_group_size=5)
        case "a.array_record":
            write_records(path, [photo.read_bytes() for photo in paths])
        case _:
            with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as file:
                file.add(folder, arcname="x")
    return path


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.zip", "a.parquet", "a.array_record"])
def test_what_holds_images_goes_to_another_process(folder, tmp_path, kind):
    source = find_source(packed(kind, folder, tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert len(again) == 13
    for row in range(13):
        one, other = (x.read(row, (32, 32), RECIPE) for x in (source, again))
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one._replace(pixels=None) == other._replace(pixels=None)
    assert [bool(again.read(row, (32, 32), RECIPE).problem) for row in (0, 1, 2)] == [0, 1, 0]


def test_parquet_for_training_goes_to_another_process(folder, tmp_path):
    spooled = Spooled(find_source(packed("a.parquet", folder, tmp_path)).images)
    assert pickle.loads(pickle.dumps(spooled))[12] == spooled[12]


def test_archives_that_have_changed_do_not(folder, tmp_path):
    source = find_source(packed("a.zip", folder, tmp_path))
    given = pickle.dumps(source)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(folder / "dogs/03.png", "cats/00.png")
    with pytest.raises(ValueError, match="changed since the run began: run it again"):
        pickle.loads(given)


@pytest.mark.parametrize(
    "error",
    [
        ImageError("a.jpg: damaged", "b.jpg: none"),
        DatasetError("list.csv", ["line 1: this", "line 2: that"]),
        RemoteError("s3://bucket/a.jpg", "no answer", "try again"),
    ],
)
def test_errors_come_back_as_they_are(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert vars(again) == vars(error)


def test_a_store_does_not_tell_who_decoded(folder, tmp_path):
    problems = []
    for decoders in 0, 2:
        job, out = on_device(means_job()), tmp_path / f"{decoders}.zarr"
        found = stream(job, find_source(folder), out, size=(32, 32), batch=2, decoders=decoders)
        problems.append(dict(found.problems))
        assert found.now == 13
    assert same_files(tmp_path / "0.zarr", tmp_path / "2.zarr")
    assert problems[0] == problems[1]
    assert list(problems[0]) == [BROKEN]
    assert "truncated" in problems[0][BROKEN]


def test_training_batches_do_not_tell_who_decoded(folder, tmp_path):
    (folder / BROKEN).write_bytes((folder / "cats/02.png").read_bytes())
    images = read_labelled(folder)
    data = Data(folder, size=(32, 32), batch=3, crop=0.3)
    dataset = batches(images, data, RECIPE, epochs=2, seed=0)
    alone, several = reading(dataset), reading(dataset, decoders=2)
    several.set_state({"next_index": 3})
    expected = list(alone)[3:]
    for one, other in zip(expected, several, strict=True):
        np.testing.assert_array_equal(one["pixels"], other["pixels"])
        np.testing.assert_array_equal(one["labels"], other["labels"])
    assert several.get_state() == alone.get_state() == {"next_index": 8}


def test_what_goes_wrong_in_a_decoder_is_one_line():
    def broken(i: int) -> int:
        if i == 3:
            raise RemoteError("s3://bucket/a.jpg", "no answer", "try again")
        return i

    def killed(i: int) -> int:
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C is for the first process alone
        return i

    lock = threading.Lock()
    settings = {"threads": 1, "buffer": 2, "decoders": 1}
    for read, kind, line in (
        (broken, RemoteError, r"s3://bucket/a\.jpg: no answer: try again"),
        (killed, ChildProcessError, r"a decoding process has ended \(exit code -9\): rerun .*"),
    ):
        items = ahead(read, 9, **settings)
        with pytest.raises(kind) as caught:
            list(items)
        assert re.fullmatch(line, str(caught.value))
    with pytest.raises(ValueError, match=r"^these images cannot be given to other processes"):
        next(ahead(lambda i: lock, 9, **settings))
