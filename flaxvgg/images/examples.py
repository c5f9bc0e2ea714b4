"""Records of `tf.train.Example`, as TFDS writes them, read by protobuf itself: no TensorFlow.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/example.proto
"""

from functools import cache
from typing import Any


def read_example(record: bytes) -> dict[str, list[Any]]:
    """The values of each feature, by name. Raises ValueError for what is no such record."""
    from google.protobuf.message import DecodeError

    try:
        features = example_message().FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"no record of tf.train.Example ({error})") from None
    found = {}
    for name in features:
        kind = features[name].WhichOneof("kind")
        found[name] = list(getattr(features[name], kind).value) if kind else []
    return found


@cache
def example_message() -> Any:
    """The class of messages, for protobuf's own ways to read and write them."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="x", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> Any:
        made = file.message_type.add(name=name)
        for number, (title, label, kind, of) in enumerate(fields, 1):
            made.field.add(name=title, number=number, label=label, type=kind, type_name=of or None)
        return made

    one, many, text, other = (
        field.LABEL_OPTIONAL,
        field.LABEL_REPEATED,
        field.TYPE_STRING,
        field.TYPE_MESSAGE,
    )
    message("Bytes", ("value", many, field.TYPE_BYTES, ""))
    message("Floats", ("value", many, field.TYPE_FLOAT, ""))
    message("Ints", ("value", many, field.TYPE_INT64, ""))
    lists = [(f"{name}_list", one, other, f".x.{name}") for name in ("Bytes", "Floats", "Ints")]
    feature = message("Feature", *lists)
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = message("Features", ("feature", many, other, ".x.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=text)
    entry.field.add(name="value", number=2, label=one, type=other, type_name=".x.Feature")
    message("Example", ("features", one, other, ".x.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("x.Example"))
