"""ArrayRecord files as TFDS writes them, made without it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxvgg.images.examples import example_message

_TFDS = "tensorflow_datasets.core.features"
IMAGE = {"pythonClassName": f"{_TFDS}.image_feature.Image", "image": {"encodingFormat": "png"}}
_BOX = {"pythonClassName": f"{_TFDS}.bounding_boxes.BBoxFeature", "tensor": {"dtype": "float32"}}


def label(count: int) -> dict[str, Any]:
    """The description of a class number."""
    name = f"{_TFDS}.class_label_feature.ClassLabel"
    return {"pythonClassName": name, "classLabel": {"numClasses": str(count)}}


def objects(count: int) -> dict[str, Any]:
    """The description of any number of objects."""
    features = {"bbox": _BOX, "label": label(count), "is_difficult": {"tensor": {"dtype": "bool"}}}
    return {
        "pythonClassName": f"{_TFDS}.sequence_feature.Sequence",
        "sequence": {"feature": {"featuresDict": {"features": features}}, "length": "-1"},
    }


def example(values: Mapping[str, Sequence[Any]]) -> bytes:
    """A record of `tf.train.Example`."""
    made = example_message()()
    for name, given in values.items():
        feature = made.features.feature[name]
        kind = {bytes: "Bytes_list", float: "Floats_list"}.get(type((given or [0])[0]), "Ints_list")
        getattr(feature, kind).value.extend(given)
    return made.SerializeToString()


def write_records(path: Path, records: Iterable[bytes]) -> Path:
    """An ArrayRecord file, with each record in a chunk of its own as Grain wants it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def describe(folder: Path, features: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> None:
    """What TFDS writes beside the records."""
    told = {"pythonClassName": f"{_TFDS}.features_dict.FeaturesDict"}
    told |= {"featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(told))
    for key, classes in names.items():
        text = "".join(f"{name}\n" for name in classes)
        (folder / f"{key}.labels.txt").write_text(text)
