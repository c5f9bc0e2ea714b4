"""Images with labels: folders, CSV files, Pascal VOC; and what is said of broken ones."""

import itertools

import numpy as np
import pytest
from PIL import Image

from flaxvgg.images.datasets import (
    VOC_CLASSES,
    DatasetError,
    LabelledImages,
    image_folder,
    label_file,
    pascal_voc,
)
from flaxvgg.images.finding import PassedOver
from flaxvgg.images.labelled import read_labelled
from flaxvgg.streaming import find_source


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 32)).save(path)
    return path


def test_each_folder_is_a_class(tmp_path):
    dog = _image(tmp_path / "dog" / "deep" / "a.png")
    cats = [_image(tmp_path / "cat" / name) for name in ("a.jpg", "b.jpg")]
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    found = image_folder(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.paths == (*cats, dog)
    np.testing.assert_array_equal(found.labels, [[1, 0], [1, 0], [0, 1]])
    assert found.labels.dtype == np.float32
    assert found.boxes is None
    renumbered = image_folder(tmp_path, ("dog", "cow", "cat"))
    np.testing.assert_array_equal(renumbered.labels, [[0, 0, 1], [0, 0, 1], [1, 0, 0]])


def test_every_bad_folder_is_named(tmp_path):
    _image(tmp_path / "cat" / "a.jpg")
    (tmp_path / "dog").mkdir()
    _image(tmp_path / "cta" / "a.jpg")
    with pytest.raises(DatasetError, match="2 problems") as error:
        image_folder(tmp_path, ("cat", "dog"))
    assert "class dog is empty" in str(error.value)
    assert "'cta' is none of the classes: did you mean cat?" in str(error.value)
    with pytest.raises(DatasetError, match="no such folder"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no folders in it"):
        image_folder(tmp_path / "cat")


def test_a_csv_file_gives_many_labels_or_none(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png"):
        _image(tmp_path / name)
    table = tmp_path / "labels.csv"
    # As a spreadsheet writes it: with a mark of the encoding, and a column of its own.
    table.write_text(
        "image,labels,by\na.png,cat; dog,me\nsub/b.png,,me\nc.png,dog,me\n", "utf-8-sig"
    )
    found = label_file(table)
    assert found.classes == ("cat", "dog")
    assert found.paths == tuple(tmp_path / name for name in ("a.png", "sub/b.png", "c.png"))
    np.testing.assert_array_equal(found.labels, [[1, 1], [0, 0], [0, 1]])
    assert read_labelled(table).classes == found.classes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the first line must be image,labels, not nothing"),
        ("file,label\na.png,cat\n", "not file, label"),
        ("image,labels\n", "no images in it"),
        ("image,labels,labels\na.png,cat,dog\n", "the first line has a column twice"),
        ('image,labels\n"a.png,cat\n', "no CSV file: unexpected end of data"),
        (f"image,labels\n{300 * 'a'},cat\n", "line 2: a+ is missing"),
        ("image,labels\na.png\0,cat\n", "line 2: a.png\0 is missing"),
        ("image,labels\na.png,\n", "no labels in it"),
        ("image,labels\na.png,cat\na.png,dog\n", "line 3: a.png for the second time"),
        ("image,labels\nb.png,cat\na.png,cat\n../c.png,cat\n", "line 2: b.png is missing"),
        ("\xff\xfe".encode("latin-1"), "no CSV file"),
    ],
)
def test_a_bad_csv_file_says_which_line(tmp_path, text, said):
    _image(tmp_path / "a.png")
    table = tmp_path / "labels.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=said):
        label_file(table)


def test_unknown_labels_and_long_lists_stay_readable(tmp_path):
    rows = "".join(f"{i}.png,cat\n" for i in range(30))
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\n" + rows)
    with pytest.raises(DatasetError, match="30 problems") as error:
        label_file(table)
    assert str(error.value).count("is missing") == 10
    assert "and 20 more" in str(error.value)
    assert len(error.value.problems) == 30
    _image(tmp_path / "0.png")
    table.write_text("image,labels\n0.png,cta\n")
    with pytest.raises(
        DatasetError, match="line 2: 'cta' is none of the classes: did you mean cat"
    ):
        label_file(table, ("cat", "dog"))


def test_a_row_longer_than_the_first(tmp_path):
    _image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,labels\na.png,cat,dog\n")
    with pytest.raises(DatasetError, match=r"line 2: more columns than in the first .* semicolons"):
        label_file(tmp_path / "labels.csv")


def _annotation(*objects: tuple[str, str, tuple[float, ...]]) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    body = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{n}>{x}</{n}>" for n, x in zip(names, box, strict=True))
        + "</bndbox></object>"
        for name, difficult, box in objects
    )
    return f"<annotation>{body}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Two images in the layout of VOCdevkit/VOC2007."""
    for name, objects in {
        "000001": [("dog", "0", (1, 2, 20, 30)), ("dog", "0", (5.6, 2, 40, 32))],
        "000002": [("cat", "1", (1, 1, 5, 5)), ("person", "0", (3, 3, 9, 9))],
    }.items():
        _image(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        text = _annotation(*objects)
        if name == "000002":
            size = "<size><width>40</width><height>32</height></size></annotation>"
            text = text.replace("</annotation>", size)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "trainval.txt").write_text("000001\n000002\n")
    (sets / "test.txt").write_text("000002\n000003\n")
    return tmp_path


