"""ArrayRecord files, of TFDS and others: streamed and trained on as the same images in folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from records import IMAGE, describe, example, label, objects, write_records
from streaming_jobs import means_job, on_device
from test_archives import image

from flaxvgg.images.datasets import DatasetError
from flaxvgg.images.examples import read_example
from flaxvgg.images.labelled import read_labelled
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming import Source, find_source, stream

RECIPE = PREPROCESSING["torchvision"]
LABELS = [1, 0, -1, 1, 0]


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Two shards of a classification set, as TFDS prepares one, in the folder of its version."""
    folder = tmp_path / "pets" / "1.0.0"
    folder.mkdir(parents=True)
    records = [example({"image": [image(i)], "label": [n]}) for i, n in enumerate(LABELS)]
    for shard, part in enumerate((records[:3], records[3:])):
        write_records(folder / f"pets-train.array_record-{shard:05}-of-00002", part)
    describe(folder, {"image": IMAGE, "label": label(2)}, {"label": ["cat", "dog"]})
    return folder


def check(source: Source, row: int, number: int) -> None:
    item = source.read(row, None, RECIPE)
    expected = Source([image(number)], ["one"]).read(0, None, RECIPE)
    np.testing.assert_array_equal(item.pixels, expected.pixels)


def test_a_folder_of_tfds_streams_with_its_labels(prepared, tmp_path):
    pattern = prepared / "pets-train.array_record*"
    for given in (prepared, prepared.parent, pattern, sorted(prepared.glob("*.array_record*"))):
        source = find_source(given)
        assert source.classes == ("cat", "dog")
        assert source.label_shape == ()
        assert source.names[3] == "pets-train.array_record-00001-of-00002/0"
        for row in (4, 0, 2):
            check(source, row, row)
            assert source.read(row, None, RECIPE).label == LABELS[row]
    done = stream(on_device(means_job()), find_source(prepared), tmp_path / "a.zarr", size=(32, 32))
    assert (done.now, done.problems) == (5, {})
    assert done.store.read("label").tolist() == LABELS
    assert (
        stream(
            on_device(means_job()), find_source(prepared), tmp_path / "a.zarr", size=(32, 32)
        ).now
        == 0
    )


def test_a_folder_of_tfds_is_trained_on(prepared):
    found = read_labelled(prepared)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [1, 0]]
    assert found.paths[4].read() == image(4)
    turned = read_labelled(prepared, ("dog", "cat"))
    assert turned.labels.tolist() == found.labels[:, ::-1].tolist()
    with pytest.raises(DatasetError, match="'cat' is none of the classes"):
        read_labelled(prepared, ("owl", "dog"))


def test_boxes_of_tfds_are_in_pixels_and_difficult_ones_left_out(tmp_path):
    """An image of 40 x 36 pixels (width x height): see test_archives.image."""
    values = {
        "image": [image(1)],
        "objects/bbox": [0.25, 0.1, 0.5, 0.6, 0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.9],
        "objects/label": [2, 0, 1],
        "objects/is_difficult": [0, 1, 0],
    }
    write_records(tmp_path / "voc.array_record", [example(values), example({"image": [image(2)]})])
    names = ["cat", "dog", "owl"]
    describe(tmp_path, {"image": IMAGE, "objects": objects(3)}, {"objects-label": names})
    source = find_source(tmp_path / "voc.array_record")
    height, width = source.read(0, None, RECIPE).size
    assert source.boxes is not None
    # The last one has no height.
    expected = round(0.1 * width), round(0.25 * height), round(0.6 * width), round(0.5 * height)
    assert list(source.boxes) == [{2: (expected,)}, {}]
    assert source.classes == ("cat", "dog", "owl")
    assert source.label_shape == (3,)
    assert source.read(0, None, RECIPE).label == [True, True, True]
    np.testing.assert_array_equal(source.boxes_on(source.read(0, None, RECIPE), 2), [expected])


