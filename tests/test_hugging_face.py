"""Data sets of Hugging Face, by their own package: images as they are in files, and labels."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from streaming_jobs import means_job, on_device
from test_archives import image
from test_shards import RECIPE, cells

from flaxvgg.images.datasets import DatasetError
from flaxvgg.streaming import Source, StoreError, find_source, stream

LABELS = [0, 1, 1, 1, 0, 0, 1, 0, 1]
COUNT = len(LABELS)
CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def hub() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": CLASSES})
    rows = {"image": cells(0, COUNT), "label": LABELS}
    return datasets.Dataset.from_dict(rows, features=features)


def check(source: Source, rows: list[int]) -> None:
    """These images, in this order, each as it is in its file."""
    assert [Path(name).name for name in source.names] == [f"n{i}.png" for i in rows]
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [LABELS[i] for i in rows]
    for row, i in reversed(list(enumerate(rows))):
        item = source.read(row, None, RECIPE)
        expected = Source([image(i)], ["one"]).read(0, None, RECIPE)
        np.testing.assert_array_equal(item.pixels, expected.pixels)
        assert item.content == expected.content  # of the file's bytes, and not of pixels


def test_whatever_was_done_with_it(hub, tmp_path):
    every = list(range(COUNT))
    check(Source.of_hugging_face(hub), every)
    check(Source.of_hugging_face(hub.with_format("numpy")), every)
    check(Source.of_hugging_face(hub.select([4, 2])), [4, 2])
    order = np.random.default_rng(0).permutation(COUNT).tolist()
    check(Source.of_hugging_face(hub.select(order)), order)
    check(Source.of_hugging_face(datasets.concatenate_datasets([hub, hub.select([])])), every)
    check(Source.of_hugging_face(hub.rename_columns({"image": "img", "label": "kind"})), every)
    hub.save_to_disk(tmp_path / "disk")
    check(Source.of_hugging_face(datasets.load_from_disk(tmp_path / "disk")), every)


def test_what_it_writes_as_parquet(hub, tmp_path):
    other = hub.rename_columns({"image": "img", "label": "kind"})
    for i, one in enumerate((hub, other)):
        folder = tmp_path / str(i)
        folder.mkdir()
        for shard in range(3):
            path = folder / f"train-{shard:05}-of-00003.parquet"
            one.shard(3, shard, contiguous=True).to_parquet(path)
        check(find_source(folder / "train-*.parquet"), list(range(COUNT)))


def test_into_a_store_which_notices_another(hub, tmp_path):
    job, out = on_device(means_job()), tmp_path / "h.zarr"

    def run(dataset):
        return stream(job, Source.of_hugging_face(dataset), out, size=(32, 32))

    assert run(hub).now == COUNT
    assert run(hub).now == 0
    with pytest.raises(StoreError, match=r"1 removed \(n8.png\)"):
        run(hub.select(range(8)))
    changed = hub.to_dict()
    changed["image"] = cells(0, COUNT)
    changed["image"][3]["bytes"] = image(77)
    with pytest.raises(StoreError, match=r"1 of those that are done.* changed since \(n3.png\)"):
        run(datasets.Dataset.from_dict(changed, features=hub.features))


def test_paths_several_labels_and_none(tmp_path):
    (tmp_path / "on disk.png").write_bytes(image(3))
    given = {"image": [str(tmp_path / "on disk.png")], "other": [1]}
    dataset = datasets.Dataset.from_dict(given).cast_column("image", datasets.Image())
    source = Source.of_hugging_face(dataset)
    assert not source.read(0, None, RECIPE).problem
    assert source.labels is None
    features = {"image": datasets.Image(), "labels": datasets.List(CLASSES)}
    given = {"image": [image(0), image(1)], "labels": [[0, 1], []]}
    dataset = datasets.Dataset.from_dict(given, features=datasets.Features(features))
    source = Source.of_hugging_face(dataset)
    assert source.names == ["0", "1"]
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [[True] * 2, [False] * 2])


def test_what_is_no_data_set_of_images(hub):
    paths = datasets.Dataset.from_dict({"image": ["a.png"]})
    for given, says in [
        (datasets.DatasetDict(train=hub, test=hub), "choose of train, test"),
        (hub.to_iterable_dataset(), "IterableDataset has no rows by number: load it without stre"),
        ([1, 2], "list has no rows by number: pass a datasets.Dataset"),
        (hub.remove_columns("image"), "no column `image` in it: its columns are label"),
        (paths, "the column image holds paths, and no images: cast it"),
        (datasets.Dataset.from_dict({"image": [1]}), "the column image is int64"),
        (hub.select([]), "no images in it"),
    ]:
        with pytest.raises(DatasetError) as error:
            Source.of_hugging_face(given)
        assert says in str(error.value)