def test_pascal_voc_as_it_is_published(voc):
    found = read_labelled(voc)
    dog, cat, person = (VOC_CLASSES.index(name) for name in ("dog", "cat", "person"))
    assert found.labels.shape == (2, 20)
    assert found.labels.sum() == 2
    assert found.labels[0, dog] == found.labels[1, person] == 1
    assert found.labels[1, cat] == 0  # difficult
    # Counted from 0, the right and bottom no more part of it; older annotations have fractions.
    assert found.sizes == (None, (32, 40))
    assert found.of(np.array([1])).sizes == ((32, 40),)
    assert found.boxes == ({dog: ((0, 1, 20, 30), (5, 1, 40, 32))}, {person: ((2, 2, 9, 9),)})
    with pytest.raises(DatasetError, match="2 problems") as error:
        pascal_voc(voc, "test")
    assert "JPEGImages/000003.jpg is missing" in str(error.value)
    with pytest.raises(DatasetError, match=r"no ImageSets/Main/val\.txt"):
        pascal_voc(voc, "val")


def _bomb() -> str:
    """Ten letters, of which the last stands for a thousand million of the first."""
    entities = "".join(
        f'<!ENTITY {b} "{10 * f"&{a};"}">' for a, b in itertools.pairwise("abcdefghij")
    )
    return f'<!DOCTYPE x [<!ENTITY a "ha">{entities}]><annotation>&j;</annotation>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "no element found"),
        (_annotation(("unicorn", "0", (1, 1, 2, 2))), "'unicorn' is none of the classes"),
        (_annotation(("dog", "0", (1, 1, 2, "nan"))), "NaN"),
        (_annotation(("dog", "0", (1, 1, "inf", 2))), "infinity"),
        (_annotation(("dog", "0", (9, 1, 2, 2))), r"the box \(9, 1, 2, 2\) is empty"),
        ('<?xml version="1.0" encoding="nonsense"?><x/>', "unknown encoding"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>', "undefined entity"),
        (_bomb(), "limit on input amplification factor"),
    ],
)
def test_a_broken_annotation_is_named(voc, text, said):
    (voc / "Annotations" / "000002.xml").write_text(text)
    with pytest.raises(DatasetError, match=r"Annotations/000002.xml: .*" + said):
        pascal_voc(voc)


@pytest.mark.parametrize("names", [b"\xff\xfe", b"a" * 300])
def test_a_list_of_images_that_is_none(voc, names):
    (voc / "ImageSets" / "Main" / "trainval.txt").write_bytes(names)
    with pytest.raises(DatasetError, match=r"is no text|is missing"):
        pascal_voc(voc)


def test_held_out_images_are_drawn_class_by_class(tmp_path):
    for name, count in {"cat": 10, "dog": 5, "owl": 1}.items():
        for i in range(count):
            _image(tmp_path / name / f"{i}.png")
    found = image_folder(tmp_path)
    train, test = found.split(0.2)
    assert set(train.paths) | set(test.paths) == set(found.paths)
    assert not set(train.paths) & set(test.paths)
    np.testing.assert_array_equal(test.labels.sum(0), [2, 1, 0])
    assert found.split(0.2)[1].paths == test.paths
    assert found.split(0.2, seed=1)[1].paths != test.paths
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.split(1.0)
    with pytest.raises(ValueError, match="too few images"):
        found.of(np.array([15])).split(0.5)