def test_records_that_nothing_describes(tmp_path):
    plain = write_records(tmp_path / "plain.arrayrecord", [image(0), image(1)])
    source = find_source(plain)
    check(source, 1, 1)
    assert (source.labels, source.label_shape, source.boxes) == (None, None, None)
    with pytest.raises(DatasetError, match="no column `labels` in it"):
        read_labelled(plain)
    keys = {"image/encoded": [image(3)], "image/class/label": [7], "image/height": [36]}
    source = find_source(write_records(tmp_path / "b.array_record", [example(keys)]))
    check(source, 0, 3)
    assert source.read(0, None, RECIPE).label == 7


def test_other_spellings_of_a_description(prepared):
    features = {"photo": IMAGE, "kinds": {"sequence": {"feature": label(3)}}}
    for shard in prepared.glob("*.array_record*"):
        shard.unlink()
    record = example({"photo": [image(0)], "kinds": [2, 0]})
    write_records(
        prepared / "a.array_record", [record, example({"photo": [image(1)], "kinds": []})]
    )
    (prepared / "features.json").write_text(
        json.dumps({"type": "FeaturesDict", "content": json.dumps({"features": features})})
    )
    source = find_source(prepared)
    assert source.classes == ("0", "1", "2")
    assert source.read(0, None, RECIPE).label == [True, False, True]
    assert source.read(1, None, RECIPE).label == [False, False, False]
    for text, says in [
        ("{", "it cannot be read"),
        ('{"a": 1}', "it describes no features of TFDS"),
        ('{"featuresDict": {"features": {"x": {"text": {}}}}}', "no feature `image` in it"),
    ]:
        (prepared / "features.json").write_text(text)
        with pytest.raises(DatasetError, match=says):
            find_source(prepared)


def test_a_damaged_shard_is_a_line_and_what_is_whole_is_kept(prepared, tmp_path):
    paths = sorted(prepared.glob("*.array_record*"))
    whole = paths[0].read_bytes()
    noise = np.random.default_rng(0).bytes(3000)
    record = example({"image": [image(0) + noise], "label": [0]})
    write_records(paths[0], [record, record, example({"image": [image(2)], "label": [1]})])
    data = bytearray(paths[0].read_bytes())
    data[data.index(noise[100:130])] ^= 1
    paths[0].write_bytes(data)
    done = stream(on_device(means_job()), find_source(prepared), tmp_path / "d.zarr", size=(32, 32))
    assert list(done.problems) == [f"{paths[0].name}/0"]
    says = f"record 0 of {paths[0].name} is damaged ("
    assert done.problems[f"{paths[0].name}/0"].startswith(says)
    assert done.problems[f"{paths[0].name}/0"].endswith("): get it again")
    assert int((done.store.status == 1).sum()) == 4
    assert read_labelled(prepared).labels.tolist()[:2] == [[0, 0], [1, 0]]
    for data in (whole[: len(whole) // 2], b"", b"no record" * 9999):
        paths[0].write_bytes(data)
        with pytest.raises(DatasetError, match="no ArrayRecord file, or a damaged one") as error:
            find_source(prepared)
        assert str(error.value).startswith(str(paths[0]))
        assert "\n" not in str(error.value)
    paths[0].unlink()
    with pytest.raises(DatasetError, match="1 of 2 shards are there, and not 0"):
        find_source(prepared)
    with pytest.raises(DatasetError, match="No such file"):
        find_source(paths[0])


def test_splits_of_a_set_are_named(prepared):
    write_records(prepared / "pets-test.array_record-00000-of-00001", [image(0)])
    with pytest.raises(
        DatasetError, match=r"2 sets in it: name one of .*pets-test.*, .*train-\*.arr"
    ):
        find_source(prepared)


def test_an_example_is_read_as_it_was_written():
    values = {"a": [b"1", b""], "b": [-1, 2**40], "c": [0.5, -2.0], "d": []}
    assert read_example(example(values)) == values
    with pytest.raises(ValueError, match=r"no record of tf\.train\.Example"):
        read_example(b"\xff" * 9)
