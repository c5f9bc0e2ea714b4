"""Tar shards and zip files: every image once, what is damaged named, rows those of the folder."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxvgg.images.archives import Archives
from flaxvgg.images.datasets import DatasetError
from flaxvgg.images.finding import ImageError, find_images
from flaxvgg.images.fingerprint import UNKNOWN
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming import features_job, find_source, stream
from helpers import run_flaxvgg
from networks import tiny_vgg

RECIPE = PREPROCESSING["torchvision"]


def image(number: int) -> bytes:
    file = io.BytesIO()
    colours = np.random.default_rng(number).integers(0, 255, (4, 5, 3), np.uint8)
    Image.fromarray(colours).resize((40, 36)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SHARDS = [
    {"000.png": image(0), "000.cls": b"2\n", "001.seg.png": image(1), "001.cls": b"0"},
    {"000.png": image(2), "000.cls": b" 10", "notes.txt": b"none", "._000.png": b"of a Mac"},
]
FOLDERS = {"dog/a b.png": image(0), "cat/1.png": image(1), "cat/__MACOSX/1.png": b""}


def test_shards_of_webdataset(tmp_path):
    """Numbers of classes lie beside the images; names of several shards cannot meet."""
    for i, files in enumerate(SHARDS):
        tar(tmp_path / f"train-{i:03}.tar", files)
    source = find_source(tmp_path / "train-{000..001}.tar")
    names = ["train-000.tar/000.png", "train-000.tar/001.seg.png", "train-001.tar/000.png"]
    assert list(source.names) == names
    assert source.labels.tolist() == [2, 0, 10]
    assert source.classes == tuple(map(str, range(11)))
    for row in (2, 0, 1):
        item = source.read(row, None, RECIPE)
        expected = Image.open(io.BytesIO(image(row)))
        np.testing.assert_array_equal(item.pixels, np.asarray(expected))
        assert item.label == [2, 0, 10][row]
    one = find_source(tmp_path / "train-001.tar")
    assert list(one.names) == ["000.png"]
    some = tar(tmp_path / "some.tar", {"a.jpg": b"", "b.png": image(0), "b.cls": b"1"})
    assert find_source(some).labels.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz", ".TGZ"])
def test_folders_in_an_archive_are_classes(tmp_path, kind):
    """The store of an archive is that of the same files in a folder, row by row."""
    path = tmp_path / f"images{kind}"
    if kind == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in FOLDERS.items():
                archive.writestr(name, data)
            archive.mkdir("empty")
    else:
        tar(path, FOLDERS, "w" if kind == ".tar" else "w:gz")
    source = find_source(path)
    assert list(source.names) == ["dog/a b.png", "cat/1.png"]
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    for name, data in FOLDERS.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    folder = find_source(tmp_path / "photos")
    model = tiny_vgg()
    stores = [
        stream(features_job(model, ["gap"]), x, tmp_path / f"{i}.zarr", size=(32, 32)).store
        for i, x in enumerate((source, folder))
    ]
    np.testing.assert_array_equal(stores[0].read("gap")[::-1], stores[1].read("gap"))


def test_a_store_of_an_archive_is_resumed_and_notices_another(tmp_path):
    path = tar(tmp_path / "images.tar", FOLDERS)
    job, out = features_job(tiny_vgg(), ["gap"]), tmp_path / "a.zarr"
    assert stream(job, find_source(path), out, size=(32, 32)).now == 2
    assert stream(job, find_source(path), out, size=(32, 32)).now == 0
    tar(path, FOLDERS | {"dog/a b.png": image(7)})
    with pytest.raises(ValueError, match="1 of those that are done, or their labels, have changed"):
        stream(job, find_source(path), out, size=(32, 32))


def test_what_is_damaged_is_named(tmp_path):
    """A member that cannot be read is a broken image; an archive that cannot, one error."""
    path = tar(tmp_path / "cut.tar", FOLDERS)
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 + 100])
    with pytest.raises(DatasetError, match=r"cut.tar: .*get it again"):
        find_source(path)
    path.write_bytes(b"\x07" * 2000)
    with pytest.raises(DatasetError, match="no tar archive, or a damaged one"):
        find_source(path)
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(whole)[:-300])
    with pytest.raises(DatasetError, match="no gzip file, or a damaged one"):
        find_source(tmp_path / "cut.tar.gz")
    packed = tmp_path / "bits.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in FOLDERS.items():
            archive.writestr(name, data)
    data = bytearray(packed.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    packed.write_bytes(data)
    source = find_source(packed)
    broken, good = (source.read(i, (32, 32), RECIPE) for i in (0, 1))
    reason = "Bad CRC-32 for file 'dog/a b.png'"
    assert broken.problem == f"dog/a b.png in bits.zip is damaged ({reason}): get it again"
    assert broken.content == UNKNOWN
    assert not good.problem
    for data, words in ((b"cut", "no zip archive"), (packed.read_bytes()[:-40], "no zip archive")):
        packed.write_bytes(data)
        with pytest.raises(DatasetError, match=words):
            find_source(packed)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b"1"}, "no image in it"),
        ({"a.png": b"1", "a.cls": b"cat"}, "the .cls of a.png is no class number, or damaged"),
        ({"a.png": b"1", "a.cls": b"-1"}, "the .cls of a.png is no class number, or damaged"),
        ({"a.png": b"1", "./a.png": b"2"}, "one name twice"),
        ({"a.png": b"1", "b.png": b"", "b.cls": b"70000"}, "70000"),
    ],
)
def test_archives_that_are_no_data_set(tmp_path, files, words):
    with pytest.raises(DatasetError, match=words):
        find_source(tar(tmp_path / "images.tar", files))


def test_nothing_but_files_is_read(tmp_path):
    """Links, devices and names that lead elsewhere: nothing is unpacked, nothing is followed."""
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{int(kind)}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("../../up.png")
        info.size = len(image(1))
        archive.addfile(info, io.BytesIO(image(1)))
    found = Archives([path])
    assert found.names == ["../../up.png"]
    assert found[0]["image"] == image(1)
    assert [x.name for x in tmp_path.iterdir()] == ["odd.tar"]


def test_an_archive_goes_into_a_store_alone(tmp_path):
    path = tar(tmp_path / "a.tar", FOLDERS)
    (tmp_path / "b.png").write_bytes(image(0))
    with pytest.raises(DatasetError, match=r"b\.png: an archive goes with archives alone"):
        find_source([path, tmp_path / "b.png"])
    with pytest.raises(ImageError, match="an archive of images: it goes into a store"):
        find_images([path])
    with pytest.raises(DatasetError, match="No such file"):
        find_source(tmp_path / "none-{0..1}.tar")
    result = run_flaxvgg("cam", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "an archive of images: it goes into a store (--out NAME.zarr)" in result.stderr