def _both(table):
    """Classes and labels (N, K) of a table, which training and streaming read alike."""
    training, streaming = label_file(table), find_source(table)
    assert training.classes == streaming.classes
    labels = streaming.labels
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(len(streaming.classes))
    np.testing.assert_array_equal(training.labels, labels)
    assert list(training.paths) == [table.parent / name for name in streaming.names]
    return training.classes, [np.flatnonzero(row).tolist() for row in training.labels]


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("image,labels\na.png,10\nb.png,2\n", tuple(map(str, range(11))), [[10], [2]]),
        ("image, labels\na.png, 1\nb.png, 0\n", ("0", "1"), [[1], [0]]),
        ("image,label\na.png,1.0\nb.png,0.0\n", ("0", "1"), [[1], [0]]),
        ("image,labels\na.png,-1\nb.png,1\n", ("0", "1"), [[], [1]]),
        ("image,labels\na.png,\nb.png,1\n,,\n\n", ("0", "1"), [[], [1]]),
        ("image,labels\na.png,-1.0\nb.png,0;1\n", ("0", "1"), [[], [0, 1]]),
        ("image,labels\na.png,7\nb.png,cat\n", ("7", "cat"), [[0], [1]]),
        ('Image;Labels\na.png;"dog;cat"\nb.png;cat\n', ("cat", "dog"), [[0, 1], [0]]),
        ("labels\timage\ncat\ta.png\ndog\tb.png\n", ("cat", "dog"), [[0], [1]]),
        ('image, labels\na.png, "a; b"\nb.png , a\n', ("a", "b"), [[0, 1], [0]]),
        ("image,labels\n.\\a.png,x\n.\\b.png,x\n", ("x",), [[0], [0]]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_people_have_them(tmp_path, text, classes, labels, encoding):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text(text, encoding)
    assert _both(tmp_path / "labels.csv") == (classes, labels)


def test_labels_in_parquet_are_those_of_csv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["a.png", "b.png", "c.png"]
    for name in names:
        (tmp_path / name).touch()
    ten = tuple(map(str, range(11)))
    for column, classes, labels in (
        ([10, 2, -1], ten, [[10], [2], []]),
        ([10.0, 2.0, None], ten, [[10], [2], []]),
        ([10.0, 2.0, float("nan")], ten, [[10], [2], []]),
        (["10", "2", ""], ten, [[10], [2], []]),
        ([["dog", "cat"], [], ["cat"]], ("cat", "dog"), [[0, 1], [], [0]]),
        ([True, False, None], ("False", "True"), [[1], [0], []]),
    ):
        table = pyarrow.table({"image": names, "label": column})
        parquet.write_table(table, tmp_path / "labels.parquet")
        assert _both(tmp_path / "labels.parquet") == (classes, labels)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"image,labels\na.png,0.5\n", "class 0.5: a class is a name, or a whole number"),
        (b"image,labels\na.png,-2\n", "class -2: class numbers count from 0"),
        (b"image,labels\na.png,99999\n", "class 99999: numbers are to be below 65536"),
        (b"image\na.png\n", "no column `labels`"),
        (
            "image,labels\na.png,café\n".encode("latin-1"),
            r"line 2 is no UTF-8 \(byte 0xe9\)\. .* iconv -f CP1252 -t UTF-8 labels.csv > utf8.csv",
        ),
        ("image,labels\na.png,cat\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("image,labels\na.png,cat\n".encode("utf-32"), "it is UTF-32: save it as UTF-8"),
        ("image,labels".encode("utf-16")[:-1], "damaged UTF-16"),
        (b"PK\x03\x04 and so on", "a spreadsheet: save it as CSV, in UTF-8"),
    ],
)
def test_tables_that_are_told_what_they_are(tmp_path, data, said):
    (tmp_path / "a.png").touch()
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=said):
        label_file(tmp_path / "labels.csv")


def test_hidden_folders_are_no_classes_and_links_are(tmp_path):
    _image(tmp_path / "elsewhere" / "a.png")
    _image(tmp_path / "pets" / "cat" / "a.png")
    for name in (".Trash-0", ".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints"):
        _image(tmp_path / "pets" / name / "a.png")
    (tmp_path / "pets" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets" / "cat" / "b.heic").touch()
    with pytest.warns(PassedOver, match=r"pets: 1 file passed over: 1 \.heic"):
        training = image_folder(tmp_path / "pets")
    with pytest.warns(PassedOver, match=r"pets: 1 file passed over: 1 \.heic"):
        streaming = find_source(tmp_path / "pets")
    assert training.classes == streaming.classes == ("cat", "dog")
    assert training.labels.argmax(1).tolist() == streaming.labels.tolist() == [0, 1]


def test_class_numbers_with_gaps_are_trained_on_without(tmp_path):
    for name in ("a.png", "b.png"):
        _image(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,labels\na.png,5\nb.png,2\n")
    found = label_file(tmp_path / "labels.csv")
    assert found.labels.argmax(1).tolist() == [5, 2]
    trained = found.without_gaps()
    assert trained.classes == ("2", "5")
    np.testing.assert_array_equal(trained.labels, [[0, 1], [1, 0]])
    test = label_file(tmp_path / "labels.csv", trained.classes)
    np.testing.assert_array_equal(test.labels, trained.labels)
    named = found.of(np.arange(2))
    assert image_folder_like(named).without_gaps().classes == ("cat", "dog", "owl")


def image_folder_like(images):
    """The same images, of which none is of the class owl."""
    labels = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    return LabelledImages(images.paths, labels, ("cat", "dog", "owl"))
