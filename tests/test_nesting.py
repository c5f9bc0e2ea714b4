"""Values nested without end, in every text of a stranger that is read here."""

import json

import pytest

from convert.readers.keras_file import read_layers
from convert.source import SourceError
from flaxvgg.nesting import DEEPEST, parse_json, shallow


def _deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_as_deep_as_allowed_and_no_deeper():
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert json.dumps(parse_json(_deep(DEEPEST))) == _deep(DEEPEST)
    # One too many; more than Python's limit for calls; more than any JSON reader takes.
    for levels in (DEEPEST + 1, 5000, 10**6):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            parse_json(_deep(levels))
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_json('{"a":' * 200 + "1" + "}" * 200)
    with pytest.raises(ValueError, match="Expecting value"):
        parse_json("")


def test_breadth_is_no_depth():
    wide = {"layers": [{"name": str(i)} for i in range(1000)]}
    assert shallow(wide) is wide
    assert shallow((1, "text")) == (1, "text")


@pytest.mark.parametrize("levels", [40, 900, 2500])
def test_keras_models_within_models(tmp_path, levels: int):
    import h5py

    config = '{"config":{"layers":[' * levels + "]}}" * levels  # an attribute has 64 KiB at most
    path = tmp_path / "deep.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a/vars/0", data=[1.0])
        file.attrs["model_config"] = config
    with pytest.raises(SourceError, match="nested more than 100 deep"):
        read_layers(path)
